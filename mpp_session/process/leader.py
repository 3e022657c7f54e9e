"""Runs work while this process holds a key's lease; otherwise it stands by."""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from channel.errors import LedgerUnavailableError
from channel.tasks import first_of
from settlement.errors import LeaseLostError
from settlement.log_once import LogOnce
from settlement.tx.journal.interface import Look, SettlerJournal
from settlement.tx.lease import LeaseLimits, wait_for_lease
from settlement.types import BlockRef

__all__ = [
    "STANDING_BY",
    "Announce",
    "Looking",
    "name_holder",
    "note_looks",
    "release",
    "while_leader",
]

_log: Final = logging.getLogger(__name__)

STANDING_BY: Final = "standing by"
_NOTE_LOOK_S: Final = 5.0

Announce = Callable[[str, str], None]
"""Called with a process's new state, and a detail for people."""


async def while_leader(
    journal: SettlerJournal,
    work: Callable[[], Awaitable[None]],
    *,
    limits: LeaseLimits,
    announce: Announce,
    stopping: asyncio.Event,
) -> None:
    """Run `work` whenever this process has the lease, until `stopping` is set.

    Raises:
        InvariantError: A bug; the process must end.
    """
    holder = name_holder()
    while not stopping.is_set():
        waiting = wait_for_lease(
            journal,
            holder,
            limits=limits,
            on_standby=lambda other: announce(STANDING_BY, f"{other} settles"),
        )
        try:
            await first_of(waiting, stopping.wait())
            if not stopping.is_set():
                await work()
        except LeaseLostError as error:
            _log.warning("standing by from now on: %s", error)
        finally:
            await release(journal)


def name_holder() -> str:
    """Return the name under which this process takes a lease."""
    return f"{socket.gethostname()} process {os.getpid()} {secrets.token_hex(4)}"


class Looking(Protocol):
    """An object that reads the chain repeatedly."""

    @property
    def head(self) -> BlockRef | None:
        """The newest block seen."""

    @property
    def looked_s_ago(self) -> float | None:
        """Seconds since the last successful look; None before the first one."""


async def note_looks(journal: SettlerJournal, looking: Looking) -> None:
    """Record at intervals which block was seen last, for `mpp-session status`."""
    log_once = LogOnce(_log, "recording the last look at the chain failed, will retry: %s")
    while True:
        await asyncio.sleep(_NOTE_LOOK_S)
        head, age_s = looking.head, looking.looked_s_ago
        if head is None or age_s is None:
            continue
        wall = time.time()
        # A block with a later timestamp shows that a clock is wrong, or that a node invented it:
        # stored
        # as it is, it would prevent every start until that time.
        block_time = min(head.timestamp, int(wall))
        look = Look(head.number, head.hash, block_time, int(wall - age_s))
        try:
            await journal.note_look(look)
            log_once.over()
        except LedgerUnavailableError as error:
            log_once.make(error)


async def release(journal: SettlerJournal) -> None:
    """Give the lease back, if the database takes it."""
    try:
        await journal.release_lease()
    except LedgerUnavailableError as error:
        _log.warning("releasing the lease failed, it expires by itself: %s", error)
