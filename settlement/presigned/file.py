"""The append-only file between a provider and its tower.

It may be read, copied or shipped at any moment: a line counts once its newline is there. The
provider syncs each line to disk before the line counts as handed out. Now and then it writes a new
file with the newest line of each channel and renames it over the old one. Only the owner can read
it, although each line can only settle one channel to the payee.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from channel.files import open_regular
from channel.limits import FILE_S_MAX, TOWER_LINE_BYTES_MAX, TOWER_READ_BYTES_MAX
from channel.types import ChannelKey
from settlement.files import FileThread
from settlement.presigned.authorization import PresignedError, PresignedSettle, parse_line

__all__ = ["BEAT", "TowerFile", "TowerFileReader"]

BEAT: Final = b"{}\n"
"""A heartbeat line: it only shows that the file is still shipped."""

_SPARE_LINES: Final = 1000
_LAST_BYTES: Final = 1024
"""More than one line of a key's signatures, so that no two such ends are equal."""


class TowerFile:
    """The provider's end. Make one with `open`. If a method raises `OSError`, nothing counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = FileThread()
        self._newest: dict[ChannelKey, PresignedSettle] = {}
        self._lines = 0
        self._size = 0
        """Size in bytes of the file as this process left it."""

    @classmethod
    async def open(cls, path: Path) -> "TowerFile":
        """Open the file, or create it; remove a line cut off by a crash."""
        file = cls(path)
        await file._thread.run(file._load)
        return file

    @property
    def newest(self) -> dict[ChannelKey, PresignedSettle]:
        """The newest line of each channel."""
        return self._newest

    async def append(self, settles: Iterable[PresignedSettle]) -> None:
        """Append lines, and return once they are on disk."""
        added = list(settles)
        lines = b"".join(each.format_line() for each in added)
        await self._thread.run(lambda: self._append(lines))
        for each in added:
            self._newest[each.key] = each
        self._lines += len(added)
        await self._tidy()

    async def beat(self) -> None:
        """Append a heartbeat."""
        await self._thread.run(lambda: self._append(BEAT))
        self._lines += 1
        await self._tidy()

    def forget(self, key: ChannelKey) -> None:
        """Leave a channel that has ended out of the next file."""
        self._newest.pop(key, None)

    def forget_expired(self, now: int) -> None:
        """Drop settles that no block accepts any more; `now` is the chain's time.

        A settle in use is renewed long before. Without this, channels that ended while another
        process watched would stay for ever.
        """
        for key in [key for key, each in self._newest.items() if each.deadline < now]:
            self.forget(key)

    def _load(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_regular(self._path, os.O_RDWR | os.O_CREAT)
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
                continue  # a heartbeat, or another program's line
            self._newest[settle.key] = settle

    def _append(self, lines: bytes) -> None:
        if not self._is_as_we_left_it():
            self._rewrite()
        descriptor = open_regular(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        size = os.fstat(descriptor).st_size
        try:
            with os.fdopen(descriptor, "ab", closefd=False) as file:
                file.write(lines)
            os.fsync(descriptor)
            self._size = size + len(lines)
        except OSError:
            os.ftruncate(descriptor, size)  # part of a line would corrupt the next one
            raise
        finally:
            os.close(descriptor)

    def _is_as_we_left_it(self) -> bool:
        """Whether the file is unchanged by others: what it held was handed out."""
        try:
            return self._path.lstat().st_size == self._size
        except FileNotFoundError:
            return False

    async def _tidy(self) -> None:
        if self._lines > 2 * len(self._newest) + _SPARE_LINES:
            await self._thread.run(self._rewrite)
            self._lines = len(self._newest)

    def _rewrite(self) -> None:
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.unlink(missing_ok=True)  # left by a process that died; never follows a link
        descriptor = open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
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
    """The tower's end: reads each whole line once, also after the file was replaced."""

    def __init__(self, path: Path, *, within_s: float = FILE_S_MAX) -> None:
        self._path = path
        self._thread = FileThread(within_s=within_s)
        self._place = _Place()

    async def read_new(self) -> list[bytes]:
        """Return the lines added since the last call; none while there is no file.

        Raises:
            OSError: It cannot be read, is not a regular file, or takes too long. The lines are read
                by the next call.
        """
        place = self._place
        self._place, lines = await self._thread.run(lambda: self._read(place))
        return lines

    def _read(self, place: "_Place") -> tuple["_Place", list[bytes]]:
        try:
            descriptor = open_regular(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return place, []
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            file_id = (status.st_dev, status.st_ino)
            file.seek(max(0, place.offset - len(place.last)))
            if file_id != place.file_id or file.read(len(place.last)) != place.last:
                place = _Place(file_id)
            file.seek(place.offset)
            content = file.read(TOWER_READ_BYTES_MAX)
        whole = content.rfind(b"\n") + 1
        if not whole and len(content) > TOWER_LINE_BYTES_MAX:
            whole = len(content)  # no valid line is that long: skip it
        last = (place.last + content[:whole])[-_LAST_BYTES:]
        return _Place(place.file_id, place.offset + whole, last), content[:whole].splitlines()


class _Place(msgspec.Struct, frozen=True):
    """How far a file was read."""

    file_id: tuple[int, int] | None = None
    offset: int = 0
    last: bytes = b""
    """The bytes before the offset: they identify the file."""


def _sync_folder(path: Path) -> None:
    """Sync the folder, so that a new name is durable."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
