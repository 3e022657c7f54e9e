"""The file between a provider and its tower: lines that are only ever appended.

It may be read, copied or shipped at any moment: a line counts when its newline is there. Whoever
writes it has each line on disk before it counts as handed out, and now and then writes a new file
beside it, with the newest line of each channel, that takes its place in one step. It is for its
owner alone: each line settles one channel, to the payee and to nobody else.
"""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from channel.types import ChannelKey
from settlement.tower.presigned import (
    LINE_BYTES_MAX,
    PresignedError,
    PresignedSettle,
    parse_line,
)

__all__ = ["BEAT", "TowerFile", "TowerFileReader"]

BEAT: Final = b"{}\n"
"""A line that says nothing but that the file still comes."""

_SPARE_LINES: Final = 1000
_READ_BYTES_MAX: Final = 1024 * 1024
"""Some thousand lines, each with a signature to check, before others have their turn."""
_LAST_BYTES: Final = 1024
"""More than one line of a key's signatures, so that no two are alike in it."""


class TowerFile:
    """The provider's end. Make one with `open`. On `OSError` from a method nothing counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._newest: dict[ChannelKey, PresignedSettle] = {}
        self._lines = 0
        self._size = 0
        """Of the file as we left it, in bytes."""

    @classmethod
    async def open(cls, path: Path) -> "TowerFile":
        """Open the file, or begin one; a line cut off by a crash is taken out."""
        file = cls(path)
        await asyncio.to_thread(file._load)
        return file

    @property
    def newest(self) -> dict[ChannelKey, PresignedSettle]:
        """The newest line of each channel."""
        return self._newest

    async def append(self, settles: Iterable[PresignedSettle]) -> None:
        """Return once these are on disk."""
        added = list(settles)
        await asyncio.to_thread(self._append, b"".join(each.format_line() for each in added))
        for each in added:
            self._newest[each.key] = each
        self._lines += len(added)
        await self._tidy()

    async def beat(self) -> None:
        """Append a sign of life."""
        await asyncio.to_thread(self._append, BEAT)
        self._lines += 1
        await self._tidy()

    def forget(self, key: ChannelKey) -> None:
        """Leave a channel that has ended out of the next file."""
        self._newest.pop(key, None)

    def forget_expired(self, now: int) -> None:
        """Leave out what no block will take any more; `now` is the chain's time.

        What is of use is renewed long before that. What ended while another process watched was
        never shown here as ended.
        """
        for key in [key for key, each in self._newest.items() if each.deadline < now]:
            self.forget(key)

    def _load(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
                os.fsync(file.fileno())
        self._size = whole
        _sync_folder(self._path)
        for line in content[:whole].splitlines():
            self._lines += 1
            try:
                settle = parse_line(line)
            except PresignedError:
                continue  # a sign of life, or not ours
            self._newest[settle.key] = settle

    def _append(self, lines: bytes) -> None:
        if not self._is_as_we_left_it():
            self._rewrite()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(descriptor).st_size
        try:
            with os.fdopen(descriptor, "ab", closefd=False) as file:
                file.write(lines)
            os.fsync(descriptor)
            self._size = size + len(lines)
        except OSError:
            os.ftruncate(descriptor, size)  # a part of a line would swallow the next one
            raise
        finally:
            os.close(descriptor)

    def _is_as_we_left_it(self) -> bool:
        """Whether nobody has taken the file away or cut it: what it held was handed out."""
        try:
            return self._path.stat().st_size == self._size
        except FileNotFoundError:
            return False

    async def _tidy(self) -> None:
        if self._lines > 2 * len(self._newest) + _SPARE_LINES:
            await asyncio.to_thread(self._rewrite)
            self._lines = len(self._newest)

    def _rewrite(self) -> None:
        beside = self._path.with_name(f"{self._path.name}.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for settle in self._newest.values():
                file.write(settle.format_line())
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        beside.replace(self._path)
        self._size = size
        _sync_folder(self._path)


class TowerFileReader:
    """The tower's end: each whole line once, also when another file takes the first one's place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id: tuple[int, int] | None = None
        self._offset = 0
        self._last = b""
        """The last bytes before the offset: by them the file is known as the same one."""

    async def read_new(self) -> list[bytes]:
        """Return the lines that came since; none while there is no file.

        Raises:
            OSError: It cannot be read.
        """
        return await asyncio.to_thread(self._read)

    def _read(self) -> list[bytes]:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            status = os.fstat(file.fileno())
            file_id = (status.st_dev, status.st_ino)
            file.seek(max(0, self._offset - len(self._last)))
            if file_id != self._file_id or file.read(len(self._last)) != self._last:
                self._file_id, self._offset, self._last = file_id, 0, b""
            file.seek(self._offset)
            content = file.read(_READ_BYTES_MAX)
        whole = content.rfind(b"\n") + 1
        if not whole and len(content) > LINE_BYTES_MAX:
            whole = len(content)  # no line of ours is so long: it is left out
        self._offset += whole
        self._last = (self._last + content[:whole])[-_LAST_BYTES:]
        return content[:whole].splitlines()


def _sync_folder(path: Path) -> None:
    """Make a new name durable."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
