"""Remembers outside the database what it acknowledged, so that an old copy is recognised.

A database cannot know that it is yesterday's backup. So a file on this machine holds, for the
channels that changed last, what the ledger acknowledged: `accepted`, `spent` and `published`. None
of them ever falls. A ledger that shows less lacks commits: a backup was restored, a log was lost, a
standby without the last commits took over, or a disk lost data.

A commit costs a copy of 128 bytes into mapped memory, which outlives the process. The file is
synced once a second, so a loss of power loses at most the last second. Each entry is true by
itself: regardless of which entries survive and which process wrote them, a ledger that lacks
nothing is never reported as old.
"""

import mmap
import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from channel.errors import ConfigError
from channel.ledger.rows import amount_bytes, bytes_amount
from channel.limits import MARKER_ENTRIES
from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelId, ChannelKey

__all__ = ["BooksId", "Mark", "Marker", "Position", "find_loss"]

_FORMAT: Final = 1
_HEAD_BYTES: Final = 16_384
_ENTRY_BYTES: Final = 128
_POSITION_AT: Final = _HEAD_BYTES - _ENTRY_BYTES
_FILE_BYTES: Final = _HEAD_BYTES + MARKER_ENTRIES * _ENTRY_BYTES
_ENTRY: Final = struct.Struct(">Q20s32s16s16s16s")
_POSITION: Final = struct.Struct(">QIQ")
_CRC: Final = struct.Struct(">I")
_PLACES: Final = (
    (_POSITION_AT, _POSITION.size),
    *((at, _ENTRY.size) for at in range(_HEAD_BYTES, _FILE_BYTES, _ENTRY_BYTES)),
)
"""The positions and lengths of the entries."""


class BooksId(msgspec.Struct, frozen=True):
    """Identifies a database."""

    ledger_id: str
    """A random id from the creation of its tables; a copy has the same."""
    place: str
    """Its location: a file's real path, or a database of a PostgreSQL cluster."""
    is_marked: bool
    """Whether the database ever had a marker for the payee in question."""
    is_served: bool = False
    """Whether a gateway on any machine serves with it and has compared it with a marker."""


class Mark(msgspec.Struct, frozen=True, gc=False):
    """What was acknowledged for one channel. Amounts in base units."""

    key: ChannelKey
    accepted: int
    spent: int
    published: int

    def is_met_by(self, state: ChannelState | None) -> bool:
        """Whether `state` lacks nothing of this."""
        return (
            state is not None
            and state.accepted >= self.accepted
            and state.spent >= self.spent
            and state.published >= self.published
        )


class Position(msgspec.Struct, frozen=True, gc=False):
    """How far a PostgreSQL cluster has written its log."""

    system_id: int
    timeline: int
    lsn: int

    def is_before(self, known: "Position") -> bool:
        """Whether the same cluster had already written further.

        A position on a later timeline, after a failover, proves nothing: the last bytes of the
        old primary may belong to no commit.
        """
        return self.system_id == known.system_id and (
            self.timeline < known.timeline
            or (self.timeline == known.timeline and self.lsn < known.lsn)
        )


class _Head(msgspec.Struct, frozen=True):
    format: int
    ledger_id: str
    place: str


class Marker:
    """The marker of one payee on this machine. One thread writes; `sync` may run in another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._map: mmap.mmap | None = None
        self._head: _Head | None = None
        self._is_dirty = False
        self._noting = threading.Lock()

    def open(self) -> None:
        """Open the file if it exists.

        Raises:
            ConfigError: It cannot be read and written, or does not belong to this user alone.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._descriptor = os.open(self.path, flags)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(
                f"the ledger's marker {self.path} cannot be opened ({error.strerror}): it must "
                "be a regular file that this process's user may write to; see `ledger.state_dir`"
            ) from error
        self._require_own()
        if os.fstat(self._descriptor).st_size != _FILE_BYTES:
            raise ConfigError(
                f"the ledger's marker {self.path} is damaged: run `mpp-session ledger adopt` to "
                "write a new one"
            )
        self._map = mmap.mmap(self._descriptor, _FILE_BYTES)
        text = self._map[:_POSITION_AT].rstrip(b"\0")
        try:
            self._head = msgspec.json.decode(text, type=_Head)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"the ledger's marker {self.path} is damaged: run `mpp-session ledger adopt` to "
                "write a new one"
            ) from error

    @property
    def name(self) -> str:
        """The name of its payee: see `mpp_session.one_ledger.payee_name`."""
        return self.path.stem

    @property
    def exists(self) -> bool:
        """Whether the marker exists."""
        return self._head is not None

    @property
    def ledger_id(self) -> str:
        """The id of its ledger; empty when there is no marker."""
        return "" if self._head is None else self._head.ledger_id

    @property
    def place(self) -> str:
        """Where that ledger was when last used; empty when there is no marker."""
        return "" if self._head is None else self._head.place

    def write_anew(self, books: BooksId) -> None:
        """Create the marker of this ledger durably, without entries.

        Raises:
            ConfigError: The file cannot be written.
        """
        content = _format_head(books).ljust(_FILE_BYTES, b"\0")
        other = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            other.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(other, flags, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            other.rename(self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                other.unlink(missing_ok=True)
            raise ConfigError(
                f"the ledger's marker {self.path} cannot be written ({error.strerror}): free some "
                "space, or set `ledger.state_dir` to a directory of this process's user that "
                "outlives this process and this container"
            ) from error
        self.open()

    def move(self, books: BooksId) -> None:
        """Record that the same ledger is in another place now."""
        if self._map is not None:
            self._map[:_POSITION_AT] = _format_head(books)
            self._is_dirty = True
            self.sync()

    def note(self, states: Iterable[ChannelState]) -> None:
        """Remember committed states. Call it after the commit, before the acknowledgement."""
        with self._noting:
            memory = self._map
            if memory is None:
                return
            for state in states:
                key = (state.key.chain_id, state.key.escrow, state.key.channel_id)
                amounts = tuple(map(amount_bytes, (state.accepted, state.spent, state.published)))
                slot = zlib.crc32(state.key.channel_id) % MARKER_ENTRIES
                at = _HEAD_BYTES + slot * _ENTRY_BYTES
                before = _checked(memory, at, _ENTRY.size)
                if before is not None:
                    *known_key, accepted, spent, published = _ENTRY.unpack(before)
                    if tuple(known_key) == key:  # keep the greatest, in case a ledger went back
                        amounts = tuple(map(max, amounts, (accepted, spent, published)))
                _write_checked(memory, at, _ENTRY.pack(*key, *amounts))
            self._is_dirty = True

    def marks(self) -> list[Mark]:
        """Return the remembered amounts, without entries that a loss of power tore."""
        memory, found = self._map, []
        if memory is None:
            return []
        for at in range(_HEAD_BYTES, _FILE_BYTES, _ENTRY_BYTES):
            entry = _checked(memory, at, _ENTRY.size)
            if entry is not None:
                chain_id, escrow, channel_id, *amounts = _ENTRY.unpack(entry)
                key = ChannelKey(chain_id, Address(escrow), ChannelId(channel_id))
                found.append(Mark(key, *map(bytes_amount, amounts)))
        return found

    @property
    def position(self) -> Position | None:
        """How far the PostgreSQL cluster was known to have written."""
        if self._map is None:
            return None
        entry = _checked(self._map, _POSITION_AT, _POSITION.size)
        return None if entry is None else Position(*_POSITION.unpack(entry))

    @position.setter
    def position(self, position: Position) -> None:
        if self._map is not None:
            entry = _POSITION.pack(position.system_id, position.timeline, position.lsn)
            _write_checked(self._map, _POSITION_AT, entry)
            self._is_dirty = True

    def sync(self) -> None:
        """Sync the noted entries to disk, and recreate the file if it was removed. Blocks.

        Raises:
            ConfigError: Another file is in its place, or a new one cannot be created.
            OSError: The disk refuses the write.
        """
        if self._map is None:
            return
        if not self._is_in_place():
            self._put_back()
        if self._is_dirty:
            self._is_dirty = False
            try:
                self._map.flush()
            except OSError:
                self._is_dirty = True
                raise

    def close(self) -> None:
        """Sync if possible, and close the file."""
        if self._map is not None:
            with suppress(OSError, ConfigError):
                self.sync()
            self._map.close()
            self._map = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """Return the descriptor of the open file."""
        return self._descriptor

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _put_back(self) -> None:
        """Continue in a new file of the same name, so that the next start finds the entries."""
        other = Marker(self.path)
        try:
            other.open()
            if not other.exists:
                other.write_anew(BooksId(self.ledger_id, self.place, is_marked=True))
            if other.ledger_id == self.ledger_id:
                self._go_on_in(os.dup(other.fileno()))
                return
        finally:
            other.close()
        raise ConfigError(
            f"the ledger's marker {self.path} belongs to another ledger now: remove it"
        )

    def _go_on_in(self, descriptor: int) -> None:
        memory = mmap.mmap(descriptor, _FILE_BYTES)
        with self._noting:
            if self._map is not None:
                for at, size in _PLACES:
                    entry = _checked(self._map, at, size)
                    if entry is not None:
                        _write_checked(memory, at, entry)
            self._map = memory  # the old map stays open: another thread may still read it
            self._is_dirty = True
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _require_own(self) -> None:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            os.close(self._descriptor)
            self._descriptor = -1
            raise ConfigError(
                f"the ledger's marker {self.path} must be a regular file of this user with one "
                "name: another user or program created it; remove it or set `ledger.state_dir`"
            )


def find_loss(marks: Sequence[Mark], states: Mapping[ChannelKey, ChannelState]) -> str | None:
    """Return what `states` lack of what was acknowledged; None when nothing."""
    lost = [mark for mark in marks if not mark.is_met_by(states.get(mark.key))]
    if not lost:
        return None
    first = lost[0]
    return (
        f"the ledger lacks what it has acknowledged, on {len(lost)} channels at least (channel "
        f"0x{first.key.channel_id.hex()}: accepted {first.accepted}, spent {first.spent}): it was "
        "restored from a backup, lost its log, or a standby took over that lacks commits; the "
        "same vouchers would pay again"
    )


def _format_head(books: BooksId) -> bytes:
    head = _Head(_FORMAT, books.ledger_id, books.place)
    return msgspec.json.encode(head).ljust(_POSITION_AT, b"\0")


def _write_checked(memory: mmap.mmap, at: int, entry: bytes) -> None:
    memory[at : at + len(entry) + _CRC.size] = entry + _CRC.pack(zlib.crc32(entry))


def _checked(memory: mmap.mmap, at: int, size: int) -> bytes | None:
    entry = memory[at : at + size]
    (crc,) = _CRC.unpack(memory[at + size : at + size + _CRC.size])
    return entry if crc and crc == zlib.crc32(entry) else None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
