"""Our client pays our gate for a websocket: a real server, a real ledger, a chain on paper."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import msgspec
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from channel.client.funding.keys import OneKey
from channel.client.funding.signer import LocalSigner
from channel.client.http.websocket import open_websocket
from channel.client.payment.payer import Payer
from channel.client.payments import Payments
from channel.client.policy.policy import Policy
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    BudgetExceededError,
    OfferRefusedError,
    OverclaimError,
    PaymentRefusedError,
    ReceiptViolationError,
)
from channel.http import PaymentGate, Price, Route, metered
from channel.types import ChannelId, ChannelTerms, TxHash
from channel.wire.challenge import format_challenge
from channel.wire.receipt import Receipt
from channel.wire.sse import NeedVoucher
from channel.wire.websocket import (
    format_close_ready_frame,
    format_message_frame,
    format_need_voucher_frame,
    format_receipt_frame,
)
from tests.channel.chain_model import ChainModel
from tests.channel.client.conftest import limits_of
from tests.channel.client.provider import PAYEE, PAYER_KEY, TOKEN, PaperChain
from tests.channel.http.servers import SERVERS
from tests.channel.selling import Provider, never_stop, open_provider
from tests.e2e.gateways import free_port

ROUTES = [
    Route(method="WEBSOCKET", path="/talk", price=Price(unit_price=10, unit_type="message_out")),
    Route(
        method="WEBSOCKET",
        path="/both",
        price=Price(rates={"message_out": 5, "message_in": 3, "connection_second": 1}),
    ),
    Route(
        method="WEBSOCKET",
        path="/tokens",
        price=Price(unit_price=10, unit_type="output_token"),
        metered=True,
    ),
    Route(method="WEBSOCKET", path="/once", price=Price(unit_price=40, unit_type="request")),
]
CAPS = {
    "message_out": 50,
    "message_in": 50,
    "output_token": 50,
    "connection_second": 50,
    "request": 50,
}


class BridgedChain(PaperChain):
    """The payer's account on the chain that the provider reads."""

    def __init__(self, model: ChainModel) -> None:
        super().__init__()
        self.model = model
        self.facts = model.facts

    def create(self, terms: ChannelTerms, salt: bytes, deposit: int) -> TxHash:
        key, tx_hash = self.model.open(terms, salt, deposit)
        self.deposited.append(deposit)
        self.openings[key.channel_id] = tx_hash
        return tx_hash

    async def top_up(self, *, channel_id: ChannelId, amount: int, **_: Any) -> TxHash:
        self.deposited.append(amount)
        return self.model.top_up(self.facts[channel_id].key, amount)


class Agent:
    def __init__(self, payer: Payer, chain: BridgedChain, provider: Provider) -> None:
        self.payer = payer
        self.chain = chain
        self.provider = provider
        self.transport = httpx.AsyncHTTPTransport()

    def open(self, url: str, **options: Any) -> Any:
        return open_websocket(self.payer, self.transport, url, **options)

    async def record(self) -> Any:
        (record,) = await self.payer.store.records()
        return record

    async def spent(self) -> int:
        record = await self.record()
        state = await self.provider.ledger.load(record.key)
        assert state is not None
        assert state.reservations == ()
        return state.spent


async def echo(socket: WebSocket) -> None:
    await socket.accept(subprotocol="chat" if "chat" in socket.scope["subprotocols"] else None)
    while (message := await socket.receive())["type"] == "websocket.receive":
        if (text := message.get("text")) is None:
            await socket.send_bytes(message["bytes"])
        elif text.isdigit():
            for number in range(int(text)):
                await socket.send_text(str(number))
        elif text == "bye":
            await socket.close(3001)
            return
        elif text != "quiet":
            await socket.send_text(text)


async def tokens(socket: WebSocket) -> None:
    async with metered(socket.scope) as meter:
        await socket.accept()
        async for text in socket.iter_text():
            await meter.spend(output_token=len(text))
            await socket.send_bytes(text.encode())


Opener = Callable[..., Awaitable[Agent]]


@pytest.fixture
async def open_agent(tmp_path: Path) -> AsyncIterator[Opener]:
    async with contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(
            open_provider(tmp_path, token=TOKEN, payee=PAYEE)
        )
        chain = BridgedChain(provider.chain)

        async def start(**changes: Any) -> Agent:
            limits = limits_of(unit_price_max=CAPS, **changes.pop("limits", {}))
            store = await PaymentStore.open(tmp_path / "store.db")
            stack.push_async_callback(store.close)
            payer = Payer(
                policy=Policy(limits=(limits,), allow_loopback_http=True, **changes),
                keys=OneKey(LocalSigner(PAYER_KEY)),
                store=store,
                chains={chain.chain_id: chain},
                now=provider.clock,
            )
            agent = Agent(payer, chain, provider)
            stack.push_async_callback(agent.transport.aclose)
            return agent

        yield start


@contextlib.asynccontextmanager
async def sold(agent: Agent, server: str = "uvicorn") -> AsyncIterator[str]:
    routes = [WebSocketRoute("/tokens", tokens), WebSocketRoute("/{rest:path}", echo)]
    gate = PaymentGate(
        Starlette(routes=routes),
        engine=agent.provider.engine,
        routes=ROUTES,
        stop_worker=never_stop,
    )
    async with SERVERS[server](gate) as url:
        yield url.replace("http", "ws", 1)


@pytest.mark.parametrize("server", SERVERS)
async def test_a_conversation_is_paid_for_to_the_base_unit(open_agent: Opener, server: str) -> None:
    agent = await open_agent()
    async with sold(agent, server) as url:
        async with agent.open(url + "/talk", protocols=("chat",)) as socket:
            assert socket.subprotocol == "chat"
            await socket.send("hello")
            assert await socket.receive() == "hello"
            await socket.send(b"\x00")
            assert await socket.receive() == b"\x00"
            await socket.send("bye")
            assert [message async for message in socket] == []
            assert socket.close_code == 3001
        assert await agent.spent() == (await agent.record()).spent == 20
        async with agent.open(url + "/talk") as socket:  # the same channel, prepaid
            await socket.send("again")
            assert await socket.receive() == "again"
        assert await agent.spent() == 30
        assert len(agent.chain.deposited) == 1


async def test_a_long_answer_is_paid_for_in_vouchers_and_top_ups_within_the_step(
    open_agent: Opener,
) -> None:
    """WS-10, F-94: at no time is more signed than what arrived and one step."""
    agent = await open_agent(voucher_step=8, voucher_step_max=8, expected_units=50)
    async with sold(agent) as url, agent.open(url + "/talk") as socket:
        await socket.send("300")
        for number in range(300):
            assert await socket.receive() == str(number)
            record = await agent.record()
            assert record.signed <= 10 * (300 + 9)
    assert await agent.spent() == (await agent.record()).spent == 3_000
    assert sum(agent.chain.deposited) >= 3_000
    assert (await agent.record()).vouchers > 10


async def test_both_directions_and_time_are_counted_by_the_client_itself(
    open_agent: Opener,
) -> None:
    agent = await open_agent()
    async with sold(agent) as url, agent.open(url + "/both") as socket:
        for _ in range(100):
            await socket.send("quiet")
        await socket.send("x")
        assert await socket.receive() == "x"
    assert await agent.spent() >= 101 * 3 + 5 + 1
    record = await agent.record()
    assert record.received >= record.spent


async def test_a_handlers_own_units_are_counted_as_stated_up_to_the_bytes(
    open_agent: Opener,
) -> None:
    agent = await open_agent()
    async with sold(agent) as url, agent.open(url + "/tokens") as socket:
        await socket.send("seven..")
        assert await socket.receive() == b"seven.."
    assert await agent.spent() == (await agent.record()).received == 70


async def test_a_connection_at_a_fixed_price_is_paid_once(open_agent: Opener) -> None:
    agent = await open_agent()
    async with sold(agent) as url, agent.open(url + "/once") as socket:
        for text in ("a", "b", "c"):
            await socket.send(text)
            assert await socket.receive() == text
    assert await agent.spent() == 40


async def test_many_messages_without_reading_do_not_block(open_agent: Opener) -> None:
    agent = await open_agent(voucher_step=4, voucher_step_max=4)
    async with sold(agent) as url, agent.open(url + "/both") as socket:
        for number in range(200):
            await socket.send(f"n{number}")
        assert [await socket.receive() for _ in range(200)] == [f"n{n}" for n in range(200)]
    assert await agent.spent() >= 200 * 8


async def test_leaving_in_the_middle_counts_at_most_a_step_more(open_agent: Opener) -> None:
    agent = await open_agent(voucher_step=8, voucher_step_max=8)
    async with sold(agent) as url:
        with pytest.raises(RuntimeError, match="bored"):
            await read_one_and_fail(agent, url + "/talk")
        record = await agent.record()
        assert record.signed <= record.received + record.lost + 10 * 9
        async with agent.open(url + "/talk") as socket:
            await socket.send("still here")
            assert await socket.receive() == "still here"


async def test_a_price_above_the_policy_or_plain_ws_is_refused_unsigned(
    open_agent: Opener,
) -> None:
    agent = await open_agent()
    agent.payer.policy = msgspec.structs.replace(
        agent.payer.policy, limits=(limits_of(unit_price_max={"message_out": 9}),)
    )
    async with sold(agent) as url:
        with pytest.raises(OfferRefusedError, match="message_out"):
            await read_all(agent, url + "/talk")
        with pytest.raises(OfferRefusedError, match="plain ws"):
            await read_all(agent, "ws://api.example/talk")
    assert agent.chain.deposited == []


async def test_a_budget_ends_the_conversation_with_its_reason(open_agent: Opener) -> None:
    agent = await open_agent(limits={"budget": 200}, voucher_step=2, voucher_step_max=2)
    async with sold(agent) as url:
        with pytest.raises((BudgetExceededError, PaymentRefusedError)):
            await read_all(agent, url + "/talk", "1000")
    assert (await agent.record()).signed <= 200


# -- a server that lies


@contextlib.asynccontextmanager
async def lying(
    agent: Agent, talk: Callable[[web.WebSocketResponse, Any], Awaitable[None]]
) -> AsyncIterator[str]:
    """Serve a websocket whose server accepts every credential, and then says what it likes."""
    route = ROUTES[0]
    gate = PaymentGate(Starlette(), engine=agent.provider.engine, routes=[route])
    (priced,) = gate.table.match_websocket({"path": "/talk"})

    async def serve(request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        if request.method == "HEAD" or authorization is None:
            challenge = agent.provider.engine.challenger.issue(priced.offer)
            headers = {"WWW-Authenticate": format_challenge(challenge)}
            return web.Response(status=200 if authorization else 402, headers=headers)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await talk(socket, await agent.record())
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_route("*", "/talk", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        assert runner.addresses
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_claim_beyond_what_arrived_is_not_signed(open_agent: Opener) -> None:
    """F-94."""
    agent = await open_agent(voucher_step=2, voucher_step_max=2)
    answers: list[aiohttp.WSMessage] = []

    async def talk(socket: web.WebSocketResponse, record: Any) -> None:
        receipt = agent_receipt(agent, record)
        await socket.send_str(format_receipt_frame(receipt))
        await socket.send_str(format_message_frame("one"))
        need = NeedVoucher(
            channel_id=record.key.channel_id, required_cumulative=4_000, accepted=30, deposit=5_000
        )
        await socket.send_str(format_need_voucher_frame(need))
        answers.append(await socket.receive())

    async with lying(agent, talk) as url:
        with pytest.raises(OverclaimError):
            await read_all(agent, url + "/talk")
    assert all(answer.type is not aiohttp.WSMsgType.TEXT for answer in answers)
    assert (await agent.record()).signed <= 30


@pytest.mark.parametrize("text", ["hello", "{}", '{"mpp":"authorization","authorization":"x"}'])
async def test_a_frame_that_is_none_of_the_protocol_ends_the_connection(
    open_agent: Opener, text: str
) -> None:
    agent = await open_agent()

    async def talk(socket: web.WebSocketResponse, record: Any) -> None:
        await socket.send_str(format_receipt_frame(agent_receipt(agent, record)))
        await socket.send_str(text)
        await socket.receive()

    async with lying(agent, talk) as url:
        with pytest.raises(ReceiptViolationError):
            await read_all(agent, url + "/talk")


async def test_a_false_last_receipt_stops_the_channel(open_agent: Opener) -> None:
    """CLIENT-09."""
    agent = await open_agent()

    async def talk(socket: web.WebSocketResponse, record: Any) -> None:
        receipt = agent_receipt(agent, record)
        await socket.send_str(format_receipt_frame(receipt))
        await socket.send_str(
            format_close_ready_frame(msgspec.structs.replace(receipt, spent=9_999, accepted=9_999))
        )
        await socket.receive()

    async with lying(agent, talk) as url:
        with pytest.raises(ReceiptViolationError):
            await read_all(agent, url + "/talk")
    assert (await agent.record()).state == "stopped"


def agent_receipt(agent: Agent, record: Any) -> Receipt:
    """The receipt for the first voucher, as an honest server would give it."""
    (offer,) = agent.payer._remembered.values()  # noqa: SLF001 -- the challenge that was answered
    return Receipt(
        method="evm",
        challenge_id=offer.challenge.id,
        channel_id=record.key.channel_id,
        chain_id=record.key.chain_id,
        accepted=record.signed,
        spent=0,
        timestamp=agent.provider.clock(),
    )


async def read_all(agent: Agent, url: str, *said: str) -> list[str | bytes]:
    async with agent.open(url) as socket:
        for text in said:
            await socket.send(text)
        return [message async for message in socket]


async def read_one_and_fail(agent: Agent, url: str) -> None:
    async with agent.open(url) as socket:
        await socket.send("1000")
        await socket.receive()
        raise RuntimeError("bored")


async def test_a_redirect_is_not_followed(open_agent: Opener) -> None:
    """CLIENT-10: a credential is for the origin that was asked."""
    agent = await open_agent()

    async def serve(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "ws://127.0.0.1:1/"})

    app = web.Application()
    app.router.add_get("/talk", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"ws://127.0.0.1:{runner.addresses[0][1]}/talk"
        with pytest.raises(PaymentRefusedError, match="redirect"):
            await read_all(agent, url)
        with pytest.raises(httpx.ConnectError):
            await read_all(agent, "ws://127.0.0.1:9/talk")
    finally:
        await runner.cleanup()


async def test_payments_open_websockets(open_agent: Opener) -> None:
    agent = await open_agent()
    async with sold(agent) as url:
        payments = Payments(agent.payer, agent.transport)
        async with asyncio.timeout(60), payments.websocket(url + "/talk") as socket:
            await socket.send("hello")
            assert await socket.receive() == "hello"


@pytest.mark.parametrize(
    "first", ["hello", format_message_frame("one"), b"bytes", '{"mpp":"payment-receipt","data":{}}']
)
async def test_a_first_frame_that_is_no_receipt_ends_the_connection(
    open_agent: Opener, first: str | bytes
) -> None:
    agent = await open_agent()

    async def talk(socket: web.WebSocketResponse, record: Any) -> None:
        assert record
        if isinstance(first, str):
            await socket.send_str(first)
        else:
            await socket.send_bytes(first)
        await socket.receive()

    async with lying(agent, talk) as url:
        with pytest.raises(ReceiptViolationError):
            await read_all(agent, url + "/talk")


@pytest.mark.parametrize("status", [403, 404, 500])
@pytest.mark.parametrize("size", [10, 10**6])
async def test_a_server_without_a_websocket_is_reported(
    open_agent: Opener, status: int, size: int
) -> None:
    """Its answer is read up to a bound; nothing is signed for it."""
    agent = await open_agent()

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status, body=size * b"x")

    async with elsewhere(refuse) as url:
        with pytest.raises(PaymentRefusedError):
            await read_all(agent, url + "/talk")


async def test_a_server_that_is_not_there_is_an_error_of_the_connection(open_agent: Opener) -> None:
    agent = await open_agent()
    with pytest.raises(httpx.ConnectError):
        await read_all(agent, f"ws://127.0.0.1:{free_port()}/talk")


@contextlib.asynccontextmanager
async def elsewhere(
    answer: Callable[[web.Request], Awaitable[web.Response]],
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/talk", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
