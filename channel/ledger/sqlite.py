"""The ledger in one SQLite file: one gateway process, and beside it the settler and commands."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from channel.errors import LedgerUnavailableError, StorageFailedError
from channel.ledger import sqlite_accounts as accounts
from channel.ledger import sqlite_books as sql
from channel.ledger.accounts import AccountSettings, ChargeDay, ChargeRow, last_day
from channel.ledger.batch import Job, job_of
from channel.ledger.group_commit import OnCommit, ThreadGroupCommit
from channel.ledger.interface import Applied, ConsumeProof, RequestUpdate, Soundness
from channel.ledger.marker import BooksId, Marker, find_loss
from channel.ledger.sqlite_connection import (
    ProcessLock,
    SqliteConnection,
    connect,
    loss_of_durability,
    write_log_anew,
)
from channel.ledger.watching import Watcher, Watchers
from channel.limits import (
    CACHE_TRUSTED_S,
    CHANNELS_CACHED_MAX,
    CHANNELS_PER_PAGE_MAX,
    CHARGES_PER_PAGE_MAX,
    LEDGER_POLL_S,
    PRUNE_BATCH_MAX,
)
from channel.state.channel_state import ChannelState
from channel.state.commands import Command, EndReservations, ExpireReservations
from channel.types import ChannelKey

__all__ = ["SqliteLedger"]

_FAR_FUTURE: Final = 2**63 - 1


class SqliteLedger:
    """See `interface.Ledger`. Make one with `open`.

    An exclusive ledger (the gateway's) answers `load` from memory when it looked at the file within
    `CACHE_TRUSTED_S`, so it may see a commit of the settler that much later. `apply` always decides
    on the newest state.
    """

    def __init__(
        self,
        connection: SqliteConnection,
        lock: ProcessLock | None,
        *,
        channels_cached_max: int = CHANNELS_CACHED_MAX,
        accounts: AccountSettings,
        now: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._lock = lock
        self._accounts = accounts
        self._marker: Marker | None = None
        self._fault: str | None = None
        """The reason to refuse every call: commits are lost, or may be. None if sound."""
        self._books = sql.SqliteBooks(channels_cached_max, accounts, now)
        self._commits: ThreadGroupCommit[Job, Applied] = ThreadGroupCommit(
            self._commit, connection.post
        )
        self._loads: ThreadGroupCommit[ChannelKey, ChannelState | None] = ThreadGroupCommit(
            self._load, connection.post
        )
        self._watchers = Watchers()
        self._poll: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls,
        path: Path | str,
        *,
        exclusive: bool,
        read_only: bool = False,
        channels_cached_max: int = CHANNELS_CACHED_MAX,
        accounts: AccountSettings = AccountSettings(),  # noqa: B008 - frozen
        now: Callable[[], float] = time.time,
    ) -> "SqliteLedger":
        """Open the ledger; with `exclusive`, for the gateway, end its predecessor's reservations.

        With `read_only` nothing is changed, not even tables of an older version. `now` is the
        time of the accounts, in Unix seconds.

        Raises:
            ConfigError: Another gateway has it open, it cannot be made durable, or a newer
                version of this program wrote it.
            LedgerUnavailableError: It was locked for longer than `LEDGER_BUSY_S`.
        """
        path = Path(path)
        lock = None
        if exclusive:
            lock = ProcessLock(path.with_name(path.name + ".lock"))
            await lock.acquire()
        try:
            connection = await connect(path, read_only=read_only)
            ledger = cls(
                connection,
                lock,
                channels_cached_max=channels_cached_max,
                accounts=accounts,
                now=now,
            )
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if exclusive:
            try:
                await ledger._connection.run(write_log_anew)
                await ledger.end_all_reservations()
            except BaseException:
                await ledger.close()
                raise
        return ledger

    async def load(self, key: ChannelKey) -> ChannelState | None:
        """See `interface.Ledger.load`."""
        if self._lock is not None and time.monotonic() - self._looked_at < CACHE_TRUSTED_S:
            state = self._books.peek(key)
            if state is not None:
                return state
        return await self._loads.submit(key)

    async def apply(
        self,
        key: ChannelKey,
        commands: Sequence[Command],
        *,
        request: RequestUpdate | None = None,
        proof: ConsumeProof | None = None,
    ) -> Applied:
        """See `interface.Ledger.apply`."""
        return await self._commits.submit(job_of(key, commands, request, proof))

    @asynccontextmanager
    async def watch(self, key: ChannelKey | None) -> AsyncIterator[Watcher]:
        """See `interface.Ledger.watch`."""
        async with self._watchers.watch(key) as watcher:
            if self._poll is None:
                self._poll = asyncio.create_task(self._poll_for_others())
            yield watcher

    async def list_channels(
        self, *, after: ChannelKey | None = None, limit: int = 1000, open_only: bool = False
    ) -> list[ChannelState]:
        """See `interface.Ledger.list_channels`."""
        limit = min(limit, CHANNELS_PER_PAGE_MAX)
        return await self._connection.run(sql.list_channels, after, limit, open_only=open_only)

    async def list_pending_closes(self, *, limit: int = 1000) -> list[ChannelState]:
        """See `interface.Ledger.list_pending_closes`."""
        return await self._connection.run(
            sql.list_pending_closes, min(limit, CHANNELS_PER_PAGE_MAX)
        )

    async def list_foreign(self, *, limit: int = 1000) -> list[ChannelState]:
        """See `interface.Ledger.list_foreign`."""
        return await self._connection.run(sql.list_foreign, min(limit, CHANNELS_PER_PAGE_MAX))

    async def expire_reservations(self, now: int) -> int:
        """See `interface.Ledger.expire_reservations`."""
        return await self._end_leased(now, ExpireReservations(now))

    async def list_leased(self) -> list[ChannelState]:
        """See `interface.Ledger.list_leased`."""
        keys = await self._leased(_FAR_FUTURE)
        states = await asyncio.gather(*[self.load(key) for key in keys])
        return [state for state in states if state is not None]

    async def end_unrenewed(self, key: ChannelKey, unrenewed: Sequence[tuple[bytes, int]]) -> None:
        """See `interface.Ledger.end_unrenewed`."""
        await self.apply(key, [ExpireReservations(0, tuple(unrenewed))])

    async def end_all_reservations(self) -> int:
        """See `interface.Ledger.end_all_reservations`."""
        return await self._end_leased(_FAR_FUTURE, EndReservations())

    async def prune(self, now: int) -> int:
        """See `interface.Ledger.prune`."""
        dropped, step = 0, PRUNE_BATCH_MAX
        while step == PRUNE_BATCH_MAX:
            step = await self._connection.run(sql.drop_expired_requests, now)
            dropped += step
        after: int | None = 0
        answers, total = self._books.answers, 0
        while after is not None:
            step, after, kept = await self._connection.run_transaction(
                partial(sql.forget_answers, after=after)
            )
            dropped += step
            total += kept
        answers.total = total
        surplus = answers.surplus
        while surplus > 0:
            step, freed = await self._connection.run_transaction(
                partial(sql.forget_oldest, surplus=surplus)
            )
            if not step:
                break
            dropped += step
            surplus -= freed
            answers.total -= freed
        return dropped + await self._prune_charges(last_day(now - self._accounts.kept_s))

    async def _prune_charges(self, before: int) -> int:
        dropped, step = 0, PRUNE_BATCH_MAX
        while step == PRUNE_BATCH_MAX:
            step = await self._connection.run_transaction(
                partial(accounts.prune_charges, before=before)
            )
            dropped += step
        return dropped

    async def list_charges(
        self, since: int, until: int, *, after: ChargeRow | None = None, limit: int = 1000
    ) -> list[ChargeRow]:
        """See `interface.Ledger.list_charges`."""
        return await self._connection.run(
            accounts.list_charges,
            (-1, -1) if after is None else (after.at, after.row_id),
            since,
            until,
            min(limit, CHARGES_PER_PAGE_MAX),
        )

    async def find_charges(self, reservation_id: bytes) -> list[ChargeRow]:
        """See `interface.Ledger.find_charges`."""
        return await self._connection.run(accounts.find_charges, reservation_id)

    async def find_answers(self, response_id: str) -> list[ChargeRow]:
        """See `interface.Ledger.find_answers`."""
        return await self._connection.run(accounts.find_answers, response_id)

    async def restore_charges(self, rows: Sequence[ChargeRow]) -> int:
        """See `interface.Ledger.restore_charges`."""
        return await self._connection.run_transaction(partial(accounts.restore_charges, rows=rows))

    async def list_charge_days(self, since: int, until: int) -> list[ChargeDay]:
        """See `interface.Ledger.list_charge_days`."""
        return await self._connection.run(accounts.list_days, since, until)

    async def faults(self) -> list[str]:
        """See `interface.Ledger.faults`."""
        return await self._connection.run(sql.faults)

    async def identity(self, marker: str) -> BooksId:
        """See `interface.Ledger.identity`."""
        ledger_id, is_marked = await self._connection.run(sql.select_identity, marker)
        return BooksId(ledger_id, self._connection.path, is_marked)

    async def guard(self, marker: Marker) -> Soundness:
        """See `interface.Ledger.guard`.

        A file that replaces this one ends the process (`channel.ledger.sqlite_connection`);
        `look` detects changes inside this one.
        """
        await self._connection.run_transaction(partial(sql.mark, marker=marker.name))
        self._marker = marker
        return await self.look()

    def report_commits(self, report: OnCommit) -> None:
        """See `interface.Ledger.report_commits`."""
        self._commits.on_commit = report

    async def look(self) -> Soundness:
        """See `interface.Ledger.look`."""
        if self._marker is not None and self._fault is None:
            marks = self._marker.marks()  # before reading the ledger, whose amounts only grow
            states = await asyncio.gather(*[self._loads.submit(mark.key) for mark in marks])
            known = {state.key: state for state in states if state is not None}
            self._fault = find_loss(marks, known)
        return Soundness(self._fault or await self._connection.run(loss_of_durability))

    async def close(self) -> None:
        """See `interface.Ledger.close`."""
        await self._commits.close()
        await self._loads.close()
        if self._poll is not None:
            self._poll.cancel()
        await self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def _commit(self, jobs: list[Job]) -> Sequence[Applied | Exception]:
        """Commit a batch, in the connection's thread."""
        if self._fault is not None:
            raise LedgerUnavailableError(self._fault)
        began = time.monotonic()
        results, changed = self._connection.work(self._books.write_batch, jobs)
        self._looked_at = began
        if self._marker is not None:
            self._marker.note(changed.values())
        if len(self._watchers):  # a watch that begins after this sees the change anyway
            self._loop.call_soon_threadsafe(self._watchers.wake, changed)
        return results

    def _load(self, keys: list[ChannelKey]) -> Sequence[ChannelState | Exception | None]:
        """Read channels, in the connection's thread."""
        began = time.monotonic()
        states = self._connection.work(self._books.load, keys)
        self._looked_at = began
        return states

    async def _end_leased(self, until: int, command: Command) -> int:
        ended = 0
        while True:
            keys = await self._leased(until)
            await asyncio.gather(*[self.apply(key, [command]) for key in keys])
            ended += len(keys)
            if len(keys) < CHANNELS_PER_PAGE_MAX:
                return ended

    async def _leased(self, until: int) -> list[ChannelKey]:
        return await self._connection.run(sql.leased, until, CHANNELS_PER_PAGE_MAX)

    async def _poll_for_others(self) -> None:
        """While there are waiters, poll for commits of other processes: SQLite sends no signal."""
        try:
            while len(self._watchers):
                await asyncio.sleep(LEDGER_POLL_S)
                began = time.monotonic()
                try:
                    is_foreign = await self._connection.run(self._books.has_foreign_commit)
                except (LedgerUnavailableError, StorageFailedError):
                    continue  # every waiter has its own timeout
                self._looked_at = began
                if is_foreign:
                    self._watchers.wake_all()
        finally:
            self._poll = None
