"""Work that only whoever has a key's lease may do; everybody else stands by for it."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from channel.errors import LedgerUnavailableError
from settlement.errors import LeaseLostError
from settlement.journal.interface import SettlerJournal
from settlement.lease import LeaseLimits, wait_for_lease
from settlement.settler import EscrowSettler

__all__ = ["STANDING_BY", "Announce", "first_of", "require_sound", "while_leased"]

_log: Final = logging.getLogger(__name__)

STANDING_BY: Final = "standing by"
_FINISH_S: Final = 5.0
_SOUND_S: Final = 0.2

Announce = Callable[[str, str], None]
"""Told what a process does now, and a detail for people."""


async def while_leased(
    journal: SettlerJournal,
    work: Callable[[], Awaitable[None]],
    *,
    limits: LeaseLimits,
    announce: Announce,
    stopping: asyncio.Event,
) -> None:
    """Work whenever the lease is ours, until `stopping` is set.

    Raises:
        InvariantError: A bug; the process must end.
    """
    holder = f"{socket.gethostname()} process {os.getpid()} {secrets.token_hex(4)}"
    while not stopping.is_set():
        waiting = wait_for_lease(
            journal,
            holder,
            limits=limits,
            on_standby=lambda other: announce(STANDING_BY, f"{other} settles"),
        )
        if not await _unless(stopping, waiting):
            return
        try:
            await work()
        except LeaseLostError as error:
            _log.warning("standing by from now on: %s", error)
        finally:
            await _release(journal)


async def require_sound(settler: EscrowSettler) -> None:
    """Watch over a settler for ever: raise what only a bug, or a lost lease, raises."""
    while True:
        await asyncio.sleep(_SOUND_S)
        settler.require_sound()


async def first_of(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all of it until the first one ends; raise what ended it."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_FINISH_S)
    for task in done:
        task.result()


async def _release(journal: SettlerJournal) -> None:
    try:
        await journal.release_lease()
    except LedgerUnavailableError as error:
        _log.warning("the lease was not given back, and runs out by itself: %s", error)


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Run something to its end; False when we are asked to stop first."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    task.result()
    return True
