"""A SQLite file as the wallet opens it, without the payment store's thread."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mpp_session.wallet.approvals.store import Approvals

__all__ = ["WalletFile"]

T = TypeVar("T")


class WalletFile:
    """Runs each change in one transaction; `reopen` forgets everything that is not on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = self._open()

    def reopen(self) -> None:
        """Close the file and open it anew."""
        self._db.close()
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        for statement in Approvals.SCHEMA.split(";"):
            db.execute(statement)
        return db

    def run(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `change` returns, committed; undone if it raises."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = change(self._db)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return result

    def close(self) -> None:
        """Close the file."""
        self._db.close()
