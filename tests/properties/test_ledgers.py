"""Both ledgers against the pure rules as their model, with a crash between any two awaits."""

import asyncio
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channel.errors import ProblemError
from channel.ledger.interface import Applied, Ledger
from channel.ledger.postgres import PostgresLedger
from channel.ledger.sqlite import SqliteLedger
from channel.ledger.url import open_ledger
from channel.state import commands as c
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.charges import ChargeEnd, ChargeOutcome
from channel.state.transitions import transition
from channel.types import ChannelKey
from tests.channel.books import LEASE, accepting, fact, key_of, opening, reserving

CHANNELS = 3
WORKERS = 2

names = st.sampled_from([b"a", b"b"])
kinds = st.sampled_from(ReservationKind)
small = st.integers(0, 30)
ends = st.none() | st.just(ChargeEnd(ChargeOutcome.DONE, {"output_token": 3}))


class Call(msgspec.Struct, frozen=True):
    """One call of `apply`."""

    channel: int
    commands: tuple[c.Command, ...]

    @property
    def key(self) -> ChannelKey:
        return key_of(self.channel)


class CallBatch(msgspec.Struct, frozen=True):
    """Concurrent calls of one worker, and after how many turns it crashes, if it does."""

    worker: int
    calls: tuple[Call, ...]
    crash_after: int | None


def restarting(name: bytes, amount: int) -> c.Reserve:
    """A request's reservation that becomes a stream's."""
    asked = reserving(name, amount, kind=ReservationKind.STREAM)
    return msgspec.structs.replace(asked, replaces=True)


def commands_for(key: ChannelKey) -> st.SearchStrategy[c.Command]:
    """All commands that a channel may get, sensible or not, without those that are bugs."""
    return st.one_of(
        st.builds(opening, small, st.just(key)),
        st.builds(accepting, st.integers(0, 200), st.just(key)),
        st.builds(reserving, names, st.integers(1, 30), kind=kinds),
        st.builds(c.Extend, names, small, small, st.just(1), st.just(LEASE)),
        st.builds(c.Spend, names, st.just(0)),
        st.builds(restarting, names, st.integers(1, 30)),
        st.builds(c.Release, names, ends),
        st.just(c.ExpireReservations(LEASE)),
        st.builds(c.EndReservations, st.booleans()),
        st.builds(c.Repair, st.just(0), small),
        st.builds(c.Publish, small),
        st.just(c.BeginClose()),
        st.just(c.AbortClose()),
        st.builds(lambda more: c.Observe(fact(key, deposit=1000 + more, block=101)), small),
    )


def calls_for(channel: int) -> st.SearchStrategy[Call]:
    single = st.tuples(commands_for(key_of(channel)))
    spending = st.builds(
        lambda name, amount: (restarting(name, amount), c.Spend(name, 1)), names, st.integers(1, 30)
    )
    several = st.lists(single | spending, min_size=1, max_size=3)
    return st.builds(lambda chosen: Call(channel, tuple(chain(*chosen))), several)


rounds = st.builds(
    CallBatch,
    st.integers(0, WORKERS - 1),
    st.lists(st.integers(0, CHANNELS - 1).flatmap(calls_for), min_size=1, max_size=6).map(tuple),
    st.none() | st.integers(0, 12),
)
histories = st.lists(rounds, min_size=1, max_size=8)


def model(state: ChannelState | None, commands: Sequence[c.Command]) -> ChannelState | None:
    """Return what `apply` must leave: every command up to the first that is refused."""
    for command in commands:
        try:
            state = transition(state, command)
        except ProblemError:
            return state
    return state


class History:
    """Runs rounds on a real database and holds what it finds against the model."""

    def __init__(self, open_one: Callable[[], Awaitable[Ledger]]) -> None:
        self._open = open_one
        self._workers: list[Ledger | None] = [None] * WORKERS
        self._books: dict[int, ChannelState | None] = dict.fromkeys(range(CHANNELS))

    async def run(self, history: Sequence[CallBatch]) -> None:
        for one in history:
            worker = self._workers[one.worker] or await self._open()
            self._workers[one.worker] = worker
            await self._run_round(worker, one)
        for left in self._workers:
            if left is not None:
                await self._check(left)
                await left.close()

    async def _run_round(self, worker: Ledger, one: CallBatch) -> None:
        asked = [asyncio.ensure_future(worker.apply(call.key, call.commands)) for call in one.calls]
        if one.crash_after is None:
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for call, answer in zip(one.calls, answers, strict=True):
                self._expect(call, answer)
            return
        for _ in range(one.crash_after):
            await asyncio.sleep(0)
        known = [task.done() and not task.cancelled() for task in asked]
        await crash(worker, asked)
        self._workers[one.worker] = None
        await self._look_after_a_crash(one.calls, known)

    def _expect(self, call: Call, answer: Applied | BaseException) -> None:
        before = self._books[call.channel]
        after = model(before, call.commands)
        self._books[call.channel] = after
        if after is None:
            assert isinstance(answer, ProblemError)
        else:
            assert isinstance(answer, Applied)
            assert answer.state == after

    async def _look_after_a_crash(self, calls: Sequence[Call], known: Sequence[bool]) -> None:
        """What was acknowledged is there; of the rest a beginning may be, in order."""
        fresh = await self._open()
        for channel in range(CHANNELS):
            state = self._books[channel]
            possible = [state]
            for call, is_known in zip(calls, known, strict=True):
                if call.channel == channel:
                    state = model(state, call.commands)
                    possible = [state] if is_known else [*possible, state]
            found = await fresh.load(key_of(channel))
            assert found in possible
            self._books[channel] = found
        assert await fresh.faults() == []
        await fresh.close()

    async def _check(self, ledger: Ledger) -> None:
        for channel, state in self._books.items():
            assert await ledger.load(key_of(channel)) == state
        await require_accounts(ledger, [one for one in self._books.values() if one is not None])


async def require_accounts(ledger: Ledger, states: Sequence[ChannelState]) -> None:
    """Each channel's charges add up to what it has spent; `faults` says so, and so do the rows."""
    assert await ledger.faults() == []
    charged: dict[ChannelKey, int] = {}
    for row in await ledger.list_charges(0, 2**62):
        charged[row.key] = charged.get(row.key, 0) + row.amount
    for state in states:
        running = sum(held.spent for held in state.reservations)
        assert state.spent == charged.get(state.key, 0) + running


async def crash(ledger: Ledger, asked: Sequence["asyncio.Future[Applied]"]) -> None:
    """Drop a ledger where it stands: tasks end, connections are gone, nothing is flushed."""
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    if isinstance(ledger, SqliteLedger):
        await ledger._connection.close()  # noqa: SLF001 - the fault
    elif isinstance(ledger, PostgresLedger):
        writer = ledger._commits._writer  # noqa: SLF001
        if writer is not None:
            writer.cancel()
            await asyncio.wait([writer])
        for connection in (ledger._writer, ledger._reader):  # noqa: SLF001
            if connection is not None:
                connection.terminate()
        await ledger._listener.close()  # noqa: SLF001


@pytest.mark.timeout(300)
@given(histories)
@settings(max_examples=60)
def test_sqlite_holds_what_the_rules_say_after_any_crash(history: list[CallBatch]) -> None:
    """F-36, F-38, F-42, F-51, ACC-02, ACC-04."""

    async def main(path: Path) -> None:
        await History(lambda: open_ledger(f"sqlite:///{path}", exclusive=False)).run(history)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder) / "ledger.db"))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_asyncpg_may_stat")
@given(history=histories)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_postgres_holds_what_the_rules_say_after_any_crash(
    postgres_server: str, history: list[CallBatch]
) -> None:
    """F-36, F-38, F-42, F-51, ACC-02, ACC-04."""
    schema = f"history_{uuid.uuid4().hex}"
    joined = "&" if "?" in postgres_server else "?"
    url = postgres_server + joined + urlencode({"search_path": schema})

    async def main() -> None:
        admin = await asyncpg.connect(postgres_server)
        await admin.execute(f"CREATE SCHEMA {schema}")
        try:
            await History(lambda: open_ledger(url, exclusive=False)).run(history)
        finally:
            await admin.execute(f"DROP SCHEMA {schema} CASCADE")
            await admin.close()

    asyncio.run(main())
