"""O-06: a marker that cannot be trusted is refused, and never takes another ledger's word.

What it does for a gateway: `tests/mpp_session/test_one_ledger.py`.
"""

import asyncio
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.ledger.interface import Ledger
from channel.ledger.marker import BooksId, Marker
from channel.state.channel_state import ChannelState
from tests.channel.books import KEY, accepting, key_of, opening, run

BOOKS = BooksId("id", "place", is_marked=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.marker"


@pytest.fixture
def marker(path: Path) -> Iterator[Marker]:
    made = Marker(path)
    made.write_anew(BOOKS)
    yield made
    made.close()


def accepted(path: Path) -> list[int]:
    """Return what the next start finds."""
    found = Marker(path)
    found.open()
    amounts = [mark.accepted for mark in found.marks()]
    found.close()
    return amounts


def state(number: int) -> ChannelState:
    return run(opening(number, key_of(number)))


def test_a_head_that_cannot_be_read_is_damage(marker: Marker, path: Path) -> None:
    """O-98: the owner of such a marker is unknown, so it is not taken for a new one."""
    marker.note([state(5)])
    marker.close()
    content = path.read_bytes()
    path.write_bytes(b"?" + content[1:])
    damaged = Marker(path)
    with pytest.raises(ConfigError, match="is damaged"):
        damaged.open()
    assert not damaged.exists
    damaged.close()
    path.write_bytes(content)
    assert accepted(path) == [5]


def link(path: Path) -> None:
    path.with_name("other").hardlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [link, pipe])
def test_a_file_that_another_may_write_to_is_no_marker(
    marker: Marker, path: Path, change: Callable[[Path], None]
) -> None:
    """O-98: who knows it by a second name could put back an older one."""
    marker.close()
    change(path)
    refused = Marker(path)
    with pytest.raises(ConfigError, match="a regular file of this user with one name"):
        refused.open()
    assert (refused.exists, refused.fileno()) == (False, -1)


def test_a_marker_of_another_ledger_in_its_place_is_left_alone(marker: Marker, path: Path) -> None:
    """O-98, O-05: each ledger's next start would take the other's amounts for its own."""
    marker.note([state(5)])
    path.unlink()
    other = Marker(path)
    other.write_anew(BooksId("other", "elsewhere", is_marked=False))
    other.note([state(7)])
    other.close()
    with pytest.raises(ConfigError, match="belongs to another ledger now"):
        marker.sync()
    assert accepted(path) == [7]
    path.unlink()
    marker.sync()
    assert accepted(path) == [5]


class FailingDisk(mmap.mmap):
    """Memory whose disk does not take it, while it `fails`."""

    fails = True
    flushed = 0

    def flush(self, offset: int = 0, size: int = 0) -> None:
        del offset, size
        if FailingDisk.fails:
            raise OSError(errno.EIO, "Input/output error")
        FailingDisk.flushed += 1
        super().flush()


def test_what_a_disk_did_not_take_is_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98: until it did, every sync says that it failed."""
    monkeypatch.setattr(mmap, "mmap", FailingDisk)
    marker = Marker(path)
    marker.write_anew(BOOKS)
    marker.note([state(5)])
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            marker.sync()
    monkeypatch.setattr(FailingDisk, "fails", False)
    marker.sync()
    marker.sync()  # nothing is left to write
    assert FailingDisk.flushed == 1
    marker.close()
    assert accepted(path) == [5]


async def test_books_outlive_their_marker(ledger: Ledger, marker: Marker, path: Path) -> None:
    """O-98: what is committed after it was closed counts, and is not noted."""
    assert (await ledger.guard(marker)).fault is None
    await ledger.apply(KEY, [opening(10)])
    await asyncio.to_thread(marker.close)
    assert (await ledger.apply(KEY, [accepting(20)])).require().accepted == 20
    assert (await ledger.look()).fault is None
    await asyncio.to_thread(marker.sync)
    assert await asyncio.to_thread(accepted, path) == [10]
