"""Bounds on paid requests: refused before the handler runs, and nothing is charged for them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.http import PaymentGate
from channel.http.running import RequestLimits
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.http.test_middleware import ROUTES, Shop
from tests.channel.selling import PRICE, STRANGER_KEY, Answer, Payer, Visit, open_provider
from tests.waiting import until

OTHER = ("198.51.100.9", 40000)


class Store(Shop):
    """A shop whose gate has limits, and whose handler waits to be let go on."""

    def limit(self, **limits: int) -> None:
        self.gate = PaymentGate(
            self.app,
            engine=self.provider.engine,
            routes=ROUTES,
            limits=RequestLimits(**limits),
            stop_worker=self._stop,
        )

    async def buy(self, amount: int, client: tuple[str, int] | None = None) -> Visit:
        """Begin a paid request, and let it come as far as it comes."""
        calls = self.app.calls
        text = await self.credential(self.provider.payer.voucher(amount * PRICE))
        visit = Visit(self.gate, "GET", "/paid", headers={"authorization": text})
        if client is not None:
            visit.scope["client"] = client
        await until(lambda: self.app.calls > calls or bool(visit.sent))
        return visit

    async def require_refusal(self, answer: Answer, status: int, kind: str) -> None:
        """Check a refusal: it is typed, says when to come back, and costs nothing."""
        assert (answer.status, answer.kind) == (status, kind)
        assert answer.header("retry-after") == "1"
        assert answer.header("www-authenticate") is None
        books = await self.provider.books()
        assert books.reserved == PRICE  # of the request that runs
        assert self.app.calls == 1


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_provider(tmp_path) as provider:
        opened = Store(provider)
        await opened.open(10 * PRICE)
        opened.app.calls = 0
        yield opened


async def test_beyond_the_total_requests_are_refused_before_the_handler_runs(store: Store) -> None:
    """A model that has all it can run gets no more; the next is served when one has ended."""
    store.limit(running_max=1)
    store.app.go_on.clear()
    running = await store.buy(11)
    refused = await (await store.buy(12, OTHER)).answer()
    await store.require_refusal(refused, 503, "server-busy")
    store.app.go_on.set()
    assert (await running.answer()).status == 200
    assert (await (await store.buy(12)).answer()).status == 200
    assert (await store.provider.books()).spent == 2 * PRICE


async def test_an_address_has_so_many_and_others_have_theirs(store: Store) -> None:
    store.limit(running_per_address=1)
    store.app.go_on.clear()
    running = await store.buy(11)
    refused = await (await store.buy(12)).answer()
    await store.require_refusal(refused, 429, "rate-limited")
    elsewhere = await store.buy(13, OTHER)
    store.app.go_on.set()
    assert [(await visit.answer()).status for visit in (running, elsewhere)] == [200, 200]


async def test_a_payer_has_so_many_from_all_addresses(store: Store) -> None:
    store.limit(running_per_payer=1)
    store.app.go_on.clear()
    running = await store.buy(11)
    refused = await (await store.buy(12, OTHER)).answer()
    await store.require_refusal(refused, 429, "rate-limited")
    store.app.go_on.set()
    assert (await running.answer()).status == 200
    assert (await (await store.buy(12, OTHER)).answer()).status == 200


async def test_a_stranger_takes_no_place_of_the_payer_whose_channel_it_names(store: Store) -> None:
    """F-99: its voucher is refused before the payer's requests are counted."""
    store.limit(running_per_payer=1, per_second_per_payer=1)
    stranger = Payer(store.provider.chain, STRANGER_KEY)
    for _ in range(3):
        forged = VoucherPayload(stranger.sign(12 * PRICE, store.provider.payer.key))
        assert (await store.send(forged)).status == 402
    assert (await (await store.buy(12)).answer()).status == 200


@pytest.mark.parametrize("whose", ["address", "payer"])
async def test_so_many_begin_a_second(store: Store, whose: str) -> None:
    store.limit(**{f"per_second_per_{whose}": 2})
    answers = [await (await store.buy(11 + number)).answer() for number in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert "paid requests a second" in answers[2].problem["detail"]
    books = await store.provider.books()
    assert (books.spent, books.reserved) == (2 * PRICE, 0)
    store.provider.clock.advance(1)
    assert (await (await store.buy(13)).answer()).status == 200


async def test_vouchers_pass_when_no_request_may_begin(store: Store) -> None:
    """A stream that runs lives on them."""
    store.limit(running_max=1, running_per_address=1, running_per_payer=1)
    store.app.go_on.clear()
    running = await store.buy(11)
    topping = await store.send(store.provider.payer.voucher(20 * PRICE), method="HEAD")
    assert topping.status == 200
    assert topping.receipt.accepted == 20 * PRICE
    store.app.go_on.set()
    assert (await running.answer()).status == 200
