"""Channels that the chain refuses for now: retried after growing delays (F-79, F-87).

A refusal never stops other channels. The settler leaves a refused channel out of every transaction,
stores the reason, and retries later and later. It never gives up: a paused token may move again, a
wallet may accept again.

Delays use a monotonic clock (F-111): a wall clock that is set back must not delay a close beyond
its grace period.
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
"""Faults of the voucher or the channel: the waiting caller gets a refusal (CLOSE-04)."""

_FIRST_S: Final = 15
_LONGEST_S: Final = 900
_PRESSING_S: Final = 30


class _Hold(msgspec.Struct, frozen=True):
    """Why and since when a channel is held back, and for how long."""

    entry: Quarantined
    since: float
    """Time of the newest refusal, by the monotonic clock."""
    calm_s: int
    escalating_s: int
    """The delay while the payer's grace period runs."""
    purpose: Purpose | None = None
    """The refused action; None after a restart, when it is unknown."""
    paid_tries: int = 0
    """How many times in a row a block refused it: each one cost gas."""


class Quarantine:
    """The quarantine, in memory and on disk."""

    def __init__(
        self,
        journal: SettlerJournal,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Store it in `journal`. `wall` gives the times shown to operators."""
        self._journal = journal
        self._clock = clock
        self._wall = wall
        self._holds: dict[ChannelKey, _Hold] = {}

    async def load(self) -> None:
        """Load the stored quarantine after a start."""
        now, wall = self._clock(), int(self._wall())
        for entry in await self._journal.quarantined():
            left_s = min(max(entry.retry_at - wall, 0), _delay_s(entry.tries))
            self._holds[entry.key] = _Hold(entry, now, left_s, min(left_s, _PRESSING_S))

    def require_allowed(self, key: ChannelKey, purpose: Purpose, *, deadline: int) -> None:
        """Refuse what was refused a short while ago; for a shorter time if it has a deadline.

        A refused close does not hold up a settle, which pays only the payee (F-86).

        Raises:
            ContractRevertedError: The reason is permanent.
            ChannelQuarantinedError: The reason may pass; retried later.
        """
        hold = self._holds.get(key)
        if hold is None or (purpose is Purpose.SETTLE and hold.purpose is Purpose.CLOSE):
            return
        if self._clock() - hold.since < (hold.escalating_s if deadline else hold.calm_s):
            raise self._error(RevertReason.__members__.get(hold.entry.reason, RevertReason.UNKNOWN))

    async def refuse(
        self, key: ChannelKey, error: ContractRevertedError, *, purpose: Purpose, deadline: int
    ) -> None:
        """Put a channel in quarantine for a refusal, and raise it.

        A refusal by a block cost gas, so retries become rarer even before a deadline: a wallet that
        accepts in each simulation and refuses in each block must not drain the account (F-78).

        Raises:
            ContractRevertedError: The reason is permanent.
            ChannelQuarantinedError: The reason may pass; retried later.
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
        """Remember permanently the signer and payer whose contract revoked a voucher (O-01)."""
        await self._journal.distrust([terms.signer, terms.payer], at=int(self._wall()))

    async def release(self, key: ChannelKey) -> None:
        """Release a channel that the chain accepted."""
        if key in self._holds:
            await self._journal.release(key)
            del self._holds[key]

    async def drop_ended(self, ledger: Ledger) -> None:
        """Release channels that have ended or owe nothing: no request will ask for them again.

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
    """Return the delay in seconds after so many refusals in a row."""
    return min(_FIRST_S << min(tries - 1, 16), _LONGEST_S)
