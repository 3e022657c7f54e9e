"""The ledger in PostgreSQL: several processes on several machines (decision 9)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger import postgres_accounts as accounts
from channel.ledger import postgres_connection as pg
from channel.ledger.accounts import AccountSettings, ChargeDay, ChargeRow, last_day
from channel.ledger.batch import Job, job_of
from channel.ledger.group_commit import GroupCommit, OnCommit
from channel.ledger.interface import Applied, ConsumeProof, RequestUpdate, Soundness
from channel.ledger.marker import BooksId, Marker, find_loss
from channel.ledger.postgres_books import (
    SQL,
    Conflict,
    PostgresBooks,
    key_of_row,
    now,
    state_of_row,
)
from channel.ledger.queries import OLDER_TABLES
from channel.ledger.rows import key_values, row_fault
from channel.ledger.watching import Watcher, Watchers
from channel.limits import (
    CACHE_TRUSTED_S,
    CHANNELS_CACHED_MAX,
    CHANNELS_PER_PAGE_MAX,
    CHARGES_PER_PAGE_MAX,
    COMMIT_TRIES_MAX,
    LEDGER_REMOTE_POLL_S,
    PRUNE_BATCH_MAX,
    PRUNE_CHANNELS_MAX,
    STORED_RESPONSES_PER_CHANNEL_MAX,
)
from channel.state.channel_state import ChannelState
from channel.state.commands import Command, EndReservations, ExpireReservations
from channel.types import ChannelKey

__all__ = ["PostgresLedger"]

T = TypeVar("T")

_FAR_FUTURE: Final = 2**63 - 1
_AGAIN: Final = (
    Conflict,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
)
"""Another worker changed the rows first. The transaction changed nothing and is run again."""


class PostgresLedger:
    """See `interface.Ledger`. Make one with `open`.

    Writes and reads have one connection each, reopened when it is lost; a third one listens. An
    exclusive ledger (a gateway's) answers `load` from memory for a channel that it read within
    `CACHE_TRUSTED_S` and that no notification has named since.
    """

    def __init__(
        self,
        dsn: str,
        notify_on: str,
        *,
        exclusive: bool,
        read_only: bool = False,
        channels_cached_max: int = CHANNELS_CACHED_MAX,
        accounts: AccountSettings,
        wall: Callable[[], float],
    ) -> None:
        self._dsn = dsn
        self._accounts = accounts
        self._read_only = read_only
        self._is_gateway = exclusive
        self._marker: Marker | None = None
        self._fault: str | None = None
        """Why nothing is accepted: a commit was lost, or may be."""
        self._is_behind = False
        """Whether commits are lost for good; the operator must look, then start again."""
        self._trusted_s = CACHE_TRUSTED_S if exclusive else float("-inf")
        self._books = PostgresBooks(notify_on, channels_cached_max, accounts, wall)
        self._commits: GroupCommit[Job, Applied] = GroupCommit(self._commit)
        self._loads: GroupCommit[ChannelKey, ChannelState | None] = GroupCommit(self._load)
        self._watchers = Watchers()
        self._listener = pg.Listener(dsn, notify_on, on_notice=self._on_notice, on_gap=self._on_gap)
        self._writer: asyncpg.Connection | None = None
        self._reader: asyncpg.Connection | None = None
        self._reading = asyncio.Lock()
        self._poll: asyncio.Task[None] | None = None
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        exclusive: bool,
        read_only: bool = False,
        channels_cached_max: int = CHANNELS_CACHED_MAX,
        accounts: AccountSettings = AccountSettings(),  # noqa: B008 - frozen
        now: Callable[[], float] = time.time,
    ) -> "PostgresLedger":
        """Open the ledger. Several gateways may; their leases show which owner has died.

        With `read_only` nothing is changed, not even tables of an older version. `now` is the
        time of the accounts, in Unix seconds.

        Raises:
            ConfigError: The server does not make commits durable, its clock disagrees with a
                gateway's, or a newer version of this program wrote the tables.
            LedgerUnavailableError: The server does not answer.
        """
        connection = await pg.connect(dsn, read_only=read_only)
        try:
            if not read_only:
                await pg.require_durable(connection)
            if exclusive:
                await pg.require_clock(connection, time.time())
            await pg.require_schema(connection, read_only=read_only)
            ledger = cls(
                dsn,
                await pg.notification_channel(connection),
                exclusive=exclusive,
                read_only=read_only,
                channels_cached_max=channels_cached_max,
                accounts=accounts,
                wall=now,
            )
        except pg.FAILURES as error:
            raise LedgerUnavailableError(f"PostgreSQL: {error}") from error
        finally:
            await connection.close()
        await ledger._listener.start()
        return ledger

    async def load(self, key: ChannelKey) -> ChannelState | None:
        """See `interface.Ledger.load`."""
        state = self._books.peek(key, now() - self._trusted_s)
        return await self._loads.submit(key) if state is None else state

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
        start = (-1, b"", b"") if after is None else key_values(after)
        limit = min(limit, CHANNELS_PER_PAGE_MAX)
        rows = await self._page(start, limit, open_only=open_only)
        return [state_of_row(row) for row in rows]

    async def list_pending_closes(self, *, limit: int = 1000) -> list[ChannelState]:
        """See `interface.Ledger.list_pending_closes`."""
        limit = min(limit, CHANNELS_PER_PAGE_MAX)
        rows = await self._read(
            lambda connection: connection.fetch(SQL["select_pending_closes"], limit)
        )
        return [state_of_row(row) for row in rows]

    async def list_foreign(self, *, limit: int = 1000) -> list[ChannelState]:
        """See `interface.Ledger.list_foreign`."""
        limit = min(limit, CHANNELS_PER_PAGE_MAX)
        rows = await self._read(lambda connection: connection.fetch(SQL["select_foreign"], limit))
        return [state_of_row(row) for row in rows]

    async def expire_reservations(self, now: int) -> int:
        """See `interface.Ledger.expire_reservations`.

        Uses the server's clock if that is behind, so that a worker whose clock has jumped ends no
        other worker's reservations.
        """
        until = min(now, int(await self._read(pg.server_time)))
        return await self._end_leased(until, ExpireReservations(until))

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
        dropped = await self._repeat("delete_expired_requests", now)
        after = 0
        answers, total = self._books.answers, 0
        while channels := await self._answered(after):
            dropped += await self._repeat(
                "forget_answers", channels, STORED_RESPONSES_PER_CHANNEL_MAX
            )
            total += (await self._fetch("sum_answers", channels))[0][0]
            after = channels[-1]
        answers.total = total
        surplus = answers.surplus
        while surplus > 0:
            gone = await self._fetch("forget_oldest", PRUNE_BATCH_MAX, surplus)
            if not gone:
                break
            freed = sum(row[0] for row in gone)
            dropped += len(gone)
            surplus -= freed
            answers.total -= freed
        return dropped + await self._prune_charges(last_day(now - self._accounts.kept_s))

    async def _prune_charges(self, before: int) -> int:
        dropped, step = 0, PRUNE_BATCH_MAX
        while step == PRUNE_BATCH_MAX:
            step = await self._read(lambda connection: accounts.prune_charges(connection, before))
            dropped += step
        return dropped

    async def list_charges(
        self, since: int, until: int, *, after: ChargeRow | None = None, limit: int = 1000
    ) -> list[ChargeRow]:
        """See `interface.Ledger.list_charges`."""
        start = (-1, -1) if after is None else (after.at, after.row_id)
        limit = min(limit, CHARGES_PER_PAGE_MAX)
        return await self._read(
            lambda connection: accounts.list_charges(connection, start, since, until, limit)
        )

    async def find_charges(self, reservation_id: bytes) -> list[ChargeRow]:
        """See `interface.Ledger.find_charges`."""
        return await self._read(
            lambda connection: accounts.find_charges(connection, reservation_id)
        )

    async def find_answers(self, response_id: str) -> list[ChargeRow]:
        """See `interface.Ledger.find_answers`."""
        return await self._read(lambda connection: accounts.find_answers(connection, response_id))

    async def restore_charges(self, rows: Sequence[ChargeRow]) -> int:
        """See `interface.Ledger.restore_charges`."""
        return await self._read(lambda connection: accounts.restore_charges(connection, rows))

    async def list_charge_days(self, since: int, until: int) -> list[ChargeDay]:
        """See `interface.Ledger.list_charge_days`."""
        return await self._read(lambda connection: accounts.list_days(connection, since, until))

    async def _fetch(self, query: str, *arguments: Any) -> Any:
        return await self._read(lambda connection: connection.fetch(SQL[query], *arguments))

    async def _answered(self, after: int) -> list[int]:
        rows = await self._read(
            lambda connection: connection.fetch(SQL["select_answered"], after, PRUNE_CHANNELS_MAX)
        )
        return [row[0] for row in rows]

    async def _repeat(self, query: str, *arguments: Any) -> int:
        """Run a query that changes at most `PRUNE_BATCH_MAX` rows until it changes fewer."""
        changed = 0
        while True:
            done = await self._read(
                lambda connection: connection.execute(SQL[query], *arguments, PRUNE_BATCH_MAX)
            )
            step = int(done.rpartition(" ")[2])
            changed += step
            if step < PRUNE_BATCH_MAX:
                return changed

    async def faults(self) -> list[str]:
        """See `interface.Ledger.faults`. PostgreSQL itself checks references and types."""
        found: list[str] = []
        start: tuple[int, bytes, bytes] = (-1, b"", b"")
        while rows := await self._page(start, CHANNELS_PER_PAGE_MAX, open_only=False):
            found += [
                f"channel {row[3].hex()}: {fault}" for row in rows if (fault := row_fault(row, int))
            ]
            start = tuple(rows[-1][1:4])
        return found or await self._read(_balance_faults)

    async def identity(self, marker: str) -> BooksId:
        """See `interface.Ledger.identity`."""

        async def select(connection: asyncpg.Connection) -> BooksId:
            found = await connection.fetchrow(SQL["select_identity"], *pg.PRESENCE, marker)
            ledger_id, is_marked, place, is_served = found
            position = await pg.position(connection)
            system_id = "" if position is None else position.system_id
            return BooksId(ledger_id, f"postgresql {system_id}/{place}", is_marked, is_served)

        return await self._read(select)

    async def guard(self, marker: Marker) -> Soundness:
        """See `interface.Ledger.guard`."""
        await self._read(lambda connection: connection.execute(SQL["insert_marker"], marker.name))
        self._marker = marker
        found = await self.look()
        if found.fault is None:
            await self._listener.show()
        return found

    def report_commits(self, report: OnCommit) -> None:
        """See `interface.Ledger.report_commits`."""
        self._commits.on_commit = report

    async def look(self) -> Soundness:
        """See `interface.Ledger.look`."""

        async def look(connection: asyncpg.Connection) -> str | None:
            await self._examine(connection)
            return await pg.async_standbys(connection)

        warning = await self._read(look)
        return Soundness(self._fault, warning)

    async def close(self) -> None:
        """See `interface.Ledger.close`."""
        await self._commits.close()
        await self._loads.close()
        self._is_closed = True
        if self._poll is not None:
            self._poll.cancel()
        await self._listener.close()
        async with self._reading:
            for connection in (self._writer, self._reader):
                if connection is not None:
                    with suppress(*pg.FAILURES):
                        await connection.close()

    async def _commit(self, jobs: list[Job]) -> Sequence[Applied | Exception]:
        """Commit a batch. If the connection is lost during the commit, the outcome is unknown."""
        try:
            for _ in range(COMMIT_TRIES_MAX):
                if self._writer is None or self._writer.is_closed():
                    self._writer = await self._connect()
                if self._fault is not None:
                    raise LedgerUnavailableError(self._fault)
                try:
                    results, changed = await self._books.write_batch(self._writer, jobs)
                except _AGAIN:
                    continue
                if self._marker is not None:
                    self._marker.note(changed.values())
                self._watchers.wake(changed)
                return results
        except pg.FAILURES as error:
            self._books.forget()
            if isinstance(error, pg.BROKEN) and self._writer is not None:
                self._writer.terminate()
                self._writer = None
            raise LedgerUnavailableError(f"PostgreSQL: {error}") from error
        raise LedgerUnavailableError("Other workers kept changing the same channels; try again.")

    async def _connect(self) -> asyncpg.Connection:
        """Open a connection. It may lead to another server, or one with other settings."""
        connection = await pg.connect(self._dsn, read_only=self._read_only)
        try:
            await self._examine(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _examine(self, connection: asyncpg.Connection) -> None:
        """Check that this server makes commits durable, and lacks none of those it was given."""
        if not self._is_gateway or self._is_behind:
            return
        self._fault = await pg.loss_of_durability(connection)
        marker = self._marker
        if marker is None:
            return
        marks = marker.marks()  # before reading the ledger, whose amounts only grow
        known, reached = marker.position, await pg.position(connection)
        found = await self._books.load(connection, [mark.key for mark in marks])
        fault = find_loss(marks, {key: e[2] for key, e in found.items() if isinstance(e, tuple)})
        if fault is None and known is not None and reached is not None and reached.is_before(known):
            fault = (
                f"PostgreSQL went back from timeline {known.timeline}, position {known.lsn} to "
                f"{reached.timeline}, {reached.lsn}: it was restored, or is a primary that another "
                "has replaced"
            )
        if fault is not None:
            self._is_behind, self._fault = True, fault
            self._listener.hide()
        elif reached is not None:
            marker.position = reached

    async def _load(self, keys: list[ChannelKey]) -> Sequence[ChannelState | Exception | None]:
        found = await self._read(lambda connection: self._books.load(connection, keys))
        states: list[ChannelState | Exception | None] = []
        for key in keys:
            entry = found.get(key)
            states.append(entry[2] if isinstance(entry, tuple) else entry)
        return states

    async def _page(
        self, start: tuple[int, bytes, bytes], limit: int, *, open_only: bool
    ) -> list[Sequence[Any]]:
        return await self._read(
            lambda connection: connection.fetch(SQL["select_page"], *start, limit, open_only)
        )

    async def _read(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        async with self._reading:
            if self._is_closed:
                raise LedgerUnavailableError("The ledger is closed.")
            try:
                if self._reader is None or self._reader.is_closed():
                    self._reader = await self._connect()
                return await work(self._reader)
            except pg.FAILURES as error:
                if self._read_only and isinstance(error, asyncpg.UndefinedTableError):
                    raise ConfigError(OLDER_TABLES) from error
                if isinstance(error, pg.BROKEN) and self._reader is not None:
                    self._reader.terminate()
                    self._reader = None
                raise LedgerUnavailableError(f"PostgreSQL: {error}") from error

    async def _end_leased(self, until: int, command: Command) -> int:
        ended = 0
        while True:
            keys = await self._leased(until)
            await asyncio.gather(*[self.apply(key, [command]) for key in keys])
            ended += len(keys)
            if len(keys) < CHANNELS_PER_PAGE_MAX:
                return ended

    async def _leased(self, until: int) -> list[ChannelKey]:
        rows = await self._read(
            lambda connection: connection.fetch(SQL["select_leased"], until, CHANNELS_PER_PAGE_MAX)
        )
        return [key_of_row(row) for row in rows]

    def _on_notice(self, row_id: int, sender: int) -> None:
        if self._writer is not None and sender == self._writer.get_server_pid():
            return  # this process's own: the commit has woken its waiters
        key = self._books.key_of(row_id)
        if key is None:  # this worker never read the channel: wake every waiter
            self._watchers.wake_all()
        else:
            self._wake([key])

    def _on_gap(self) -> None:
        self._books.forget()
        self._watchers.wake_all()

    def _wake(self, keys: Iterable[ChannelKey]) -> None:
        for key in keys:
            self._books.distrust(key)
            self._watchers.wake([key])

    async def _poll_for_others(self) -> None:
        """While there are waiters, poll the watched rows: a notification may be lost."""
        seen: dict[ChannelKey, int] = {}
        try:
            while len(self._watchers):
                await asyncio.sleep(LEDGER_REMOTE_POLL_S)
                with suppress(LedgerUnavailableError):
                    newest = await self._revisions(self._watchers.keys())
                    self._wake(
                        [key for key, revision in newest.items() if seen.get(key) != revision]
                    )
                    seen = newest
                    self._watchers.wake(())  # those that wait for any channel check themselves
        finally:
            self._poll = None

    async def _revisions(self, keys: list[ChannelKey]) -> dict[ChannelKey, int]:
        columns = [list(column) for column in zip(*map(key_values, keys), strict=True)]
        if not columns:
            return {}
        rows = await self._read(
            lambda connection: connection.fetch(SQL["select_revisions"], *columns)
        )
        return {key_of_row(row[:3]): row[3] for row in rows}


async def _balance_faults(connection: asyncpg.Connection) -> list[str]:
    if not await connection.fetchval(SQL["has_accounts"]):
        return []  # only read, and of an older version
    return await accounts.balance_faults(connection)
