"""O-94: what cannot be charged is not sent, on whichever path: an own application, raw ASGI.

The charge is refused because the lease has ended, the books fail, or the bound is full. Nothing of
what was to be sold leaves, and nothing is spent.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from channel.engine.admission import Unbounded
from channel.errors import ExposureLimitError, LedgerUnavailableError
from channel.http import Event, PaidEventStream, PaymentGate, Price, Route, metered
from channel.wire.credential import format_credential
from tests.channel.selling import PRICE, Answer, Provider, Visit, ask, open_provider

SECRET = b"what is sold"
UNITS = 3
PRICED = Price(unit_price=PRICE, unit_type="llm_token")

Handler = Callable[["Shop", Any, Any, Any], Awaitable[None]]


class Bound(Unbounded):
    """Is full from the moment a test says so."""

    def __init__(self) -> None:
        self.is_full = False

    def take_room(self, amount: int) -> None:
        if self.is_full:
            raise ExposureLimitError(f"{amount} more would be at risk.")


class Shop:
    """One application, and what goes wrong just before it answers."""

    def __init__(self, provider: Provider, bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
        self.provider = provider
        self.bound = bound
        self.patch = monkeypatch
        self.break_it: Callable[[], Awaitable[None]] = self.nothing

    async def nothing(self) -> None:
        """Let it be."""

    async def lease_ended(self) -> None:
        await self.provider.ledger.end_all_reservations()

    async def books_failing(self) -> None:
        async def refuse(*_: Any, **__: Any) -> Any:
            raise LedgerUnavailableError("the disk is full")

        self.patch.setattr(self.provider.ledger, "apply", refuse)

    async def bound_full(self) -> None:
        self.bound.is_full = True


async def start(send: Any, **headers: str) -> None:
    fields = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": fields})


async def body(send: Any, content: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": more})


async def plain(shop: Shop, _scope: Any, _receive: Any, send: Any) -> None:
    await shop.break_it()
    await start(send, content_length=str(len(SECRET)))
    await body(send, SECRET)


async def in_pieces(shop: Shop, _scope: Any, _receive: Any, send: Any) -> None:
    """With a key it is kept until it is whole."""
    await start(send, content_length=str(len(SECRET)))
    await body(send, SECRET[:5], more=True)
    await shop.break_it()
    await body(send, SECRET[5:])


async def longer(shop: Shop, _scope: Any, _receive: Any, send: Any) -> None:
    """More than it announced: with a key it cannot be kept."""
    await shop.break_it()
    await start(send, content_length="1")
    await body(send, SECRET)


async def by_path(shop: Shop, _scope: Any, _receive: Any, send: Any) -> None:
    """A file that the server would send: with a key it cannot be kept."""
    await shop.break_it()
    await start(send, content_length=str(len(SECRET)))
    await send({"type": "http.response.pathsend", "path": "/" + SECRET.decode()})


async def counted(shop: Shop, scope: Any, _receive: Any, send: Any) -> None:
    async with metered(scope) as meter:
        await meter.spend(UNITS)
    await plain(shop, scope, _receive, send)


async def chunked(shop: Shop, scope: Any, _receive: Any, send: Any) -> None:
    async with metered(scope) as meter:
        await meter.hold(UNITS)
        await meter.spend(UNITS)
        await shop.break_it()
        await start(send)
        await body(send, SECRET)


async def more_than_held(shop: Shop, scope: Any, _receive: Any, send: Any) -> None:
    async with metered(scope) as meter:
        await meter.spend(1)
        await shop.break_it()
        await meter.spend(20)
    await start(send, content_length=str(len(SECRET)))
    await body(send, SECRET)


async def streamed(shop: Shop, scope: Any, receive: Any, send: Any) -> None:
    async def events() -> AsyncIterator[Event]:
        yield Event(SECRET.decode())

    await shop.break_it()
    await PaidEventStream(events())(scope, receive, send)


async def after_its_first(shop: Shop, scope: Any, receive: Any, send: Any) -> None:
    """The stream begins when its first event is there."""

    async def events() -> AsyncIterator[Event]:
        await shop.break_it()
        yield Event(SECRET.decode())

    await PaidEventStream(events())(scope, receive, send)


async def begun(shop: Shop, scope: Any, _receive: Any, send: Any) -> None:
    await shop.break_it()
    async with metered(scope, is_stream=True) as meter:
        await meter.spend(UNITS)
        await start(send, content_type="text/event-stream")
        await body(send, SECRET)


METERED: list[Handler] = [counted, chunked, more_than_held, streamed, after_its_first, begun]
HANDLERS: list[Handler] = [plain, in_pieces, longer, by_path, *METERED]
STREAMS = (streamed, after_its_first, begun)


def must_refuse(fault: str, handler: Handler, *, is_keyed: bool) -> bool:
    """Whether no part of the answer is paid for at the moment of the fault.

    Without a key an answer is charged when it begins. A stream takes a reservation of its own when
    it begins. What that holds may be sent after any fault, and is spent at its end.
    """
    if handler is in_pieces:
        return is_keyed
    if fault == "books_failing":
        return handler is not after_its_first
    return handler not in STREAMS


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    bound = Bound()
    with monkeypatch.context() as patched:
        async with open_provider(tmp_path, admission=bound, reservation_step_units=8) as provider:
            provider.payer.open_on_chain()
            yield Shop(provider, bound, patched)
            patched.undo()


async def buy(shop: Shop, handler: Handler, *, key: str = "") -> Answer:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handler(shop, scope, receive, send)

    route = Route(method="GET", path="/sold", price=PRICED, metered=handler in METERED)
    gate = PaymentGate(app, engine=shop.provider.engine, routes=[route])
    challenge = (await ask(gate, "GET", "/sold")).challenge
    if await shop.provider.state() is None:
        opening = shop.provider.payer.credential(challenge, shop.provider.payer.opening(60 * PRICE))
        assert (await ask(gate, "HEAD", "/sold", opening)).status == 200
    paid = shop.provider.payer.credential(challenge, shop.provider.payer.voucher(60 * PRICE))
    headers = {"authorization": format_credential(paid)}
    visit = Visit(gate, "GET", "/sold", headers=headers | ({"idempotency-key": key} if key else {}))
    with contextlib.suppress(LedgerUnavailableError):  # the server ends what has begun
        await visit.task
    return visit.so_far()


def cases() -> list[Any]:
    faults: dict[str, list[Handler]] = {
        "lease_ended": HANDLERS,
        "books_failing": HANDLERS,
        "bound_full": [more_than_held, *STREAMS],
    }
    return [
        pytest.param(fault, handler, id=f"{fault}-{handler.__name__}")
        for fault, handlers in faults.items()
        for handler in handlers
    ]


@pytest.mark.parametrize("key", ["", "a key"], ids=["once", "keyed"])
@pytest.mark.parametrize(("fault", "handler"), cases())
async def test_what_cannot_be_charged_is_not_sent(
    shop: Shop, fault: str, handler: Handler, key: str
) -> None:
    shop.break_it = getattr(shop, fault)
    answer = await buy(shop, handler, key=key)
    shop.patch.undo()
    await shop.provider.ledger.end_all_reservations()
    spent = (await shop.provider.books()).spent
    if must_refuse(fault, handler, is_keyed=bool(key)):
        assert SECRET not in answer.body
        assert answer.status >= 400
        assert answer.header("payment-receipt") is None
        assert spent == 0
    else:
        assert SECRET in answer.body
        assert PRICE <= spent <= 8 * PRICE  # a step at most
    shop.bound.is_full = False
    shop.break_it = shop.nothing
    assert SECRET in (await buy(shop, plain)).body  # it was no end


@pytest.mark.parametrize("handler", HANDLERS)
async def test_what_can_be_charged_is_sent(shop: Shop, handler: Handler) -> None:
    """The same applications when nothing goes wrong: each costs what it counted."""
    visit = await buy(shop, handler)
    assert visit.status == 200
    units: dict[Handler, int] = {counted: UNITS, chunked: UNITS, begun: UNITS, more_than_held: 21}
    assert (await shop.provider.books()).spent == units.get(handler, 1) * PRICE


@pytest.mark.parametrize("key", ["", "a key"], ids=["once", "keyed"])
@pytest.mark.parametrize("status", [None, 500, 503, 404])
async def test_what_was_counted_before_a_failure_is_given_back(
    shop: Shop, status: int | None, key: str
) -> None:
    """F-48: whether it raises, or answers that it failed."""

    async def failing(_: Shop, scope: Any, _receive: Any, send: Any) -> None:
        async with metered(scope) as meter:
            await meter.hold(12)
            await meter.spend(12)
            if status is None:
                raise RuntimeError("out of memory")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await body(send, b"sorry")

    METERED.append(failing)
    try:
        if status is None:
            with pytest.raises(RuntimeError, match="out of memory"):
                await buy(shop, failing, key=key)
        else:
            assert (await buy(shop, failing, key=key)).status == status
    finally:
        METERED.remove(failing)
    books = await shop.provider.books()
    assert (books.spent, books.reserved) == (0, 0)
    assert SECRET in (await buy(shop, plain, key=key)).body  # the key is free again
