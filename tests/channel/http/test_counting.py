"""O-49, O-50: what a metered route sends is counted, or it is not sent."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sse_starlette.sse import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from channel.errors import InsufficientBalanceError
from channel.http import PaymentGate, Price, Route, metered
from channel.wire.credential import format_credential
from tests.channel.http.test_events import events
from tests.channel.selling import PRICE, Provider, Visit, ask, never_stop, open_provider
from tests.waiting import until

Handler = Callable[[Request], Any]
STAT = Path(__file__).stat()
PRICED = Price(unit_price=PRICE, unit_type="line")


class Shop:
    """One metered route, and a channel on which so many units are paid for."""

    def __init__(self, provider: Provider, handler: Handler, *, pause_s: float = 5) -> None:
        self.provider = provider
        self._handler = handler
        route = Route(method="GET", path="/lines", price=PRICED, metered=True, pause_s=pause_s)
        self.gate = PaymentGate(
            self._app, engine=provider.engine, routes=[route], stop_worker=never_stop
        )

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self._handler(Request(scope, receive))
        await response(scope, receive, send)

    async def visit(self, units: int) -> Visit:
        self.provider.payer.open_on_chain()
        challenge = (await ask(self.gate, "GET", "/lines")).challenge
        credential = self.provider.payer.credential(
            challenge, self.provider.payer.opening(units * PRICE)
        )
        headers = {"authorization": format_credential(credential)}
        return Visit(self.gate, "GET", "/lines", headers=headers)

    async def pay(self, units: int) -> None:
        """Bring a voucher on a connection of its own."""
        challenge = (await ask(self.gate, "GET", "/lines")).challenge
        credential = self.provider.payer.credential(
            challenge, self.provider.payer.voucher(units * PRICE)
        )
        assert (await ask(self.gate, "HEAD", "/lines", credential)).status == 200


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with open_provider(tmp_path) as opened:
        yield opened


async def words(count: int = 3) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b"%d\n" % number


# -- nothing is counted


async def plain_stream(_: Request) -> Response:
    return StreamingResponse(words(), media_type="text/event-stream")


async def event_source(_: Request) -> Response:
    return EventSourceResponse(words())


async def whole(_: Request) -> Response:
    return JSONResponse({"words": 3})


async def file(_: Request) -> Response:
    return FileResponse(__file__, media_type="text/plain", stat_result=STAT)


async def empty_first(_: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield b""
        yield b"a line\n"

    return StreamingResponse(pieces())


async def entered_and_not_counted(request: Request) -> Response:
    async with metered(request.scope) as meter:
        await meter.hold(2)
    return JSONResponse({"words": 3})


async def counted_after(request: Request) -> Response:
    async def charge() -> None:
        async with metered(request.scope) as meter:
            await meter.spend(3)

    return JSONResponse({"words": 3}, background=BackgroundTask(charge))


async def stream_begun_and_not_counted(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        async with metered(request.scope, is_stream=True):
            yield b"a line\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


class Raw(Response):
    """Sends the messages of an extension instead of a body."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        super().__init__()
        self.messages = messages

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for message in self.messages:
            await send(message)


async def pathsend(_: Request) -> Response:
    return Raw({"type": "http.response.pathsend", "path": "/joke.txt"})


async def zero_copy(_: Request) -> Response:
    return Raw({"type": "http.response.zerocopysend", "file": 3})


UNCOUNTED = [
    plain_stream,
    event_source,
    whole,
    file,
    empty_first,
    entered_and_not_counted,
    counted_after,
    stream_begun_and_not_counted,
    pathsend,
    zero_copy,
]


@pytest.mark.parametrize("handler", UNCOUNTED, ids=lambda handler: handler.__name__)
async def test_nothing_leaves_a_metered_route_that_counts_nothing(
    provider: Provider, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    """O-50: a stream of another library's went out whole, with a receipt for 0."""
    shop = Shop(provider, handler)
    visit = await shop.visit(20)
    refused = await visit.answer()
    assert (refused.status, refused.kind) == (503, "payment-unavailable")
    assert "counts nothing" in refused.problem["detail"]
    assert refused.header("payment-receipt") is None
    assert "counts nothing" in caplog.text
    books = await provider.books()
    assert (books.spent, books.reserved) == (0, 0)


async def test_an_answer_without_content_has_nothing_to_count(provider: Provider) -> None:
    async def nothing(_: Request) -> Response:
        return StreamingResponse(words(0))

    answer = await (await Shop(provider, nothing).visit(20)).answer()
    assert (answer.status, answer.body, answer.receipt.spent) == (200, b"", 0)


async def test_what_is_counted_as_nothing_is_free(provider: Provider) -> None:
    """A handler may say so: `spend(0)`."""

    async def nothing(request: Request) -> Response:
        async with metered(request.scope) as meter:
            await meter.spend(0)
        return JSONResponse({"found": 0})

    answer = await (await Shop(provider, nothing).visit(20)).answer()
    assert (answer.status, answer.receipt.spent) == (200, 0)


async def test_a_stream_of_another_library_is_metered_from_inside(provider: Provider) -> None:
    """O-50: sse-starlette's, which counts with `metered` as it goes."""

    async def counted(request: Request) -> Response:
        async def pieces() -> AsyncIterator[str]:
            async with metered(request.scope, is_stream=True) as meter:
                for number in range(3):
                    await meter.spend()
                    yield str(number)

        return EventSourceResponse(pieces(), ping=3600)

    visit = await Shop(provider, counted).visit(20)
    await visit.until(lambda: "data: 2" in visit.text)
    visit.leave()
    await visit.task

    async def is_booked() -> bool:
        return (await provider.books()).spent == 3 * PRICE

    await until(is_booked)


async def test_a_file_that_was_counted_is_sent_by_its_path(provider: Provider) -> None:
    """O-50: an extension's message is content like any other."""

    async def counted(request: Request) -> Response:
        async with metered(request.scope) as meter:
            await meter.spend(2)
        return Raw({"type": "http.response.pathsend", "path": "/joke.txt"})

    visit = await Shop(provider, counted).visit(20)
    assert (await visit.answer()).receipt.spent == 2 * PRICE
    assert visit.sent[-1]["type"] == "http.response.pathsend"


async def test_a_background_task_cannot_charge_what_has_gone_out(provider: Provider) -> None:
    """O-50: it would be counted and never booked."""
    failed: list[str] = []

    async def late(request: Request) -> Response:
        async def charge() -> None:
            async with metered(request.scope) as meter:
                try:
                    await meter.spend(3)
                except RuntimeError as error:
                    failed.append(str(error))

        async with metered(request.scope) as meter:
            await meter.spend(1)
        return JSONResponse({}, background=BackgroundTask(charge))

    answer = await (await Shop(provider, late).visit(20)).answer()
    assert answer.receipt.spent == PRICE
    assert failed == ["the answer was already charged: spend before it is sent"]
    assert (await provider.books()).spent == PRICE


# -- streams that run dry


async def count_lines(request: Request, count: int, kind: str, **options: Any) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        async with metered(request.scope, **options) as meter:
            for number in range(count):
                await meter.spend(1)
                yield b"data: %d\n\n" % number

    return StreamingResponse(pieces(), media_type=kind)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-ndjson", "audio/mpeg"])
@pytest.mark.parametrize("options", [{}, {"is_stream": True}], ids=["metered", "is_stream"])
async def test_a_stream_that_cannot_ask_for_vouchers_is_refused(
    provider: Provider, kind: str, options: dict[str, Any]
) -> None:
    """O-49: it was broken off when the first voucher was used up, after one unit."""
    shop = Shop(provider, lambda request: count_lines(request, 100, kind, **options))
    refused = await (await shop.visit(1)).answer()
    assert (refused.status, refused.kind) == (503, "payment-unavailable")
    assert "cannot ask for vouchers" in refused.problem["detail"]
    books = await provider.books()
    assert (books.spent, books.reserved) == (0, 0)


@pytest.mark.parametrize("options", [{}, {"is_stream": True}], ids=["metered", "is_stream"])
async def test_a_stream_of_events_asks_for_the_voucher_it_needs(
    provider: Provider, options: dict[str, Any]
) -> None:
    """O-49: also without `Accept: text/event-stream`, and without `PaidEventStream`."""
    shop = Shop(provider, lambda request: count_lines(request, 5, "text/event-stream", **options))
    visit = await shop.visit(1)
    await visit.until(lambda: "payment-need-voucher" in visit.text)
    assert not visit.task.done()
    await shop.pay(5)
    await visit.answer()
    kinds = [kind for kind, _ in events(visit)]
    assert kinds.count("message") == 5
    assert kinds.count("payment-need-voucher") == 1
    books = await provider.books()
    assert (books.spent, books.reserved) == (5 * PRICE, 0)


async def test_a_stream_of_events_without_further_payment_is_broken_off(provider: Provider) -> None:
    """O-98, ACC-03: after its pause; what was sent is charged, and nothing else goes out."""
    shop = Shop(
        provider, lambda request: count_lines(request, 5, "text/event-stream"), pause_s=0.05
    )
    visit = await shop.visit(2)
    with pytest.raises(InsufficientBalanceError):
        await visit.task
    kinds = [kind for kind, _ in events(visit)]
    assert kinds == ["message", "message", "payment-need-voucher"]
    books = await provider.books()
    assert (books.spent, books.reserved) == (2 * PRICE, 0)
