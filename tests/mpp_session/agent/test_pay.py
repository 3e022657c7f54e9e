"""One paid request, and what is said of the money when something is in the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as Endpoint

from channel.client.store.record import RecordState
from channel.client.store.sqlite import PaymentStore
from channel.http import Price, Route
from channel.limits import REFUSAL_CHARS_MAX
from mpp_session.agent.amounts import TokenUnit
from mpp_session.agent.pay import PaidOutcome, Wallet, _read_refusal, describe_left, pay
from mpp_session.errors import CommandError
from mpp_session.testing import TestPayer, TestProvider

UNIT = TokenUnit("dUSD", 6)
PRICE = 250


class Line:
    """The way from agent to provider, which can be cut."""

    def __init__(self) -> None:
        self._server: asyncio.Server
        self._ends: list[asyncio.StreamWriter] = []

    async def lay(self, url: str) -> str:
        target = httpx.URL(url)

        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
            self._ends += [writer, far_writer]
            with suppress(ConnectionError):
                await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))

        self._server = await asyncio.start_server(join, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._server.close()
        for end in self._ends:
            end.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def line_to(provider: TestProvider) -> AsyncIterator[tuple[str, Line]]:
    async def ask(request: Request) -> Response:
        if await request.body() == b'"nonsense"':
            return JSONResponse({"detail": "What do you mean?"}, status_code=400)
        return PlainTextResponse("Because.")

    methods = ["DELETE", "GET", "PATCH", "POST", "PUT", "QUERY"]
    app = Starlette(routes=[Endpoint("/ask", ask, methods=methods)])
    price = Price(unit_price=PRICE, unit_type="request")
    routes = [Route(method=method, path="/ask", price=price) for method in methods]
    line = Line()
    url = await line.lay(await asyncio.to_thread(provider.serve, app, routes))
    try:
        yield f"{url}/ask", line
    finally:
        line.cut()


def wallet_of(payer: TestPayer, rpc_url: str) -> Wallet:
    return Wallet(
        rpc_url=rpc_url,
        private_key=payer.account.private_key,
        policy=payer.policy(),
        unit=UNIT,
        store=payer.store,
    )


@pytest.fixture
def wallet(payer: TestPayer, devnet: Any) -> Wallet:
    return wallet_of(payer, devnet.values.rpc_url)


async def ask(url: str, wallet: Wallet, body: bytes | None = b"{}", **options: Any) -> PaidOutcome:
    given: dict[str, Any] = {"keep_open": False, "show": lambda _: None} | options
    return await pay(url, body, wallet, store=wallet.store, **given)


async def change_state(store: Path, state: RecordState) -> None:
    payment_store = await PaymentStore.open(store)
    (account,) = await payment_store.records()
    await payment_store.update(account.key, lambda current: replace(current, state=state))
    await payment_store.close()


async def test_a_channel_is_closed_behind_the_answer(
    sponsoring_provider: TestProvider, wallet: Wallet
) -> None:
    """CLOSE-06."""
    async with line_to(sponsoring_provider) as (url, _):
        outcome = await ask(url, wallet)
        assert (outcome.text, outcome.paid) == ("Because.", PRICE)
        assert outcome.close_tx is not None
        assert await describe_left(wallet.store, url, UNIT) == ""


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("GET", None),
        ("DELETE", None),
        ("PUT", b"{}"),
        ("PATCH", b"{}"),
        ("DELETE", b"{}"),
        ("QUERY", b"{}"),
    ],
)
async def test_any_method_is_paid_for(
    sponsoring_provider: TestProvider, wallet: Wallet, method: str, body: bytes | None
) -> None:
    """O-61: `pay` sent POST alone."""
    async with line_to(sponsoring_provider) as (url, _):
        outcome = await ask(url, wallet, body, method=method)
        assert (outcome.text, outcome.paid) == ("Because.", PRICE)


async def test_a_server_that_is_gone_before_the_close_leaves_a_way_out(
    sponsoring_provider: TestProvider, wallet: Wallet
) -> None:
    """CLOSE-08: how much is left, where, and what it takes to get it back."""
    async with line_to(sponsoring_provider) as (url, line):
        with pytest.raises(CommandError) as caught:
            await ask(url, wallet, show=lambda _: line.cut())
    payment_store = await PaymentStore.open(wallet.store)
    (account,) = await payment_store.records()
    await payment_store.close()
    assert f"{UNIT.format(account.deposit - PRICE)} are left in channel" in str(caught.value)
    assert f"0x{account.key.channel_id.hex()}" in str(caught.value)
    assert "`mpp-session withdraw`" in str(caught.value)
    assert "needs ether" in str(caught.value)


async def test_a_channel_that_stays_open_is_used_by_the_next(
    sponsoring_provider: TestProvider, wallet: Wallet
) -> None:
    async with line_to(sponsoring_provider) as (url, _):
        first = await ask(url, wallet, keep_open=True)
        assert first.close_tx is None
        assert "the next `pay` uses them" in await describe_left(wallet.store, url, UNIT)
        await change_state(wallet.store, "opening")
        assert "may still be mined" in await describe_left(wallet.store, url, UNIT)
        await change_state(wallet.store, "open")
        second = await ask(url, wallet)
    assert (first.channel_id, second.open_tx) == (second.channel_id, None)
    assert (first.paid, second.paid) == (PRICE, PRICE)


async def test_a_refusal_is_returned_and_not_shown(
    sponsoring_provider: TestProvider, wallet: Wallet
) -> None:
    """What was paid for goes to standard output, and nothing else."""
    shown: list[str] = []
    async with line_to(sponsoring_provider) as (url, _):
        outcome = await ask(url, wallet, b'"nonsense"', show=shown.append)
    assert (outcome.status, outcome.paid, shown) == (400, 0, [])
    assert "What do you mean?" in outcome.text


@pytest.mark.parametrize(
    "url", ["127.0.0.1:1/ask", "http://127.0.0.1:1/ask", "http://[", "ftp://127.0.0.1/ask"]
)
async def test_an_address_that_leads_nowhere_is_one_line(wallet: Wallet, url: str) -> None:
    with pytest.raises(CommandError) as caught:
        await ask(url, wallet)
    assert url in str(caught.value)


async def test_a_store_that_cannot_be_made_is_one_line(wallet: Wallet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    there = replace(wallet, store=tmp_path / "file" / "agent.db")
    with pytest.raises(CommandError, match="cannot be created"):
        await ask("http://127.0.0.1:1/ask", there)


def test_a_refusals_words_are_shown_so_far() -> None:
    """What a server says comes into an error, and no more of it than a few lines."""
    words = b"x" * REFUSAL_CHARS_MAX
    assert _read_refusal(words) == words.decode()
    assert _read_refusal(words + b"y") == words.decode()
