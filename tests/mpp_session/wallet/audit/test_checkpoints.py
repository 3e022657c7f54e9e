"""Checkpoints are written as records come, outlive a crash, and are not continued by mistake."""

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from channel.errors import StoreError
from mpp_session.wallet.audit.checkpoints import Checkpoints, CheckpointWriter
from mpp_session.wallet.audit.notes import Checkpoint, PublicKey, split_notes
from mpp_session.wallet.audit.trail import SCHEMA, Trail, open_trail
from mpp_session.wallet.audit.verify import Report, verify_files

T = TypeVar("T")

ROOT = Path(__file__).parents[4]
SECRET = b"s" * 32


class Books:
    """A database that is used as the wallet uses its own."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.executescript(SCHEMA)
        self.trail = Trail()

    def run(self, change: Callable[[sqlite3.Connection], T]) -> T:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            result = change(self.db)
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
        return result

    async def transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.to_thread(self.run, change)

    async def write(self, count: int) -> None:
        await asyncio.to_thread(self.append, count)

    def take(self, checkpoints: Checkpoints) -> bool:
        made = self.run(lambda db: checkpoints.read(db, 1.0))
        if made is not None:
            checkpoints.write(made)
            self.run(lambda db: checkpoints.note(db, 1.0))
        return made is not None

    def report(self, path: Path, key: PublicKey) -> Report:
        return verify_files(self.db, path, key)

    def append(self, count: int = 1) -> None:
        for number in range(count):
            self.run(lambda db, at=number: self.trail.append(db, "voucher", at=at))  # type: ignore[misc]

    def open(self, path: Path, secret: bytes = SECRET) -> Checkpoints:
        return self.run(lambda db: Checkpoints.open(db, self.trail, path, secret, 1.0))


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path / "wallet.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trail.checkpoints"


def sizes(path: Path) -> list[int]:
    return [note.checkpoint.size for note in split_notes(path.read_bytes())]


async def sizes_when(path: Path, is_so: Callable[[list[int]], bool]) -> list[int]:
    while True:
        found = await asyncio.to_thread(sizes, path)
        if is_so(found):
            return found
        await asyncio.sleep(0.005)


@pytest.fixture
async def writer(books: Books, path: Path) -> AsyncIterator[CheckpointWriter]:
    opened = await CheckpointWriter.open(
        books.transact, books.trail, path, secret=SECRET, key_path=path.with_suffix(".pub")
    )
    yield opened
    await opened.close()


async def stop(keeping: "asyncio.Task[None]") -> None:
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


async def test_time_brings_checkpoints_and_the_end_brings_the_last(
    books: Books, path: Path
) -> None:
    writer = await CheckpointWriter.open(
        books.transact, books.trail, path, secret=SECRET, key_path=path.with_suffix(".pub")
    )
    keeping = asyncio.create_task(writer.keep(every_s=0.02))
    await books.write(3)
    found = await sizes_when(path, lambda found: bool(found) and found[-1] >= 4)
    await asyncio.sleep(0.1)
    assert await asyncio.to_thread(sizes, path) == found, "its own record brings no further one"
    await stop(keeping)
    await books.write(2)
    await writer.close()
    report = await asyncio.to_thread(books.report, path, writer.public_key)
    assert report.is_good, report
    assert report.covered == report.records - 1
    written = await asyncio.to_thread(path.with_suffix(".pub").read_text)
    assert PublicKey.parse(written) == writer.public_key


async def test_many_records_do_not_wait_for_the_time(
    books: Books, path: Path, writer: CheckpointWriter
) -> None:
    keeping = asyncio.create_task(writer.keep(every_records=5, every_s=500))
    await asyncio.sleep(0)
    await books.write(6)
    assert await sizes_when(path, bool) == [7]
    await stop(keeping)


async def test_a_cancelled_checkpoint_and_the_next_one_do_not_overlap(
    books: Books, path: Path, writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.write(2)
    written, loop, write = asyncio.Event(), asyncio.get_running_loop(), Checkpoints.write

    def write_later(checkpoints: Checkpoints, checkpoint: Checkpoint) -> None:
        loop.call_soon_threadsafe(written.set)
        time.sleep(0.05)
        write(checkpoints, checkpoint)

    monkeypatch.setattr(Checkpoints, "write", write_later)
    first = asyncio.create_task(writer.take())
    await written.wait()
    first.cancel()
    await books.write(1)
    await writer.take()
    await asyncio.gather(first, return_exceptions=True)
    report = await asyncio.to_thread(books.report, path, writer.public_key)
    assert report.is_good, report
    assert report.covered == 4


async def test_another_public_key_beside_the_database_is_refused(books: Books, path: Path) -> None:
    key_path = path.with_suffix(".pub")
    await asyncio.to_thread(key_path.write_text, "another\n")
    for place, said in ((key_path, "another public key"), (path.parent, "cannot be used")):
        with pytest.raises(StoreError, match=said):
            await CheckpointWriter.open(
                books.transact, books.trail, path, secret=SECRET, key_path=place
            )


def test_a_second_start_goes_on_where_the_first_ended(books: Books, path: Path) -> None:
    for _ in range(3):
        checkpoints = books.open(path)
        books.append(2)
        assert books.take(checkpoints)
        assert not books.take(checkpoints)
        checkpoints.close()
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert sizes(path) == [3, 6, 9]
    assert books.report(path, checkpoints.public_key).is_good


def test_a_note_that_was_not_finished_is_dropped_at_the_next_start(
    books: Books, path: Path
) -> None:
    checkpoints = books.open(path)
    books.append(2)
    books.take(checkpoints)
    whole = path.read_bytes()
    for end in (1, 60, len(whole) - 1):
        path.write_bytes(whole + whole[:end])
        books.open(path).close()
        assert path.read_bytes() == whole


def test_a_trail_that_is_not_that_of_the_checkpoints_is_not_continued(
    books: Books, path: Path
) -> None:
    checkpoints = books.open(path)
    books.append(4)
    books.take(checkpoints)
    checkpoints.close()
    whole = path.read_bytes()

    def refused(secret: bytes = SECRET) -> str:
        with pytest.raises(StoreError) as caught:
            books.open(path, secret)
        return str(caught.value)

    path.write_bytes(whole.replace(b"at 1", b"at x"))
    assert "damaged" in refused()
    path.write_bytes(whole)
    assert "of another key" in refused(b"o" * 32)
    books.db.execute("DROP TRIGGER trail_grows")
    books.db.execute("DROP TRIGGER trail_keeps")
    books.db.execute("UPDATE trail SET hash = zeroblob(32) WHERE seq = 2")
    assert "up to record 5 it was changed" in refused()
    books.db.execute("DELETE FROM trail WHERE seq > 3")
    assert "records after 3 are missing" in refused()
    books.db.execute("DELETE FROM trail")
    assert "of another trail" in refused()
    path.unlink()
    path.symlink_to("wallet.db")
    assert "symbolic link" in refused()


def test_a_file_that_cannot_be_written_is_an_error(books: Books, path: Path) -> None:
    checkpoints = books.open(path)
    made = books.run(lambda db: checkpoints.read(db, 1.0))
    assert made is not None
    checkpoints.close()
    with pytest.raises(StoreError, match="cannot be used"):
        checkpoints.write(made)


KILLED = """
    import sqlite3, sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from mpp_session.wallet.audit.checkpoints import Checkpoints
    from mpp_session.wallet.audit.trail import SCHEMA, Trail

    db = sqlite3.connect({database!r}, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(SCHEMA)
    trail = Trail()
    db.execute("BEGIN IMMEDIATE")
    notes = Checkpoints.open(db, trail, Path({notes!r}), b"s" * 32, 1.0)
    db.execute("COMMIT")
    print(notes.public_key, flush=True)
    while True:
        for number in range(7):
            db.execute("BEGIN IMMEDIATE")
            trail.append(db, "voucher", at=number)
            db.execute("COMMIT")
        made = notes.read(db, 1.0)
        notes.write(made)
        db.execute("BEGIN IMMEDIATE")
        notes.note(db, 1.0)
        db.execute("COMMIT")
        print(made.size, flush=True)
"""


def test_a_wallet_that_is_killed_leaves_a_trail_that_holds(tmp_path: Path) -> None:
    database, notes = tmp_path / "wallet.db", tmp_path / "notes"
    program = textwrap.dedent(KILLED).format(
        root=str(ROOT), database=str(database), notes=str(notes)
    )
    last = 0
    for rounds in (1, 3):
        with subprocess.Popen(  # noqa: S603 -- ours
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            key = PublicKey.parse(process.stdout.readline())
            for _ in range(rounds):
                size = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        report = verify_files(open_trail(database), notes, key)
        assert report.is_good, report
        assert report.covered >= size > last
        last = size
