"""A close as a web worker sees it: stored in the ledger, carried out by the settler.

Workers hold no key (decision 14). When this code runs, the close's voucher is durable in the
ledger, which is all the settler needs. It only waits, for a bounded time, until the ledger shows
that the close was mined or given up.
"""

import asyncio
from typing import Final

from channel.chain import CloseResult
from channel.errors import ChannelNotFoundError, SettlementPendingError
from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState
from channel.types import ChannelFact, ChannelKey, TxHash
from settlement.errors import ChannelQuarantinedError, contract_reverted
from settlement.settle.quarantine import LASTING
from settlement.tx.journal.interface import Quarantined, SettlerJournal
from settlement.types import RevertReason

__all__ = ["WaitingCloser"]

_LOOK_S: Final = 1.0


class WaitingCloser:
    """Implements `channel.chain.ChannelCloser` without a key."""

    def __init__(self, ledger: Ledger, journal: SettlerJournal, *, wait_s: float) -> None:
        self._ledger = ledger
        self._journal = journal
        self._wait_s = wait_s

    async def close_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,  # noqa: ARG002 -- the ledger holds the voucher
        signature: bytes,  # noqa: ARG002
    ) -> CloseResult:
        """Wait until the settler has closed the channel.

        `gas_used` is 0: only the settler knows the gas.

        Raises:
            ContractRevertedError: The contract refused; the channel stays open (CLOSE-04).
            ChannelQuarantinedError: It refuses for now; retry later.
            SettlementPendingError: Not mined within the bound; retry later (F-75).
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._wait_s
        async with self._ledger.watch(key) as watch:
            while True:
                state = await self._ledger.load(key)
                if state is None:
                    raise ChannelNotFoundError("The server does not know this channel.")
                if state.close_tx:
                    return _result(state)
                if state.closing_with is None:
                    raise self._given_up(await self._journal.find_quarantined(key))
                remaining_s = deadline - clock()
                if remaining_s <= 0:
                    raise await self._pending(key)
                await watch.changed(min(remaining_s, _LOOK_S))

    def _given_up(self, refused: Quarantined | None) -> Exception:
        if refused is None:
            return SettlementPendingError("The close was withdrawn: retry.")
        return contract_reverted(_reason(refused))

    async def _pending(self, key: ChannelKey) -> Exception:
        refused = await self._journal.find_quarantined(key)
        if refused is not None and _reason(refused) not in LASTING:
            return ChannelQuarantinedError(_reason(refused))
        return SettlementPendingError("The close is being mined: retry later.")


def _reason(refused: Quarantined) -> RevertReason:
    return RevertReason.__members__.get(refused.reason, RevertReason.UNKNOWN)


def _result(state: ChannelState) -> CloseResult:
    fact = ChannelFact(
        key=state.key,
        terms=state.terms,
        deposit=state.deposit,
        settled=state.settled,
        close_requested_at=state.close_requested_at,
        is_finalized=state.is_finalized,
        block_number=state.fact_block,
    )
    return CloseResult(tx_hash=TxHash(state.close_tx), fact=fact, gas_used=0)
