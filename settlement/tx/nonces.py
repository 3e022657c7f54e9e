"""Counts an account's mined transactions when one node's answer is not enough.

A nonce cannot be taken back: a nonce above the chain's count is mined only after all below it.
Every node is therefore asked about a count that the journal does not explain, or that would make
the process give up a transaction; before a nonce is assigned from it, the question is repeated for
some time. The lower of the middle counts is used, so that neither one node that counts too many nor
one that lags decides alone.
"""

import asyncio
import logging
from typing import Final

from channel.types import Address
from settlement.node.rpc import Rpc

__all__ = ["UsedNonces"]

_log: Final = logging.getLogger(__name__)

_LOOKS: Final = 3


class UsedNonces:
    """Counts one account's mined transactions."""

    def __init__(self, rpc: Rpc, account: Address) -> None:
        self._rpc = rpc
        self._account = account

    async def agreed(self, *, with_pending: bool = False) -> int:
        """Return the count that the answering nodes agree on.

        Raises:
            ChainUnavailableError: No node answers.
        """
        counts = sorted(await self._rpc.nonces_of_each(self._account, with_pending=with_pending))
        return counts[(len(counts) - 1) // 2]

    async def beyond(
        self, given: int, claimed: int, *, within_s: float, with_pending: bool = False
    ) -> int:
        """Return the count when one node reports more than were ever assigned.

        Asks again until `within_s` has passed and uses the lowest count: a nonce too low is refused
        by the node, a nonce too high would hold up every later one.

        Raises:
            ChainUnavailableError: No node answers.
        """
        least = claimed
        for look in range(_LOOKS if within_s else 1):
            if look:
                await asyncio.sleep(within_s / (_LOOKS - 1))
            least = min(least, await self.agreed(with_pending=with_pending))
            if least <= given:
                break
        if least < claimed:
            _log.error(
                "a node counts %d transactions of 0x%s, and not every node does: using %d",
                claimed,
                self._account.hex(),
                least,
            )
            self._rpc.mark_unhealthy()
        return least
