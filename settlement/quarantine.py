"""Channels the chain refuses for now: left alone until it is worth another try (F-79, F-87).

One refusal never stops the others: a refused channel is left out of every transaction, with its
reason on disk, and tried again later and later. Nothing is given up: a token that was paused moves
again, a wallet may change its mind back.
"""

import time
from collections.abc import Callable
from typing import Final

from channel.types import ChannelKey
from settlement.errors import ChannelQuarantinedError, ContractRevertedError, contract_reverted
from settlement.journal.interface import Quarantined, SettlerJournal
from settlement.types import RevertReason

__all__ = ["LASTING", "Quarantine", "retry_delay_s"]

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


def retry_delay_s(tries: int, *, is_pressing: bool) -> int:
    """Return how long to leave a channel alone after so many refusals in a row."""
    longest = _PRESSING_S if is_pressing else _LONGEST_S
    return min(_FIRST_S << min(tries - 1, 16), longest)


class Quarantine:
    """What is in quarantine, in memory and on disk. Times are this machine's, in Unix seconds."""

    def __init__(self, journal: SettlerJournal, *, now: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._now = now
        self._entries: dict[ChannelKey, Quarantined] = {}

    async def load(self) -> None:
        """Take over what is on disk, after a start."""
        self._entries = {entry.key: entry for entry in await self._journal.quarantined()}

    def require_allowed(self, key: ChannelKey) -> None:
        """Refuse what was refused a short while ago.

        Raises:
            ContractRevertedError: For a reason that lasts.
            ChannelQuarantinedError: For one that may pass: to be tried again.
        """
        entry = self._entries.get(key)
        if entry is not None and self._now() < entry.retry_at:
            raise self._error(RevertReason.__members__.get(entry.reason, RevertReason.UNKNOWN))

    async def refuse(self, key: ChannelKey, error: ContractRevertedError, *, deadline: int) -> None:
        """Put a channel in quarantine for what the chain said, and raise it.

        Raises:
            ContractRevertedError: For a reason that lasts.
            ChannelQuarantinedError: For one that may pass: to be tried again.
        """
        now = int(self._now())
        before = self._entries.get(key)
        tries = 1 if before is None else before.tries + 1
        entry = Quarantined(
            key=key,
            reason=error.reason.name,
            tries=tries,
            since=now if before is None else before.since,
            retry_at=now + retry_delay_s(tries, is_pressing=deadline != 0),
        )
        await self._journal.quarantine(entry)
        self._entries[key] = entry
        raise error if error.reason in LASTING else ChannelQuarantinedError(error.reason)

    async def discharge(self, key: ChannelKey) -> None:
        """Let a channel out: the chain took it."""
        if key in self._entries:
            await self._journal.discharge(key)
            del self._entries[key]

    @staticmethod
    def _error(reason: RevertReason) -> Exception:
        return contract_reverted(reason) if reason in LASTING else ChannelQuarantinedError(reason)
