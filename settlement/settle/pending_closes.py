"""Finds closes that web workers have decided, as soon as they are in the ledger.

A worker stores its decision in the ledger before it waits (`channel.engine.closing`). The ledger
wakes this loop: immediately on PostgreSQL, within a few hundredths of a second on SQLite.
A periodic look finds closes that no wake-up announced.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from channel.errors import LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState
from channel.types import Address
from settlement.log_once import LogOnce

__all__ = ["PendingCloses"]

_log: Final = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
_REST_S: Final = 0.01


class PendingCloses:
    """Hands every due close to the executor."""

    def __init__(
        self,
        ledger: Ledger,
        begin: Callable[[Sequence[ChannelState]], None],
        *,
        chain_id: int,
        escrow: Address,
        payee: Address,
    ) -> None:
        """Look for closes of one payee's channels in one escrow.

        `begin` starts closing channels and does not wait. It skips channels being closed already.
        """
        self._ledger = ledger
        self._begin = begin
        self._place = (chain_id, escrow, payee)

    async def run(self) -> None:
        """Look for ever."""
        log_once = LogOnce(_log, "looking for closes failed, will retry: %s")
        while True:
            try:
                await self._watch(log_once)
            except LedgerUnavailableError as error:
                log_once.make(error)
                await asyncio.sleep(_LOOK_S)

    async def _watch(self, log_once: LogOnce) -> None:
        async with self._ledger.watch(None) as watch:
            while True:
                owed = await self._ledger.list_pending_closes()
                log_once.over()
                self._begin([state for state in owed if self._is_ours(state)])
                await asyncio.sleep(_REST_S)  # further changes share the next look
                await watch.changed(_LOOK_S)

    def _is_ours(self, state: ChannelState) -> bool:
        key = state.key
        return (key.chain_id, key.escrow, state.terms.payee) == self._place
