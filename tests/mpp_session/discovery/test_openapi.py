"""The OpenAPI document: draft-payment-discovery-01, and registries' own members on request."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from channel.http import Price, Route
from channel.methods.evm.method import EVM
from channel.wire.encoding import format_checksum_address
from mpp_session.discovery.openapi import openapi_document
from tests.channel.chain_model import CHAIN_ID
from tests.channel.selling import TOKEN, ask
from tests.mpp_session.discovery.describing import ROUTES, TEXT, USDC, describe, gate


async def test_the_document_has_the_required_members(tmp_path: Path) -> None:
    """DISC-01, DISC-02, DISC-05: a title, a version, paths, a 402 for each paid operation."""
    async with gate(tmp_path) as sold:
        service = describe(sold, url="https://a.example", contact="a@a.example")
    document = openapi_document(service)
    assert document["openapi"] == "3.1.0"
    assert document["info"]["title"]
    assert document["info"]["version"]
    assert document["info"]["contact"] == {"email": "a@a.example"}
    assert document["servers"] == [{"url": "https://a.example"}]
    docs = document["x-service-info"]["docs"]
    assert docs == {"homepage": "https://a.example/", "llms": "https://a.example/llms.txt"}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            is_paid = (method, path) in {("post", "/text"), ("put", "/songs")} or "name" in path
            assert ("x-payment-info" in operation) is is_paid
            assert ("402" in operation["responses"]) is is_paid
            assert operation["summary"]
            assert operation["security"] == []
            named = [one["name"] for one in operation.get("parameters", [])]
            assert named == re.findall(r"\{(\w+)\}", path)


async def test_a_service_without_an_address_states_no_links(tmp_path: Path) -> None:
    """DISC-05: links are whole URIs, or none."""
    async with gate(tmp_path) as sold:
        document = openapi_document(describe(sold, contact="https://a.example/help"))
    assert "servers" not in document
    assert document["x-service-info"] == {}
    assert document["info"]["contact"] == {"url": "https://a.example/help"}


async def test_the_offer_is_that_of_the_challenge(tmp_path: Path) -> None:
    """DISC-04, DISC-07: amount, currency, method and intent, for each kind of price."""
    async with gate(tmp_path) as sold:
        paths = openapi_document(describe(sold))["paths"]
        for method, path, template in (
            ("POST", "/text", "/text"),
            ("GET", "/songs/a/b", "/songs/{name}/{rest}"),
        ):
            answer = await ask(sold, method, path)
            challenge = answer.challenge
            asked = EVM.parse_request(challenge.request)
            (offer,) = paths[template][method.lower()]["x-payment-info"]["offers"]
            assert offer["amount"] == str(asked.unit_price)
            assert offer["currency"] == format_checksum_address(asked.currency)
            assert (offer["method"], offer["intent"]) == (challenge.method, challenge.intent)
            assert f"per {asked.unit_type} on chain {asked.chain_id}" in offer["description"]
            (price,) = msgspec.json.decode(answer.body)["price"]
            assert price["display"] in offer["description"]


async def test_an_offer_has_the_members_of_the_draft_alone(tmp_path: Path) -> None:
    """DISC-03, DISC-04: its schema allows no others. A price that depends on the request: null."""
    async with gate(tmp_path) as sold:
        paths = openapi_document(describe(sold))["paths"]
    found = [
        operation["x-payment-info"]
        for item in paths.values()
        for operation in item.values()
        if "x-payment-info" in operation
    ]
    assert len(found) == 3
    for info in found:
        assert [*info] == ["offers"]
        (offer,) = info["offers"]
        assert {*offer} == {"intent", "method", "amount", "currency", "description"}
        amount = offer["amount"]
        assert amount is None or re.fullmatch("0|[1-9][0-9]*", amount)
    (dynamic,) = paths["/songs"]["put"]["x-payment-info"]["offers"]
    assert dynamic["amount"] is None
    assert dynamic["currency"] == format_checksum_address(TOKEN)
    assert f"on chain {CHAIN_ID}" in dynamic["description"]


async def test_schemas_and_examples_are_in_the_document(tmp_path: Path) -> None:
    """DISC-06, DISC-10."""
    async with gate(tmp_path) as sold:
        paths = openapi_document(describe(sold))["paths"]
    text = paths["/text"]["post"]
    assert text["requestBody"]["content"]["application/json"] == TEXT.body
    assert text["responses"]["200"]["content"] == TEXT.answers
    assert "requestBody" in paths["/songs"]["put"]
    assert "requestBody" not in paths["/songs/{name}/{rest}"]["get"]


ADDED = [
    ("post", "/text", {"mode": "dynamic", "currency": "USD", "min": "0.000007"}),
    ("get", "/songs/{name}/{rest}", {"mode": "fixed", "currency": "USD", "amount": "0.000030"}),
    ("put", "/songs", {"mode": "dynamic", "currency": "USD"}),
]


@pytest.mark.parametrize(("method", "path", "price"), ADDED)
async def test_agentcash_gets_its_members_when_asked_for(
    tmp_path: Path, method: str, path: str, price: dict[str, Any]
) -> None:
    async with gate(tmp_path) as sold:
        service = describe(sold, compat=("agentcash",), url="https://a.example")
    document = openapi_document(service)
    assert "/songs" in document["info"]["x-guidance"]
    assert document["x-agentcash-guidance"] == {"llmsTxtUrl": "https://a.example/llms.txt"}
    info = document["paths"][path][method]["x-payment-info"]
    assert info["price"] == price
    token = format_checksum_address(TOKEN)
    assert info["protocols"] == [{"mpp": {"method": "evm", "intent": "session", "currency": token}}]
    assert len(info["offers"]) == 1


async def test_a_metered_price_has_its_maximum_as_bound(tmp_path: Path) -> None:
    price = Price(rates={"output_token": "0.40 / 1M"}, maximum="0.25")
    route = Route(method="GET", path="/story", price=price, metered=True)
    async with gate(tmp_path, [route]) as sold:
        document = openapi_document(describe(sold, compat=("agentcash",), currency="EUR"))
    found = document["paths"]["/story"]["get"]["x-payment-info"]["price"]
    assert found == {"mode": "dynamic", "currency": "EUR", "min": "0", "max": "0.250000"}


async def test_a_token_without_decimals_has_no_price_in_whole_tokens(tmp_path: Path) -> None:
    routes = [one for one in ROUTES if one.path != "/text"]
    async with gate(tmp_path, routes, unit=None) as sold:
        paths = openapi_document(describe(sold, compat=("agentcash",)))["paths"]
    info = paths["/songs/{name}/{rest}"]["get"]["x-payment-info"]
    assert info["price"] == {"mode": "dynamic", "currency": "USD"}
    assert "10 base units / song, 3 a request" in info["offers"][0]["description"]
    assert USDC.symbol not in str(info)
