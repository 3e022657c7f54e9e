"""The gate refuses unpaid requests, serves paid ones once, and does not charge failures."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.errors import BadRequestError, ConfigError, InvariantError
from channel.http import PaymentGate, Price, Route
from channel.limits import (
    IDEMPOTENCY_LIFETIME_S,
    IDEMPOTENT_REQUEST_BYTES_MAX,
    STORED_RESPONSE_BYTES_MAX,
)
from channel.state.commands import EndReservations
from channel.wire.credential import format_credential
from channel.wire.payload import (
    Payload,
    VoucherPayload,
)
from tests.channel.selling import PRICE, Answer, Provider, Visit, ask, open_provider
from tests.waiting import until

ROUTES = [
    Route(method="GET", path="/paid", price=Price(unit_price=PRICE, unit_type="request")),
    Route(method="POST", path="/paid", price=Price(unit_price=PRICE, unit_type="request")),
    Route(method="GET", path="/album", price=Price(unit_price=PRICE, unit_type="song", units=3)),
]


class App:
    """Answers with a count of its calls, or as the test says."""

    def __init__(self) -> None:
        self.calls = 0
        self.status = 200
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: BaseException | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b"content"
        self.has_length = True
        self.received = b""
        self.before: list[dict[str, Any]] = []
        """Messages of an extension, sent before the answer begins."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.calls += 1
        self.started.set()
        await self.go_on.wait()
        if scope["method"] == "POST":
            self.received = (await receive())["body"]
        if self.error is not None:
            raise self.error
        for message in self.before:
            await send(message)
        headers = [*self.headers]
        if self.has_length:
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        half = len(self.body) // 2
        await send({"type": "http.response.body", "body": self.body[:half], "more_body": True})
        await send({"type": "http.response.body", "body": self.body[half:]})


class Shop:
    """A gate with an opened channel behind it."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.app = App()
        self.stops = 0
        self.gate = PaymentGate(
            self.app, engine=provider.engine, routes=ROUTES, stop_worker=self._stop
        )

    def _stop(self) -> None:
        self.stops += 1

    async def open(self, amount: int) -> None:
        self.provider.payer.open_on_chain()
        assert (await self.send(self.provider.payer.opening(amount), method="HEAD")).status == 200

    async def credential(self, payload: Payload, path: str = "/paid", method: str = "GET") -> str:
        answer = await ask(self.gate, method, path)
        return format_credential(self.provider.payer.credential(answer.challenge, payload))

    async def send(
        self,
        payload: Payload,
        *,
        method: str = "GET",
        path: str = "/paid",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        text = await self.credential(payload, path, "GET" if method == "HEAD" else method)
        return await ask(self.gate, method, path, text, headers=headers, body=body)

    async def visit(self, amount: int, **headers: str) -> Visit:
        text = await self.credential(self.provider.payer.voucher(amount))
        return Visit(self.gate, "GET", "/paid", headers={"authorization": text, **headers})


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_provider(tmp_path) as provider:
        opened = Shop(provider)
        await opened.open(10 * PRICE)
        opened.app.calls = 0
        yield opened


# -- which requests pass


async def test_a_paid_request_is_served_once_and_spent(shop: Shop) -> None:
    """ACC-03, RCPT-01, RCPT-05, CORE-06."""
    shop.app.headers = [(b"cache-control", b"public, max-age=60, s-maxage=9"), (b"etag", b'"1"')]
    answer = await shop.send(shop.provider.payer.voucher(11 * PRICE))
    assert (answer.status, answer.body) == (200, b"content")
    assert answer.receipt.spent == PRICE
    assert answer.receipt.accepted == 11 * PRICE
    assert answer.receipt.units == 1
    assert answer.header("cache-control") == "private, max-age=60"
    assert answer.header("etag") == '"1"'
    state = await shop.provider.books()
    assert (state.spent, state.reserved, shop.app.calls) == (PRICE, 0, 1)


async def test_a_hint_before_the_answer_passes_and_the_answer_is_charged_once(shop: Shop) -> None:
    """O-98, ACC-03: the ASGI extension for early hints sends one, which is not content."""
    hint = {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}
    shop.app.before = [hint]
    visit = await shop.visit(11 * PRICE)
    await visit.task
    assert visit.sent[0] == hint
    assert [message["type"] for message in visit.sent].count("http.response.start") == 1
    assert visit.text == "content"
    state = await shop.provider.books()
    assert (state.spent, state.reserved) == (PRICE, 0)


async def test_a_request_of_several_units_costs_them_all(shop: Shop) -> None:
    """ACC-05, RCPT-02, AMB-19."""
    answer = await shop.send(shop.provider.payer.voucher(10 * PRICE), path="/album")
    assert (answer.receipt.units, answer.receipt.spent) == (3, 3 * PRICE)


async def test_a_request_of_several_units_is_refused_unless_all_are_paid_for(shop: Shop) -> None:
    """ACC-03, ACC-05: one of three units is left, and the handler does not run for them."""
    for _ in range(3):
        assert (
            await shop.send(shop.provider.payer.voucher(10 * PRICE), path="/album")
        ).status == 200
    refused = await shop.send(shop.provider.payer.voucher(10 * PRICE), path="/album")
    assert (refused.status, refused.kind) == (402, "session/insufficient-balance")
    assert refused.problem["requiredCumulative"] == str(12 * PRICE)
    state = await shop.provider.books()
    assert (state.spent, state.reserved) == (9 * PRICE, 0)
    assert (shop.app.calls, shop.stops) == (3, 0)


async def test_every_challenge_of_a_channel_has_one_account(shop: Shop) -> None:
    """AMB-09, F-47: `spent` goes on where it was, in the books and in the receipts."""
    first, second = [await shop.send(shop.provider.payer.voucher(11 * PRICE)) for _ in range(2)]
    assert first.receipt.challenge_id != second.receipt.challenge_id
    assert (first.receipt.spent, second.receipt.spent) == (PRICE, 2 * PRICE)


async def test_neither_credential_nor_receipt_is_logged(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """RCPT-03, CORE-13: at no level, whether it is served or refused."""
    caplog.set_level(logging.DEBUG)
    channel_id = shop.provider.payer.key.channel_id.hex()
    for amount in (11 * PRICE, 10**30):
        text = await shop.credential(shop.provider.payer.voucher(amount))
        answer = await ask(shop.gate, "GET", "/paid", text)
        for secret in (text, answer.header("payment-receipt") or text, channel_id):
            assert secret not in caplog.text


async def test_what_is_not_priced_passes(shop: Shop) -> None:
    """The gate sells its routes and nothing else; under their paths see `test_spellings`."""
    for method, path in (("GET", "/free"), ("DELETE", "/free"), ("POST", "/")):
        answer = await ask(shop.gate, method, path)
        assert (answer.status, answer.header("payment-receipt")) == (200, None)
    await shop.gate({"type": "lifespan"}, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["get", "Get", "post", "head"])
async def test_no_spelling_of_a_method_is_served_unpaid(shop: Shop, method: str) -> None:
    """CORE-02: a server may pass a method on as it came, and a framework take it for its own."""
    assert (await ask(shop.gate, method, "/paid")).status == 402
    assert shop.app.calls == 0


async def test_a_route_of_any_characters_keeps_its_answers(tmp_path: Path) -> None:
    """IDEM-02: an idempotency key belongs to a route of any name."""
    async with open_provider(tmp_path) as provider:
        served = App()
        route = Route(method="GET", path="/café/{name}", price=Price(unit_price=1, unit_type="u"))
        gate = PaymentGate(served, engine=provider.engine, routes=[route])
        provider.payer.open_on_chain()
        for _ in range(2):
            challenge = (await ask(gate, "GET", "/café/au lait")).challenge
            text = format_credential(
                provider.payer.credential(challenge, provider.payer.opening(PRICE))
            )
            answer = await ask(
                gate, "GET", "/café/au lait", text, headers={"idempotency-key": "one"}
            )
            assert answer.status == 200
        assert served.calls == 1


async def test_a_credential_on_an_unpriced_method_is_management_or_nothing(shop: Shop) -> None:
    """F-13: a channel can be closed with POST where only GET is sold."""
    voucher = await shop.credential(shop.provider.payer.voucher(10 * PRICE), "/album")
    refused = await ask(shop.gate, "POST", "/album", voucher, body=b"{}")
    assert (refused.status, refused.header("payment-receipt")) == (405, None)
    assert shop.app.calls == 0
    closing = await shop.credential(shop.provider.payer.closing(PRICE), "/album")
    closed = await ask(shop.gate, "POST", "/album", closing)
    assert (closed.status, closed.body, shop.app.calls) == (200, b"", 0)
    assert (await shop.provider.books()).is_finalized


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "is_content"),
    [
        ("GET", "/paid", {}, b"", True),
        ("HEAD", "/paid", {}, b"", False),
        ("POST", "/paid", {}, b"", False),
        ("POST", "/paid", {"content-length": "0"}, b"", False),
        ("POST", "/paid?x=1", {}, b"", True),
        ("POST", "/paid", {}, b"{}", True),
        ("POST", "/paid", {"transfer-encoding": "chunked"}, b"", True),
        ("POST", "/paid", {"content-length": "7"}, b"", True),
    ],
)
async def test_a_voucher_is_content_or_management_by_method_and_framing(
    shop: Shop, method: str, target: str, headers: dict[str, str], body: bytes, *, is_content: bool
) -> None:
    """RESP-01, RESP-02, AMB-04, F-12: never by looking into the body."""
    voucher = await shop.credential(
        shop.provider.payer.voucher(11 * PRICE), method="POST" if method == "POST" else "GET"
    )
    answer = await ask(shop.gate, method, target, voucher, headers=headers, body=body)
    assert answer.status == 200
    assert answer.receipt.accepted == 11 * PRICE
    assert shop.app.calls == is_content
    assert (await shop.provider.books()).spent == is_content * PRICE
    if not is_content:
        assert answer.body == b""
        assert answer.header("cache-control") == "private"


async def test_a_close_with_a_body_never_reaches_the_handler(shop: Shop) -> None:
    """F-12, RESP-02."""
    answer = await shop.send(shop.provider.payer.closing(PRICE), method="POST", body=b"{}")
    assert (answer.status, answer.body, shop.app.calls) == (200, b"", 0)


async def test_the_handler_gets_its_body(shop: Shop) -> None:
    """F-59: the gate does not eat the request, with or without a key."""
    for headers in ({}, {"idempotency-key": "one"}):
        await shop.send(
            shop.provider.payer.voucher(10 * PRICE), method="POST", headers=headers, body=b"hello"
        )
        assert shop.app.received == b"hello"


async def test_another_field_may_carry_the_credential(tmp_path: Path) -> None:
    """CHAL-12: then Authorization is the application's own."""
    async with open_provider(tmp_path, credential_header="Payment-Authorization") as provider:
        shop = Shop(provider)
        provider.payer.open_on_chain()
        answer = await ask(shop.gate, "GET", "/paid")
        assert answer.challenge.header == "Payment-Authorization"
        text = format_credential(
            provider.payer.credential(answer.challenge, provider.payer.opening(PRICE))
        )
        refused = await ask(shop.gate, "GET", "/paid", text)
        assert (refused.status, refused.kind) == (402, "payment-required")
        headers = {"authorization": "Bearer app", "payment-authorization": text}
        assert (await ask(shop.gate, "GET", "/paid", headers=headers)).status == 200


async def test_preferences_never_leave_a_402_without_a_challenge(shop: Shop) -> None:
    """CORE-01, CORE-11."""
    for accept in ("tempo/charge", "evm/session;q=0", "*/*", "%%%"):
        answer = await ask(shop.gate, "GET", "/paid", headers={"accept-payment": accept})
        assert answer.challenge.method == "evm"


# -- what fails is not charged


@pytest.mark.parametrize("status", [301, 304, 400, 404, 500, 503])
async def test_only_success_is_paid_for(shop: Shop, status: int) -> None:
    """F-48, CORE-07: the gate sends the answer unchanged, but without any receipt header."""
    shop.app.status = status
    shop.app.headers = [(b"payment-receipt", b"forged")]
    answer = await shop.send(shop.provider.payer.voucher(10 * PRICE))
    assert (answer.status, answer.body) == (status, b"content")
    assert answer.header("payment-receipt") is None
    state = await shop.provider.books()
    assert (state.spent, state.reserved) == (0, 0)


async def test_a_handler_cannot_forge_a_receipt(shop: Shop) -> None:
    """RCPT-01: the answer has one receipt, the gate's."""
    shop.app.headers = [(b"Payment-Receipt", b"forged")]
    answer = await shop.send(shop.provider.payer.voucher(10 * PRICE))
    assert len(answer.all("payment-receipt")) == 1
    assert answer.receipt.spent == PRICE


async def test_a_handler_that_raises_is_not_paid_for(shop: Shop) -> None:
    """F-48: and its error goes on to the server unchanged."""
    shop.app.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        await shop.send(shop.provider.payer.voucher(10 * PRICE))
    assert (await shop.provider.books()).available == 10 * PRICE


async def test_an_answer_that_breaks_off_while_it_is_kept_is_not_paid_for(shop: Shop) -> None:
    """F-48, IDEM-05: with a key the gate sends only complete answers; the key is free again."""

    async def broken(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"7")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"con", "more_body": True})
        raise RuntimeError("broken")

    shop.gate.app = broken
    visit = await shop.visit(10 * PRICE, **{"idempotency-key": "one"})
    with pytest.raises(RuntimeError, match="broken"):
        await visit.task
    assert visit.sent == []
    assert (await shop.provider.books()).available == 10 * PRICE
    shop.gate.app = shop.app
    again = await (await shop.visit(10 * PRICE, **{"idempotency-key": "one"})).answer()
    assert (again.status, again.body, again.receipt.spent) == (200, b"content", PRICE)


async def test_a_handlers_typed_refusal_is_answered_as_a_problem(shop: Shop) -> None:
    """ERR: a PeerError raised inside is a 4xx, charged nothing."""
    shop.app.error = BadRequestError("No such joke.")
    answer = await shop.send(shop.provider.payer.voucher(10 * PRICE))
    assert (answer.status, answer.problem["detail"]) == (400, "No such joke.")
    assert (await shop.provider.books()).available == 10 * PRICE


async def test_a_client_that_leaves_before_the_answer_pays_nothing(shop: Shop) -> None:
    """F-42, SSE-07: nothing was emitted to it."""
    shop.app.go_on.clear()
    visit = await shop.visit(10 * PRICE)
    await shop.app.started.wait()
    visit.leave()
    await asyncio.sleep(0.02)  # no quick answer
    shop.app.go_on.set()
    await visit.task
    assert visit.sent == []
    assert (await shop.provider.books()).available == 10 * PRICE


async def test_money_that_is_no_longer_held_pays_for_nothing(shop: Shop) -> None:
    """Decision 8: the lease ran out under a slow handler; its answer does not go out."""
    shop.app.go_on.clear()
    visit = await shop.visit(10 * PRICE)
    await shop.app.started.wait()
    await shop.provider.ledger.apply(shop.provider.payer.key, [EndReservations()])
    shop.app.go_on.set()
    answer = await visit.answer()
    assert (answer.status, answer.kind) == (409, "reservation-ended")
    assert b"content" not in answer.body
    assert (await shop.provider.books()).spent == 0


async def test_a_bug_in_the_books_stops_the_worker(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors: 503 without a challenge, to this request and to all after it."""

    async def broken(*_: object, **__: object) -> None:
        raise InvariantError("spent 2 > accepted 1")

    credential = await shop.credential(shop.provider.payer.voucher(10 * PRICE))
    monkeypatch.setattr(shop.provider.engine, "perform", broken)
    for _ in range(2):
        answer = await ask(shop.gate, "GET", "/paid", credential)
        assert (answer.status, answer.kind) == (503, "payment-unavailable")
        assert answer.header("www-authenticate") is None
        assert b"accepted" not in answer.body
    assert (shop.stops, shop.app.calls) == (1, 0)
    assert (await ask(shop.gate, "GET", "/free")).status == 200


async def test_books_that_cannot_be_written_serve_nothing(shop: Shop) -> None:
    """F-51."""
    credential = await shop.credential(shop.provider.payer.voucher(11 * PRICE))
    await shop.provider.ledger.close()
    answer = await ask(shop.gate, "GET", "/paid", credential)
    assert (answer.status, answer.kind) == (503, "payment-unavailable")
    assert answer.header("retry-after") == "5"
    assert shop.app.calls == 0


# -- concurrency


async def test_parallel_requests_share_a_channel_and_pay_for_each(shop: Shop) -> None:
    """ACC-08, F-24: ten together, each paid for once; the eleventh is refused."""
    shop.app.go_on.clear()
    visits = [await shop.visit(10 * PRICE) for _ in range(11)]
    await until(lambda: shop.app.calls == 10 and any(visit.task.done() for visit in visits))
    assert [visit.task.done() for visit in visits].count(True) == 1
    shop.app.go_on.set()
    answers = [await visit.answer() for visit in visits]
    assert sorted(answer.status for answer in answers) == [200] * 10 + [402]
    assert (await shop.provider.books()).spent == 10 * PRICE


# -- idempotency


async def test_a_repeat_gets_the_answer_again_and_a_receipt_of_today(shop: Shop) -> None:
    """IDEM-02, IDEM-03, F-27: also with a fresh challenge."""
    shop.app.headers = [(b"x-joke", b"7")]
    headers = {"idempotency-key": "one"}
    first = await shop.send(shop.provider.payer.voucher(10 * PRICE), headers=headers)
    await shop.send(shop.provider.payer.voucher(10 * PRICE))
    again = await shop.send(shop.provider.payer.voucher(10 * PRICE), headers=headers)
    assert first.receipt.spent == PRICE
    assert (again.status, again.body, again.header("x-joke")) == (200, b"content", "7")
    assert again.receipt.spent == 2 * PRICE
    assert shop.app.calls == 2


async def test_a_key_is_free_again_when_nothing_was_served(shop: Shop) -> None:
    """IDEM-05, F-48."""
    headers = {"idempotency-key": "one"}
    shop.app.status = 500
    assert (await shop.send(shop.provider.payer.voucher(100), headers=headers)).status == 500
    shop.app.status = 200
    assert (await shop.send(shop.provider.payer.voucher(100), headers=headers)).status == 200
    assert (await shop.provider.books()).spent == PRICE


async def test_a_stored_answer_is_kept_for_so_long(shop: Shop) -> None:
    """IDEM-02, issue 10 B: one second earlier it is given again; then its key buys anew."""
    headers = {"idempotency-key": "one"}
    first = await shop.send(shop.provider.payer.voucher(100), headers=headers)
    assert (first.status, shop.app.calls) == (200, 1)
    shop.provider.clock.advance(IDEMPOTENCY_LIFETIME_S - 1)
    assert await shop.provider.ledger.prune(int(shop.provider.clock())) == 0
    again = await shop.send(shop.provider.payer.voucher(100), headers=headers)
    assert (again.status, again.receipt.spent, shop.app.calls) == (200, PRICE, 1)
    shop.provider.clock.advance(1)
    assert await shop.provider.ledger.prune(int(shop.provider.clock())) == 1
    anew = await shop.send(shop.provider.payer.voucher(100), headers=headers)
    assert (anew.status, anew.receipt.spent, shop.app.calls) == (200, 2 * PRICE, 2)


async def test_a_key_in_use_is_refused_until_its_request_is_answered(shop: Shop) -> None:
    """IDEM-03: 409 with Retry-After."""
    shop.app.go_on.clear()
    visit = await shop.visit(100, **{"idempotency-key": "one"})
    await shop.app.started.wait()
    again = await (await shop.visit(100, **{"idempotency-key": "one"})).answer()
    assert (again.status, again.kind) == (409, "request-in-flight")
    assert again.header("retry-after") == "1"
    shop.app.go_on.set()
    assert (await visit.answer()).status == 200
    assert (await shop.provider.books()).spent == PRICE


@pytest.mark.parametrize("is_long", [True, False], ids=["too-long", "no-length"])
async def test_an_answer_that_is_not_kept_is_not_charged_twice(
    shop: Shop, *, is_long: bool
) -> None:
    """IDEM-05, F-27: the repeat gets 409."""
    if is_long:
        shop.app.body = b"x" * (STORED_RESPONSE_BYTES_MAX + 1)
    else:
        shop.app.has_length = False
    headers = {"idempotency-key": "one"}
    first = await shop.send(shop.provider.payer.voucher(100), headers=headers)
    assert (first.status, first.body) == (200, shop.app.body)
    again = await shop.send(shop.provider.payer.voucher(100), headers=headers)
    assert (again.status, again.kind) == (409, "outcome-unknown")
    assert again.header("payment-receipt") is None
    assert (shop.app.calls, (await shop.provider.books()).spent) == (1, PRICE)


async def test_a_body_too_large_to_compare_is_refused_before_it_costs(shop: Shop) -> None:
    """IDEM-03: bounded memory."""
    body = b"x" * (IDEMPOTENT_REQUEST_BYTES_MAX + 1)
    answer = await shop.send(
        shop.provider.payer.voucher(100),
        method="POST",
        headers={"idempotency-key": "one"},
        body=body,
    )
    assert (answer.status, answer.kind, shop.app.calls) == (400, "bad-request", 0)


async def test_an_unpaid_request_is_never_buffered(shop: Shop) -> None:
    """F-98: the body of a request is read only once its voucher is proven to be valid."""
    forged = VoucherPayload(replace(shop.provider.payer.sign(100), signature=bytes(65)))
    for headers in ({}, {"authorization": await shop.credential(forged, method="POST")}):
        keyed = {"idempotency-key": "one", **headers}
        visit = Visit(shop.gate, "POST", "/paid", headers=keyed, body=b"x" * 1000)
        assert (await visit.answer()).status == 402
        assert visit.unread == 1


# -- configuration


@pytest.mark.parametrize(
    "routes",
    [
        [],
        [ROUTES[0], ROUTES[0]],
        [Route(method="HEAD", path="/x", price=ROUTES[0].price)],
        [Route(method="get", path="/x", price=ROUTES[0].price)],
    ],
    ids=["none", "twice", "head", "lower-case"],
)
async def test_a_table_that_would_not_sell_is_refused(shop: Shop, routes: list[Route]) -> None:
    """Decision 15."""
    with pytest.raises(ConfigError):
        PaymentGate(shop.app, engine=shop.provider.engine, routes=routes)


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.pathsend", "path": "/joke.txt"}],
        [{"type": "http.response.body", "body": b"x" * (STORED_RESPONSE_BYTES_MAX + 1)}],
        [
            {"type": "http.response.body", "body": b"a jo", "more_body": True},
            {"type": "http.response.body", "body": b"ke and more", "more_body": False},
        ],
    ],
    ids=["a file's path", "more than is kept", "more than was announced"],
)
async def test_an_answer_that_is_not_the_one_announced_is_charged_before_it_goes_out(
    shop: Shop, messages: list[dict[str, Any]]
) -> None:
    """F-48, IDEM-05: it cannot be repeated, and no worker stops over it."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        start = {"status": 200, "headers": [(b"content-length", b"6")]}
        await send({"type": "http.response.start", **start})
        for message in messages:
            await send(message)

    shop.gate.app = app
    visit = await shop.visit(10 * PRICE, **{"idempotency-key": "one"})
    answer = await visit.answer()
    assert (answer.status, answer.receipt.spent) == (200, PRICE)
    assert visit.sent[0]["type"] == "http.response.start"
    whole = b"".join(message.get("body", b"") for message in messages)
    assert b"".join(message.get("body", b"") for message in visit.sent) == whole
    assert visit.sent[-1]["type"] == messages[-1]["type"]
    assert (await shop.provider.books()).spent == PRICE
    again = await (await shop.visit(10 * PRICE, **{"idempotency-key": "one"})).answer()
    assert (again.status, again.kind, shop.stops) == (409, "outcome-unknown", 0)
