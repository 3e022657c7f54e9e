"""Websockets that are sold, over real sockets: never unpaid, and paid for before they deliver."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket

from channel.http import PaymentGate, Price, Route, metered
from channel.http.asgi import Message
from channel.http.rails import RailOffer, RailRequest
from channel.http.websocket import FAULT, FOREIGN, IDLE, TOO_LARGE, UNPAID
from channel.limits import (
    CREDENTIALS_AHEAD_MAX,
    CREDENTIALS_REFUSED_MAX,
    FRAME_BYTES_MAX,
    FRAMES_AHEAD_BYTES_MAX,
    FRAMES_AHEAD_MAX,
)
from channel.wire.challenge import parse_challenges
from channel.wire.credential import format_credential
from channel.wire.websocket import SUBPROTOCOL
from tests.channel.http.servers import SERVERS, connect, refused
from tests.channel.selling import (
    PRICE,
    STRANGER_KEY,
    Payer,
    Provider,
    ask,
    never_stop,
    open_provider,
)
from tests.waiting import HASTY_S, until

SPOKEN = "sold"
OUT = Price(unit_price=PRICE, unit_type="message_out")
REQUEST = Price(unit_price=PRICE, unit_type="request")
ROUTES = [
    Route(method="WEBSOCKET", path="/talk", price=OUT, pause_s=HASTY_S),
    Route(method="WEBSOCKET", path="/once", price=REQUEST),
    Route(method="WEBSOCKET", path="/in", price=Price(unit_price=PRICE, unit_type="message_in")),
    Route(method="WEBSOCKET", path="/idle", price=OUT, idle_s=0.05),
    Route(method="WEBSOCKET", path="/rooms/{name}", price=OUT),
    Route(
        method="WEBSOCKET",
        path="/both",
        price=Price(
            rates={"message_in": 3, "message_out": 5, "byte_in": 1, "connection_second": 7}
        ),
    ),
    Route(
        method="WEBSOCKET",
        path="/tokens",
        price=Price(unit_price=PRICE, unit_type="output_token"),
        metered=True,
        pause_s=HASTY_S,
    ),
    Route(method="GET", path="/joke", price=REQUEST),
]


async def echo(socket: WebSocket) -> None:
    """Say back what arrives; `close` ends it, and `refuse` at the beginning is the path's own."""
    await socket.accept()
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") == "close":
            await socket.close()
            return
        if (text := message.get("text")) is not None:
            await socket.send_text(text)
        else:
            await socket.send_bytes(message["bytes"])


async def speak(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(SPOKEN)
    await socket.close()


async def tokens(socket: WebSocket) -> None:
    """Count by itself: so many tokens for each text as it has letters."""
    async with metered(socket.scope) as meter:
        await socket.accept()
        async for text in socket.iter_text():
            if text != "free":
                await meter.spend(output_token=len(text))
            await socket.send_text(text.upper())


async def refuse(socket: WebSocket) -> None:
    await socket.close(code=3000)


def application() -> Starlette:
    routes = [
        WebSocketRoute("/once", echo),
        WebSocketRoute("/both", echo),
        WebSocketRoute("/tokens", tokens),
        WebSocketRoute("/rooms/{name}", refuse),
        WebSocketRoute("/{rest:path}", echo),
    ]
    return Starlette(routes=routes)


def gate_of(
    provider: Provider, app: Callable[..., Any] | None = None, **options: Any
) -> PaymentGate:
    return PaymentGate(
        app or application(),
        engine=provider.engine,
        routes=ROUTES,
        stop_worker=never_stop,
        **options,
    )


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    """A provider with an open channel of 10,000 base units, of which none is signed."""
    async with open_provider(tmp_path) as opened:
        opened.payer.open_on_chain(deposit=10_000)
        gate = gate_of(opened)
        challenge = (await ask(gate, "HEAD", "/talk")).challenge
        opening = opened.payer.credential(challenge, opened.payer.opening())
        assert (await ask(gate, "HEAD", "/talk", opening)).status == 200
        yield opened


@pytest.fixture
async def url(provider: Provider) -> AsyncIterator[str]:
    async with SERVERS["uvicorn"](gate_of(provider)) as served:
        yield served


# -- never unpaid


@pytest.mark.parametrize("server", SERVERS)
async def test_a_priced_path_is_not_served_unpaid_over_a_websocket(
    provider: Provider, server: str
) -> None:
    """WS-01, under real servers: 402 with a challenge, or 405 where no websocket is sold."""
    inner = Starlette(routes=[WebSocketRoute("/{rest:path}", speak)])
    below = Starlette(routes=[Mount("/below", app=gate_of(provider, inner))])
    async with SERVERS[server](gate_of(provider, inner)) as url, SERVERS[server](below) as mounted:
        for base, path in ((url, "/talk"), (url, "/rooms/1"), (mounted, "/below/talk")):
            answer = await refused(base, path)
            assert (answer.status, answer.kind) == (402, "payment-required")
            assert answer.challenge.method == "evm"
            assert answer.header("cache-control") == "no-store"
            assert answer.problem["price"][0]["unit"] == "message_out"
        for path in ("/joke", "/below/joke"):
            answer = await refused(mounted if "below" in path else url, path)
            assert (answer.status, answer.header("allow")) == (405, "GET")
        for path in (
            "/TALK",
            "//talk",
            "/%74alk/%2e",
            "/x/../talk",
            "/talk%00",
            "/talk//",
            "/talk;x",
        ):
            assert (await refused(url, path)).status in {402, 404}, path


async def test_without_the_extension_a_websocket_is_refused_before_it_opens(
    provider: Provider,
) -> None:
    """The server answers 403; the code is for servers that accept first."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(dict(message))

    scope = {"type": "websocket", "path": "/talk", "headers": [], "query_string": b""}
    await gate_of(provider)(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": UNPAID}]


async def test_another_kind_of_connection_on_a_priced_path_is_an_error(provider: Provider) -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError("not asked")

    scope = {"type": "webtransport", "path": "/talk", "headers": [], "query_string": b""}
    with pytest.raises(Exception, match="webtransport"):
        await gate_of(provider)(scope, never, never)


async def test_a_probe_by_get_learns_the_price_of_a_websocket(provider: Provider) -> None:
    """Clients of other implementations ask by GET before they open the connection."""
    answer = await ask(gate_of(provider), "GET", "/talk")
    assert (answer.status, answer.problem["price"][0]["method"]) == (402, "WEBSOCKET")
    assert (await ask(gate_of(provider), "POST", "/talk")).status == 405


async def test_a_challenge_for_a_request_opens_no_websocket(provider: Provider, url: str) -> None:
    """F-31: the price is another one."""
    challenge = (await ask(gate_of(provider), "GET", "/joke")).challenge
    credential = provider.payer.credential(challenge, provider.payer.voucher(PRICE))
    headers = {"Authorization": format_credential(credential)}
    answer = await refused(url, "/talk", headers=headers)
    assert (answer.status, answer.kind) == (402, "session/challenge-not-found")


class TakesAll:
    """Rails that claim every request, and must never be asked about a websocket."""

    def takes(self, scope: Any, credential: str | None) -> bool:
        raise AssertionError((scope, credential))

    async def offers(self, scope: Any, priced: Any) -> list[RailOffer]:
        raise AssertionError((scope, priced))

    async def serve(self, request: RailRequest) -> None:
        raise AssertionError(request)


async def test_a_rail_that_pays_for_answers_opens_no_websocket(provider: Provider) -> None:
    """WS-01: it would run the application with a payment for one HTTP answer."""
    async with SERVERS["uvicorn"](gate_of(provider, rails=TakesAll())) as served:
        answer = await refused(served, "/once", headers={"PAYMENT-SIGNATURE": "e30="})
        assert (answer.status, len(answer.all("www-authenticate"))) == (402, 1)


# -- paid


@pytest.mark.parametrize("server", SERVERS)
async def test_messages_are_paid_for_and_the_last_receipt_says_so(
    provider: Provider, server: str
) -> None:
    async with (
        SERVERS[server](gate_of(provider)) as served,
        connect(provider, served, "/talk", 5 * PRICE) as socket,
    ):
        assert (await socket.expect("payment-receipt"))["spent"] == "0"
        for text in ("to be", '{"mpp":"payment-close-ready"}', "ünïcödé"):
            await socket.say(text)
            assert await socket.data() == text
        await socket.socket.send_bytes(b"\x00\xff")
        assert await socket.frame() == {"bytes": b"\x00\xff"}
        await socket.say("close")
        last = await socket.expect("payment-close-ready")
        assert (last["spent"], last["acceptedCumulative"], last["units"]) == ("40", "50", 4)
        assert await socket.rest() == [{"closed": 1000}]
    books = await provider.books()
    assert (books.spent, books.reservations) == (4 * PRICE, ())


async def test_a_browser_pays_in_its_first_frame(provider: Provider, url: str) -> None:
    """WS-08: it cannot set the header of its handshake."""
    async with connect(provider, url, "/talk", PRICE, protocols=(SUBPROTOCOL, "chat")) as socket:
        assert socket.socket.protocol == SUBPROTOCOL
        await socket.expect("payment-receipt")
        await socket.say("hello")
        assert await socket.data() == "hello"
    await until(lambda: is_settled(provider))
    assert (await provider.books()).spent == PRICE


async def is_settled(provider: Provider) -> bool:
    return not (await provider.books()).reservations


async def test_a_first_frame_that_does_not_pay_gets_a_challenge_and_a_bounded_number_of_tries(
    provider: Provider, url: str
) -> None:
    async with connect(provider, url, "/talk", 0, protocols=(SUBPROTOCOL,)) as socket:
        error = await socket.expect("payment-error")
        assert (error["status"], error["problem"]["status"]) == (402, 402)
        (fresh,) = parse_challenges(error["challenges"])
        await socket.pay(PRICE, fresh)
        await socket.expect("payment-receipt")
    async with connect(provider, url, "/talk", 0, protocols=(SUBPROTOCOL,)) as socket:
        for _ in range(CREDENTIALS_REFUSED_MAX - 1):
            await socket.send(mpp="authorization", authorization="")
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await socket.rest()]
        assert kinds == ["payment-error"] * CREDENTIALS_REFUSED_MAX + [UNPAID]
    async with connect(provider, url, "/talk", 0, protocols=(SUBPROTOCOL,)) as socket:
        await socket.say("no credential")
        assert (await socket.rest())[-1] == {"closed": UNPAID}


async def test_a_short_balance_asks_for_a_voucher_and_goes_on_with_it(
    provider: Provider, url: str
) -> None:
    """WS-04."""
    async with connect(provider, url, "/talk", PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.say("one")
        assert await socket.data() == "one"
        await socket.say("two")
        need = await socket.expect("payment-need-voucher")
        assert need["requiredCumulative"] == str(2 * PRICE)
        assert (await provider.books()).spent <= PRICE
        await socket.pay(2 * PRICE)
        frames = {frame["mpp"]: frame for frame in (await socket.frame(), await socket.frame())}
        assert frames["message"]["data"] == "two"
        assert frames["payment-receipt"]["data"]["acceptedCumulative"] == str(2 * PRICE)


async def test_a_voucher_that_does_not_come_ends_the_connection(
    provider: Provider, url: str
) -> None:
    async with connect(provider, url, "/talk", PRICE) as socket:
        await socket.say("one")
        await socket.say("two")
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await socket.rest()]
    assert kinds == [
        *("payment-receipt", "message", "payment-need-voucher"),
        *("payment-error", "payment-close-ready", UNPAID),
    ]
    assert (await provider.books()).spent == PRICE


async def test_both_directions_bytes_and_time_have_prices(provider: Provider, url: str) -> None:
    async with connect(provider, url, "/both", 1_000) as socket:
        await socket.expect("payment-receipt")
        await socket.say("0123456789")
        assert await socket.data() == "0123456789"
        await socket.send(mpp="payment-close-request")
        usage = (await socket.expect("payment-close-ready"))["usage"]
    assert usage["message_in"] == usage["message_out"] == 1
    assert usage["byte_in"] == 10
    assert usage["connection_second"] >= 1


async def test_a_handler_counts_by_itself_and_each_message_states_it(
    provider: Provider, url: str
) -> None:
    async with connect(provider, url, "/tokens", 20 * PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.say("hello")
        assert await socket.frame() == {
            "mpp": "message",
            "data": "HELLO",
            "usage": {"output_token": 5},
        }
        await socket.say("free")
        assert (await socket.frame())["usage"] == {}
        await socket.say("x")
        assert await socket.frame() == {"mpp": "message", "data": "X"}
        await socket.send(mpp="payment-close-request")
        assert (await socket.expect("payment-close-ready"))["units"] == 6


async def test_a_handler_that_counts_nothing_sends_nothing(provider: Provider, url: str) -> None:
    """O-50 for websockets: no content is free by mistake."""
    async with connect(provider, url, "/tokens", 20 * PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.say("free")
        frames = await socket.rest()
    assert [frame.get("mpp", frame.get("closed")) for frame in frames] == [
        *("payment-error", "payment-close-ready"),
        FAULT,
    ]
    assert (await provider.books()).spent == 0


async def test_a_connection_at_a_fixed_price_is_paid_once(provider: Provider, url: str) -> None:
    async with connect(provider, url, "/once", PRICE) as socket:
        assert (await socket.expect("payment-receipt"))["spent"] == str(PRICE)
        for text in "abc":
            await socket.say(text)
            assert await socket.data() == text
    assert (await provider.books()).spent == PRICE


async def test_an_application_that_refuses_sells_nothing(provider: Provider, url: str) -> None:
    """F-48."""
    challenge = (await refused(url, "/rooms/1")).challenge
    credential = format_credential(
        provider.payer.credential(challenge, provider.payer.voucher(PRICE))
    )
    answer = await refused(url, "/rooms/1", headers={"Authorization": credential})
    assert answer.status == 403
    books = await provider.books()
    assert (books.spent, books.reservations) == (0, ())


async def test_an_idle_connection_ends_with_its_receipt(provider: Provider, url: str) -> None:
    async with connect(provider, url, "/idle", PRICE) as socket:
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await socket.rest()]
    assert kinds == ["payment-receipt", "payment-close-ready", IDLE]


async def test_a_client_that_leaves_pays_for_what_was_sent(provider: Provider, url: str) -> None:
    """WS-03, and SSE-07 for websockets."""
    async with connect(provider, url, "/talk", 100 * PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.say("one")
        await socket.data()
        transport = socket.socket.get_extra_info("socket")
        assert transport is not None
        await socket.socket.close()
    await until(lambda: is_settled(provider))
    assert (await provider.books()).spent == PRICE


async def test_a_channel_is_closed_over_its_connection(provider: Provider, url: str) -> None:
    """WS-06: the client asks, learns what was spent, and signs that."""
    async with connect(provider, url, "/talk", 3 * PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.say("one")
        await socket.data()
        await socket.send(mpp="payment-close-request")
        assert (await socket.expect("payment-close-ready"))["spent"] == str(PRICE)
        await socket.pay(provider.payer.closing(PRICE))
        receipt = await socket.expect("payment-receipt")
        assert receipt["txHash"].startswith("0x")
        assert await socket.rest() == [{"closed": 1000}]


async def test_a_newer_stream_on_the_channel_ends_the_connection(
    provider: Provider, url: str
) -> None:
    """ACC-06."""
    async with (
        connect(provider, url, "/talk", 9 * PRICE) as first,
        connect(provider, url, "/talk", 18 * PRICE) as second,
    ):
        await second.expect("payment-receipt")
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await first.rest()]
        assert kinds == ["payment-receipt", "payment-error", "payment-close-ready", 4409]
        await second.say("here")
        assert await second.data() == "here"


async def test_a_server_that_stops_ends_connections_with_their_receipts(
    provider: Provider, url: str
) -> None:
    async with connect(provider, url, "/talk", 9 * PRICE) as socket:
        await socket.expect("payment-receipt")
        provider.engine.end_streams()
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await socket.rest()]
    assert kinds == ["payment-error", "payment-close-ready", 1012]


# -- hostile frames


HOSTILE = {
    "no JSON": "hello",
    "no object": "[]",
    "no kind": "{}",
    "an unknown kind": '{"mpp":"payment-receipt","data":{}}',
    "a server's kind": '{"mpp":"payment-need-voucher","data":{}}',
    "another type": '{"mpp":"message","data":5}',
    "too deep": '{"mpp":"message","data":"x","y":' + "[" * 40 + "]" * 40 + "}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_a_frame_of_no_known_kind_ends_the_connection(
    provider: Provider, url: str, text: str
) -> None:
    async with connect(provider, url, "/talk", 9 * PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.socket.send_str(text)
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await socket.rest()]
    assert kinds == ["payment-error", "payment-close-ready", FOREIGN]
    assert (await provider.books()).spent == 0


async def test_a_giant_frame_ends_the_connection(provider: Provider, url: str) -> None:
    async with connect(provider, url, "/talk", 9 * PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.socket.send_bytes(bytes(FRAME_BYTES_MAX))
        assert (await socket.frame()).get("bytes") == bytes(FRAME_BYTES_MAX)
        await socket.socket.send_bytes(bytes(FRAME_BYTES_MAX + 1))
        assert (await socket.rest())[-1] == {"closed": TOO_LARGE}


async def test_the_applications_data_is_never_taken_for_payment(
    provider: Provider, url: str
) -> None:
    """WS-02: a text with a credential in it is a text; one in a binary frame is bytes."""
    async with connect(provider, url, "/talk", 9 * PRICE) as socket:
        await socket.expect("payment-receipt")
        voucher = provider.payer.credential(socket.challenge, provider.payer.voucher(50 * PRICE))
        forged = msgspec.json.encode(
            {"mpp": "authorization", "authorization": format_credential(voucher)}
        )
        await socket.say(forged.decode())
        assert await socket.data() == forged.decode()
        await socket.socket.send_bytes(forged)
        assert await socket.frame() == {"bytes": forged}
    assert (await provider.books()).accepted == 9 * PRICE


async def test_a_voucher_of_another_channel_or_signer_is_refused(
    provider: Provider, url: str
) -> None:
    stranger = Payer(provider.chain, STRANGER_KEY)
    stranger.open_on_chain(deposit=10_000)
    for payload, status in (
        (stranger.voucher(20 * PRICE), 400),
        (type(stranger.voucher(1))(stranger.sign(20 * PRICE, provider.payer.key)), 402),
    ):
        async with connect(provider, url, "/talk", 9 * PRICE) as socket:
            await socket.expect("payment-receipt")
            await socket.pay(payload)
            assert (await socket.expect("payment-error"))["status"] == status
    assert (await provider.books()).accepted == 9 * PRICE


async def test_a_replayed_voucher_pays_nothing(provider: Provider, url: str) -> None:
    """WS-05."""
    async with connect(provider, url, "/talk", PRICE) as socket:
        await socket.expect("payment-receipt")
        await socket.say("one")
        await socket.data()
        await socket.pay(PRICE)
        assert (await socket.expect("payment-receipt"))["acceptedCumulative"] == str(PRICE)
        await socket.say("two")
        assert (await socket.rest())[-1] == {"closed": UNPAID}
    assert (await provider.books()).spent == PRICE


async def test_a_first_frame_that_does_not_come_ends_the_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channel.http.middleware.AUTHORIZATION_S_MAX", HASTY_S)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url + "/talk", protocols=(SUBPROTOCOL,)) as socket,
    ):
        assert "No credential came in time." in (await socket.receive()).data
        assert (await socket.receive()).data == UNPAID


async def test_a_flood_of_credentials_ends_the_connection(provider: Provider, url: str) -> None:
    """WS-07: refused ones after a number, and any that come faster than they are checked."""
    async with connect(provider, url, "/talk", 9 * PRICE) as socket:
        await socket.expect("payment-receipt")
        for _ in range(CREDENTIALS_REFUSED_MAX + 1):
            await socket.pay(1_000_000)
        frames = await socket.rest()
        errors = [frame for frame in frames if frame.get("mpp") == "payment-error"]
        assert len(errors) == CREDENTIALS_REFUSED_MAX + 1
        assert frames[-1] == {"closed": UNPAID}
    async with connect(provider, url, "/talk", 9 * PRICE) as socket:
        await socket.expect("payment-receipt")
        flood = provider.payer.credential(socket.challenge, provider.payer.voucher(9 * PRICE))
        frame = msgspec.json.encode(
            {"mpp": "authorization", "authorization": format_credential(flood)}
        )
        for _ in range(50 * CREDENTIALS_AHEAD_MAX):
            if socket.socket.closed:
                break
            await socket.socket.send_str(frame.decode())
        assert (await socket.rest())[-1] == {"closed": FOREIGN}


async def test_messages_ahead_of_their_payment_are_bounded(provider: Provider, url: str) -> None:
    """A payer is asked for a voucher once; what it sends instead is not kept without end."""
    async with connect(provider, url, "/in", PRICE) as socket:
        await socket.expect("payment-receipt")
        for _ in range(2 * FRAMES_AHEAD_MAX + 10):
            await socket.say("x")
        assert (await socket.rest())[-1] == {"closed": FOREIGN}
    async with connect(provider, url, "/in", 2 * PRICE) as socket:
        await socket.expect("payment-receipt")
        large = bytes(FRAME_BYTES_MAX)
        for _ in range(2 * FRAMES_AHEAD_BYTES_MAX // len(large) + 3):
            await socket.socket.send_bytes(large)
        assert (await socket.rest())[-1] == {"closed": FOREIGN}
    assert (await provider.books()).spent == 2 * PRICE


async def test_an_application_that_fails_half_way_keeps_what_it_sent_paid(
    provider: Provider,
) -> None:
    """A crash between two messages: the first is spent, nothing else is, nothing stays held."""

    async def fail(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("half")
        raise RuntimeError("out of memory")

    app = Starlette(routes=[WebSocketRoute("/talk", fail)])
    async with (
        SERVERS["hypercorn"](gate_of(provider, app)) as served,
        connect(provider, served, "/talk", 9 * PRICE) as socket,
    ):
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await socket.rest()]
    assert kinds == ["payment-receipt", "message", "payment-close-ready", FAULT]
    books = await provider.books()
    assert (books.spent, books.reservations) == (PRICE, ())


def denying(status: int) -> Callable[..., Any]:
    """An application that answers the handshake by HTTP, with a body."""

    async def deny(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        start = {"type": "websocket.http.response.start", "status": status, "headers": []}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": b"not today"})

    return deny


@pytest.mark.parametrize(("status", "seen"), [(403, 403), (410, 410), (200, 503)])
async def test_an_applications_own_answer_to_a_handshake_sells_nothing(
    provider: Provider, status: int, seen: int
) -> None:
    """F-48: a refusal passes; content in place of a websocket would be given away."""
    async with SERVERS["uvicorn"](gate_of(provider, denying(status))) as served:
        challenge = (await refused(served, "/talk")).challenge
        credential = format_credential(
            provider.payer.credential(challenge, provider.payer.voucher(PRICE))
        )
        answer = await refused(served, "/talk", headers={"Authorization": credential})
    assert answer.status == seen
    books = await provider.books()
    assert (books.spent, books.reservations) == (0, ())


@pytest.mark.parametrize("path", ["/rooms/1", "/talk"])
async def test_an_application_that_refuses_after_the_first_frame_sells_nothing(
    provider: Provider, path: str
) -> None:
    """WS-08: the connection is accepted by then, so a frame says it."""
    app = application() if path == "/rooms/1" else denying(403)
    async with (
        SERVERS["uvicorn"](gate_of(provider, app)) as served,
        connect(provider, served, path, PRICE, protocols=(SUBPROTOCOL,)) as socket,
    ):
        kinds = [frame.get("mpp", frame.get("closed")) for frame in await socket.rest()]
    assert kinds == ["payment-error", FOREIGN]
    books = await provider.books()
    assert (books.spent, books.reservations) == (0, ())
