"""Services of several routes, described as they are published."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from channel.http import PaymentGate, Price, Route
from channel.types import TokenUnit
from mpp_session.discovery.service import Description, Service, describe_service
from mpp_session.settings import Discovery
from tests.channel.chain_model import CHAIN_ID
from tests.channel.http.test_middleware import App
from tests.channel.selling import open_provider

USDC = TokenUnit("USDC", 6)
TEXT = Description(
    summary="A text",
    body={"schema": {"type": "object"}, "example": {"q": "it's <b>"}},
    answers={"application/json": {"schema": {"type": "object"}}},
)
ROUTES = [
    Route(
        method="POST",
        path="/text",
        price=Price(rates={"output_token": "0.40 / 1M", "input_token": "0.10 / 1M"}, minimum=7),
        metered=True,
    ),
    Route(
        method="GET",
        path="/songs/{name}/{rest:path}",
        price=Price(unit_price=10, unit_type="song", units=3, description="Three <songs>"),
    ),
    Route(method="PUT", path="/songs", price=lambda _: Price(unit_price=5, unit_type="upload")),
    Route(method="DELETE", path="/songs", price=None),
]


@asynccontextmanager
async def gate(
    folder: Path, routes: Sequence[Route] = ROUTES, unit: TokenUnit | None = USDC
) -> AsyncIterator[PaymentGate]:
    async with open_provider(folder) as provider:
        yield PaymentGate(App(), engine=provider.engine, routes=routes, unit=unit)


def describe(
    gate: PaymentGate,
    *,
    variants: Mapping[tuple[str, str], Sequence[tuple[str, Price]]] | None = None,
    descriptions: Mapping[tuple[str, str], Description] | None = None,
    categories: tuple[str, ...] = (),
    **settings: Any,
) -> Service:
    return describe_service(
        gate,
        Discovery(**settings),
        chain_id=CHAIN_ID,
        descriptions=descriptions or {("POST", "/text"): TEXT},
        variants=variants or {},
        categories=categories,
        free=[("GET", "/health"), ("GET", "/songs/{id}")],
        url=settings.get("url"),
    )
