"""Connections to PostgreSQL on which a commit means "on disk", and the schema version."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from zlib import crc32

import asyncpg

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger.marker import Position
from channel.ledger.queries import Schema, load_queries, load_schema
from channel.limits import CLOCK_SKEW_S_MAX, LEDGER_BUSY_S

__all__ = [
    "BROKEN",
    "FAILURES",
    "PRESENCE",
    "Listener",
    "OneConnection",
    "async_standbys",
    "connect",
    "loss_of_durability",
    "notification_channel",
    "position",
    "require_clock",
    "require_durable",
    "require_schema",
    "server_time",
]

_SCHEMA: Final = load_schema("ledger", "postgres", reads_from=4)
_SQL: Final = load_queries("postgres")
_RECONNECT_S: Final = (0.0, 0.05, 0.2, 1.0)

_LOSSY: Final = {
    "synchronous_commit": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "data_sync_retry": "on",
}

PRESENCE: Final = (crc32(b"mpp-session gateway") >> 1, 1)
"""The advisory lock that every gateway shares once it has compared the ledger with a marker."""

BROKEN: Final = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.ReadOnlySQLTransactionError,
    OSError,
    TimeoutError,
)
"""After these a connection is unusable: it is gone, in an unknown state, or leads to a standby."""

FAILURES: Final = (asyncpg.PostgresError, *BROKEN)
"""Every error of a server: it refused, is gone, or answered after the deadline."""


async def connect(dsn: str, *, read_only: bool = False) -> asyncpg.Connection:
    """Open one connection with bounded waits, on which a commit waits for the disk.

    Raises:
        LedgerUnavailableError: The server does not answer, or refuses the connection.
    """
    settings = {
        "application_name": "mpp-session",
        "lock_timeout": str(int(LEDGER_BUSY_S * 1000)),
        **({"default_transaction_read_only": "on"} if read_only else {}),
    }
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=LEDGER_BUSY_S,
            command_timeout=4 * LEDGER_BUSY_S,
            server_settings=settings,
        )
        try:
            await connection.execute(_SQL["require_synchronous"])
        except BaseException:
            connection.terminate()
            raise
    except FAILURES as error:
        raise LedgerUnavailableError(f"PostgreSQL: {error}") from error
    return connection


async def require_durable(connection: asyncpg.Connection) -> None:
    """Refuse a server that acknowledges before it has written, or after a write failed.

    Raises:
        ConfigError: See `loss_of_durability`.
    """
    fault = await loss_of_durability(connection)
    if fault is not None:
        raise ConfigError(fault)


async def loss_of_durability(connection: asyncpg.Connection) -> str | None:
    """Return why a commit on this connection may be lost now, or None.

    The reasons: `synchronous_commit`, `fsync` or `full_page_writes` is off, or `data_sync_retry` is
    on, with which the server continues after a failed sync.
    """
    found = await connection.fetchrow(_SQL["select_settings"])
    for (name, lossy), value in zip(_LOSSY.items(), found, strict=True):
        if value == lossy:
            return (
                f"PostgreSQL runs with {name} = {lossy}, so an accepted voucher may be lost: "
                "change that setting"
            )
    return None


async def position(connection: asyncpg.Connection) -> Position | None:
    """Return how far the cluster has written; None when this role may not ask."""
    try:
        found = await connection.fetchrow(_SQL["select_position"])
    except asyncpg.InsufficientPrivilegeError:
        return None
    return Position(*found)


async def async_standbys(connection: asyncpg.Connection) -> str | None:
    """Return what is wrong with the connected standbys; None when nothing is."""
    connected, synchronous, has_names = await connection.fetchrow(_SQL["count_standbys"])
    if not connected or synchronous or has_names:
        return None
    return (
        f"{connected} standbys are connected to PostgreSQL and none is synchronous: a failover "
        "loses commits that were acknowledged; set `synchronous_standby_names`"
    )


async def require_clock(connection: asyncpg.Connection, now: float) -> None:
    """Refuse to hold leases by a clock that disagrees with the server's; `now` in Unix seconds.

    Other workers would see the leases expire too early, or far too late (F-43).

    Raises:
        ConfigError: The clock is more than `CLOCK_SKEW_S_MAX` off.
    """
    ahead_s = now - await server_time(connection)
    if abs(ahead_s) > CLOCK_SKEW_S_MAX:
        raise ConfigError(
            f"this machine's clock is {ahead_s:+.0f} s from PostgreSQL's: synchronize both"
        )


async def server_time(connection: asyncpg.Connection) -> float:
    """Return the server's time, in Unix seconds."""
    return float(await connection.fetchval(_SQL["select_time"]))


async def require_schema(
    connection: asyncpg.Connection, schema: Schema = _SCHEMA, *, read_only: bool = False
) -> None:
    """Run the missing migrations in one transaction, one process at a time.

    With `read_only` none is run: another version may be using the tables.

    Raises:
        ConfigError: A newer version wrote the tables, or they are to be read only and too old to
            be read.
    """
    if read_only:
        try:
            schema.require_readable(await connection.fetchval(schema.select_version))
        except asyncpg.UndefinedTableError:
            schema.require_readable(None)
        return
    async with connection.transaction():
        lock = crc32(f"mpp-session {schema.name} schema".encode())
        await connection.execute("SELECT pg_advisory_xact_lock($1)", lock)
        await connection.execute(schema.create_version)
        version = await connection.fetchval(schema.select_version)
        if version is None:
            await connection.execute(schema.insert_version)
            version = 0
        schema.require_known(version)
        for number, script in schema.migrations.items():
            if number > version:
                await connection.execute(script)
                await connection.execute(schema.update_version(number))


class OneConnection:
    """One connection for all callers, one at a time; opened when needed and after it is lost.

    When a connection is lost during a statement, only the tables show the outcome.
    """

    def __init__(self, dsn: str, name: str, *, read_only: bool = False) -> None:
        """`name` is what the connection is for; messages show it."""
        self._dsn = dsn
        self._read_only = read_only
        self._name = name
        self._connection: asyncpg.Connection | None = None
        self._one_at_a_time = asyncio.Lock()
        self._is_closed = False

    async def prepare(self, schema: Schema) -> None:
        """Check that commits are durable, and migrate `schema`; after an error this is closed.

        Raises:
            ConfigError: The server does not make commits durable, or a newer version wrote it.
            LedgerUnavailableError: The server does not answer.
        """
        try:
            async with self.use() as connection:
                if not self._read_only:
                    await require_durable(connection)
                await require_schema(connection, schema, read_only=self._read_only)
        except BaseException:
            await self.close()
            raise

    @asynccontextmanager
    async def use(self) -> AsyncIterator[asyncpg.Connection]:
        """Use the connection exclusively.

        Raises:
            LedgerUnavailableError: The server refused or is gone, or this was closed.
        """
        async with self._one_at_a_time:
            if self._is_closed:
                raise LedgerUnavailableError(f"The {self._name} is closed.")
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect(self._dsn, read_only=self._read_only)
                yield self._connection
            except FAILURES as error:
                if isinstance(error, BROKEN) and self._connection is not None:
                    self._connection.terminate()
                    self._connection = None
                raise LedgerUnavailableError(f"PostgreSQL: {error}") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Use the connection exclusively, for one transaction.

        A caller that is cancelled while the transaction begins or ends may leave it open. Its locks
        would stay, and the next transaction would become part of it and never be committed. So the
        connection is terminated.

        Raises:
            LedgerUnavailableError: See `use`.
        """
        async with self.use() as connection:
            try:
                async with connection.transaction():
                    yield connection
            except asyncio.CancelledError:
                connection.terminate()
                raise

    async def close(self) -> None:
        """Close the connection once no caller uses it."""
        async with self._one_at_a_time:
            self._is_closed = True
            if self._connection is not None:
                with suppress(*FAILURES):
                    await self._connection.close()


async def notification_channel(connection: asyncpg.Connection) -> str:
    """Return the name of the notification channel for workers on this schema."""
    schema = await connection.fetchval("SELECT current_schema()")
    return "mpp_session_" + re.sub(r"\W", "_", str(schema))


class Listener:
    """A connection that receives other workers' notifications, and reconnects when it is lost.

    `on_notice` gets the row's id and the server process of the sender. Notifications sent while the
    connection was down are lost, so `on_gap` is called after a reconnect.
    """

    def __init__(
        self,
        dsn: str,
        channel: str,
        *,
        on_notice: Callable[[int, int], None],
        on_gap: Callable[[], None],
    ) -> None:
        self._dsn = dsn
        self._channel = channel
        self._on_notice = on_notice
        self._on_gap = on_gap
        self._connection: asyncpg.Connection | None = None
        self._lost = asyncio.Event()
        self._is_shown = False
        self._renewer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to listen; returns when notifications arrive."""
        await self._connect()
        self._renewer = asyncio.create_task(self._keep())

    async def show(self) -> None:
        """Show other processes that a gateway serves with this database, while this listens."""
        self._is_shown = True
        if self._connection is not None and not self._connection.is_closed():
            await self._connection.execute(_SQL["show"], *PRESENCE)

    def hide(self) -> None:
        """Stop showing that; the connection is reopened."""
        if self._is_shown and self._connection is not None:
            self._is_shown = False
            self._connection.terminate()

    async def close(self) -> None:
        """Stop listening."""
        if self._renewer is not None:
            self._renewer.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewer
        if self._connection is not None:
            self._connection.remove_termination_listener(self._on_lost)
            with suppress(*FAILURES):
                await self._connection.close()

    async def _connect(self) -> None:
        self._lost.clear()
        connection = await connect(self._dsn)
        try:
            connection.add_termination_listener(self._on_lost)
            await connection.add_listener(self._channel, self._heard)
            if self._is_shown:
                await connection.execute(_SQL["show"], *PRESENCE)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection

    async def _keep(self) -> None:
        tries = 0
        while True:
            await self._lost.wait()
            try:
                await self._connect()
            except (LedgerUnavailableError, *FAILURES):
                self._lost.set()
                tries = min(tries + 1, len(_RECONNECT_S) - 1)
                await asyncio.sleep(_RECONNECT_S[tries])
            else:
                tries = 0
                self._on_gap()

    def _heard(self, _: object, sender: int, __: str, payload: str) -> None:
        if payload.isdecimal():
            self._on_notice(int(payload), sender)

    def _on_lost(self, *_: object) -> None:
        self._lost.set()
