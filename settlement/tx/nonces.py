"""How many of an account's transactions are mined, when one node's word is not enough.

A nonce is given for good: one above what the chain has used is mined only after all below it. So a
count that our journal does not explain, or that would have us give a transaction up, is asked of
every node, and where it could be given away it is asked for some time. The lower of the middle
counts is believed: neither one node that counts too many nor one that lags decides alone.
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
        """Return what the nodes that answer agree on.

        Raises:
            ChainUnavailableError: None answers.
        """
        told = sorted(await self._rpc.nonces_of_each(self._account, with_pending=with_pending))
        return told[(len(told) - 1) // 2]

    async def beyond(
        self, given: int, claimed: int, *, within_s: float, with_pending: bool = False
    ) -> int:
        """Return how many are used, when one node claims more than were ever given.

        Asked again until `within_s` has passed. The least counts: too few costs a refusal by the
        node, too many would hold up everything.

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
                "a node counts %d transactions of 0x%s, and not every node does: %d are believed",
                claimed,
                self._account.hex(),
                least,
            )
            self._rpc.distrust()
        return least
