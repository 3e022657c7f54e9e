"""O-83, O-87: PostgreSQL as it is run: settings changed under the gateway, and standbys."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger.marker import BooksId, Marker, Position
from channel.ledger.postgres import PostgresLedger
from mpp_session.one_ledger import LedgerGuard
from settlement.alarms import AlarmKind, Alarms
from tests.channel.books import KEY, accepting, opening
from tests.postgres import standby
from tests.waiting import until


@pytest.fixture
async def admin(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    made = Marker(tmp_path / "a.marker")
    made.open()
    made.write_anew(BooksId("id", "place", is_marked=False))
    return made


@contextlib.asynccontextmanager
async def set_off(admin: asyncpg.Connection, where: str, name: str) -> AsyncIterator[None]:
    await admin.execute(f"ALTER {where} SET {name} = off")
    await admin.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await admin.execute(f"ALTER {where} RESET {name}")
        await admin.execute("SELECT pg_reload_conf()")


@contextlib.asynccontextmanager
async def guarding(ledger: PostgresLedger, marker: Marker) -> AsyncIterator[Alarms]:
    """Look after a ledger all the time."""
    alarms = Alarms()
    task = asyncio.create_task(LedgerGuard(ledger, marker, look_s=0.0).run(alarms))
    try:
        yield alarms
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
async def test_a_server_that_stops_syncing_sells_nothing(
    postgres_url: str, admin: asyncpg.Connection, name: str, marker: Marker
) -> None:
    """O-87: found within a minute; over when it is put right."""
    ledger = await PostgresLedger.open(postgres_url, exclusive=True)
    await ledger.guard(marker)
    await ledger.apply(KEY, [opening(10)])
    async with guarding(ledger, marker) as alarms:
        async with set_off(admin, "SYSTEM", name):
            await until(lambda: bool(alarms.ringing))
            assert [alarm.kind for alarm in alarms.ringing] == [AlarmKind.BOOKS_UNSAFE]
            assert f"{name} = off" in alarms.ringing[0].text
            with pytest.raises(LedgerUnavailableError, match=name):
                await ledger.apply(KEY, [accepting(20)])
            with pytest.raises(ConfigError, match=name):
                await PostgresLedger.open(postgres_url, exclusive=True)
        await until(lambda: not alarms.ringing)
        await ledger.apply(KEY, [accepting(20)])
    await ledger.close()


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
async def test_each_new_connection_is_looked_at(
    postgres_url: str, admin: asyncpg.Connection, name: str
) -> None:
    """O-87: before anything is given to it."""
    ledger = await PostgresLedger.open(postgres_url, exclusive=True)
    await ledger.apply(KEY, [opening(10)])
    async with set_off(admin, "SYSTEM", name):
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND application_name = 'mpp-session'"
        )

        async def is_refused() -> bool:
            with pytest.raises(LedgerUnavailableError) as refused:
                await ledger.apply(KEY, [accepting(20)])
            return name in str(refused.value)

        await until(is_refused)
    await ledger.close()


@pytest.mark.parametrize("where", ["SYSTEM", "ROLE postgres", "DATABASE postgres"])
async def test_a_commit_waits_for_the_disk_against_any_default(
    postgres_url: str, admin: asyncpg.Connection, where: str
) -> None:
    """O-87: our sessions set each option that a session may set for itself."""
    ledger = await PostgresLedger.open(postgres_url, exclusive=True)
    async with set_off(admin, where, "synchronous_commit"):
        assert (await ledger.look()).fault is None
        other = await PostgresLedger.open(postgres_url, exclusive=True)
        assert (await other.look()).fault is None
        await other.close()
    await ledger.close()


@pytest.mark.parametrize("is_complete", [True, False])
async def test_a_failover_that_loses_commits_is_found(
    postgres_server: str,
    postgres_url: str,
    admin: asyncpg.Connection,
    marker: Marker,
    is_complete: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """O-83: an asynchronous standby is warned of; one that lacks the last commits is refused.

    By a gateway that runs, and by one that starts. One that has them all is taken.
    """
    search_path = postgres_url.removeprefix(postgres_server)
    ledger = await PostgresLedger.open(postgres_url, exclusive=True)
    assert (await ledger.guard(marker)).warning is None
    await ledger.apply(KEY, [opening(10)])
    with standby(postgres_server) as copy:
        with copy.running():

            async def is_warned() -> bool:
                warning = (await ledger.look()).warning
                return warning is not None and "synchronous_standby_names" in warning

            await until(is_warned)
            if is_complete:
                await ledger.apply(KEY, [accepting(20)])
            await until(lambda: has_caught_up(admin))
        if not is_complete:
            await ledger.apply(KEY, [accepting(20)])
        assert (await ledger.look()).warning is None
        known = marker.position
        with copy.running("-c", "primary_conninfo=") as url:
            new = await asyncpg.connect(url)
            assert await new.fetchval("SELECT pg_promote()")
            await new.close()
            await fail_over(ledger, url + search_path, admin)
            if is_complete:
                await until(lambda: is_written(ledger, 30))
                assert marker.position is not None
                assert known is not None
                assert marker.position.timeline == known.timeline + 1
                await fail_over(ledger, postgres_url, admin)  # the old primary is back
                await until(lambda: is_refused(ledger, "another has replaced|lacks"))
            else:
                await until(lambda: is_refused(ledger, "lacks what it has acknowledged"))
                other = await PostgresLedger.open(url + search_path, exclusive=True)
                fault = (await other.guard(marker)).fault
                assert fault is not None
                assert "lacks what it has acknowledged" in fault
                await other.close()
            await ledger.close()


async def fail_over(ledger: PostgresLedger, url: str, admin: asyncpg.Connection) -> None:
    """Lead every connection to another server, as the name of the database does."""
    ledger._dsn = ledger._listener._dsn = url  # noqa: SLF001 - in place of a name service
    for connection in (ledger._writer, ledger._reader, ledger._listener._connection):  # noqa: SLF001
        if connection is not None:
            connection.terminate()
    assert not admin.is_closed()


async def has_caught_up(primary: asyncpg.Connection) -> bool:
    return bool(
        await primary.fetchval(
            "SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication LIMIT 1"
        )
    )


async def is_written(ledger: PostgresLedger, amount: int) -> bool:
    try:
        state = (await ledger.apply(KEY, [accepting(amount)])).state
    except LedgerUnavailableError:
        return False
    return state.accepted == amount


async def is_refused(ledger: PostgresLedger, says: str) -> bool:
    try:
        await ledger.apply(KEY, [accepting(20)])
    except LedgerUnavailableError as error:
        return any(each in str(error) for each in says.split("|"))
    return False


def test_a_cluster_goes_back_by_its_timeline_or_its_log() -> None:
    """O-83: a failover begins a timeline; what the old primary wrote beyond it tells nothing."""
    known = Position(1, 3, 1000)
    assert Position(1, 3, 999).is_before(known)
    assert Position(1, 2, 9999).is_before(known)
    assert not Position(1, 3, 1000).is_before(known)
    assert not Position(1, 4, 900).is_before(known)
    assert not Position(2, 1, 1).is_before(known)
