"""What only the SQLite ledger has: one gateway, a file, memory checked before it is trusted."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channel.errors import ConfigError, InvariantError, LedgerUnavailableError, StorageFailedError
from channel.ledger import answers, sqlite_connection
from channel.ledger.interface import ClaimRequest, StoreResponse
from channel.ledger.queries import Schema
from channel.ledger.sqlite import SqliteLedger
from channel.ledger.sqlite_books import SqliteBooks
from channel.limits import CACHE_TRUSTED_S, LEDGER_POLL_S
from channel.state import commands as c
from channel.state.requests import StoredResponse
from tests.channel.books import KEY, accepting, fact, key_of, opening, reserving, run, streaming
from tests.channel.ledger.test_interface import CLAIM
from tests.waiting import PATIENCE_S

HOLD_OPEN = """
import asyncio, sys
from channel.ledger.sqlite import SqliteLedger
async def main():
    ledger = await SqliteLedger.open(sys.argv[1], exclusive=True)
    print("open", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def spoil(path: Path, junk: bytes, *, at: int = 0) -> None:
    content = path.read_bytes() if at else b""
    path.write_bytes(content[:at] + junk)


def take_away(path: Path, how: str) -> None:
    if how == "restored":
        backup = path.with_suffix(".backup")
        backup.write_bytes(path.read_bytes())
        backup.replace(path)
    elif how == "moved":
        path.rename(path.with_suffix(".old"))
    else:
        path.unlink()


def execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def test_the_books_are_their_owners_alone(path: Path) -> None:
    """CORE-13, decision 14: they hold vouchers; what an operator has opened stays open."""
    before = os.umask(0)
    try:
        ledger = await SqliteLedger.open(path, exclusive=True)
        await ledger.apply(KEY, [opening(100)])
        files = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        await ledger.close()
        assert files == dict.fromkeys(
            ("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"), 0o600
        )
        os.chmod(path, 0o640)  # noqa: PTH101 - nothing waits
        await (await SqliteLedger.open(path, exclusive=True)).close()
        assert os.stat(path).st_mode & 0o777 == 0o640  # noqa: PTH116
    finally:
        os.umask(before)


class TestOneGateway:
    """Decision 9."""

    async def test_the_error_of_a_second_gateway_names_the_owner_of_the_ledger(
        self, path: Path
    ) -> None:
        first = await SqliteLedger.open(path, exclusive=True)
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            await SqliteLedger.open(path, exclusive=True)
        settler = await SqliteLedger.open(path, exclusive=False)
        await settler.close()
        await first.close()
        await (await SqliteLedger.open(path, exclusive=True)).close()

    async def test_a_killed_gateway_leaves_no_lock(self, path: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLD_OPEN, str(path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match=f"process {process.pid}"):
            await SqliteLedger.open(path, exclusive=True)
        process.kill()
        await process.wait()
        await (await SqliteLedger.open(path, exclusive=True)).close()

    async def test_a_new_gateway_ends_what_the_dead_one_held(self, path: Path) -> None:
        """Decision 8: at most one step is charged and not emitted."""
        first = await SqliteLedger.open(path, exclusive=True)
        await first.apply(KEY, [opening(50), streaming(b"s", 5), reserving(b"r", 7)])
        settler = await SqliteLedger.open(path, exclusive=False)
        state = await settler.load(KEY)
        assert state is not None
        assert state.reserved == 12
        await settler.close()
        await first.close()
        second = await SqliteLedger.open(path, exclusive=True)
        state = await second.load(KEY)
        assert state is not None
        assert (state.spent, state.reserved) == (5, 0)
        await second.close()

    async def test_a_lock_that_cannot_be_made_is_a_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be created"):
            await SqliteLedger.open(tmp_path / "missing" / "ledger.db", exclusive=True)


class TestOpening:
    async def test_it_is_durable_or_does_not_open(self, path: Path) -> None:
        ledger = await SqliteLedger.open(path, exclusive=True)
        settings = await ledger._connection.run(  # noqa: SLF001 - the settings are the claim
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        )
        assert settings == ["wal", 2, 1]
        await ledger.close()

    async def test_a_file_that_is_no_database_is_refused(self, path: Path) -> None:
        spoil(path, b"not a database at all" * 1000)
        with pytest.raises(ConfigError, match="cannot be opened"):
            await SqliteLedger.open(path, exclusive=True)
        remove(path)
        await (await SqliteLedger.open(path, exclusive=True)).close()

    async def test_a_folder_that_is_missing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be opened"):
            await SqliteLedger.open(tmp_path / "missing" / "ledger.db", exclusive=False)

    async def test_a_file_with_a_second_name_is_refused(self, path: Path) -> None:
        """O-98: SQLite keeps a log for each name, so each would lack what the other has."""
        await (await SqliteLedger.open(path, exclusive=True)).close()
        other = path.with_name("other.db")
        other.hardlink_to(path)
        for name in (path, other):
            for read_only in (True, False):
                with pytest.raises(ConfigError, match="second hard link"):
                    await SqliteLedger.open(name, exclusive=False, read_only=read_only)
        remove(other)
        await (await SqliteLedger.open(path, exclusive=True)).close()

    def test_a_database_that_keeps_no_log_on_the_disk_is_refused(self) -> None:
        """O-98, decision 3: as in memory, or where SQLite cannot share memory for its log."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        with pytest.raises(ConfigError, match=r"journal_mode = memory.*voucher may be lost"):
            sqlite_connection._prepare(connection)  # noqa: SLF001
        connection.close()

    async def test_a_table_of_versions_that_cannot_be_read_is_no_old_one(self, path: Path) -> None:
        """O-98: who only asks does not take it for a file from before there was a version."""
        execute(path, "CREATE TABLE ledger_schema (other)")
        with pytest.raises(ConfigError, match="no such column"):
            await SqliteLedger.open(path, exclusive=False, read_only=True)

    async def test_a_newer_schema_is_refused_and_left_alone(self, path: Path) -> None:
        await (await SqliteLedger.open(path, exclusive=True)).close()
        newer = sqlite3.connect(path)
        newer.execute("UPDATE ledger_schema SET version = 99")
        newer.commit()
        with pytest.raises(ConfigError, match="99"):
            await SqliteLedger.open(path, exclusive=False)
        assert newer.execute("SELECT version FROM ledger_schema").fetchone() == (99,)
        newer.close()

    def test_a_migration_that_fails_changes_nothing(self, path: Path) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        broken = Schema(
            "ledger", {1: "CREATE TABLE one (a);\n", 2: "CREATE TABLE two (a);\nCREATE nonsense;\n"}
        )
        with pytest.raises(sqlite3.OperationalError):
            sqlite_connection.require_schema(connection, broken)
        tables = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
        assert tables == [("ledger_schema",), ("one",)]
        assert connection.execute("SELECT version FROM ledger_schema").fetchone() == (1,)
        connection.close()

    async def test_who_creates_it_second_waits_for_the_first(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """O-98, F-37: in bounded time; SQLite itself does not wait before it begins a log."""
        first = sqlite3.connect(path, isolation_level=None)
        first.execute("BEGIN IMMEDIATE")
        with monkeypatch.context() as impatient:
            impatient.setattr(sqlite_connection, "LEDGER_BUSY_S", 0.05)
            with pytest.raises(ConfigError, match="locked"):
                await SqliteLedger.open(path, exclusive=False)
        second = asyncio.ensure_future(SqliteLedger.open(path, exclusive=False))
        await asyncio.sleep(0.1)
        assert not second.done()
        first.execute("ROLLBACK")
        first.close()
        ledger = await second
        assert (await ledger.apply(KEY, [opening(50)])).state.accepted == 50
        await ledger.close()

    async def test_many_processes_may_create_it_concurrently(self, path: Path) -> None:
        """F-37."""
        opened = await asyncio.gather(*[SqliteLedger.open(path, exclusive=False) for _ in range(6)])
        for ledger in opened:
            await ledger.close()


class TestMemory:
    async def test_a_known_channel_is_not_read_again(self, path: Path) -> None:
        ledger = await SqliteLedger.open(path, exclusive=True)
        await ledger.apply(KEY, [opening(50)])
        assert await ledger.load(KEY) is await ledger.load(KEY)
        await ledger.close()

    async def test_a_foreign_commit_is_seen_within_the_bound(self, path: Path) -> None:
        """VCH-10: the settler writes, the gateway's quick look follows."""
        gateway = await SqliteLedger.open(path, exclusive=True)
        settler = await SqliteLedger.open(path, exclusive=False)
        await gateway.apply(KEY, [opening(50)])
        seen = c.Observe(fact(close_requested_at=9, block=101))
        await settler.apply(KEY, [seen])
        assert await settler.load(KEY) == run(opening(50), seen)
        await asyncio.sleep(CACHE_TRUSTED_S)
        assert await gateway.load(KEY) == run(opening(50), seen)
        await gateway.close()
        await settler.close()

    async def test_what_was_not_committed_is_not_remembered(self, path: Path) -> None:
        """F-51."""
        ledger = await SqliteLedger.open(path, exclusive=True)
        await ledger.apply(KEY, [opening(50)])
        await ledger._connection.run(  # noqa: SLF001 - the fault
            lambda connection: connection.execute("PRAGMA query_only = ON")
        )
        with pytest.raises(LedgerUnavailableError):
            await ledger.apply(KEY, [accepting(60)])
        assert await ledger.load(KEY) == run(opening(50))
        await ledger._connection.run(  # noqa: SLF001 - the end of the fault
            lambda connection: connection.execute("PRAGMA query_only = OFF")
        )
        assert (await ledger.apply(KEY, [accepting(70)])).state.accepted == 70
        await ledger.close()

    async def test_more_channels_than_fit_are_read_again(self, path: Path) -> None:
        ledger = await SqliteLedger.open(path, exclusive=True)
        ledger._books = SqliteBooks(channels_cached_max=4)  # noqa: SLF001 - a small memory
        for number in range(20):
            await ledger.apply(key_of(number), [opening(1, key_of(number))])
        for number in range(20):
            applied = await ledger.apply(key_of(number), [accepting(2, key_of(number))])
            assert applied.state == run(opening(1, key_of(number)), accepting(2, key_of(number)))
        await ledger.close()

    async def test_a_look_that_fails_ends_no_watch(self, path: Path) -> None:
        """O-98, F-51: the stream waits on, and is woken by the voucher that another has taken."""
        ledger = await SqliteLedger.open(path, exclusive=True)
        other = await SqliteLedger.open(path, exclusive=False)
        await ledger.apply(KEY, [opening(50)])
        async with ledger.watch(KEY) as watch:
            while await watch.changed(LEDGER_POLL_S * 1.5):
                pass
            await interrupt(ledger, lambda: 1)
            assert not await watch.changed(LEDGER_POLL_S * 3)
            await interrupt(ledger, None)
            await other.apply(KEY, [accepting(60)])
            assert await watch.changed(PATIENCE_S)
        state = await ledger.load(KEY)
        assert state is not None
        assert state.accepted == 60
        await other.close()
        await ledger.close()

    async def test_another_process_may_prune_concurrently(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """O-98, O-10: one finds that the other has dropped what it was about to, and ends."""
        ledger = await SqliteLedger.open(path, exclusive=True)
        other = await SqliteLedger.open(path, exclusive=False)
        monkeypatch.setattr(answers, "STORED_BYTES_MAX", 100)
        await ledger.apply(KEY, [opening(50)])
        await ledger.apply(KEY, [], request=ClaimRequest(CLAIM))
        stored = StoredResponse(200, (), bytes(90))
        await ledger.apply(KEY, [], request=StoreResponse(CLAIM, stored))
        connection = ledger._connection  # noqa: SLF001 - the moment between
        dropped: list[int] = []
        real = connection.run_transaction

        async def be_overtaken(work: Callable[[sqlite3.Connection], Any]) -> Any:
            found = await real(work)
            if not dropped:
                dropped.append(await other.prune(CLAIM.expires_at + 1))
            return found

        monkeypatch.setattr(connection, "run_transaction", be_overtaken)
        assert await ledger.prune(0) == 0
        assert dropped == [1]
        assert await ledger.load(KEY) == run(opening(50))
        await other.close()
        await ledger.close()


async def interrupt(ledger: Any, handler: Callable[[], int] | None) -> None:
    """Have SQLite break off each statement of a ledger or journal, or no longer."""
    await ledger._connection.run(  # noqa: SLF001 - the fault
        lambda connection: connection.set_progress_handler(handler, 1)
    )


class TestBusy:
    async def test_a_lock_that_is_given_back_is_waited_for(self, path: Path) -> None:
        """F-37."""
        ledger = await SqliteLedger.open(path, exclusive=True)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        call = asyncio.ensure_future(ledger.apply(KEY, [opening(50)]))
        await asyncio.sleep(0.1)
        assert not call.done()
        other.execute("ROLLBACK")
        assert (await call).state.accepted == 50
        other.close()
        await ledger.close()

    async def test_a_lock_that_is_kept_is_an_error_and_nothing_is_lost(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_connection, "LEDGER_BUSY_S", 0.05)
        ledger = await SqliteLedger.open(path, exclusive=True)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailableError, match="locked"):
            await ledger.apply(KEY, [opening(50)])
        with pytest.raises(ConfigError, match="locked"):
            await SqliteLedger.open(path, exclusive=False)
        other.execute("ROLLBACK")
        other.close()
        assert await ledger.load(KEY) is None
        assert (await ledger.apply(KEY, [opening(60)])).state.accepted == 60
        await ledger.close()


class TestCorruption:
    async def test_a_row_that_cannot_be_read_harms_no_other_channel(self, path: Path) -> None:
        ledger = await SqliteLedger.open(path, exclusive=True)
        await ledger.apply(KEY, [opening(50)])
        await ledger.apply(key_of(2), [opening(50, key_of(2))])
        other = sqlite3.connect(path)
        other.execute("UPDATE channel SET highest = x'00' WHERE id = 1")
        other.commit()
        other.close()
        broken, fine = await asyncio.gather(
            ledger.apply(KEY, [accepting(60)]),
            ledger.apply(key_of(2), [accepting(60, key_of(2))]),
            return_exceptions=True,
        )
        assert isinstance(broken, InvariantError)
        assert not isinstance(fine, BaseException)
        with pytest.raises(InvariantError):
            await ledger.apply(key_of(2), [accepting(70, key_of(2))])
        await ledger.close()

    async def test_a_row_that_cannot_be_read_is_no_unknown_channel(self, path: Path) -> None:
        """O-98: else its payer could open it anew; who is loaded beside it gets an answer."""
        ledger = await SqliteLedger.open(path, exclusive=False)
        for key in (KEY, key_of(2)):
            await ledger.apply(key, [opening(50, key)])
        execute(path, "UPDATE channel SET highest = x'00' WHERE id = 1")
        loads = [ledger.load(key) for key in (key_of(2), KEY, key_of(2))]
        before, broken, beside = await asyncio.gather(*loads, return_exceptions=True)
        assert isinstance(broken, InvariantError)
        assert before == beside == run(opening(50, key_of(2)))
        await ledger.close()

    async def test_a_connection_that_has_ended_commits_nothing(self, path: Path) -> None:
        """O-98: and says so, for else a caller would wait for ever."""
        ledger = await SqliteLedger.open(path, exclusive=True)
        await ledger.apply(KEY, [opening(50)])
        await ledger._connection.close()  # noqa: SLF001 - the fault
        with pytest.raises(LedgerUnavailableError, match="closed"):
            await ledger.apply(KEY, [accepting(60)])
        await ledger.close()
        again = await SqliteLedger.open(path, exclusive=True)
        assert await again.load(KEY) == run(opening(50))
        await again.close()

    async def test_a_gateway_that_cannot_start_leaves_the_lock_to_the_next(
        self, path: Path
    ) -> None:
        ledger = await SqliteLedger.open(path, exclusive=True)
        await ledger.apply(KEY, [opening(50), streaming(b"s", 5)])
        await ledger.close()
        execute(path, "UPDATE channel SET highest = x'00'")
        for _ in range(2):
            with pytest.raises(InvariantError, match="row 1"):
                await SqliteLedger.open(path, exclusive=True)
        execute(path, "UPDATE channel SET highest = zeroblob(81)")
        await (await SqliteLedger.open(path, exclusive=True)).close()

    @pytest.mark.parametrize("how", ["removed", "moved", "restored"])
    async def test_a_file_that_is_taken_away_stops_the_ledger(self, path: Path, how: str) -> None:
        """F-51, F-52: SQLite would go on with it, and all that would be lost with the process."""
        ledger = await SqliteLedger.open(path, exclusive=True)
        await ledger.apply(KEY, [opening(50)])
        take_away(path, how)
        for work in (ledger.apply(KEY, [accepting(60)]), ledger.list_channels()):
            with pytest.raises(StorageFailedError, match="moved, or another put in its place"):
                await work
        await ledger.close()

    async def test_a_corrupt_file_stops_the_ledger(self, path: Path) -> None:
        ledger = await SqliteLedger.open(path, exclusive=True)
        for number in range(50):
            await ledger.apply(key_of(number), [opening(1, key_of(number))])
        await ledger.close()
        ledger = await SqliteLedger.open(path, exclusive=True)
        spoil(path, b"\xff" * 100_000, at=4096)
        with pytest.raises(StorageFailedError):
            await ledger.apply(key_of(60), [opening(1, key_of(60))])
        for again in (ledger.apply(key_of(61), []), ledger.prune(0), ledger.list_channels()):
            with pytest.raises(StorageFailedError, match="malformed"):
                await again
        await ledger.close()
        with pytest.raises(StorageFailedError):
            await SqliteLedger.open(path, exclusive=True)
