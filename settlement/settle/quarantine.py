"""Channels the chain refuses for now: left alone until it is worth another try (F-79, F-87).

One refusal never stops the others: a refused channel is left out of every transaction, with its
reason on disk, and tried again later and later. Nothing is given up: a token that was paused moves
again, a wallet may change its mind back.

How long a channel is left alone is measured by a clock that nobody sets (F-111): one that is set
back must not hold up a close for longer than its grace period.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from channel.ledger.interface import Ledger
from channel.types import ChannelKey, ChannelTerms
from settlement.errors import ChannelQuarantinedError, ContractRevertedError, contract_reverted
from settlement.tx.journal.interface import Quarantined, SettlerJournal
from settlement.tx.state import Purpose
from settlement.types import RevertReason

__all__ = ["LASTING", "Quarantine"]

LASTING: Final = frozenset(
    {
        RevertReason.CHANNEL_NOT_FOUND,
        RevertReason.NOT_PAYEE,
        RevertReason.AMOUNT_EXCEEDS_DEPOSIT,
        RevertReason.INVALID_SIGNATURE,
    }
)
"""What is wrong with the voucher or the channel: whoever waits is told no (CLOSE-04)."""

_FIRST_S: Final = 15
_LONGEST_S: Final = 900
_PRESSING_S: Final = 30


class _Hold(msgspec.Struct, frozen=True):
    """Why and since when one channel is left alone, and for how long."""

    entry: Quarantined
    since: float
    """Of the newest refusal, by the clock that is never set."""
    calm_s: int
    escalating_s: int
    """The same while the payer's grace period runs."""
    purpose: Purpose | None = None
    """What was refused; None after a start, when it is not known any more."""
    paid_tries: int = 0
    """How often a block refused it in a row: each of those cost gas."""


class Quarantine:
    """What is in quarantine, in memory and on disk."""

    def __init__(
        self,
        journal: SettlerJournal,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Keep it in `journal`; `wall` is only for what people read there."""
        self._journal = journal
        self._clock = clock
        self._wall = wall
        self._holds: dict[ChannelKey, _Hold] = {}

    async def load(self) -> None:
        """Take over what is on disk, after a start."""
        now, wall = self._clock(), int(self._wall())
        for entry in await self._journal.quarantined():
            left_s = min(max(entry.retry_at - wall, 0), _delay_s(entry.tries))
            self._holds[entry.key] = _Hold(entry, now, left_s, min(left_s, _PRESSING_S))

    def require_allowed(self, key: ChannelKey, purpose: Purpose, *, deadline: int) -> None:
        """Refuse what was refused a short while ago; shorter if it has a deadline.

        A close that was refused holds up no settle, which pays nobody but the payee (F-86).

        Raises:
            ContractRevertedError: For a reason that lasts.
            ChannelQuarantinedError: For one that may pass: to be tried again.
        """
        hold = self._holds.get(key)
        if hold is None or (purpose is Purpose.SETTLE and hold.purpose is Purpose.CLOSE):
            return
        if self._clock() - hold.since < (hold.escalating_s if deadline else hold.calm_s):
            raise self._error(RevertReason.__members__.get(hold.entry.reason, RevertReason.UNKNOWN))

    async def refuse(
        self, key: ChannelKey, error: ContractRevertedError, *, purpose: Purpose, deadline: int
    ) -> None:
        """Put a channel in quarantine for what the chain said, and raise it.

        What a block refused has cost gas, so it is tried ever more seldom, deadline or not: a
        wallet that says yes in each simulation and no in each block must not drain us (F-78).

        Raises:
            ContractRevertedError: For a reason that lasts.
            ChannelQuarantinedError: For one that may pass: to be tried again.
        """
        before = self._holds.get(key)
        now = int(self._wall())
        tries = 1 if before is None else before.entry.tries + 1
        paid_tries = 0 if before is None else before.paid_tries
        calm_s, escalating_s = _delay_s(tries), min(_delay_s(tries), _PRESSING_S)
        if error.tx_hash is not None:
            paid_tries += 1
            escalating_s = _delay_s(paid_tries)
        entry = Quarantined(
            key=key,
            reason=error.reason.name,
            tries=tries,
            since=now if before is None else before.entry.since,
            retry_at=now + (escalating_s if deadline else calm_s),
        )
        await self._journal.quarantine(entry)
        self._holds[key] = _Hold(entry, self._clock(), calm_s, escalating_s, purpose, paid_tries)
        raise error if error.reason in LASTING else ChannelQuarantinedError(error.reason)

    async def distrust(self, terms: ChannelTerms) -> None:
        """Remember for good whose contract took back a voucher that it had vouched for (O-01)."""
        await self._journal.distrust([terms.signer, terms.payer], at=int(self._wall()))

    async def release(self, key: ChannelKey) -> None:
        """Let a channel out: the chain took it."""
        if key in self._holds:
            await self._journal.release(key)
            del self._holds[key]

    async def drop_ended(self, ledger: Ledger) -> None:
        """Let out what has ended meanwhile, or owes nothing any more: nobody asks for it again.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        for key in list(self._holds):
            state = await ledger.load(key)
            is_owed = state is not None and (
                state.closing_with is not None or state.spent > state.settled
            )
            if state is None or state.is_finalized or not is_owed:
                await self.release(key)

    @staticmethod
    def _error(reason: RevertReason) -> Exception:
        return contract_reverted(reason) if reason in LASTING else ChannelQuarantinedError(reason)


def _delay_s(tries: int) -> int:
    """Return how long to leave a channel alone after so many refusals in a row."""
    return min(_FIRST_S << min(tries - 1, 16), _LONGEST_S)
