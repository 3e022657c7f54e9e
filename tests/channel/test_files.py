"""Keys and money are written to no file that another user can read, change or redirect."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from channel.client.store.locks import ChannelLocks
from channel.client.store.sqlite import PaymentStore
from channel.errors import ConfigError, LedgerUnavailableError, StoreError
from channel.files import create_own, open_own
from channel.ledger.sqlite import SqliteLedger

Trap = Callable[[Path, Path], None]


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def link_to_nothing(path: Path, _: Path) -> None:
    path.symlink_to(path.with_name("made by following"))


def second_name(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def open_to_all(path: Path, _: Path) -> None:
    path.touch()
    path.chmod(0o666)


def pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _: Path) -> None:
    path.mkdir()


TRAPS = [link, link_to_nothing, second_name, open_to_all, pipe, folder]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("the contents before")
    return path


def left_alone(victim: Path) -> bool:
    beside = victim.with_name("made by following")
    return victim.read_text() == "the contents before" and not beside.exists()


@pytest.mark.parametrize("trap", TRAPS)
def test_a_file_is_opened_as_itself_or_not_at_all(tmp_path: Path, victim: Path, trap: Trap) -> None:
    """O-31."""
    trap(tmp_path / "file", victim)
    for opening in (open_own, create_own):
        with pytest.raises(OSError, match="file"):
            opening(tmp_path / "file")
    assert left_alone(victim)


def test_what_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    """O-31, decision 14: under any umask."""
    before = os.umask(0)
    try:
        os.close(open_own(tmp_path / "one"))
        create_own(tmp_path / "two")
    finally:
        os.umask(before)
    for name in ("one", "two"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        create_own(tmp_path / name)


def test_a_file_that_another_user_made_first_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-31: as seen by another user than the one who made it; root's are root's to give."""
    path = tmp_path / "file"
    path.touch()
    user = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    if user == 0:
        os.close(open_own(path))
        os.chown(path, 12345, -1)
    with pytest.raises(PermissionError, match="belongs to user"):
        open_own(path)
    with pytest.raises(PermissionError, match="belongs to user"):
        create_own(path)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", ".lock"])
@pytest.mark.parametrize("trap", TRAPS)
async def test_a_ledger_is_not_opened_through_a_trap(
    tmp_path: Path, victim: Path, trap: Trap, suffix: str
) -> None:
    """O-31: the books, SQLite's own files beside them, and the lock."""
    trap(tmp_path / f"ledger.db{suffix}", victim)
    with pytest.raises((ConfigError, LedgerUnavailableError), match="ledger"):
        await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
    assert left_alone(victim)


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("trap", TRAPS)
async def test_a_payment_store_is_not_opened_through_a_trap(
    tmp_path: Path, victim: Path, trap: Trap, suffix: str
) -> None:
    """O-31: the agent's store."""
    trap(tmp_path / f"agent.db{suffix}", victim)
    with pytest.raises(StoreError, match="file"):
        await PaymentStore.open(tmp_path / "agent.db")
    assert left_alone(victim)


@pytest.mark.parametrize("trap", TRAPS)
def test_claims_are_not_laid_through_a_trap(tmp_path: Path, victim: Path, trap: Trap) -> None:
    """O-31."""
    trap(tmp_path / "claims", victim)
    with pytest.raises(OSError, match="claims"):
        ChannelLocks(tmp_path / "claims")
    assert left_alone(victim)
