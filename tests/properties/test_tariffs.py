"""Requests under any tariff, on both ledgers: what is delivered is what is charged, in money."""

import asyncio
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.engine import RunningReservation  # noqa: TC001 - an annotation of a class
from channel.engine.reservation import least_amount, step_amount
from channel.errors import InsufficientBalanceError, LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.state.commands import EndReservations, StreamPolicy
from channel.tariff import RunningCost, Tariff
from tests.channel.chain_model import ChainModel
from tests.channel.engine.test_engine import paid, perform
from tests.channel.engine.test_reservation import Outage
from tests.channel.selling import SETTINGS, Clock, Provider
from tests.channel.test_tariff import NAMES, priced, tariffs

STEP_UNITS = 6
DEPOSIT = 10**9

usages = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 40), max_size=3)
moves = st.one_of(
    st.tuples(st.just("use"), usages),
    st.tuples(st.just("use"), usages),
    st.tuples(st.just("main"), st.integers(0, 12)),
    st.tuples(st.just("unpaid"), usages),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.just("outage"), st.booleans()),
    st.tuples(st.just("finish"), st.none()),
    st.tuples(st.just("fail"), usages),
    st.tuples(st.just("crash"), st.booleans()),
)
histories = st.lists(moves, min_size=1, max_size=14)


class Seller:
    """One channel's requests, one after another, held against a plain count of what was sent."""

    def __init__(self, provider: "Mortal", outage: Outage, tariff: Tariff) -> None:
        self.provider = provider
        self.outage = outage
        self.tariff = tariff
        self.step = step_amount(tariff, STEP_UNITS)
        self.spent = 0
        """Of the requests that have ended."""
        self.sent = RunningCost(tariff)
        self.reservation: RunningReservation

    async def begin(self, *, is_stream: bool = True) -> None:
        provider = self.provider
        self.sent = RunningCost(self.tariff)
        voucher = provider.payer.voucher(self.spent + least_amount(self.tariff))
        credential = paid(provider, voucher)
        held = provider.engine.hold(credential, is_metered=True)
        outcome = await provider.engine.perform(credential, held)
        self.reservation = provider.engine.reservation(credential, held, outcome)
        if is_stream:
            await self.reservation.start_stream(StreamPolicy.REPLACE)

    async def move(self, what: str, value: Any) -> None:
        await getattr(self, what)(value)
        state = await self.provider.books()
        assert state.spent + state.reserved <= state.accepted
        assert self.reservation.cost == self.sent.charged == self.tariff.cost(self.sent.usage)
        assert self.reservation.usage == self.sent.usage
        if self.tariff.maximum is not None:
            assert state.spent + state.reserved <= self.spent + self.tariff.maximum

    async def use(self, usage: dict[str, int]) -> None:
        used = priced(self.tariff, usage)
        while True:
            try:
                await self.reservation.cover(self.reservation.price_of(used))
            except InsufficientBalanceError as need:
                await perform(self.provider, self.provider.payer.voucher(need.required_cumulative))
            except LedgerUnavailableError:
                continue
            else:
                break
        self.reservation.take(used)
        self.sent.add(used)

    async def main(self, units: int) -> None:
        await self.use({self.reservation.main_kind: units})
        assert self.reservation.covered_units == self.sent.main_within(self.reservation.covered)

    async def unpaid(self, usage: dict[str, int]) -> None:
        """The refusal names the least voucher that would do."""
        price = self.reservation.price_of(priced(self.tariff, usage))
        due = self.spent + self.sent.charged + price
        asked = due
        try:
            await self.reservation.cover(price)
        except InsufficientBalanceError as need:
            asked = need.required_cumulative
        except LedgerUnavailableError:
            pass
        assert asked == due

    async def flush(self, _: None) -> None:
        try:
            await self.reservation.flush()
        except LedgerUnavailableError:
            return
        assert (await self.provider.books()).spent >= self.spent + self.reservation.cost - self.step

    async def outage_(self, is_made: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        self.outage.lasts, self.outage.is_made = 1, is_made

    async def finish(self, _: None) -> None:
        self.outage.lasts = 0
        state = await self.reservation.finish()
        self.spent += self.sent.charged
        assert (state.spent, state.reserved) == (self.spent, 0)
        await self.begin()

    async def fail(self, usage: dict[str, int]) -> None:
        """F-48: an answer that has not begun gives back everything."""
        await self.finish(None)
        await self.reservation.finish()
        await self.begin(is_stream=False)
        await self.use(usage)
        self.reservation.give_back()
        state = await self.reservation.finish()
        assert (state.spent, state.reserved, self.reservation.usage) == (self.spent, 0, {})
        await self.begin()

    async def crash(self, is_stream: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        """F-43: a dead stream costs what it sent and a step, a dead request nothing."""
        self.outage.lasts = 0
        if not is_stream:
            await self.finish(None)
            await self.reservation.finish()
            await self.begin(is_stream=False)
        await self.provider.engine.aclose()
        self.provider.revive()
        await self.provider.ledger.apply(self.provider.payer.key, [EndReservations()])
        state = await self.provider.books()
        beyond = state.spent - self.spent - self.sent.charged
        assert state.reserved == 0
        least = max(self.step, least_amount(self.tariff))
        assert 0 <= beyond <= (least if is_stream else 0)
        self.spent = state.spent
        await self.begin()


class Mortal(Provider):
    """A provider whose engine dies and is built anew on the same books."""

    def __init__(self, ledger: Ledger, tariff: Tariff) -> None:
        chosen = replace(SETTINGS, reservation_step_units=STEP_UNITS)
        super().__init__(ledger, ChainModel(), Clock(), chosen)
        self.settings = chosen
        self.offer = replace(self.offer, request=self.engine.ask(tariff=tariff))

    def revive(self) -> None:
        self.engine = Provider(self.ledger, self.chain, self.clock, self.settings).engine


async def run(
    open_one: Callable[[], Awaitable[Ledger]], tariff: Tariff, history: Sequence[tuple[str, Any]]
) -> None:
    ledger = await open_one()
    provider = Mortal(ledger, tariff)
    try:
        provider.payer.open_on_chain(DEPOSIT)
        await perform(provider, provider.payer.opening())
        outage = Outage(ledger)
        ledger.apply = outage.apply  # type: ignore[method-assign] # the fault
        seller = Seller(provider, outage, tariff)
        await seller.begin()
        for what, value in history:
            await seller.move("outage_" if what == "outage" else what, value)
        await seller.finish(None)
        await seller.reservation.finish()
        assert (await provider.books()).spent == seller.spent
    finally:
        await provider.engine.aclose()
        await ledger.close()


@pytest.mark.timeout(300)
@given(tariffs(), histories)
@settings(max_examples=40, deadline=None)
def test_sqlite_charges_what_was_delivered(tariff: Tariff, history: list[tuple[str, Any]]) -> None:
    """ACC-03, ACC-05, F-42, F-48: exact under every tariff, with any failure meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'ledger.db'}"
        asyncio.run(run(lambda: open_ledger(url, exclusive=True), tariff, history))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_asyncpg_may_stat")
@given(tariff=tariffs(), history=histories)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_postgres_charges_what_was_delivered(
    postgres_server: str, tariff: Tariff, history: list[tuple[str, Any]]
) -> None:
    """ACC-03, ACC-05, F-42, F-48."""
    schema = f"tariff_{uuid.uuid4().hex}"
    joined = "&" if "?" in postgres_server else "?"
    url = postgres_server + joined + urlencode({"search_path": schema})

    async def main() -> None:
        admin = await asyncpg.connect(postgres_server)
        await admin.execute(f"CREATE SCHEMA {schema}")
        try:
            await run(lambda: open_ledger(url, exclusive=False), tariff, history)
        finally:
            await admin.execute(f"DROP SCHEMA {schema} CASCADE")
            await admin.close()

    asyncio.run(main())
