"""What the gate tells its hooks: each request once, the amounts that the ledger holds."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from channel.errors import BadRequestError
from channel.http import Event, PaidEventStream, PaymentGate, Price, Route, metered
from channel.http.hooks import (
    AlarmEvent,
    ChallengeEvent,
    Fanout,
    HookCalls,
    Hooks,
    OpenEvent,
    ReceiptEvent,
    RefusalEvent,
    RequestEvent,
    SpendEvent,
)
from channel.wire.credential import format_credential
from channel.wire.payload import (
    Payload,
)
from tests.channel.selling import PRICE, Answer, Provider, Visit, ask, open_provider

TOKENS = 100
ROUTES = [
    Route(
        method="GET",
        path="/paid",
        price=Price(unit_price=PRICE, unit_type="request", variant="small"),
    ),
    Route(
        method="GET",
        path="/stream",
        price=Price(unit_price=1, unit_type="token"),
        metered=True,
        pause_s=0.05,
    ),
    Route(
        method="GET", path="/counted", price=Price(unit_price=1, unit_type="token"), metered=True
    ),
]


class Notes(Hooks):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[RequestEvent] = []

    def on_challenge(self, event: ChallengeEvent) -> None:
        self.events.append(event)

    def on_refusal(self, event: RefusalEvent) -> None:
        self.events.append(event)

    def on_open(self, event: OpenEvent) -> None:
        self.events.append(event)

    def on_spend(self, event: SpendEvent) -> None:
        self.events.append(event)

    def on_receipt(self, event: ReceiptEvent) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    def only(self, kind: type[Any]) -> Any:
        found = self.of(kind)
        assert len(found) == 1, self.events
        return found[0]


class Broken(Hooks):
    """Fails in every method."""

    def on_challenge(self, event: ChallengeEvent) -> None:
        raise ValueError(event.route)

    def on_spend(self, event: SpendEvent) -> None:
        raise ValueError(event.route)

    def on_receipt(self, event: ReceiptEvent) -> None:
        raise ValueError(event.route)


class App:
    """Sells an answer, a stream of tokens and a counted answer."""

    def __init__(self) -> None:
        self.status = 200
        self.error: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.error is not None:
            raise self.error
        if scope["path"] == "/stream":
            await PaidEventStream(self._tokens())(scope, receive, send)
            return
        if scope["path"] == "/counted":
            async with metered(scope) as meter:
                await meter.spend(7)
                meter.reported = {"token": 8}
        headers = [(b"content-length", b"7")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"content"})

    async def _tokens(self) -> AsyncIterator[Event]:
        for at in range(TOKENS):
            if at == TOKENS // 2:
                await self.go_on.wait()
            yield Event("token")


class Shop:
    """A gate with hooks, and an opened channel behind it."""

    def __init__(self, provider: Provider, *hooks: Hooks) -> None:
        self.provider = provider
        self.app = App()
        self.notes = Notes()
        self.gate = PaymentGate(
            self.app, engine=provider.engine, routes=ROUTES, hooks=Fanout(self.notes, *hooks)
        )

    async def credential(self, payload: Payload, path: str) -> str:
        answer = await ask(self.gate, "GET", path)
        return format_credential(self.provider.payer.credential(answer.challenge, payload))

    async def pay(self, amount: int, path: str = "/paid", **headers: str) -> Answer:
        text = await self.credential(self.provider.payer.voucher(amount), path)
        self.notes.events.clear()
        return await ask(self.gate, "GET", path, text, headers=headers)

    async def open(self) -> Answer:
        self.provider.payer.open_on_chain()
        text = await self.credential(self.provider.payer.opening(0), "/paid")
        self.notes.events.clear()
        return await ask(self.gate, "HEAD", "/paid", text)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_provider(tmp_path) as provider:
        opened = Shop(provider)
        assert (await opened.open()).status == 200
        yield opened


async def test_a_request_without_a_credential_tells_of_its_challenges(shop: Shop) -> None:
    shop.notes.events.clear()
    answer = await ask(shop.gate, "GET", "/paid")
    event = shop.notes.only(ChallengeEvent)
    assert (event.status, event.problem_type) == (402, "payment-required")
    assert event.issued == (answer.challenge.id,)
    assert (event.route, event.variant) == ("GET /paid", "small")
    assert (event.channel_id, event.payer, event.challenge_id) == (None, None, None)
    assert event.at == shop.provider.clock()
    assert event.received <= event.monotonic
    assert len(event.request_id) == 32


async def test_an_opening_tells_of_the_deposit_once(tmp_path: Path) -> None:
    """A repeat of the opening is a voucher: no channel is opened twice."""
    async with open_provider(tmp_path) as provider:
        shop = Shop(provider)
        assert (await shop.open()).status == 200
        opened, receipt = shop.notes.only(OpenEvent), shop.notes.only(ReceiptEvent)
        assert (opened.action, opened.deposit) == ("open", 1_000)
        assert opened.tx_hash == "0x" + provider.payer.open_tx.hex()
        assert opened.payer == provider.payer.address
        assert (receipt.action, receipt.outcome, receipt.cost) == ("open", "done", 0)
        text = await shop.credential(provider.payer.opening(0), "/paid")
        shop.notes.events.clear()
        assert (await ask(shop.gate, "HEAD", "/paid", text)).status == 200
        assert shop.notes.of(OpenEvent) == []
        assert shop.notes.only(ReceiptEvent).action == "open"


async def test_a_top_up_tells_of_the_whole_deposit(shop: Shop) -> None:
    text = await shop.credential(shop.provider.payer.top_up(500), "/paid")
    shop.notes.events.clear()
    assert (await ask(shop.gate, "HEAD", "/paid", text)).status == 200
    opened = shop.notes.only(OpenEvent)
    assert (opened.action, opened.deposit) == ("topUp", 1_500)
    assert shop.notes.only(ReceiptEvent).deposit == 1_500


async def test_a_paid_request_tells_of_what_it_cost(shop: Shop) -> None:
    assert (await shop.pay(PRICE)).status == 200
    spent, receipt = shop.notes.only(SpendEvent), shop.notes.only(ReceiptEvent)
    assert (spent.amount, spent.cost, spent.usage) == (PRICE, PRICE, {"request": 1})
    assert spent.spent == PRICE
    assert (receipt.action, receipt.outcome, receipt.status) == ("request", "done", 200)
    assert (receipt.cost, receipt.usage, receipt.reported) == (PRICE, {"request": 1}, None)
    assert (receipt.accepted, receipt.spent, receipt.deposit) == (PRICE, PRICE, 1_000)
    assert receipt.channel_id == shop.provider.payer.key.channel_id
    assert receipt.payer == shop.provider.payer.address
    assert spent.request_id == receipt.request_id
    assert receipt.received <= receipt.handled <= receipt.first_sent <= receipt.monotonic


async def test_a_stream_tells_of_each_durable_part_and_they_add_up(shop: Shop) -> None:
    assert (await shop.pay(TOKENS, "/stream")).status == 200
    parts, receipt = shop.notes.of(SpendEvent), shop.notes.only(ReceiptEvent)
    assert len(parts) > 1
    assert sum(part.amount for part in parts) == receipt.cost == TOKENS
    assert [part.cost for part in parts] == sorted(part.cost for part in parts)
    assert receipt.usage == {"token": TOKENS}
    assert (await shop.provider.books()).spent == TOKENS == parts[-1].spent


async def test_a_stream_that_is_not_paid_further_is_done_with_what_was_paid(shop: Shop) -> None:
    assert (await shop.pay(40, "/stream")).status == 200
    receipt = shop.notes.only(ReceiptEvent)
    assert (receipt.cost, receipt.usage) == (40, {"token": 40})


async def test_a_client_that_leaves_is_reported_as_left(shop: Shop) -> None:
    shop.app.go_on.clear()
    text = await shop.credential(shop.provider.payer.voucher(TOKENS), "/stream")
    shop.notes.events.clear()
    visit = Visit(shop.gate, "GET", "/stream", headers={"authorization": text})
    await visit.until(lambda: visit.text.count("data:") >= TOKENS // 2)
    visit.leave()
    await visit.task
    receipt = shop.notes.only(ReceiptEvent)
    assert (receipt.outcome, receipt.cost) == ("left", TOKENS // 2)
    assert sum(part.amount for part in shop.notes.of(SpendEvent)) == TOKENS // 2


async def test_the_report_of_the_source_stands_beside_what_was_delivered(shop: Shop) -> None:
    assert (await shop.pay(50, "/counted")).status == 200
    receipt = shop.notes.only(ReceiptEvent)
    assert (receipt.usage, receipt.reported) == ({"token": 7}, {"token": 8})


async def test_a_refused_voucher_tells_of_the_problem_and_of_no_payment(shop: Shop) -> None:
    answer = await shop.pay(PRICE - 1)
    assert answer.status == 402
    event = shop.notes.only(RefusalEvent)
    assert event.problem_type == "session/insufficient-balance"
    assert event.issued == (answer.challenge.id,)
    assert event.channel_id == shop.provider.payer.key.channel_id
    assert event.challenge_id is not None
    assert len(shop.notes.events) == 1


async def test_a_refusal_of_the_application_has_no_problem_type(shop: Shop) -> None:
    shop.app.status = 503
    assert (await shop.pay(PRICE)).status == 503
    event = shop.notes.only(RefusalEvent)
    assert (event.status, event.problem_type) == (503, "")
    assert len(shop.notes.events) == 1


async def test_a_problem_that_the_handler_raises_is_reported_once(shop: Shop) -> None:
    shop.app.error = BadRequestError("no")
    assert (await shop.pay(PRICE)).status == 400
    assert shop.notes.only(RefusalEvent).problem_type == "bad-request"
    assert len(shop.notes.events) == 1


async def test_a_bug_of_the_handler_is_reported_as_failed(shop: Shop) -> None:
    shop.app.error = KeyError("bug")
    with pytest.raises(KeyError):
        await shop.pay(PRICE)
    receipt = shop.notes.only(ReceiptEvent)
    assert (receipt.outcome, receipt.status, receipt.cost) == ("failed", None, 0)


async def test_a_stored_answer_is_reported_as_a_repeat_that_costs_nothing(shop: Shop) -> None:
    key = {"idempotency-key": "k1"}
    assert (await shop.pay(PRICE, **key)).status == 200
    first = shop.notes.only(ReceiptEvent)
    assert first.first_sent is not None
    assert (await shop.pay(PRICE + 1, **key)).status == 200
    receipt = shop.notes.only(ReceiptEvent)
    assert (receipt.action, receipt.cost, receipt.status) == ("repeat", 0, 200)
    assert shop.notes.of(SpendEvent) == []


async def test_another_spelling_of_a_sold_path_is_reported_as_refused(shop: Shop) -> None:
    shop.notes.events.clear()
    assert (await ask(shop.gate, "GET", "/PAID")).status == 404
    event = shop.notes.only(RefusalEvent)
    assert (event.problem_type, event.route) == ("not-found", "")


async def test_a_failing_hook_changes_no_answer_and_is_logged_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_provider(tmp_path) as provider:
        shop = Shop(provider, Broken())
        with caplog.at_level(logging.ERROR):
            assert (await shop.open()).status == 200
            for amount in (PRICE, 2 * PRICE, 3 * PRICE):
                assert (await shop.pay(amount)).status == 200
        assert (await provider.books()).spent == 3 * PRICE
        assert sorted(record.getMessage() for record in caplog.records) == [
            "a hook failed: Broken.on_challenge",
            "a hook failed: Broken.on_receipt",
            "a hook failed: Broken.on_spend",
        ]


def test_no_event_is_built_for_a_method_that_no_hook_overrides() -> None:
    class Alarmed(Hooks):
        def on_alarm(self, event: AlarmEvent) -> None:
            """Only alarms."""

    calls = HookCalls(Fanout(Hooks(), Fanout(Alarmed())))
    assert bool(calls.alarm)
    assert not any((calls.challenge, calls.refusal, calls.open, calls.spend, calls.receipt))
    assert not calls
    assert not HookCalls(None)
