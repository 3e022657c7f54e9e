"""Keeps a wallet's file to one process, for as long as that runs.

Two processes would each hold the requests that run, and the streams, in their own memory (vaduno
v0.2.0: two processes are two budgets). The system releases the lock when the process ends, in any
way.
"""

import fcntl
import os
from pathlib import Path

from channel.errors import StoreError
from channel.files import open_own

__all__ = ["lock_wallet", "unlock_wallet"]


def lock_wallet(path: Path) -> int:
    """Lock a wallet's file by an empty file beside it, and return the descriptor that holds it.

    Raises:
        StoreError: Another wallet has it, or the lock cannot be created.
    """
    beside = path.with_name(f"{path.name}-wallet")
    try:
        descriptor = open_own(beside)
    except OSError as error:
        raise StoreError(
            f"the lock of the wallet {path} cannot be created: {error}; check its directory"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(
            f"another wallet process uses {path}: end it, or give this one another file"
        ) from error
    return descriptor


def unlock_wallet(descriptor: int) -> None:
    """Release the lock. Its file stays: removing it would let two processes lock two files."""
    os.close(descriptor)
