"""Connections to PostgreSQL on which a commit means "on disk", and the schema we know."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from zlib import crc32

import asyncpg

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger.queries import load_migrations
from channel.limits import LEDGER_BUSY_S

__all__ = [
    "BROKEN",
    "FAILURES",
    "Listener",
    "connect",
    "notification_channel",
    "require_durable",
    "require_schema",
]

_MIGRATIONS: Final = load_migrations("postgres")
_MIGRATION_LOCK: Final = crc32(b"mpp-session ledger schema")
_RECONNECT_S: Final = (0.0, 0.05, 0.2, 1.0)

BROKEN: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""After these a connection is of no more use: it is gone, or in a state nobody knows."""

FAILURES: Final = (asyncpg.PostgresError, *BROKEN)
"""What may come of talking to a server: it said no, or is gone, or too late."""


async def connect(dsn: str) -> asyncpg.Connection:
    """Open one connection with bounded waits.

    Raises:
        LedgerUnavailableError: The server does not answer, or refuses us.
    """
    settings = {
        "application_name": "mpp-session",
        "lock_timeout": str(int(LEDGER_BUSY_S * 1000)),
    }
    try:
        return await asyncpg.connect(
            dsn,
            timeout=LEDGER_BUSY_S,
            command_timeout=4 * LEDGER_BUSY_S,
            server_settings=settings,
        )
    except FAILURES as error:
        raise LedgerUnavailableError(f"PostgreSQL: {error}") from error


async def require_durable(connection: asyncpg.Connection) -> None:
    """Refuse a server that acknowledges before it has written.

    Raises:
        ConfigError: `synchronous_commit`, `fsync` or `full_page_writes` is off.
    """
    for name in ("synchronous_commit", "fsync", "full_page_writes"):
        if await connection.fetchval("SELECT current_setting($1)", name) == "off":
            raise ConfigError(f"PostgreSQL runs with {name} = off: an accepted voucher may be lost")


async def require_schema(
    connection: asyncpg.Connection, migrations: dict[int, str] = _MIGRATIONS
) -> None:
    """Run the migrations that are missing, in one transaction, one process at a time.

    Raises:
        ConfigError: The database was written by a newer version.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS ledger_schema (version INTEGER NOT NULL)"
        )
        version = await connection.fetchval("SELECT version FROM ledger_schema")
        if version is None:
            await connection.execute("INSERT INTO ledger_schema (version) VALUES (0)")
            version = 0
        if version > max(migrations):
            raise ConfigError(
                f"the ledger has schema version {version}, this program knows up to "
                f"{max(migrations)}: run the version that wrote it, or a newer one"
            )
        for number, script in migrations.items():
            if number > version:
                await connection.execute(script)
                await connection.execute("UPDATE ledger_schema SET version = $1", number)


async def notification_channel(connection: asyncpg.Connection) -> str:
    """Return the name under which workers on this schema call each other."""
    schema = await connection.fetchval("SELECT current_schema()")
    return "mpp_session_" + re.sub(r"\W", "_", str(schema))


class Listener:
    """A connection that hears of other workers' changes, and comes back when it is lost.

    `on_notice` gets the row's id and the process of the server that served the sender. What was
    notified while the connection was away is lost: `on_gap` is called when it is back.
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
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; returns when notices are heard."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop listening."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._connection is not None:
            self._connection.remove_termination_listener(self._on_lost)
            with suppress(*FAILURES):
                await self._connection.close()

    async def _connect(self) -> None:
        self._lost.clear()
        connection = await connect(self._dsn)
        connection.add_termination_listener(self._on_lost)
        await connection.add_listener(self._channel, self._heard)
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
