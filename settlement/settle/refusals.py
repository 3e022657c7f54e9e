"""Why the settler does not get a close mined, for the web workers that wait for it.

A worker sees in the ledger that a close was given up, or is still due. The reason is in the
settler's journal, where the settler quarantines a channel that the escrow refuses.
"""

from channel.types import ChannelKey
from settlement.errors import ChannelQuarantinedError, ContractRevertedError, contract_reverted
from settlement.settle.quarantine import LASTING
from settlement.tx.journal.interface import SettlerJournal
from settlement.types import RevertReason

__all__ = ["JournalRefusals"]


class JournalRefusals:
    """Implements `channel.chain.CloseRefusals` by the settler's quarantine."""

    def __init__(self, journal: SettlerJournal) -> None:
        self._journal = journal

    async def why_given_up(self, key: ChannelKey) -> ContractRevertedError | None:
        """Return the escrow's refusal; the channel stays open (CLOSE-04)."""
        reason = await self._reason(key)
        return None if reason is None else contract_reverted(reason)

    async def why_pending(self, key: ChannelKey) -> ChannelQuarantinedError | None:
        """Return the escrow's refusal if it may pass (F-79)."""
        reason = await self._reason(key)
        return None if reason is None or reason in LASTING else ChannelQuarantinedError(reason)

    async def _reason(self, key: ChannelKey) -> RevertReason | None:
        refused = await self._journal.find_quarantined(key)
        if refused is None:
            return None
        return RevertReason.__members__.get(refused.reason, RevertReason.UNKNOWN)
