"""O-05: what may be wrong with a lock's file is named, and no payee gets two ledgers by it.

Who gets the lock and who not: `tests/mpp_session/test_one_ledger.py`.
"""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from channel.errors import ConfigError
from channel.ledger import machine_lock
from channel.ledger.machine_lock import MachineLock


def lock(folder: Path) -> MachineLock:
    return MachineLock("payee", "place", is_shared=False, folder=folder)


async def test_a_lock_that_another_process_keeps_is_refused_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98: by its name, so that an operator can find whose it is; then it can be taken."""
    monkeypatch.setattr(machine_lock, "LEDGER_BUSY_S", 0.05)
    descriptor = os.open(tmp_path / "mpp-session-payee.lock", os.O_RDONLY | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match=r"mpp-session-payee\.lock is locked for"):
        await lock(tmp_path).acquire()
    os.close(descriptor)
    taken = lock(tmp_path)
    await taken.acquire()
    await taken.release()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
async def test_what_is_no_file_is_no_lock(tmp_path: Path, make: Any) -> None:
    """O-98: a lock on a directory or a pipe has no defined meaning."""
    make(tmp_path / "mpp-session-payee.lock")
    with pytest.raises(ConfigError, match="is not a regular file"):
        await lock(tmp_path).acquire()


@pytest.mark.parametrize("rounds", [1, 9, 10])
async def test_a_lock_that_others_make_and_remove_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """O-98: each time it is gone when it is opened and there when it is made; in bounded number."""
    gate = tmp_path / "mpp-session-payee.lock"
    real, left = os.open, 2 * rounds

    def race(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        nonlocal left
        if path == gate and left:
            left -= 1
            raise FileExistsError if flags & os.O_CREAT else FileNotFoundError
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", race)
    taken = lock(tmp_path)
    if rounds == 10:
        with pytest.raises(ConfigError, match="appears and disappears"):
            await taken.acquire()
    else:
        await taken.acquire()
        with pytest.raises(ConfigError, match="with the same ledger"):
            await lock(tmp_path).acquire()
        await taken.release()
    assert left == 0
