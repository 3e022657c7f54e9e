"""The provider's end of the tower file: signs settles ahead as vouchers grow.

It runs beside the watcher, in the process that holds the payee's key. Before a voucher at or below
`spent` leaves, the ledger marks it public, as before a settle: a thief of the file can buy nothing
with it. Each channel shown is judged immediately, from values alone. Signing and writing run in
a task of their own, so that a slow signing service or disk does not hold up settles and closes.
Failed signatures and writes are retried, with an alarm.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from channel.errors import LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState
from channel.state.commands import Publish
from channel.types import ChannelKey
from settlement.alarms import AlarmKind, Alarms
from settlement.errors import SignerError
from settlement.presigned.authorization import presign
from settlement.presigned.cover import (
    Covered,
    CoverPolicy,
    covering_voucher,
    is_newer_due,
    uncovered,
)
from settlement.presigned.file import TowerFile
from settlement.tx.signer import Signer

__all__ = ["TowerExport"]

_log: Final = logging.getLogger(__name__)

_RETRY_S: Final = 5.0
_BEAT_S: Final = 60.0
_AT_ONCE: Final = 100


class TowerExport:
    """Keeps one file as new as the policy requires for the channels it is shown."""

    def __init__(
        self,
        file: TowerFile,
        payee: Signer,
        ledger: Ledger,
        *,
        alarms: Alarms | None = None,
        policy: CoverPolicy | None = None,
        beat_s: float = _BEAT_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._file = file
        self._payee = payee
        self._ledger = ledger
        self.alarms = alarms or Alarms()
        self._policy = policy or CoverPolicy()
        self._beat_s = beat_s
        self._retry_s = retry_s
        self._since: dict[ChannelKey, int] = {}
        self._due: dict[ChannelKey, tuple[ChannelState, int]] = {}
        self._delivered: dict[ChannelKey, int] = {}
        """Amounts handed out above `spent` that `spent` has reached: they may buy nothing more."""
        self._wake = asyncio.Event()
        self._now = 0
        """The chain's time when a channel was shown last."""
        # A line by another signer was added by a third party: it covers nothing.
        for key, settle in list(file.newest.items()):
            if settle.payee != payee.address or not settle.is_signed_by_key():
                file.forget(key)

    def handed_out(self, state: ChannelState) -> bool:
        """Whether a channel's settled amount is exactly what the tower was handed last."""
        newest = self._file.newest.get(state.key)
        return newest is not None and newest.cumulative_amount == state.settled

    def show(self, state: ChannelState, *, now: int) -> None:
        """Judge one channel's state; `now` is the chain's time in Unix seconds."""
        key = state.key
        self._now = now
        if state.is_finalized:
            self._file.forget(key)
            self._since.pop(key, None)
            return
        last = self._last(key)
        if state.published < last.cumulative_amount <= state.spent:
            self._delivered[key] = last.cumulative_amount
            self._wake.set()
        if not uncovered(state, last):
            self._since.pop(key, None)
            since = now
        else:
            since = self._since.setdefault(key, now)
        voucher = covering_voucher(state, self._policy)
        if voucher is not None and is_newer_due(
            state, voucher, last, self._policy, now=now, uncovered_since=since
        ):
            self._due[key] = (state, now)
            self._wake.set()

    async def run(self) -> None:
        """Sign and write what is due, for ever, and append a heartbeat now and then."""
        clock = asyncio.get_running_loop().time
        beat_at = float("-inf")
        while True:
            try:
                if clock() - beat_at >= self._beat_s:
                    self._file.forget_expired(self._now)
                    await self._file.beat()
                    beat_at = clock()
                await self._write_due()
            except (OSError, SignerError, LedgerUnavailableError) as error:
                self.alarms.ring(AlarmKind.TOWER_UNFED, f"no settle reaches the tower: {error}")
                await asyncio.sleep(self._retry_s)
                continue
            self.alarms.end(AlarmKind.TOWER_UNFED)
            self._wake.clear()
            if self._due or self._delivered:
                continue
            try:
                async with asyncio.timeout(max(0.0, beat_at + self._beat_s - clock())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _write_due(self) -> None:
        for key, amount in list(self._delivered.items()):
            await self._publish(key, amount)
            del self._delivered[key]
        while self._due:
            keys = list(self._due)[:_AT_ONCE]
            batch = [self._due[key] for key in keys]
            await self._write(batch)
            for key, taken in zip(keys, batch, strict=True):
                self._since.pop(key, None)
                if self._due.get(key) is taken:
                    del self._due[key]

    async def _write(self, batch: Sequence[tuple[ChannelState, int]]) -> None:
        settles = []
        for state, now in batch:
            voucher = covering_voucher(state, self._policy)
            if voucher is not None:
                if state.published < voucher.cumulative_amount <= state.spent:
                    await self._publish(state.key, voucher.cumulative_amount)
                deadline = now + self._policy.life_s
                settles.append(
                    await presign(state.key, voucher, payee=self._payee, deadline=deadline)
                )
        await self._file.append(settles)
        _log.info("presigned settles written for the tower: %d", len(settles))

    async def _publish(self, key: ChannelKey, amount: int) -> None:
        """Mark a voucher public in the ledger: from then on it buys nothing (decision 5).

        A voucher above `spent` must still buy what it was signed for, so it is marked only once as
        much was delivered.
        """
        (await self._ledger.apply(key, [Publish(amount)])).require()

    def _last(self, key: ChannelKey) -> Covered:
        newest = self._file.newest.get(key)
        if newest is None:
            return Covered()
        return Covered(newest.cumulative_amount, newest.deadline)
