"""Every registry's form states the same prices, those of the challenges."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from channel.errors import ConfigError
from channel.http import Price, Route
from channel.methods.evm.method import EVM
from mpp_session.cli.discovery import Form
from mpp_session.discovery.forms import FORMS, served_forms
from mpp_session.discovery.page import service_page
from mpp_session.discovery.service import Service
from tests.channel.selling import ask
from tests.mpp_session.discovery.describing import TEXT, describe, gate

URL: Final = "https://llm.example.com"
FIRST: Final = Price(rates={"output_token": "0.40 / 1M", "input_token": "0.10 / 1M"})
SECOND: Final = Price(rates={"output_token": "0.90 / 1M"}, minimum=7)


def _routes(price: Price) -> list[Route]:
    return [
        Route(method="POST", path="/text", price=price, metered=True),
        Route(method="POST", path="/mcp", price=price),
        Route(method="GET", path="/song/{name}", price=price),
    ]


def _amounts(name: str, document: Any) -> Iterator[str | None]:
    """Yield every amount that a form states for programs."""
    if name == "openapi":
        for item in document["paths"].values():
            for operation in item.values():
                for offer in operation.get("x-payment-info", {}).get("offers", []):
                    yield offer["amount"]
    elif name == "a2a":
        (extension,) = document["capabilities"]["extensions"]
        for offers in extension["params"]["offers"].values():
            yield from (one["amount"] for one in offers)
    elif name == "mcp":
        (meta,) = document["_meta"].values()
        yield from (one["amount"] for one in meta["offers"])
    elif name == "mpp.dev":
        yield from (one["amount"] for one in document["endpoints"] if "amount" in one)


@pytest.mark.parametrize("price", [FIRST, SECOND], ids=["first", "second"])
async def test_no_two_forms_disagree_about_a_price(tmp_path: Path, price: Price) -> None:
    """DISC-07: the price for people and the amount for programs, after a change of prices too."""
    async with gate(tmp_path, _routes(FIRST)) as sold:
        sold.replace_routes(_routes(price))
        answer = await ask(sold, "POST", "/text")
        demanded = str(EVM.parse_request(answer.challenge.request).unit_price)
        shown = json.loads(answer.body)["price"][0]["display"]
        service = describe(sold, url=URL, compat=("agentcash", "x402", "a2a"))
    texts = {name: form.render(service).decode() for name, form in FORMS.items()}
    texts["page"] = service_page(service)
    for name, text in texts.items():
        assert shown in text, name
        assert ("0.90" if price is FIRST else "0.40") not in text, name
    for name in ("openapi", "a2a", "mcp", "mpp.dev"):
        stated = list(_amounts(name, json.loads(texts[name])))
        assert stated, name
        assert set(stated) == {demanded}, name


def test_the_command_knows_every_form() -> None:
    assert [one.value for one in Form] == list(FORMS)


def test_a_form_is_served_only_if_its_registry_is_named() -> None:
    """DISC-03: strict by default."""
    assert [path for path, _ in served_forms(())] == ["/openapi.json", "/llms.txt"]
    assert [path for path, _ in served_forms(("a2a",))][2:] == ["/.well-known/agent-card.json"]


@pytest.mark.parametrize("name", ["mcp", "mpp.dev", "pay-skills"])
@pytest.mark.parametrize("url", [None, "http://llm.example.com", "https://127.0.0.1:8402"])
async def test_a_listing_needs_a_public_address(tmp_path: Path, name: str, url: str | None) -> None:
    async with gate(tmp_path, _routes(FIRST)) as sold:
        service = describe(sold, url=url)
    with pytest.raises(ConfigError, match=r"set `discovery\.url`"):
        FORMS[name].render(service)


def _variants(service: Service) -> list[str]:
    return [one.price for operation in service.paid for one in operation.variants]


async def test_several_models_have_each_their_price_in_every_form(tmp_path: Path) -> None:
    routes = [Route(method="POST", path="/mcp", price=lambda _: FIRST)]
    async with gate(tmp_path, routes) as sold:
        variants = {("POST", "/mcp"): [("small", FIRST), ("large", SECOND)]}
        described = {("POST", "/mcp"): TEXT}
        service = describe(sold, url=URL, variants=variants, descriptions=described)
    assert len(set(_variants(service))) == 2
    for name, form in FORMS.items():
        text = form.render(service).decode()
        assert all(price in text for price in _variants(service)), name
        assert "small" in text, name
