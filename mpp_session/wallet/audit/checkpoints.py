"""Writes checkpoints of the trail to a file outside of the wallet's database.

The owner chooses the directory: one that the wallet's user can only append to, or that another
machine copies. A note is synced before the trail tells of it, so a note that the trail
tells of and the file lacks was taken away.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar

from msgspec.structs import replace

from channel.errors import StoreError
from channel.files import open_own, write_new
from mpp_session.wallet.audit.canonical import ZERO_HASH, milliseconds
from mpp_session.wallet.audit.merkle import Tree
from mpp_session.wallet.audit.notes import (
    Checkpoint,
    PublicKey,
    SigningKey,
    TornNotesError,
    split_notes,
)
from mpp_session.wallet.audit.trail import QUERIES, Trail, trail_id

__all__ = [
    "EVERY_RECORDS",
    "EVERY_S",
    "CheckpointWriter",
    "Checkpoints",
    "Transact",
]

T = TypeVar("T")

EVERY_RECORDS: Final = 1000
EVERY_S: Final = 60.0
_LOOK_S: Final = 1.0


class Transact(Protocol):
    """`PaymentStore.transact`."""

    def __call__(self, change: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]:
        """Run `change` in one transaction."""
        ...


class Checkpoints:
    """The file, open for the life of the wallet. Not for use by two threads at a time."""

    def __init__(
        self, path: Path, descriptor: int, trail: Trail, key: SigningKey, tree: Tree
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._trail = trail
        self._key = key
        self._tree = tree
        self._last = ZERO_HASH
        self._covered = 0
        self._own = 0
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, db: sqlite3.Connection, trail: Trail, path: Path, secret: bytes, at: float
    ) -> Self:
        """Open or create the file, compare it with the trail, and begin an empty trail.

        Args:
            db: Within a transaction that may write. Every record is read once.
            trail: Of this database.
            path: Of the file; its directory exists.
            secret: Of the wallet, at least 32 bytes: the signing key is derived from it.
            at: Unix seconds.

        Raises:
            StoreError: The file cannot be opened or is damaged, or the trail is not the one that
                the checkpoints are of: it was changed, or restored from an old copy.
        """
        trail.begin(db, at=at)
        key = SigningKey(secret, trail_id(db))
        try:
            descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise _failed(path, error) from error
        opened = cls(path, descriptor, trail, key, Tree())
        try:
            opened._resume(db)
        except BaseException:
            opened.close()
            raise
        return opened

    @property
    def public_key(self) -> PublicKey:
        """With it, `audit verify` checks the notes. The owner keeps a copy elsewhere."""
        return self._key.public

    def publish(self, path: Path) -> None:
        """Write the public key to a new file, or leave an equal one as it is.

        Raises:
            StoreError: The file holds another key, or cannot be used.
        """
        text = f"{self.public_key}\n"
        try:
            try:
                write_new(path, text.encode())
            except FileExistsError:
                if path.read_bytes() != text.encode():
                    raise self._refused(f"{path} holds another public key") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be used: {error.strerror or error}") from error

    def read(self, db: sqlite3.Connection, at: float) -> Checkpoint | None:
        """Read the new records, and return the checkpoint over all; None where there are none.

        The records are durable: call it in a transaction of its own, before `write`.
        """
        for seq, digest in db.execute(QUERIES["load_hashes"], (self._tree.size,)):
            if seq != self._tree.size + 1:
                raise StoreError(f"record {self._tree.size + 1} of the audit trail is missing")
            self._tree.add(digest)
        if self._tree.size <= max(self._covered, self._own):
            return None
        name = self._key.public.name
        root = self._tree.root()
        return Checkpoint(name, self._tree.size, root, milliseconds(at))

    def write(self, checkpoint: Checkpoint) -> None:
        """Sign and append a checkpoint; it is on disk when this returns. Slow: use a thread.

        Raises:
            StoreError: It cannot be written. A part of it may be there: open the file again.
        """
        with self._lock:  # where the caller of an earlier one was cancelled, it may still run
            if checkpoint.size > self._covered:
                self._write(replace(checkpoint, after=self._last))

    def _write(self, checkpoint: Checkpoint) -> None:
        note = self._key.sign(checkpoint)
        try:
            written = os.write(self._descriptor, note)
            os.fsync(self._descriptor)
        except OSError as error:
            raise _failed(self._path, error) from error
        if written != len(note):
            raise StoreError(f"the checkpoints {self._path} cannot be written: the disk is full")
        (made,) = split_notes(note)
        self._last, self._covered = made.hash, checkpoint.size

    def note(self, db: sqlite3.Connection, at: float) -> None:
        """Record in the trail that a checkpoint was written: it is missed if it is gone."""
        self._own = self._trail.append(
            db, "checkpoint", at=at, size=self._covered, note=self._last.hex()
        )

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _resume(self, db: sqlite3.Connection) -> None:
        content = self._read()
        try:
            notes = split_notes(content)
        except TornNotesError as error:
            notes = error.notes
            if b"\n\n" in error.rest and error.rest.endswith(b"\n"):
                raise self._refused(f"the file is damaged: {error}") from error
            # The wallet ended while it wrote this note, which therefore the trail does not tell of.
            self._cut(notes[-1].end if notes else 0)
        if notes and not self.public_key.verifies(notes[-1]):
            raise self._refused("the last checkpoint is of another trail, or of another key")
        roots = {note.checkpoint.size: note.checkpoint.root for note in notes}
        for seq, digest in db.execute(QUERIES["load_hashes"], (0,)):
            self._tree.add(digest)
            root = roots.pop(self._tree.size, None)
            is_true = root is None or root == self._tree.root()
            if seq != self._tree.size or not is_true:
                raise self._refused(f"up to record {seq} it was changed")
        if roots:
            raise self._refused(f"records after {self._tree.size} are missing")
        if notes:
            self._last, self._covered = notes[-1].hash, notes[-1].checkpoint.size

    def _read(self) -> bytes:
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                file.seek(0)
                return file.read()
        except OSError as error:
            raise _failed(self._path, error) from error

    def _cut(self, end: int) -> None:
        try:
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
        except OSError as error:
            raise _failed(self._path, error) from error

    def _refused(self, why: str) -> StoreError:
        return StoreError(
            f"the audit trail is not that of the checkpoints {self._path}: {why}; run "
            "`mpp-session audit verify`. Where you restored an old copy of the database, remove "
            "from the file the checkpoints of more records than the copy has"
        )


class CheckpointWriter:
    """Writes checkpoints as long as a wallet runs, and the last one when it stops."""

    def __init__(self, transact: Transact, trail: Trail, checkpoints: Checkpoints) -> None:
        self._transact = transact
        self._trail = trail
        self._checkpoints = checkpoints

    @classmethod
    async def open(
        cls, transact: Transact, trail: Trail, path: Path, *, secret: bytes, key_path: Path
    ) -> Self:
        """Open the file of checkpoints, and write the public key beside the database.

        Args:
            transact: Of the wallet's database.
            trail: That all parts of the wallet append to.
            path: Of the checkpoints.
            secret: Of the wallet; the signing key is derived from it.
            key_path: Of the public key.

        Raises:
            StoreError: See `Checkpoints.open` and `Checkpoints.publish`.
        """
        checkpoints = await transact(
            lambda db: Checkpoints.open(db, trail, path, secret, time.time())
        )
        try:
            await asyncio.to_thread(checkpoints.publish, key_path)
        except BaseException:
            checkpoints.close()
            raise
        return cls(transact, trail, checkpoints)

    @property
    def public_key(self) -> PublicKey:
        """With it, `audit verify` checks the notes."""
        return self._checkpoints.public_key

    async def keep(self, *, every_records: int = EVERY_RECORDS, every_s: float = EVERY_S) -> None:
        """Write a checkpoint after so many records or seconds, until it is cancelled.

        Raises:
            StoreError: The database or the file failed. The wallet must not go on without
                checkpoints.
        """
        seen, at = self._trail.appended, time.monotonic()
        while True:
            await asyncio.sleep(min(_LOOK_S, every_s))
            is_many = self._trail.appended - seen >= every_records
            if is_many or time.monotonic() - at >= every_s:
                await self.take()
                seen, at = self._trail.appended, time.monotonic()

    async def take(self) -> bool:
        """Write a checkpoint now, and return whether there was anything new.

        Raises:
            StoreError: The database or the file failed.
        """
        made = await self._transact(lambda db: self._checkpoints.read(db, time.time()))
        if made is None:
            return False
        await asyncio.to_thread(self._checkpoints.write, made)
        await self._transact(lambda db: self._checkpoints.note(db, time.time()))
        return True

    async def close(self) -> None:
        """Write the last checkpoint, and close the file.

        Raises:
            StoreError: The database or the file failed.
        """
        try:
            await self.take()
        finally:
            self._checkpoints.close()


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"the checkpoints {path} cannot be used: {error.strerror or error}")
