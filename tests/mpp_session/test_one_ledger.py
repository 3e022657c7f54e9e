"""O-05, O-06: one payee has one ledger on a machine, and it is the one that was used last."""

import asyncio
import errno
import os
import resource
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from starlette.applications import Starlette

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.machine_lock import MachineLock
from channel.ledger.marker import BooksId, Marker
from channel.ledger.url import open_ledger
from channel.limits import MARKER_ENTRIES
from channel.state.channel_state import ChannelState
from channel.state.commands import Publish
from mpp_session import one_ledger
from mpp_session.chain_watch import connect_escrow
from mpp_session.one_ledger import LedgerGuard, adopt_ledger
from mpp_session.selling import SellingApp
from mpp_session.settings import Config, parse_address
from mpp_session.testing.chain import TestChain
from mpp_session.testing.provider import TestProvider
from mpp_session.wiring import Parts, build_parts
from settlement.alarms import AlarmKind, Alarms
from tests.channel.books import KEY, accepting, key_of, opening, run
from tests.channel.ledger.test_migrations import released, restore_sqlite
from tests.channel.ledger.test_sqlite import interrupt
from tests.mpp_session.gateway.conftest import build_config
from tests.waiting import until

UPSTREAM = "http://127.0.0.1:9"


def selling(devnet: TestChain, folder: Path, url: str, **settings: Any) -> Config:
    flags = {"ledger.url": url, "settlement.start": False, **settings}
    return build_config(devnet, UPSTREAM, folder, **flags)


def file_url(path: Path | str) -> str:
    return f"sqlite:///{path}"


@asynccontextmanager
async def gateway(config: Config) -> AsyncIterator[Parts]:
    async with build_parts(config) as parts:
        yield parts


async def refused(config: Config, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        async with gateway(config):
            pass


def remove(folder: Path, names: str) -> None:
    for path in folder.glob(names):
        path.unlink()


async def adopt(config: Config, *, closes: bool = False) -> tuple[str, int]:
    ledger = await open_ledger(config.ledger.url, exclusive=False)
    try:
        async with connect_escrow(config.chain) as reader:
            payee = parse_address(config.payee.address)
            return await adopt_ledger(config, ledger, reader, payee, closes=closes)
    finally:
        await ledger.close()


def relative(path: Path) -> Path:
    return Path(os.path.relpath(path))


def linked(path: Path) -> Path:
    other = path.with_name("link.db")
    other.symlink_to(path)
    return other


def hard_linked(path: Path) -> Path:
    other = path.parent / "elsewhere" / "hard.db"
    other.parent.mkdir()
    other.hardlink_to(path)
    return other


def copied(path: Path) -> Path:
    other = path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(other)) as target:
        source.backup(target)
    return other


def another(path: Path) -> Path:
    return path.with_name("another.db")


@pytest.mark.parametrize("name", [another, copied, hard_linked, linked, relative])
async def test_a_second_ledger_of_a_payee_is_refused_while_the_first_serves(
    devnet: TestChain, tmp_path: Path, name: Callable[[Path], Path]
) -> None:
    """O-05: an application's own file, a copy, and each other name of the gateway's file."""
    first = tmp_path / "first.db"
    async with gateway(selling(devnet, tmp_path, file_url(first))):
        url = file_url(name(first))
        config = await asyncio.to_thread(selling, devnet, tmp_path, url)  # it resolves the path
        await refused(config, "another gateway|this payee|second hard link|symbolic link")
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            said.append(message)

        app = SellingApp(Starlette(), [], load=lambda: config)
        await app({"type": "lifespan"}, receive, send)
        assert said[0]["type"] == "lifespan.startup.failed"


async def test_the_testing_provider_is_a_ledger_of_the_payee_too(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-05."""
    async with gateway(selling(devnet, tmp_path, file_url(tmp_path / "first.db"))):

        def serve() -> None:
            with TestProvider(devnet, tmp_path):
                pass

        with pytest.raises(ConfigError, match="this payee with another ledger"):
            await asyncio.to_thread(serve)


async def test_a_second_ledger_is_refused_after_the_first_has_ended_until_it_is_adopted(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-05."""
    first = selling(devnet, tmp_path, file_url(tmp_path / "first.db"))
    other = selling(devnet, tmp_path, file_url(tmp_path / "other.db"))
    async with gateway(first):
        pass
    await refused(other, "this payee has the ledger .*first.db, but the settings name")
    async with gateway(first):
        ledger = await open_ledger(other.ledger.url, exclusive=False)
        await ledger.close()
        with pytest.raises(ConfigError, match="serves this payee"):
            await adopt(other)
    assert (await adopt(other))[0].endswith("first.db")
    async with gateway(other):
        pass
    await refused(first, "but the settings name")


async def test_a_ledger_that_a_gateway_serves_by_is_not_adopted(
    devnet: TestChain, tmp_path: Path, postgres_url: str
) -> None:
    """O-98, O-06: wherever that gateway is; what it sells on would not be what was adopted."""
    folders = [{"ledger.state_dir": str(tmp_path / name)} for name in ("here", "there")]
    here, there = [selling(devnet, tmp_path, postgres_url, **folder) for folder in folders]
    async with gateway(here) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        with pytest.raises(ConfigError, match="a gateway uses this ledger: stop the gateway first"):
            await adopt(there, closes=True)
        await buy(parts.ledger, 20)

    async def is_left() -> bool:
        try:
            await adopt(there)
        except ConfigError:
            return False
        return True

    await until(is_left)


async def test_what_takes_a_markers_place_and_cannot_be_removed_is_named(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-98, O-06: nothing is adopted before the marker can be written."""
    config = selling(
        devnet, tmp_path, file_url(tmp_path / "l.db"), **{"ledger.state_dir": str(tmp_path / "s")}
    )
    async with gateway(config):
        pass
    (path,) = (tmp_path / "s").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"cannot be replaced .*adopt again"):
        await adopt(config)
    await refused(config, "marker .*cannot be opened")
    path.rmdir()
    await adopt(config)
    async with gateway(config):
        pass


async def test_another_payee_is_another_matter(devnet: TestChain, tmp_path: Path) -> None:
    first = selling(devnet, tmp_path, file_url(tmp_path / "first.db"))
    stranger = selling(
        devnet,
        tmp_path,
        file_url(tmp_path / "other.db"),
        **{"payee.address": "0x" + "51" * 20, "payee.key": None, "sponsoring.fee_payer": False},
    )
    async with gateway(first), gateway(stranger):
        pass


async def test_workers_share_one_database_and_no_other(
    devnet: TestChain, tmp_path: Path, postgres_url: str
) -> None:
    """O-05: a second schema is a second ledger; a file beside it is one, too."""
    one = selling(devnet, tmp_path, postgres_url)
    admin = await asyncpg.connect(postgres_url)
    schema = await admin.fetchval("SELECT current_schema()")
    await admin.execute(f"CREATE SCHEMA {schema}_2")
    other = selling(devnet, tmp_path, postgres_url.replace(schema, f"{schema}_2"))
    try:
        async with gateway(one), gateway(one):
            await refused(other, "with another ledger")
            await refused(selling(devnet, tmp_path, file_url(tmp_path / "a.db")), "another ledger")
        await refused(other, "but the settings name")
    finally:
        await admin.execute(f"DROP SCHEMA {schema}_2 CASCADE")
        await admin.close()


async def test_a_machine_that_joins_takes_the_word_of_one_that_serves(
    devnet: TestChain, tmp_path: Path, postgres_url: str
) -> None:
    """O-06: without a marker of its own; while no machine serves, it has no word to take."""
    here = selling(devnet, tmp_path, postgres_url, **{"ledger.state_dir": str(tmp_path / "1")})
    there = selling(devnet, tmp_path, postgres_url, **{"ledger.state_dir": str(tmp_path / "2")})
    third = selling(devnet, tmp_path, postgres_url, **{"ledger.state_dir": str(tmp_path / "3")})
    async with gateway(here), gateway(there):
        pass
    async with gateway(here):
        pass
    async with gateway(there):
        pass
    await refused(third, "its marker .* is not on this machine")


async def test_one_ledger_may_be_of_several_payees(
    devnet: TestChain, tmp_path: Path, postgres_url: str
) -> None:
    """O-06: a payee who is new to a ledger has no marker yet, and is no reason to refuse it."""
    other = {"payee.address": "0x" + "51" * 20, "payee.key": None, "sponsoring.fee_payer": False}
    for url in (file_url(tmp_path / "ledger.db"), postgres_url):
        for settings in ({}, other, {}, other):
            config = selling(
                devnet, tmp_path, url, **settings, **{"ledger.state_dir": str(tmp_path)}
            )
            async with gateway(config):
                pass
        remove(tmp_path, "*5151.marker")
        await refused(config, "its marker .* is not on this machine")
        remove(tmp_path, "*.marker")


@pytest.mark.parametrize("name", released("sqlite"))
async def test_the_books_of_every_release_are_served_at_the_first_start(
    devnet: TestChain, tmp_path: Path, name: str
) -> None:
    """O-06: who upgrades has no marker yet; from then on there is one."""
    path = tmp_path / "ledger.db"
    restore_sqlite(name, path)
    config = selling(
        devnet, tmp_path, file_url(path), **{"ledger.state_dir": str(tmp_path / "state")}
    )
    for _ in range(2):
        async with gateway(config):
            pass
    remove(tmp_path / "state", "*")
    await refused(config, "its marker .* is not on this machine")


# -- an old copy of the one ledger


def keep(path: Path, copy: Path) -> None:
    """Back up as `sqlite3 ledger.db ".backup copy.db"` does."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def put_back(copy: Path, path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, path)


async def buy(ledger: Ledger, amount: int) -> None:
    (await ledger.apply(KEY, [accepting(amount)])).require()


async def test_yesterdays_books_are_refused_until_they_are_adopted(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-06: nothing was settled since, so the chain cannot tell."""
    path = tmp_path / "ledger.db"
    config = selling(devnet, tmp_path, file_url(path))
    async with gateway(config) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        keep(path, tmp_path / "old.db")
        await buy(parts.ledger, 20)
        keep(path, tmp_path / "new.db")
    put_back(tmp_path / "old.db", path)
    await refused(config, "lacks what it has acknowledged, on 1 channels")
    await refused(config, "lacks what it has acknowledged")  # and again
    put_back(tmp_path / "new.db", path)
    async with gateway(config):
        pass
    put_back(tmp_path / "old.db", path)
    await adopt(config)
    async with gateway(config) as parts:
        await buy(parts.ledger, 20)


async def test_no_settler_is_started_on_books_that_are_refused(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-06: it would answer a payer who leaves with an older voucher, and a close is final."""
    started: list[Any] = []
    monkeypatch.setattr("mpp_session.wiring.start_settler", started.append)
    path = tmp_path / "ledger.db"
    config = selling(devnet, tmp_path, file_url(path))
    async with gateway(config) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        keep(path, tmp_path / "old.db")
        await buy(parts.ledger, 20)
    put_back(tmp_path / "old.db", path)
    settles = selling(devnet, tmp_path, file_url(path), **{"settlement.start": True})
    await refused(settles, "lacks what it has acknowledged")
    assert not started


async def test_an_old_copy_in_another_place_is_old_too(devnet: TestChain, tmp_path: Path) -> None:
    """O-06: the ledger may move, and not go back."""
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    async with gateway(selling(devnet, tmp_path, file_url(path))) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        keep(path, copy)
        await buy(parts.ledger, 20)
    await refused(selling(devnet, tmp_path, file_url(copy)), "lacks what it has acknowledged")
    path.rename(tmp_path / "moved.db")
    async with gateway(selling(devnet, tmp_path, file_url(tmp_path / "moved.db"))) as parts:
        state = await parts.ledger.load(KEY)
        assert state is not None
        assert state.accepted == 20


@pytest.mark.parametrize("sells_on", [False, True])
async def test_a_backup_that_is_put_back_under_a_running_gateway_is_found(
    devnet: TestChain, tmp_path: Path, *, sells_on: bool
) -> None:
    """O-06: as `sqlite3 ledger.db ".restore old.db"` does, into the same file."""
    path, old = tmp_path / "ledger.db", tmp_path / "old.db"
    config = selling(devnet, tmp_path, file_url(path))
    async with gateway(config) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        keep(path, old)
        await buy(parts.ledger, 20)
        await parts.ledger.apply(KEY, [Publish(15)])
        assert (await parts.ledger.look()).fault is None
        keep(old, path)
        if sells_on:  # what is sold before that is seen hides nothing
            await buy(parts.ledger, 25)
        fault = (await parts.ledger.look()).fault
        assert fault is not None
        assert "lacks what it has acknowledged" in fault
        with pytest.raises(LedgerUnavailableError, match="would pay again"):
            await buy(parts.ledger, 30)
    await refused(config, "lacks what it has acknowledged")


@pytest.mark.parametrize("lost", ["-wal", "stale"])
async def test_a_log_that_is_lost_or_of_another_file_is_found(
    devnet: TestChain, tmp_path: Path, lost: str
) -> None:
    """O-06: as after a power cut and a careless copy: the last commits are in the log alone."""
    path = tmp_path / "ledger.db"
    wal = path.with_name("ledger.db-wal")
    config = selling(devnet, tmp_path, file_url(path))
    async with gateway(config) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        early = wal.read_bytes()
        for amount in range(11, 40):
            await buy(parts.ledger, amount)
        shutil.copy(path, tmp_path / "raw.db")  # without its log
    shutil.copy(tmp_path / "raw.db", path)
    if lost == "stale":
        wal.write_bytes(early)
    await refused(config, "lacks what it has acknowledged|marker")


async def test_books_without_their_marker_are_refused(devnet: TestChain, tmp_path: Path) -> None:
    """O-06: a new machine, to which the backup was brought and nothing else."""
    config = selling(
        devnet, tmp_path, file_url(tmp_path / "ledger.db"), **{"ledger.state_dir": str(tmp_path)}
    )
    async with gateway(config):
        pass
    (name,) = [name for name in os.listdir(tmp_path) if name.endswith(".marker")]  # noqa: PTH208
    marker = tmp_path / name
    assert marker.stat().st_mode & 0o777 == 0o600
    marker.unlink()
    await refused(config, "may be an old copy")
    await adopt(config)
    async with gateway(config):
        pass
    marker.write_bytes(b"torn")
    await refused(config, "is damaged")
    marker.unlink()
    marker.symlink_to(tmp_path / "ledger.db")
    await refused(config, r"cannot be opened .*regular file.*`ledger\.state_dir`")
    await adopt(config)
    async with gateway(config):
        pass


@pytest.mark.parametrize("fate", ["deleted", "older", "copied", "moved"])
async def test_a_marker_that_is_taken_away_is_put_back_while_it_serves(
    devnet: TestChain, tmp_path: Path, fate: str
) -> None:
    """O-06: what cleans directories, or restores them, makes no old books look new."""
    path, folder = tmp_path / "ledger.db", tmp_path / "state"
    config = selling(devnet, tmp_path, file_url(path), **{"ledger.state_dir": str(folder)})
    async with gateway(config) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        keep(path, tmp_path / "old.db")
        guarding = asyncio.create_task(parts.guard.run(Alarms()))
        (marker,) = folder.iterdir()
        shutil.copy(marker, tmp_path / "old.marker")
        await buy(parts.ledger, 20)
        if fate == "moved":
            folder.rename(tmp_path / "elsewhere")
        else:
            if fate == "copied":
                shutil.copy(marker, tmp_path / "old.marker")
            marker.unlink()
        if fate in {"older", "copied"}:
            (tmp_path / "old.marker").rename(marker)

        def is_back() -> bool:
            again = Marker(marker)
            again.open()
            found = again.marks()
            again.close()
            return [mark.accepted for mark in found] == [20]

        await until(lambda: asyncio.to_thread(is_back))
        await buy(parts.ledger, 30)
        guarding.cancel()
    async with gateway(config):
        pass
    put_back(tmp_path / "old.db", path)
    await refused(config, "lacks what it has acknowledged")


@pytest.mark.parametrize("fault", ["a foreign file", "no directory", "a disk that fails"])
async def test_a_marker_that_cannot_be_written_rings_until_it_can(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """O-06: and ends no gateway."""
    folder = tmp_path / "state"
    config = selling(
        devnet, tmp_path, file_url(tmp_path / "l.db"), **{"ledger.state_dir": str(folder)}
    )
    async with gateway(config) as parts:
        (path,) = folder.iterdir()
        if fault == "a foreign file":
            path.unlink()
            path.write_bytes(b"foreign")
        elif fault == "no directory":
            shutil.rmtree(folder)
            folder.write_bytes(b"")
        else:

            def fail(_: Marker) -> bool:
                raise OSError(errno.EIO, "Input/output error")

            monkeypatch.setattr(Marker, "_is_in_place", fail)
        alarms = Alarms()
        guarding = asyncio.create_task(parts.guard.run(alarms))

        def rings() -> bool:
            return any(each.kind is AlarmKind.MARKER_LOST for each in alarms.ringing)

        await until(rings)
        monkeypatch.undo()
        if fault == "no directory":
            folder.unlink()
        elif fault == "a foreign file":
            path.unlink()
        await until(lambda: not rings())
        guarding.cancel()
    async with gateway(config):
        pass


def test_a_disk_without_room_leaves_no_torn_marker(tmp_path: Path) -> None:
    """O-06: here a limit of the process; what is written in part is not there afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    marker = Marker(tmp_path / "a.marker")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ConfigError, match="free some space"):
            marker.write_anew(BooksId("id", "place", is_marked=False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    marker.write_anew(BooksId("id", "place", is_marked=False))
    marker.close()


async def test_a_directory_that_cannot_be_written_is_refused(
    devnet: TestChain, tmp_path: Path
) -> None:
    config = selling(
        devnet, tmp_path, file_url(tmp_path / "ledger.db"), **{"ledger.state_dir": "/proc/none"}
    )
    await refused(config, "ledger.state_dir")


@pytest.mark.parametrize("kind", ["dump", "rows"])
async def test_a_database_that_went_back_is_refused_at_start_and_while_it_serves(
    devnet: TestChain, tmp_path: Path, postgres_url: str, kind: str
) -> None:
    """O-06, O-83: a dump that is put back, under the running gateway, or before it starts."""
    config = selling(devnet, tmp_path, postgres_url)
    admin = await asyncpg.connect(postgres_url)
    async with gateway(config) as parts:
        await parts.ledger.apply(KEY, [opening(10)])
        await admin.execute("CREATE TABLE kept AS SELECT * FROM channel")
        await buy(parts.ledger, 20)
        await admin.execute("DELETE FROM channel")
        if kind == "rows":
            await admin.execute("INSERT INTO channel OVERRIDING SYSTEM VALUE SELECT * FROM kept")
        fault = (await parts.ledger.look()).fault
        assert fault is not None
        assert "lacks what it has acknowledged" in fault
        with pytest.raises(LedgerUnavailableError, match="would pay again"):
            await buy(parts.ledger, 20)
    await admin.close()
    await refused(config, "lacks what it has acknowledged")


async def test_a_look_that_fails_ends_no_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, O-87: while the database is away, what was found out is what is known."""
    monkeypatch.setattr(one_ledger, "MARKER_SYNC_S", 0.01)
    ledger = await open_ledger(file_url(tmp_path / "ledger.db"), exclusive=True)
    marker = Marker(tmp_path / "a.marker")
    await asyncio.to_thread(marker.write_anew, await ledger.identity("a"))
    await ledger.guard(marker)
    alarms = Alarms()
    alarms.ring(AlarmKind.BOOKS_UNSAFE, "a commit may be lost")
    guarding = asyncio.create_task(LedgerGuard(ledger, marker, look_s=0).run(alarms))
    await interrupt(ledger, lambda: 1)
    await until(lambda: "checking the database's durability failed" in caplog.text)
    assert [each.kind for each in alarms.ringing] == [AlarmKind.BOOKS_UNSAFE]
    await interrupt(ledger, None)
    await until(lambda: not alarms.ringing)
    guarding.cancel()
    await asyncio.to_thread(marker.close)
    await ledger.close()


async def test_a_standby_that_lags_behind_is_said_at_the_start(
    devnet: TestChain, tmp_path: Path, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, O-87: a failover would lose what was acknowledged; here a view shows a standby."""
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(
        "CREATE VIEW pg_stat_replication AS SELECT 'streaming' AS state, 'async' AS sync_state"
    )
    schema = await admin.fetchval("SELECT current_schema()")
    await admin.close()
    config = selling(devnet, tmp_path, postgres_url.replace(schema, f"{schema},pg_catalog"))
    async with gateway(config):
        assert "1 standbys are connected to PostgreSQL and none is synchronous" in caplog.text


# -- the lock and the marker by themselves


def lock(folder: Path, place: str, *, is_shared: bool = False) -> MachineLock:
    return MachineLock("payee", place, is_shared=is_shared, folder=folder)


async def test_what_lies_where_a_lock_should_be(tmp_path: Path) -> None:
    """O-05: stale locks and strangers' files block no start; what takes a lock's name is named."""
    (tmp_path / "mpp-session-payee-0123456789abcdef.lock").write_bytes(b"stale")
    (tmp_path / "mpp-session-payee-fedcba9876543210.lock").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "mpp-session-payee-fifo.lock")
    one = lock(tmp_path, "one")
    await one.acquire()
    with pytest.raises(ConfigError, match="with another ledger"):
        await lock(tmp_path, "two").acquire()
    with pytest.raises(ConfigError, match="with the same ledger"):
        await lock(tmp_path, "one").acquire()
    await one.release()
    shared = [lock(tmp_path, "two", is_shared=True) for _ in range(2)]
    for each in shared:
        await each.acquire()
    await shared[0].release()
    with pytest.raises(ConfigError, match="with another ledger"):
        await lock(tmp_path, "one").acquire()
    await shared[1].release()
    await one.acquire()
    await one.release()
    assert not [name for name in os.listdir(tmp_path) if name.endswith("f.lock")]  # noqa: PTH208
    (tmp_path / "mpp-session-payee.lock").unlink()
    (tmp_path / "mpp-session-payee.lock").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="has put something in its place"):
        await one.acquire()


async def test_a_folder_that_takes_no_lock_is_named_with_what_it_has_to_be(tmp_path: Path) -> None:
    """O-05: as in a container without shared memory, or with one that is read-only."""
    with pytest.raises(ConfigError, match=f"make {tmp_path / 'none'} a directory"):
        await lock(tmp_path / "none", "one").acquire()


async def test_of_processes_that_start_together_one_gets_the_lock(tmp_path: Path) -> None:
    many = [lock(tmp_path, f"place {number}") for number in range(8)]
    taken = await asyncio.gather(*[each.acquire() for each in many], return_exceptions=True)
    assert sum(not isinstance(each, ConfigError) for each in taken) == 1
    for each in many:
        await each.release()


def test_a_marker_remembers_as_many_channels_as_it_has_room_for(tmp_path: Path) -> None:
    """More only takes the place of some."""
    marker = Marker(tmp_path / "a.marker")
    marker.open()
    marker.write_anew(BooksId("id", "place", is_marked=False))
    states = [opening_state(number) for number in range(MARKER_ENTRIES + 1)]
    marker.note(states)
    assert MARKER_ENTRIES / 2 < len(marker.marks()) <= MARKER_ENTRIES
    marker.close()


def opening_state(number: int) -> ChannelState:
    return run(opening(number, key_of(number)))


def test_what_a_power_cut_tore_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.marker"
    marker = Marker(path)
    marker.open()
    marker.write_anew(BooksId("id", "place", is_marked=False))
    marker.note([opening_state(1)])
    (mark,) = marker.marks()
    assert mark.is_met_by(opening_state(1))
    marker.close()
    content = bytearray(path.read_bytes())
    at = content.index(bytes(mark.key.channel_id))
    content[at + 40] ^= 1
    path.write_bytes(content)
    marker.open()
    assert marker.marks() == []
    marker.close()


@pytest.mark.parametrize(
    ("kind", "chain_id", "says"),
    [("nfs4", 31337, "network"), ("tmpfs", 1, "in memory"), ("9p", 1, "network")],
)
def test_a_file_system_on_which_a_ledger_does_not_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, chain_id: int, says: str
) -> None:
    """O-87: as /proc/self/mountinfo names it; here there is none to mount."""
    path = tmp_path / "ledger.db"
    path.touch()
    monkeypatch.setattr(one_ledger, "_file_system", lambda _: kind)
    with pytest.raises(ConfigError, match=says):
        one_ledger._require_disk(str(path), chain_id)  # noqa: SLF001


def test_a_mount_may_have_a_name_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-87: as a disk that another system has named."""
    line = b"36 35 98:0 / /mnt/caf\xe9 rw,noatime - ext4 /dev/root rw\n"
    monkeypatch.setattr(Path, "read_bytes", lambda _: line)
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda _, encoding="utf-8", errors="strict": line.decode(encoding, errors),
    )
    assert one_ledger._file_system("/mnt/caf\udce9/ledger.db") == "ext4"  # noqa: SLF001


def test_the_file_system_of_memory_is_known() -> None:
    assert one_ledger._file_system("/proc/self/stat") == "proc"  # noqa: SLF001


def test_a_system_that_does_not_say_where_a_file_is_blocks_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98, O-87: as one without /proc."""

    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    one_ledger._require_disk(str(tmp_path / "ledger.db"), 1)  # noqa: SLF001
