"""Which route a request is for, and what it costs."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount, Router
from starlette.routing import Route as AppRoute

from channel.errors import BadRequestError, ConfigError, OtherSpellingError
from channel.http import PaymentGate, Price, Route
from channel.http.pricing import RouteTable
from channel.limits import AMOUNT_MAX, DESCRIPTION_CHARS_MAX
from channel.methods.evm.method import EVM
from tests.channel.selling import PRICE, Provider, ask, open_provider


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with open_provider(tmp_path) as opened:
        yield opened


def price(units: int = 1, unit_price: int = PRICE) -> Price:
    return Price(unit_price=unit_price, unit_type="request", units=units)


def table(provider: Provider, *paths: str) -> RouteTable:
    routes = [Route(method="GET", path=path, price=price()) for path in paths]
    return RouteTable(routes, provider.engine)


def found(routes: RouteTable, path: str, root: str = "") -> list[str]:
    try:
        return [one.route.path for one in routes.match({"path": path, "root_path": root})]
    except OtherSpellingError:
        return ["refused"]


async def test_templates_match_as_in_a_router(provider: Provider) -> None:
    """A parameter is one segment, `:path` is the rest; dots and the like are themselves."""
    routes = table(provider, "/v1.0/images/{size}", "/files/{rest:path}", "/exact")
    assert found(routes, "/v1.0/images/large") == ["/v1.0/images/{size}"]
    assert found(routes, "/v1x0/images/large") == []
    assert found(routes, "/v1.0/images/large/x") == []
    assert found(routes, "/v1.0/images/") == []
    assert found(routes, "/v1.0/images/large/") == ["/v1.0/images/{size}"]
    assert found(routes, "/v1.0/images/large//") == ["refused"]
    assert found(routes, "/files/a/b\nc") == ["/files/{rest:path}"]
    assert found(routes, "/exact") == ["/exact"]
    assert found(routes, "/exact\n\n") == ["refused"]
    assert found(routes, "/Exact") == ["refused"]


@pytest.mark.parametrize("template", ["/joke", "/jokes/{name}", "/all/{rest:path}"])
@pytest.mark.parametrize("path", ["/joke", "/jokes/one", "/all/of/them"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "/", "%0A", "\r\n", "\u2028"])
async def test_no_spelling_of_a_path_is_served_unpaid(
    provider: Provider, template: str, path: str, end: str
) -> None:
    """F-12, F-31: the gate prices every path that the router serves under a template."""
    router = Router([AppRoute(template, PlainTextResponse("sold"))])
    served = router.routes[0].matches({"type": "http", "method": "GET", "path": path + end})
    if served[0] is Match.FULL:
        assert found(table(provider, template), path + end) == [template]


@pytest.mark.parametrize("template", ["/jokes/{id:int}", "/jokes/{id", "/jokes/id}", "/{}"])
async def test_a_parameter_that_no_path_would_match_is_refused(
    provider: Provider, template: str
) -> None:
    """Else the router would serve what the gate does not see."""
    with pytest.raises(ConfigError, match="parameters"):
        table(provider, template)


async def test_the_first_template_that_matches_counts(provider: Provider) -> None:
    """As in a router: else two prices would stand for one request."""
    assert found(table(provider, "/a/b", "/a/{x}"), "/a/b") == ["/a/b"]
    assert found(table(provider, "/a/{x}", "/a/b"), "/a/b") == ["/a/{x}"]


async def test_a_mount_point_is_cut_off_whole(provider: Provider) -> None:
    """`/api` is not the mount point of `/apis`."""
    routes = table(provider, "/joke", "/apis/joke")
    assert found(routes, "/api/joke", "/api") == ["/joke"]
    assert found(routes, "/apis/joke", "/api") == ["/apis/joke"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit_price": 0},
        {"unit_price": -1},
        {"units": 0},
        {"min_voucher_delta": -1},
        {"suggested_deposit": 0},
    ],
    ids=str,
)
def test_a_price_is_positive(wrong: dict[str, int]) -> None:
    """CHAL-02: nothing is sold for nothing, or the other way round."""
    with pytest.raises(ConfigError):
        Price(**{"unit_price": 1, "unit_type": "request", **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit_price": AMOUNT_MAX + 1},
        {"unit_price": 2**100, "units": 2**28},
        {"min_voucher_delta": AMOUNT_MAX + 1},
        {"suggested_deposit": AMOUNT_MAX + 1},
        {"unit_type": "x" * (DESCRIPTION_CHARS_MAX + 1)},
        {"unit_type": ""},
        {"description": "x" * (DESCRIPTION_CHARS_MAX + 1)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_price_that_no_challenge_could_say_is_refused(wrong: dict[str, Any]) -> None:
    """ENC-04, decision 15: at start, not to the first who asks."""
    with pytest.raises(ConfigError):
        Price(**{"unit_price": 1, "unit_type": "request", **wrong})


async def test_the_greatest_price_can_be_asked(provider: Provider) -> None:
    text = "x" * DESCRIPTION_CHARS_MAX
    dearest = Price(
        unit_price=AMOUNT_MAX,
        unit_type=text,
        min_voucher_delta=AMOUNT_MAX,
        suggested_deposit=AMOUNT_MAX,
        description=text,
    )
    gate = PaymentGate(
        app, engine=provider.engine, routes=[Route(method="GET", path="/", price=dearest)]
    )
    asked = EVM.parse_request((await ask(gate, "GET", "/")).challenge.request)
    assert (asked.unit_price, asked.unit_type) == (AMOUNT_MAX, text)


def by_size(scope: Mapping[str, Any]) -> Price:
    return price(unit_price=100 if b"size=large" in scope["query_string"] else 10)


async def app(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"image"})


async def test_a_challenge_for_the_cheap_variant_does_not_buy_the_dear_one(
    provider: Provider,
) -> None:
    """F-31, CHAL-10: a price that depends on the request is part of the scope."""
    route = Route(method="GET", path="/image", price=by_size)
    gate = PaymentGate(app, engine=provider.engine, routes=[route])
    provider.payer.open_on_chain()
    small = (await ask(gate, "GET", "/image?size=small")).challenge
    opening = provider.payer.credential(small, provider.payer.opening(500))
    assert (await ask(gate, "GET", "/image?size=small", opening)).receipt.spent == 10
    refused = await ask(gate, "GET", "/image?size=large", opening)
    assert (refused.status, refused.kind) == (402, "session/challenge-not-found")
    voucher = provider.payer.credential(refused.challenge, provider.payer.voucher(600))
    assert (await ask(gate, "GET", "/image?size=large", voucher)).receipt.spent == 110


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_request_that_has_no_price_is_answered_with_why(
    provider: Provider, method: str
) -> None:
    """DESIGN 5: a price may depend on what a stranger wrote, who gets a problem, not a 500."""

    def by_kind(scope: Mapping[str, Any]) -> Price:
        raise BadRequestError(f"No such size: {scope['path']}.")

    route = Route(method="GET", path="/images/{size}", price=by_kind)
    gate = PaymentGate(app, engine=provider.engine, routes=[route])
    answer = await ask(gate, method, "/images/none")
    assert (answer.status, answer.header("www-authenticate")) == (400, None)
    if method == "GET":
        assert answer.problem["detail"] == "No such size: /images/none."


async def test_a_challenge_of_one_mount_does_not_buy_the_same_template_of_another(
    provider: Provider,
) -> None:
    """F-31, IDEM-03: two gates of one engine may sell `/chat` at two prices, below two mounts."""

    def sold_at(unit_price: int) -> PaymentGate:
        route = Route(method="GET", path="/chat", price=price(unit_price=unit_price))
        return PaymentGate(app, engine=provider.engine, routes=[route])

    site = Router([Mount("/cheap", sold_at(10)), Mount("/dear", sold_at(100))])
    provider.payer.open_on_chain()
    cheap = (await ask(site, "GET", "/cheap/chat")).challenge
    opening = provider.payer.credential(cheap, provider.payer.opening(500))
    key = {"idempotency-key": "one"}
    assert (await ask(site, "GET", "/cheap/chat", opening, headers=key)).receipt.spent == 10
    refused = await ask(site, "GET", "/dear/chat", opening, headers=key)
    assert (refused.status, refused.kind) == (402, "session/challenge-not-found")
    voucher = provider.payer.credential(refused.challenge, provider.payer.voucher(600))
    assert (await ask(site, "GET", "/dear/chat", voucher, headers=key)).receipt.spent == 110


class Named:
    """A price that depends on the request and says on what."""

    def __init__(self) -> None:
        self.prices = {"small": price(unit_price=10), "large": price(unit_price=100)}

    def __call__(self, scope: Mapping[str, Any]) -> Price:
        name = "large" if b"size=large" in scope["query_string"] else "small"
        return replace(self.prices[name], variant=name)


async def test_a_named_variant_keeps_the_price_of_its_challenge(provider: Provider) -> None:
    """Decision 6, F-31: when prices change, and still buys no other variant."""
    named = Named()
    route = Route(method="GET", path="/image", price=named)
    gate = PaymentGate(app, engine=provider.engine, routes=[route])
    provider.payer.open_on_chain()
    small = (await ask(gate, "GET", "/image?size=small")).challenge
    named.prices["small"] = price(unit_price=40)
    opening = provider.payer.credential(small, provider.payer.opening(500))
    assert (await ask(gate, "GET", "/image?size=small", opening)).receipt.spent == 10
    refused = await ask(gate, "GET", "/image?size=large", opening)
    assert (refused.status, refused.kind) == (402, "session/challenge-not-found")
    fresh = (await ask(gate, "GET", "/image?size=small")).challenge
    voucher = provider.payer.credential(fresh, provider.payer.voucher(600))
    assert (await ask(gate, "GET", "/image?size=small", voucher)).receipt.spent == 50


@pytest.mark.parametrize("units", [(3, 5), (1, 3), (3, 1)])
async def test_a_challenge_keeps_the_units_of_a_fixed_price(
    provider: Provider, units: tuple[int, int]
) -> None:
    """Decision 6: an album of three songs costs three under its challenge, also after a change."""

    def sold_for(count: int) -> PaymentGate:
        route = Route(method="GET", path="/album", price=price(units=count))
        return PaymentGate(app, engine=provider.engine, routes=[route])

    before, after = units
    provider.payer.open_on_chain()
    old = (await ask(sold_for(before), "GET", "/album")).challenge
    gate = sold_for(after)
    opening = provider.payer.credential(old, provider.payer.opening(500))
    receipt = (await ask(gate, "GET", "/album", opening)).receipt
    assert (receipt.spent, receipt.units) == (before * PRICE, before)
    fresh = (await ask(gate, "GET", "/album")).challenge
    voucher = provider.payer.credential(fresh, provider.payer.voucher(600))
    assert (await ask(gate, "GET", "/album", voucher)).receipt.spent == (before + after) * PRICE
