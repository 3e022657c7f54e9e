"""A service is described by its gate's own routes and prices."""

from pathlib import Path

import pytest

from channel.http import Price, Route
from mpp_session.discovery.service import public_url
from mpp_session.settings import Discovery, Listen
from tests.channel.selling import REALM, TOKEN
from tests.mpp_session.discovery.describing import describe, gate

TEXT_PRICE = (
    "0.40 USDC / 1M output tokens, 0.10 USDC / 1M input tokens, at least 0.000007 USDC a request"
)


async def test_every_route_is_listed_with_its_price(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        service = describe(sold)
    assert [(one.method, one.path, one.price) for one in service.paid] == [
        (
            "POST",
            "/text",
            TEXT_PRICE,
        ),
        ("GET", "/songs/{name}/{rest}", "0.00001 USDC / song, 3 a request"),
        ("PUT", "/songs", "depends on the request"),
    ]
    assert [(one.method, one.path) for one in service.free] == [
        ("DELETE", "/songs"),
        ("GET", "/health"),
        ("GET", "/songs/{id}"),
    ]
    assert service.paid[1].parameters == ("name", "rest")
    assert service.paid[1].description.summary == "Three <songs>"
    assert (service.title, service.token) == (REALM, TOKEN)


async def test_what_is_set_comes_first_and_stays_on_one_line(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        service = describe(sold, title="My\nmodel", description="a\n# b")
    assert (service.title, service.description) == ("My model", "a # b")


async def test_a_route_adds_no_lines(tmp_path: Path) -> None:
    price = Price(unit_price=1, unit_type="a\nb", description="c\n## d")
    async with gate(tmp_path, [Route(method="GET", path="/x", price=price)]) as sold:
        (one,) = describe(sold).paid
    assert (one.price, one.description.summary) == ("0.000001 USDC / a b", "c ## d")


@pytest.mark.parametrize(
    ("url", "realm", "host", "port", "expected"),
    [
        ("https://a.example/x/", "b.example", "127.0.0.1", 1, "https://a.example/x"),
        (None, "b.example", "127.0.0.1", 1, "https://b.example"),
        (None, "localhost", "127.0.0.1", 8402, "http://127.0.0.1:8402"),
        (None, "my service", "::1", 8402, "http://[::1]:8402"),
        (None, "localhost", "::", 8402, None),
        (None, "localhost", "127.0.0.1", 0, None),
    ],
)
def test_the_address_is_the_best_that_the_settings_tell(
    url: str | None, realm: str, host: str, port: int, expected: str | None
) -> None:
    """F-10: never that of a request."""
    assert public_url(Discovery(url=url), realm, Listen(host=host, port=port)) == expected


def test_an_application_without_an_address_has_none() -> None:
    assert public_url(Discovery(), "localhost") is None
