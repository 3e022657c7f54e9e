"""Opens a SQLite database so that a commit means "on disk", with the current schema.

After a failed sync the kernel may have dropped what it could not write, and a later sync would
succeed without it. After corruption, no data from the file can be trusted. And writes to a file
that was moved away, or replaced by a backup, are lost with this process. So when any connection of
this process (ledger, journal or orders) sees one of these, none of them uses that file again, and
the process ends (`StorageFailedError`). The next process starts with `write_log_anew`.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import quote

import aiosqlite

from channel.errors import ConfigError, LedgerUnavailableError, StorageFailedError
from channel.files import create_own, open_own
from channel.ledger.queries import OLDER_TABLES, Schema, load_schema
from channel.limits import LEDGER_BUSY_S

__all__ = [
    "ProcessLock",
    "SqliteConnection",
    "connect",
    "loss_of_durability",
    "require_schema",
    "split_statements",
    "transaction",
    "write_log_anew",
]

P = ParamSpec("P")
T = TypeVar("T")

_SCHEMA: Final = load_schema("ledger", "sqlite", reads_from=4)

_FATAL: Final = {
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_NOTADB,
}
_failures: Final[dict[str, str]] = {}
"""The permanent failures of this process, by the file's real path."""


class SqliteConnection(aiosqlite.Connection):
    """aiosqlite's connection and thread, with whole transactions as its unit of work.

    One change of thread costs about as much as verifying two vouchers. So a batch is one function
    that runs in that thread, not one call per statement.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """`await` it to open the file. The file is created if missing, unless `read_only`."""
        self._path = str(path)
        self._read_only = read_only
        self._identity: tuple[int, int] | None = None
        super().__init__(self._open, iter_chunk_size=64)
        # An unclosed connection must not keep the process from ending (O-99): what was
        # acknowledged is already on disk.
        self._thread.daemon = True

    def _open(self) -> sqlite3.Connection:
        if not self._read_only:
            _create(self._path)
        self._path = os.path.realpath(self._path)
        if os.stat(self._path).st_nlink > 1:  # noqa: PTH116 - see `_identity`
            raise sqlite3.OperationalError(
                "it has a second hard link, and SQLite keeps a log for each name: remove one"
            )
        self._require_sound()
        name = f"file:{quote(self._path)}?mode={'ro' if self._read_only else 'rw'}"
        return sqlite3.connect(name, uri=True, timeout=LEDGER_BUSY_S, isolation_level=None)

    @property
    def path(self) -> str:
        """The file's real path."""
        return self._path

    async def prepare(self) -> None:
        """Make commits durable and migrate the tables; SQLite's own errors are not translated."""
        await self._execute(self._prepare)  # type: ignore[no-untyped-call]

    def _prepare(self) -> None:
        if self._read_only:
            require_schema(self._conn, _SCHEMA, read_only=True)
        else:
            _prepare(self._conn)
        self._identity = _identity(self._path)  # now that it is open

    async def ended(self) -> None:
        """Wait for the thread after a failed start, because it still answers to this loop."""
        await asyncio.to_thread(self._thread.join)

    async def run(
        self,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `work(connection, ...)` in the connection's thread.

        Raises:
            LedgerUnavailableError: SQLite refused, or the connection is closed.
        """
        try:
            result: T = await self._execute(self.work, work, *args, **kwargs)  # type: ignore[no-untyped-call]
        except ValueError as error:  # aiosqlite's word for a closed connection
            raise LedgerUnavailableError(f"SQLite: {error}") from error
        return result

    async def run_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work(connection)` in the connection's thread and in a transaction of its own.

        Raises:
            LedgerUnavailableError: SQLite refused, or the connection is closed.
        """

        def run(connection: sqlite3.Connection) -> T:
            with transaction(connection):
                return work(connection)

        return await self.run(run)

    def post(self, task: Callable[[], None]) -> None:
        """Run `task` in the connection's thread, which ignores its result and error.

        Raises:
            LedgerUnavailableError: The connection is closed.
        """
        if not self._running or self._connection is None:
            raise LedgerUnavailableError("SQLite: the connection is closed")
        self._tx.put_nowait((None, task))

    def work(
        self,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `work(connection, ...)`. Call it in the connection's thread.

        Raises:
            LedgerUnavailableError: SQLite refused, or the connection is closed.
            ConfigError: An older version wrote the tables, which are read only.
            StorageFailedError: No connection of this process may use the file any more.
        """
        self._require_sound()
        try:
            result = work(self._conn, *args, **kwargs)
        except (sqlite3.Error, ValueError) as error:
            if _is_fatal(error):
                _failures[self._path] = str(error)
                self._require_sound()
            if self._read_only and "no such table" in str(error):
                raise ConfigError(OLDER_TABLES) from error
            raise LedgerUnavailableError(f"SQLite: {error}") from error
        if _identity(self._path) != self._identity:
            _failures[self._path] = "the file was moved, or another put in its place"
            self._require_sound()
        return result

    def _require_sound(self) -> None:
        failure = _failures.get(self._path)
        if failure is not None:
            raise StorageFailedError(
                f"SQLite: {failure}; only a new process may use {self._path} again"
            )


def _identity(path: str) -> tuple[int, int] | None:
    """Return the file's identity, or None. It costs 1 us of the 150 that a commit takes."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path would cost more than the call
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_fatal(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code in _FATAL or (code & 0xFF) == sqlite3.SQLITE_CORRUPT


async def connect(
    path: Path, *, read_only: bool = False, schema: Schema | None = None
) -> SqliteConnection:
    """Open a database, create it if it is missing, and migrate the ledger's tables and `schema`.

    With `read_only` nothing is created or changed.

    Raises:
        ConfigError: It cannot be opened or made durable, or a newer version wrote it.
        StorageFailedError: It failed earlier in this process.
    """
    connection = SqliteConnection(path, read_only=read_only)
    try:
        await connection
    except sqlite3.Error as error:
        await connection.ended()
        raise ConfigError(f"the ledger {path} cannot be opened: {error}") from error
    except StorageFailedError:
        await connection.ended()
        raise
    try:
        await connection.prepare()
        if schema is not None:
            await connection.run(require_schema, schema, read_only=read_only)
    except sqlite3.Error as error:
        await connection.close()
        raise ConfigError(f"the ledger {path} cannot be opened: {error}") from error
    except BaseException:
        await connection.close()
        raise
    return connection


def _create(path: str) -> None:
    """Create the file for its owner alone: its signatures are worth money (decision 14).

    SQLite gives its other files the same mode. An existing file keeps its mode: the operator
    decides which group may read the ledger.
    """
    try:
        create_own(path)
    except OSError as error:
        raise sqlite3.OperationalError(f"unable to open database file: {error.strerror}") from error


def _prepare(connection: sqlite3.Connection) -> None:
    """Make commits durable, and check it: SQLite ignores a pragma that it cannot obey."""
    until = time.monotonic() + LEDGER_BUSY_S
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            # two processes may create one file: this pragma does not wait for the other (F-37)
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -65536")  # KiB
    fault = loss_of_durability(connection)
    if mode != "wal" or fault is not None:
        raise ConfigError(
            fault
            or f"expected SQLite's journal mode wal on this file, found {mode}: use a local disk"
        )
    require_schema(connection, _SCHEMA)


def loss_of_durability(connection: sqlite3.Connection) -> str | None:
    """Return why a commit on this connection may be lost now, or None."""
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if mode == "wal" and synchronous == 2:  # noqa: PLR2004 - SQLite's number for FULL
        return None
    return (
        f"SQLite runs with journal_mode = {mode}, synchronous = {synchronous}, not wal and 2: an "
        "accepted voucher may be lost"
    )


def write_log_anew(connection: sqlite3.Connection) -> None:
    """Move the log's content into the file, synced, and start with an empty log.

    Part of a log whose sync failed may exist in the kernel's memory only. It reads as if it were on
    the disk, and everything appended behind it would be lost with it. While another process uses
    the file, the log keeps growing behind what that process has synced itself.
    """
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def require_schema(
    connection: sqlite3.Connection, schema: Schema, *, read_only: bool = False
) -> None:
    """Run the missing migrations, each in its own transaction.

    With `read_only` none is run: another version may be using the tables.

    Raises:
        ConfigError: A newer version wrote the tables, or they are to be read only and too old to
            be read.
    """
    if read_only:
        schema.require_readable(_version_found(connection, schema))
        return
    for version, script in schema.migrations.items():
        with transaction(connection):
            if _schema_version(connection, schema) < version:
                for statement in split_statements(script):
                    connection.execute(statement)
                connection.execute(schema.update_version(version))


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit everything done within, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _schema_version(connection: sqlite3.Connection, schema: Schema) -> int:
    connection.execute(schema.create_version)
    row = connection.execute(schema.select_version).fetchone()
    if row is None:
        connection.execute(schema.insert_version)
        return 0
    schema.require_known(row[0])
    return int(row[0])


def _version_found(connection: sqlite3.Connection, schema: Schema) -> int | None:
    try:
        row = connection.execute(schema.select_version).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return None if row is None else int(row[0])


def split_statements(script: str) -> list[str]:
    """Split a script, because `executescript` would commit the surrounding transaction."""
    found = []
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found


class ProcessLock:
    """A lock of the operating system beside the database; it ends with its process (decision 9)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    async def acquire(self) -> None:
        """Take the lock, or refuse immediately.

        Raises:
            ConfigError: Another process holds it, or the file cannot be created.
        """
        await asyncio.to_thread(self._acquire)

    def release(self) -> None:
        """Release the lock. The file stays: otherwise two processes could lock different files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _acquire(self) -> None:
        try:
            descriptor = open_own(self._path)
        except OSError as error:
            raise ConfigError(
                f"the ledger's lock {self._path} cannot be created: {error}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise ConfigError(
                f"another gateway (process {holder or 'unknown'}) has this ledger open; "
                "several processes need postgresql://"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        self._descriptor = descriptor
