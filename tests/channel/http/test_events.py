"""A paid stream: charged before it is emitted, paused when unpaid, and never charged beyond."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from channel.errors import LedgerUnavailableError, StreamReplacedError
from channel.http import Event, Frame, PaidEventStream, PaymentGate, Price, Route
from channel.http.asgi import ASGIApp
from channel.http.events import Chunk
from channel.http.metering import METER
from channel.state.commands import StreamPolicy
from channel.wire.credential import format_credential
from channel.wire.receipt import Receipt, parse_receipt_json
from channel.wire.sse import EventSplitter, parse_event
from tests.channel.selling import PRICE, Provider, Visit, ask, open_provider
from tests.waiting import PATIENCE_S, until

METERED = Route(
    method="GET",
    path="/stream",
    price=Price(unit_price=PRICE, unit_type="llm_token", min_voucher_delta=4 * PRICE),
    metered=True,
)


class Tokens:
    """A producer that a test drives: what it yields, and whether it was closed."""

    def __init__(self, *chunks: Chunk) -> None:
        self.queue: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        for chunk in chunks:
            self.queue.put_nowait(chunk)

    def end(self) -> None:
        self.queue.put_nowait(None)

    async def __call__(self) -> AsyncIterator[Chunk]:
        try:
            while (chunk := await self.queue.get()) is not None:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            self.closed.set()


def streaming(*tokens: Tokens) -> ASGIApp:
    """Return an application that answers each request with the next producer."""
    remaining = list(tokens)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PaidEventStream(remaining.pop(0)())(scope, receive, send)

    return app


def gate_of(
    provider: Provider, *tokens: Tokens, route: Route = METERED, **options: Any
) -> PaymentGate:
    return PaymentGate(streaming(*tokens), engine=provider.engine, routes=[route], **options)


async def started(provider: Provider, gate: PaymentGate, amount: int) -> Visit:
    """Open the channel if need be and ask for a stream with a voucher of `amount`."""
    challenge = (await ask(gate, "HEAD", "/stream")).challenge
    if not provider.chain.facts:
        provider.payer.open_on_chain()
        opening = provider.payer.credential(challenge, provider.payer.opening())
        assert (await ask(gate, "HEAD", "/stream", opening)).status == 200
    credential = provider.payer.credential(challenge, provider.payer.voucher(amount))
    return Visit(gate, "GET", "/stream", headers={"authorization": format_credential(credential)})


async def pay(provider: Provider, gate: PaymentGate, amount: int) -> None:
    challenge = (await ask(gate, "HEAD", "/stream")).challenge
    credential = provider.payer.credential(challenge, provider.payer.voucher(amount))
    answer = await ask(gate, "HEAD", "/stream", credential)
    assert answer.status == 200, answer.headers


def events(visit: Visit) -> list[tuple[str, str]]:
    blocks = EventSplitter().feed(visit.text.encode())
    return [event for block in blocks if (event := parse_event(block)) is not None]


def has(visit: Visit, name: str, count: int = 1) -> Callable[[], bool]:
    return lambda: [event for event, _ in events(visit)].count(name) >= count


def final_receipt(visit: Visit) -> Receipt:
    name, data = events(visit)[-1]
    assert name == "payment-receipt"
    return parse_receipt_json(data)


async def test_a_stream_begins_and_ends_with_a_receipt(tmp_path: Path) -> None:
    """SSE-04, SSE-05, RCPT-02, AMB-20: spent is cumulative, units are the request's."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("Hel", "lo")
        tokens.end()
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        answer = await visit.answer()
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert answer.header("cache-control") == "private, no-cache, no-transform"
        assert answer.header("content-length") is None
        assert answer.receipt.spent == 0
        assert answer.receipt.accepted == 8 * PRICE
        assert events(visit)[:-1] == [("message", "Hel"), ("message", "lo")]
        receipt = final_receipt(visit)
        assert (receipt.spent, receipt.units) == (2 * PRICE, 2)
        assert visit.sent[-1]["more_body"] is False
        state = await provider.books()
        assert (state.spent, state.reserved) == (2 * PRICE, 0)


async def test_exhaustion_asks_once_and_a_voucher_elsewhere_resumes(tmp_path: Path) -> None:
    """SSE-01, SSE-02, SSE-03, VCH-08, F-60."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens(*"abcdef")
        gate = gate_of(provider, tokens)
        visit = await started(provider, gate, 4 * PRICE)
        await visit.until(has(visit, "payment-need-voucher"))
        names = [name for name, _ in events(visit)]
        assert names == ["message"] * 4 + ["payment-need-voucher"]
        assert msgspec.json.decode(events(visit)[-1][1]) == {
            "channelId": "0x" + provider.payer.key.channel_id.hex(),
            "requiredCumulative": str(8 * PRICE),
            "acceptedCumulative": str(4 * PRICE),
            "deposit": "1000",
        }
        assert (await provider.books()).spent == 4 * PRICE
        await pay(provider, gate, 8 * PRICE)
        await visit.until(has(visit, "message", 6))
        tokens.end()
        await visit.answer()
        assert [name for name, _ in events(visit)].count("payment-need-voucher") == 1
        assert final_receipt(visit).spent == 6 * PRICE


async def test_a_pause_that_is_not_paid_ends_with_a_receipt(tmp_path: Path) -> None:
    """SSE-03: the producer is freed, and what was emitted is what was spent."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens(*"abcdef")
        visit = await started(provider, gate_of(provider, tokens, pause_s=0.1), 4 * PRICE)
        await visit.answer()
        assert tokens.closed.is_set()
        assert [name for name, _ in events(visit)] == [
            *["message"] * 4,
            "payment-need-voucher",
            "payment-receipt",
        ]
        assert final_receipt(visit).spent == 4 * PRICE


async def test_a_client_that_leaves_pays_for_what_was_emitted(tmp_path: Path) -> None:
    """SSE-07, F-56: the rest goes back, and the producer is closed."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("a", "b", "c")
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        await visit.until(has(visit, "message", 3))
        visit.leave()
        async with asyncio.timeout(PATIENCE_S):
            await tokens.closed.wait()
            await visit.task
        state = await provider.books()
        assert (state.spent, state.reserved, state.available) == (3 * PRICE, 0, 5 * PRICE)


async def test_a_slow_reader_is_charged_one_write_ahead_at_most(tmp_path: Path) -> None:
    """F-56, F-42: an event counts before its bytes leave, so that none leaves uncharged.

    What was in the write that was cut short is charged, whether its bytes went or not; what is
    behind it is not.
    """
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("a")
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        await visit.until(has(visit, "message", 1))
        await asyncio.sleep(0.01)  # so that "b" does not come right behind "a"
        visit.gate.clear()
        for token in "bcdef":
            tokens.queue.put_nowait(token)
        await until(lambda: visit.is_writing)
        await asyncio.sleep(0.05)  # in which no more is charged
        visit.leave()
        await visit.task
        assert (await provider.books()).spent == 2 * PRICE


class Quick:
    """A producer that has its events ready, and then works without yielding to other tasks.

    Its work takes no time but on the stream's clock, and no time passes there without it.
    """

    def __init__(
        self, visits: list[Visit], monkeypatch: pytest.MonkeyPatch, *, work_s: float = 0.0
    ) -> None:
        self.seen: list[int] = []
        self._visits = visits
        self._work_s = work_s
        self._now = 1_000.0
        clock = SimpleNamespace(monotonic=lambda: self._now)
        monkeypatch.setattr("channel.http.events.time", clock)

    async def __call__(self, count: int) -> AsyncIterator[Chunk]:
        for number in range(count):
            (visit,) = self._visits
            self.seen.append(len(events(visit)))
            yield str(number)
            self._now += self._work_s
        (visit,) = self._visits
        self.seen.append(len(events(visit)))


async def quick_visit(provider: Provider, quick: Quick, count: int, visits: list[Visit]) -> Visit:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PaidEventStream(quick(count))(scope, receive, send)

    gate = PaymentGate(app, engine=provider.engine, routes=[METERED])
    visits.append(await started(provider, gate, 60 * PRICE))
    return visits[0]


async def test_events_that_are_ready_leave_together_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSE-01, decision 8: in few writes, each covered whole by what was held before it."""
    async with open_provider(tmp_path) as provider:
        visits: list[Visit] = []
        visit = await quick_visit(provider, Quick(visits, monkeypatch), 50, visits)
        await visit.answer()
        assert [data for name, data in events(visit) if name == "message"] == [
            str(number) for number in range(50)
        ]
        writes = [m for m in visit.sent if m.get("body", b"").startswith(b"data: ")]
        assert len(writes) < 25
        assert max(m["body"].count(b"data: ") for m in writes) <= 32
        assert final_receipt(visit).spent == 50 * PRICE


async def test_a_slow_producers_events_leave_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event is kept back for the next: one that takes its time finds the last one gone."""
    async with open_provider(tmp_path) as provider:
        visits: list[Visit] = []
        quick = Quick(visits, monkeypatch, work_s=0.002)
        visit = await quick_visit(provider, quick, 6, visits)
        await visit.answer()
        assert quick.seen == [0, 1, 2, 3, 4, 5, 6]


async def test_events_leave_before_the_producer_is_waited_for(tmp_path: Path) -> None:
    """What came together is not kept back while the producer waits for more."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens(*"abcdef")
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        await visit.until(has(visit, "message", 6))
        tokens.end()
        await visit.answer()
        assert final_receipt(visit).spent == 6 * PRICE


async def test_a_stream_stopped_while_it_writes_does_not_wait_for_its_producer(
    tmp_path: Path,
) -> None:
    """ACC-06, F-56: a stream that is asked to end in the middle of a write ends with that write."""
    async with open_provider(tmp_path) as provider:
        older, newer = Tokens(), Tokens("z")
        gate = gate_of(provider, older, newer)
        first = await started(provider, gate, 40 * PRICE)
        await first.until(lambda: bool(first.sent))
        first.gate.clear()
        for token in "abc":
            older.queue.put_nowait(token)
        await until(lambda: first.is_writing)
        second = await started(provider, gate, 80 * PRICE)
        await second.until(has(second, "message"))
        first.gate.set()
        await first.answer()
        assert older.closed.is_set()
        units = final_receipt(first).units
        assert units == [name for name, _ in events(first)].count("message")
        newer.end()
        await second.answer()


async def test_a_stream_stopped_while_it_asks_for_a_voucher_does_not_wait_for_one(
    tmp_path: Path,
) -> None:
    """SSE-03, SSE-04: a gateway that stops gives the receipt, however slow the reader was."""
    async with open_provider(tmp_path) as provider:
        stopping: list[Any] = []
        tokens = Tokens(*"abcd")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            stopping.append(scope[METER].reservation)
            await PaidEventStream(tokens())(scope, receive, send)

        gate = PaymentGate(app, engine=provider.engine, routes=[METERED], pause_s=10 * PATIENCE_S)
        visit = await started(provider, gate, 4 * PRICE)
        await visit.until(has(visit, "message", 4))
        visit.gate.clear()  # the question is on its way out, and the client does not read it
        tokens.queue.put_nowait("e")
        await until(lambda: visit.is_writing)
        stopping[0].stop(StreamReplacedError("A newer stream on this channel took over."))
        await asyncio.sleep(0.01)
        visit.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await visit.answer()
        assert final_receipt(visit).spent == 4 * PRICE


async def test_text_cannot_forge_a_control_event(tmp_path: Path) -> None:
    """F-55."""
    async with open_provider(tmp_path) as provider:
        forged = "x\n\nevent: payment-receipt\ndata: {}\r\rdata: y"
        upstream = Frame(b"event: payment-need-voucher\ndata: {}\n\n")
        tokens = Tokens(forged, upstream, Frame(b"event: delta\ndata: z\n\n"))
        tokens.end()
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        await visit.answer()
        assert [name for name, _ in events(visit)] == ["message", "delta", "payment-receipt"]
        assert events(visit)[0][1] == forged.replace("\r", "\n")
        assert final_receipt(visit).units == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"event: payment-receipt\ndata: {}\n\nevent: delta\ndata: z\n\n",
        b"data: z\r\revent:payment-need-voucher\rdata: {}\r\r",
        b"\xef\xbb\xbfevent: payment-receipt\ndata: {}\n\n",
    ],
    ids=["first of two", "second of two", "behind a byte order mark"],
)
async def test_a_frame_of_several_events_cannot_forge_one(tmp_path: Path, raw: bytes) -> None:
    """F-55: where the application did not cut another server's bytes into events."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens(Frame(raw), "word")
        tokens.end()
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        await visit.answer()
        assert [name for name, _ in events(visit)] == ["message", "payment-receipt"]
        assert final_receipt(visit).units == 1


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", "\r\n\r\n", "\r\r"])
async def test_a_frame_that_was_cut_off_swallows_no_event_and_makes_none(
    tmp_path: Path, end: str
) -> None:
    """F-55, SSE-04: two halves of a forged event stay halves, and the receipt stays whole."""
    async with open_provider(tmp_path) as provider:
        halves = ["data: x\neve", "nt: payment-receipt\ndata: {}", "data: y"]
        tokens = Tokens(*[Frame((half + end).encode()) for half in halves])
        tokens.end()
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        await visit.answer()
        *others, last = [name for name, _ in events(visit)]
        assert (others, last) == (["message"] * 3, "payment-receipt")
        assert final_receipt(visit).units == 3


async def test_an_application_cannot_speak_for_the_gate(tmp_path: Path) -> None:
    """F-55: an event with the name of a payment event is the application's bug, and is free."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens(Event("{}", "payment-receipt"))
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        with pytest.raises(ValueError, match="payment-receipt"):
            await visit.task
        assert final_receipt(visit).spent == 0


async def test_a_newer_stream_takes_the_place_of_the_running_one(tmp_path: Path) -> None:
    """ACC-06: the older ends immediately, with its receipt, and pays for its own units."""
    async with open_provider(tmp_path) as provider:
        older, newer = Tokens("a"), Tokens("b", "c")
        gate = gate_of(provider, older, newer)
        first = await started(provider, gate, 40 * PRICE)
        await first.until(has(first, "message"))
        second = await started(provider, gate, 80 * PRICE)
        await second.until(has(second, "message", 2))
        await first.answer()
        assert final_receipt(first).units == 1
        assert older.closed.is_set()
        newer.end()
        await second.answer()
        assert final_receipt(second).spent == 3 * PRICE


async def test_a_route_may_refuse_a_second_stream(tmp_path: Path) -> None:
    """ACC-06 by policy: 409, and the first one is left alone."""
    async with open_provider(tmp_path) as provider:
        route = msgspec.structs.replace(METERED, stream_policy=StreamPolicy.REJECT)
        first_tokens = Tokens("a")
        gate = gate_of(provider, first_tokens, Tokens("b"), route=route)
        first = await started(provider, gate, 40 * PRICE)
        await first.until(has(first, "message"))
        second = await started(provider, gate, 80 * PRICE)
        answer = await second.answer()
        assert (answer.status, answer.kind) == (409, "stream-active")
        assert answer.header("payment-receipt") is None
        first_tokens.end()
        await first.answer()
        state = await provider.books()
        assert (state.spent, state.reserved) == (PRICE, 0)


async def test_a_producer_that_fails_leaves_a_receipt_and_a_body_without_end(
    tmp_path: Path,
) -> None:
    """F-48, F-57: the units before the failure are spent, and the client can tell."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("a", "b")
        tokens.queue.put_nowait(RuntimeError("the model broke"))
        visit = await started(provider, gate_of(provider, tokens), 8 * PRICE)
        with pytest.raises(RuntimeError, match="the model broke"):
            await visit.task
        assert final_receipt(visit).spent == 2 * PRICE
        assert visit.sent[-1]["more_body"] is True
        state = await provider.books()
        assert (state.spent, state.reserved) == (2 * PRICE, 0)


async def test_a_close_ends_the_stream_and_then_the_channel(tmp_path: Path) -> None:
    """CLOSE-02, F-39: the stream's last receipt and the close agree."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("a", "b", "c")
        gate = gate_of(provider, tokens)
        visit = await started(provider, gate, 8 * PRICE)
        await visit.until(has(visit, "message", 3))
        challenge = (await ask(gate, "HEAD", "/stream")).challenge
        closing = provider.payer.credential(challenge, provider.payer.closing(3 * PRICE))
        closed = await ask(gate, "POST", "/stream", closing)
        assert closed.status == 200
        assert closed.receipt.spent == 3 * PRICE
        await visit.answer()
        assert final_receipt(visit).spent == 3 * PRICE
        assert [amount for _, amount, _ in provider.chain.closed] == [3 * PRICE]


async def test_a_requested_close_stops_a_stream_at_its_next_step(tmp_path: Path) -> None:
    """F-63, VCH-10: service stops when the payer has asked for the rest."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("a")
        gate = gate_of(provider, tokens)
        visit = await started(provider, gate, 80 * PRICE)
        await visit.until(has(visit, "message"))
        provider.chain.change(provider.payer.key, close_requested_at=1_800_000_000)
        provider.clock.advance(100)
        challenge = (await ask(gate, "HEAD", "/stream")).challenge
        voucher = provider.payer.credential(challenge, provider.payer.voucher(90 * PRICE))
        assert (await ask(gate, "HEAD", "/stream", voucher)).status == 410
        for _ in range(60):
            tokens.queue.put_nowait("x")
        await visit.answer()
        receipt = final_receipt(visit)
        assert receipt.units is not None
        assert receipt.units <= 32 + 1
        assert receipt.spent == receipt.units * PRICE


async def test_a_step_is_held_ahead_and_no_more(tmp_path: Path) -> None:
    """Decision 8: what a death could cost is one step, at every moment of a long stream."""
    async with open_provider(tmp_path, reservation_step_units=8) as provider:
        tokens = Tokens()
        gate = gate_of(provider, tokens)
        visit = await started(provider, gate, 100 * PRICE)
        for emitted in range(1, 60):
            tokens.queue.put_nowait("x")
            await visit.until(has(visit, "message", emitted))
            state = await provider.books()
            assert state.reserved <= 8 * PRICE
            assert state.spent <= emitted * PRICE <= state.spent + state.reserved
        tokens.end()
        await visit.answer()
        assert (await provider.books()).spent == 59 * PRICE


async def test_an_event_may_cost_several_units_or_none(tmp_path: Path) -> None:
    """Decision 8: a chunk may carry many tokens, more than a step holds."""
    async with open_provider(tmp_path, reservation_step_units=4) as provider:
        tokens = Tokens(Event("many", units=50), Event("[DONE]", units=0))
        tokens.end()
        visit = await started(provider, gate_of(provider, tokens), 60 * PRICE)
        await visit.answer()
        assert final_receipt(visit).spent == 50 * PRICE


async def test_a_chunk_dearer_than_what_is_left_says_what_it_needs(tmp_path: Path) -> None:
    """SSE-02: the voucher that is asked for covers the whole chunk."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("a", Event("many", units=50))
        gate = gate_of(provider, tokens)
        visit = await started(provider, gate, 8 * PRICE)
        await visit.until(has(visit, "payment-need-voucher"))
        need = msgspec.json.decode(events(visit)[-1][1])
        assert need["requiredCumulative"] == str(51 * PRICE)
        await pay(provider, gate, 51 * PRICE)
        tokens.end()
        await visit.answer()
        assert final_receipt(visit).spent == 51 * PRICE


async def test_an_expired_challenge_still_feeds_its_live_stream(tmp_path: Path) -> None:
    """AMB-05, F-61: and buys nothing else."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens(*"abcdef")
        gate = gate_of(provider, tokens)
        old = (await ask(gate, "HEAD", "/stream")).challenge
        visit = await started(provider, gate, 4 * PRICE)
        await visit.until(has(visit, "payment-need-voucher"))
        provider.clock.advance(301)
        voucher = provider.payer.credential(old, provider.payer.voucher(8 * PRICE))
        content = await ask(gate, "GET", "/stream", voucher)
        assert (content.status, content.kind) == (402, "payment-expired")
        assert (await ask(gate, "HEAD", "/stream", voucher)).status == 200
        await visit.until(has(visit, "message", 6))
        tokens.end()
        await visit.answer()
        refused = await ask(gate, "HEAD", "/stream", voucher)
        assert refused.status == 402


async def test_a_repeat_of_a_streams_key_is_refused_and_not_charged(tmp_path: Path) -> None:
    """IDEM-05: 409 while it runs and after it ended."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens("a")
        gate = gate_of(provider, tokens)
        visit = await started(provider, gate, 40 * PRICE)
        await visit.until(has(visit, "message"))
        tokens.end()
        await visit.answer()
        keyed = Tokens("b")
        gate = gate_of(provider, keyed, Tokens("never"))
        challenge = (await ask(gate, "HEAD", "/stream")).challenge
        credential = format_credential(
            provider.payer.credential(challenge, provider.payer.voucher(80 * PRICE))
        )
        headers = {"authorization": credential, "idempotency-key": "one"}
        running = Visit(gate, "GET", "/stream", headers=headers)
        await running.until(has(running, "message"))
        again = await Visit(gate, "GET", "/stream", headers=headers).answer()
        assert (again.status, again.kind) == (409, "request-in-flight")
        keyed.end()
        await running.answer()
        after = await Visit(gate, "GET", "/stream", headers=headers).answer()
        assert (after.status, after.kind) == (409, "outcome-unknown")
        assert (await provider.books()).spent == 2 * PRICE


async def test_a_stream_that_emitted_nothing_frees_its_key(tmp_path: Path) -> None:
    """IDEM-05: nothing was served, so the key may be used again."""
    async with open_provider(tmp_path) as provider:
        tokens = Tokens()
        second = Tokens("b")
        second.end()
        gate = gate_of(provider, tokens, second)
        provider.payer.open_on_chain()
        challenge = (await ask(gate, "HEAD", "/stream")).challenge
        opening = provider.payer.credential(challenge, provider.payer.opening(40 * PRICE))
        headers = {"authorization": format_credential(opening), "idempotency-key": "one"}
        visit = Visit(gate, "GET", "/stream", headers=headers)
        await visit.until(lambda: bool(visit.sent))
        visit.leave()
        await visit.task
        again = Visit(gate, "GET", "/stream", headers=headers)
        assert (await again.answer()).status == 200
        assert final_receipt(again).spent == PRICE


async def test_no_more_is_emitted_when_the_books_cannot_be_written(tmp_path: Path) -> None:
    """F-51: a full disk ends the stream; nothing goes out that is not held durably."""
    async with open_provider(tmp_path, reservation_step_units=4) as provider:
        tokens = Tokens()
        visit = await started(provider, gate_of(provider, tokens), 80 * PRICE)
        await visit.until(lambda: bool(visit.sent))
        await provider.ledger.close()
        for _ in range(20):
            tokens.queue.put_nowait("x")
        with pytest.raises(LedgerUnavailableError):
            await visit.task
        assert len(events(visit)) <= 4
