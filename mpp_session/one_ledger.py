"""One payee address has one ledger, the one that was used last (decision 15).

A voucher shown to two ledgers would buy twice, and so would a voucher that an old copy of a ledger
has forgotten. Before it serves, a gateway or a selling application therefore takes a lock of the
machine for its payee, and compares its ledger with the payee's marker (`channel.ledger.marker`). If
they contradict each other, it refuses to start until an operator decides: `mpp-session ledger
adopt`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.machine_lock import MachineLock
from channel.ledger.maintenance import close_all
from channel.ledger.marker import BooksId, Marker
from channel.ledger.url import find_sqlite_path
from channel.limits import LEDGER_LOOK_S, MARKER_SYNC_S
from channel.types import Address
from mpp_session.settings import DEVELOPMENT_CHAINS, WatchConfig
from mpp_session.settings.config import default_state_dir
from settlement.alarms import AlarmKind, Alarms
from settlement.escrow.reader import EscrowReader

__all__ = ["LedgerGuard", "adopt_ledger", "guard_ledger", "lock_payee", "payee_name"]

_log: Final = logging.getLogger(__name__)
_VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs"})


async def payee_name(reader: EscrowReader, payee: Address) -> str:
    """Return the name of the payee's lock and marker files: chain, escrow and payee.

    Development chains share their ids and contracts; the hash of the first block tells them apart.
    """
    chain = str(reader.chain_id)
    if reader.chain_id in DEVELOPMENT_CHAINS:
        chain += f"-{(await reader.rpc.block(1)).hash.hex()[:16]}"
    return f"{chain}-{reader.escrow.hex()}-{payee.hex()}"


@asynccontextmanager
async def lock_payee(name: str, books: BooksId, *, is_shared: bool) -> AsyncIterator[None]:
    """Hold the machine's lock for a payee's ledger.

    Raises:
        ConfigError: Another process has the lock.
    """
    lock = MachineLock(name, books.place, is_shared=is_shared)
    await lock.acquire()
    try:
        yield
    finally:
        await lock.release()


class LedgerGuard:
    """Keeps a ledger's marker, and checks that the database is durable."""

    def __init__(self, ledger: Ledger, marker: Marker, *, look_s: float = LEDGER_LOOK_S) -> None:
        self._ledger = ledger
        self._marker = marker
        self._look_s = look_s

    async def run(self, alarms: Alarms) -> None:
        """Sync the marker and check the database, for ever; `alarms` ring for faults."""
        clock = asyncio.get_running_loop().time
        look_at = clock()
        while True:
            if clock() >= look_at:
                await self._look(alarms)
                look_at = clock() + self._look_s
            try:
                await asyncio.to_thread(self._marker.sync)
            except (OSError, ConfigError) as error:
                alarms.ring(AlarmKind.MARKER_LOST, f"{self._marker.path}: {error}")
            else:
                alarms.end(AlarmKind.MARKER_LOST)
            await asyncio.sleep(MARKER_SYNC_S)

    async def _look(self, alarms: Alarms) -> None:
        try:
            found = await self._ledger.look()
        except LedgerUnavailableError as error:
            _log.warning("checking the database's durability failed, will retry: %s", error)
            return
        for kind, text in (
            (AlarmKind.BOOKS_UNSAFE, found.fault),
            (AlarmKind.STANDBY_ASYNC, found.warning),
        ):
            if text is None:
                alarms.end(kind)
            else:
                alarms.ring(kind, text)


@asynccontextmanager
async def guard_ledger(
    config: WatchConfig, ledger: Ledger, reader: EscrowReader, payee: Address
) -> AsyncIterator[LedgerGuard]:
    """Lock the payee, compare ledger and marker, and maintain both within the context.

    Raises:
        ConfigError: The payee has another ledger, or this ledger is an older copy.
        LedgerUnavailableError: The database does not answer.
    """
    name = await payee_name(reader, payee)
    books = await ledger.identity(name)
    is_file = find_sqlite_path(config.ledger.url) is not None
    if is_file:
        await asyncio.to_thread(_require_disk, books.place, config.chain.id)
    async with lock_payee(name, books, is_shared=not is_file):
        marker = Marker(_state_dir(config) / f"{name}.marker")
        try:
            await asyncio.to_thread(marker.open)
            if not marker.exists and not books.is_marked:
                await asyncio.to_thread(marker.write_anew, books)
            await asyncio.to_thread(_require_marker, marker, books)
            found = await ledger.guard(marker)
            if found.fault is not None:
                raise ConfigError(f"{found.fault}. {_ADOPT}")
            if found.warning is not None:
                _log.warning("%s", found.warning)
            if marker.place != books.place:
                _log.warning("the ledger was at %s and is now at %s", marker.place, books.place)
                await asyncio.to_thread(marker.move, books)
            yield LedgerGuard(ledger, marker)
        finally:
            await asyncio.to_thread(marker.close)


_ADOPT: Final = (
    "Nothing is served. Put the right ledger back, or read `mpp-session ledger adopt --help`"
)


def _require_marker(marker: Marker, books: BooksId) -> None:
    if not marker.exists:
        if books.is_served:  # by a gateway on another machine, which checked its own marker
            marker.write_anew(books)
            return
        raise ConfigError(
            f"the ledger {books.place} was in use, but its marker {marker.path} is not on this "
            "machine, so the ledger may be an old copy. "
            f"Copy the marker here, or set `ledger.state_dir` to its directory. {_ADOPT}"
        )
    if marker.ledger_id != books.ledger_id:
        raise ConfigError(
            f"this payee has the ledger {marker.place}, but the settings name {books.place}. "
            "With two ledgers the same voucher would buy twice: use that ledger, "
            f"or another payee. {_ADOPT}"
        )


async def adopt_ledger(
    config: WatchConfig, ledger: Ledger, reader: EscrowReader, payee: Address, *, closes: bool
) -> tuple[str, int]:
    """Make this the payee's ledger from now on, even if the marker says otherwise.

    Returns the previous ledger's place, and the number of channels being closed if `closes` is set:
    see `channel.ledger.maintenance.close_all`.

    Raises:
        ConfigError: A process on this machine serves the payee, or another one uses this ledger.
    """
    name = await payee_name(reader, payee)
    books = await ledger.identity(name)
    if books.is_served:
        raise ConfigError("a gateway uses this ledger: stop the gateway first")
    async with lock_payee(name, books, is_shared=False):
        path = _state_dir(config) / f"{name}.marker"

        def write() -> str:
            before = Marker(path)
            try:
                before.open()
                place = before.place
            except ConfigError as error:
                place = str(error)
            finally:
                before.close()
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"the ledger's marker {path} cannot be replaced ({error.strerror}): remove "
                    "what is there, or set `ledger.state_dir`, and adopt again"
                ) from error
            marker = Marker(path)
            marker.write_anew(books)
            marker.close()
            return place

        count = await close_all(ledger, payee) if closes else 0
        return await asyncio.to_thread(write), count


def _state_dir(config: WatchConfig) -> Path:
    given = config.ledger.state_dir
    return default_state_dir() if given is None else Path(given)


def _require_disk(path: str, chain_id: int) -> None:
    """Refuse a file on a file system that is shared or that a restart would lose.

    Raises:
        ConfigError: It is on a network or memory file system.
    """
    kind = _file_system(path)
    if kind in _REMOTE:
        raise ConfigError(
            f"the ledger {path} is on a network file system ({kind}), where SQLite's locks and "
            "log are not safe: use a disk of this machine, or postgresql://"
        )
    if kind in _VOLATILE and chain_id not in DEVELOPMENT_CHAINS:
        raise ConfigError(
            f"the ledger {path} is in memory ({kind}), and a restart would lose it: use a disk"
        )


def _file_system(path: str) -> str:
    """Return the type of a file's file system; empty if the system does not report it."""
    found, longest = "", -1
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split(" ")[4].replace("\\040", " ")
        if Path(path).is_relative_to(point) and len(point) >= longest:
            found, longest = rest.split(" ")[0], len(point)
    return found
