"""Unpaid requests that cost memory or work are bounded, and keep no payer out."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from channel.errors import BadRequestError, TooManyRequestsError
from channel.http import PaymentGate
from channel.http.bodies import BodyBounds
from channel.limits import (
    BODIES_BYTES_MAX,
    BODIES_PER_CHANNEL_BYTES_MAX,
    BODIES_PER_SOURCE_BYTES_MAX,
    FAILED_REQUESTS_MAX,
    REQUEST_BYTES_MAX,
    VOUCHERS_PER_SECOND_MAX,
)
from channel.types import ChannelId
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.http.test_middleware import ROUTES, Shop
from tests.channel.selling import PRICE, STRANGER_KEY, Payer, Visit, ask, open_provider
from tests.waiting import until

KEYED = {"idempotency-key": "one"}


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_provider(tmp_path) as provider:
        shop = Shop(provider)
        await shop.open(PRICE)
        yield shop


@pytest.fixture
async def slow_shop(tmp_path: Path) -> AsyncIterator[Shop]:
    """One with the rate of vouchers that an operator gets who sets none."""
    async with open_provider(tmp_path, vouchers_per_second=VOUCHERS_PER_SECOND_MAX) as provider:
        shop = Shop(provider)
        await shop.open(PRICE)
        provider.clock.advance(1)
        yield shop


async def post(
    shop: Shop, amount: int, headers: dict[str, str], *, is_whole: bool = False
) -> Visit:
    """Begin a request of 400 bytes, and wait until they are read."""
    text = await shop.credential(shop.provider.payer.voucher(amount), method="POST")
    headers = {"authorization": text, **headers}
    visit = Visit(shop.gate, "POST", "/paid", headers=headers, body=b"x" * 400, is_whole=is_whole)
    await until(lambda: not visit.unread or visit.task.done())
    return visit


async def reading(_scope: Any, receive: Any, send: Any) -> None:
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"content"})


@pytest.mark.parametrize(
    ("most", "others", "mine"),
    [
        (BODIES_PER_CHANNEL_BYTES_MAX, [(1, b"other")], (1, b"mine")),
        (BODIES_PER_SOURCE_BYTES_MAX, [(2, b"mine"), (3, b"mine")], (1, b"mine")),
        (BODIES_BYTES_MAX, [(n, b"%d" % n) for n in range(10, 18)], (1, b"mine")),
        (BODIES_BYTES_MAX, [(n, b"") for n in range(10, 18)], (1, b"")),
    ],
    ids=["of one channel", "of one address", "in all", "in all, of unknown addresses"],
)
def test_bytes_of_bodies_are_bounded(
    most: int, others: list[tuple[int, bytes]], mine: tuple[int, bytes]
) -> None:
    """O-24."""
    bounds = BodyBounds()
    room, *rooms = [bounds.room(ChannelId(b"%32d" % n), by) for n, by in (mine, *others)]
    for other in rooms:
        other.take(most // len(rooms) - (other is rooms[0]))
    room.take(1)
    with pytest.raises(TooManyRequestsError, match=f"{most} bytes"):
        room.take(1)
    rooms[0].release()
    rooms[0].release()
    room.take(1)


@pytest.mark.parametrize("headers", [{}, KEYED], ids=["no key", "a key"])
async def test_a_channels_unfinished_bodies_take_so_much_memory_and_no_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """O-24, F-98, F-100: requests that never end cost their payer nothing yet."""
    monkeypatch.setattr("channel.http.bodies.BODIES_PER_CHANNEL_BYTES_MAX", 1000)
    shop.gate.app = reading
    keys = [dict.fromkeys(headers, f"{n}") for n in range(4)]
    first, second, third = [await post(shop, (2 + n) * PRICE, keys[n]) for n in range(3)]
    refused = await third.answer()
    assert (refused.status, refused.kind) == (429, "rate-limited")
    first.leave()
    await first.task
    whole = await post(shop, 10 * PRICE, keys[3], is_whole=True)
    assert (await whole.answer()).status == 200
    second.leave()
    await second.task
    books = await shop.provider.books()
    assert (books.spent, books.reserved) == (PRICE, 0)


async def test_a_body_counts_until_its_answer_begins(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-24: whole bodies that wait for a slow model, too."""
    monkeypatch.setattr("channel.http.bodies.BODIES_PER_CHANNEL_BYTES_MAX", 400)
    shop.app.go_on.clear()
    waiting = await post(shop, 2 * PRICE, KEYED, is_whole=True)
    await shop.app.started.wait()
    refused = await post(shop, 3 * PRICE, {"idempotency-key": "two"}, is_whole=True)
    assert (await refused.answer()).status == 429
    shop.app.go_on.set()
    assert (await waiting.answer()).status == 200
    assert not shop.gate.bodies._held  # noqa: SLF001


def fastapi_app() -> FastAPI:
    api = FastAPI()

    @api.post("/paid")
    async def paid(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @api.post("/form")
    async def form(fields: dict[str, str]) -> dict[str, str]:
        return fields

    return api


@pytest.mark.parametrize("headers", [{}, KEYED], ids=["no key", "a key"])
@pytest.mark.parametrize("app", [reading, fastapi_app()], ids=["plain", "FastAPI"])
async def test_a_body_that_does_not_end_is_refused_in_time(
    shop: Shop, app: Any, headers: dict[str, str]
) -> None:
    """O-24: nothing is charged, and the reservation is free again."""
    shop.gate.app, shop.gate.body_timeout_s = app, 0.05
    answer = await (await post(shop, 2 * PRICE, headers)).answer()
    assert (answer.status, answer.kind) == (408, "request-timeout")
    books = await shop.provider.books()
    assert (books.spent, books.reserved) == (0, 0)


async def test_a_framework_that_calls_it_a_bad_request_says_nothing_new(shop: Shop) -> None:
    """O-24: FastAPI answers 400 to any error while it reads a body."""
    shop.gate = PaymentGate(
        fastapi_app(),
        engine=shop.provider.engine,
        routes=[ROUTES[1].__class__(method="POST", path="/form", price=ROUTES[1].price)],
        body_timeout_s=0.05,
    )
    text = await shop.credential(shop.provider.payer.voucher(2 * PRICE), "/form", "POST")
    headers = {"authorization": text, "content-type": "application/json"}
    visit = Visit(shop.gate, "POST", "/form", headers=headers, body=b'{"a"', is_whole=False)
    assert (await visit.answer()).kind == "request-timeout"


async def test_a_body_in_time_leaves_the_handler_all_the_time_it_needs(shop: Shop) -> None:
    shop.gate.body_timeout_s = 0.5
    shop.app.go_on.clear()
    visit = await post(shop, 2 * PRICE, KEYED, is_whole=True)
    await shop.app.started.wait()
    clock = asyncio.get_running_loop().time
    over_at = clock() + 2 * shop.gate.body_timeout_s
    await until(lambda: clock() > over_at)
    shop.app.go_on.set()
    assert (await visit.answer()).status == 200


# -- requests that buy nothing


@pytest.mark.parametrize("way", ["raises", "answers 400"])
async def test_a_channel_fails_so_often_and_then_waits(shop: Shop, way: str) -> None:
    """O-22: each of them was read and looked at for nothing; no stranger can use them up."""
    shop.app.error = BadRequestError("No.") if way == "raises" else None
    shop.app.status = 400
    for number in range(FAILED_REQUESTS_MAX):
        assert (await shop.send(shop.provider.payer.voucher(PRICE + number))).status == 400
    refused = await shop.send(shop.provider.payer.voucher(10 * PRICE))
    assert (refused.status, refused.kind) == (429, "rate-limited")
    assert "bought nothing" in refused.problem["detail"]
    shop.provider.clock.advance(1)
    shop.app.error, shop.app.status = None, 200
    assert (await shop.send(shop.provider.payer.voucher(11 * PRICE))).status == 200


async def test_only_who_holds_the_key_can_use_up_a_channels_failures(shop: Shop) -> None:
    """O-22, F-99."""
    stranger = Payer(shop.provider.chain, STRANGER_KEY)
    forged = VoucherPayload(stranger.sign(5 * PRICE, shop.provider.payer.key))
    for _ in range(FAILED_REQUESTS_MAX + 1):
        text = await shop.credential(forged, method="POST")
        answer = await ask(shop.gate, "POST", "/paid", text, headers=KEYED, body=b"x")
        assert answer.status == 402
        shop.provider.clock.advance(1)
    assert (await shop.send(shop.provider.payer.voucher(5 * PRICE))).status == 200


async def ask_underpaid(shop: Shop, number: int, size: int) -> int:
    headers = {"idempotency-key": f"{number}"}
    voucher = shop.provider.payer.voucher(PRICE)
    return (await shop.send(voucher, method="POST", headers=headers, body=b"x" * size)).status


async def test_requests_that_are_refused_after_a_large_body_was_read_count(shop: Shop) -> None:
    """O-22: four MiB each, hashed for their key, and a voucher that does not cover the price."""
    assert (await shop.send(shop.provider.payer.voucher(PRICE))).status == 200
    for number in range(FAILED_REQUESTS_MAX):
        assert await ask_underpaid(shop, number, REQUEST_BYTES_MAX + 1) == 402
    voucher = shop.provider.payer.voucher(2 * PRICE)
    assert (await shop.send(voucher, method="POST", headers=KEYED, body=b"x")).status == 429


async def test_a_payer_who_must_raise_a_voucher_is_not_shut_out(shop: Shop) -> None:
    """O-22: such a body costs us less to read than the voucher to prove, which has its rate."""
    assert (await shop.send(shop.provider.payer.voucher(PRICE))).status == 200
    for number in range(FAILED_REQUESTS_MAX + 1):
        assert await ask_underpaid(shop, number, REQUEST_BYTES_MAX) == 402
    voucher = shop.provider.payer.voucher(2 * PRICE)
    assert (await shop.send(voucher, method="POST", headers=KEYED, body=b"x")).status == 200


@pytest.mark.parametrize("status", [304, 402, 409, 410, 425, 429, 500, 503])
async def test_what_is_not_the_clients_fault_shuts_it_out_of_nothing(
    shop: Shop, status: int
) -> None:
    """O-22: an overloaded model, a handler that fails, a resource that has not changed."""
    shop.app.status = status
    for number in range(FAILED_REQUESTS_MAX + 1):
        assert (await shop.send(shop.provider.payer.voucher(PRICE + number))).status == status
    shop.app.status = 200
    assert (await shop.send(shop.provider.payer.voucher(11 * PRICE))).status == 200


async def test_a_client_that_asks_again_for_what_is_being_served_is_not_shut_out(
    shop: Shop,
) -> None:
    """O-22, IDEM-03: its worker may have died, and holds the key until a lease runs out."""
    shop.app.go_on.clear()
    serving = await post(shop, 2 * PRICE, KEYED, is_whole=True)
    await shop.app.started.wait()
    for _ in range(FAILED_REQUESTS_MAX + 1):
        again = await (await post(shop, 2 * PRICE, KEYED, is_whole=True)).answer()
        assert (again.status, again.kind) == (409, "request-in-flight")
    shop.app.go_on.set()
    assert (await serving.answer()).status == 200
    assert (await (await post(shop, 2 * PRICE, KEYED, is_whole=True)).answer()).status == 200


# -- the rate of vouchers


async def buy(shop: Shop, amount: int) -> int:
    return (await shop.send(shop.provider.payer.voucher(amount))).status


async def send(shop: Shop, amount: int) -> int:
    """Show a voucher and buy nothing with it."""
    return (await shop.send(shop.provider.payer.voucher(amount), method="HEAD")).status


async def test_short_requests_back_to_back_do_not_wait_for_the_rate_of_vouchers(
    slow_shop: Shop,
) -> None:
    """O-37: sixty in no time, each with its own voucher, and each pays."""
    assert [await buy(slow_shop, (2 + n) * PRICE) for n in range(60)] == [200] * 60
    assert (await slow_shop.provider.books()).spent == 60 * PRICE


async def test_vouchers_that_buy_nothing_are_held_to_the_rate(slow_shop: Shop) -> None:
    """VCH-09, O-37: a flood by the payer itself costs us a signature and a commit each."""
    kinds = [await send(slow_shop, 2 * PRICE + n) for n in range(VOUCHERS_PER_SECOND_MAX + 1)]
    assert kinds == [200] * VOUCHERS_PER_SECOND_MAX + [429]


async def test_what_is_bought_pays_for_as_many_vouchers_and_no_more(slow_shop: Shop) -> None:
    """O-37: one cheap request does not open the door to a flood."""
    for number in range(VOUCHERS_PER_SECOND_MAX):
        assert await send(slow_shop, PRICE + number) == 200
    slow_shop.provider.clock.advance(0.11)  # one more
    assert await buy(slow_shop, 5 * PRICE) == 200
    assert await send(slow_shop, 6 * PRICE) == 200
    assert await send(slow_shop, 7 * PRICE) == 429
