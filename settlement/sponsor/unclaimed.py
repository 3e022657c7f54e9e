"""Adds channels to the ledger that the server sponsored but whose payer never returned.

The waiting worker was killed, or the payer left. The payer's deposit is in the escrow, and it has
no ether to withdraw it. The ledger therefore adds the channel with the voucher that came with the
opening, as the worker would have. From then on it is settled, closed when idle, and refunded like
any other.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from channel.errors import (
    ChainUnavailableError,
    LedgerUnavailableError,
    PeerError,
    TransactionRevertedError,
)
from channel.ledger.interface import ConsumeProof, Ledger
from channel.state.commands import OpenChannel
from channel.types import Address, ChannelFact, SignedVoucher, VerifiedVoucher
from channel.verify.typed_data import voucher_digest
from channel.verify.voucher import verify_voucher, verify_wallet_voucher
from settlement.escrow.reader import EscrowReader
from settlement.log_once import LogOnce
from settlement.sponsor.orders.interface import DepositOrder, DepositOrders

__all__ = ["UnclaimedChannels"]

_log: Final = logging.getLogger(__name__)

_LOOK_S: Final = 10.0
_AGE_S: Final = 60
"""Seconds before which the payer's own retry is likely to arrive."""


class UnclaimedChannels:
    """Adds unclaimed channels to the ledger."""

    def __init__(
        self,
        orders: DepositOrders,
        ledger: Ledger,
        reader: EscrowReader,
        *,
        confirmations: int,
        age_s: int = _AGE_S,
        look_s: float = _LOOK_S,
        latest: Callable[[], int] | None = None,
    ) -> None:
        """Look for openings older than `age_s` whose block is at least `confirmations` deep.

        `latest` gives the time of last use, in Unix seconds, of an added channel: the greatest of
        the clocks, so that it is not closed as idle immediately. Default: this machine's clock.
        """
        self._orders = orders
        self._ledger = ledger
        self._reader = reader
        self._confirmations = confirmations
        self._age_s = age_s
        self._look_s = look_s
        self._latest = latest or (lambda: int(time.time()))

    async def run(self) -> None:
        """Look for ever."""
        log_once = LogOnce(_log, "looking for unclaimed channels failed, will retry: %s")
        while True:
            try:
                await self.look()
                log_once.over()
            except (ChainUnavailableError, LedgerUnavailableError) as error:
                log_once.make(error)
            await asyncio.sleep(self._look_s)

    async def look(self) -> None:
        """Look once."""
        for order in await self._orders.list_unknown(int(time.time()) - self._age_s):
            if await self._ledger.load(order.key) is None and not await self._claim(order):
                continue
            await self._orders.mark_known(order.order_id)

    async def _claim(self, order: DepositOrder) -> bool:
        """Add one channel to the ledger; return False to retry later."""
        evidence = None
        if order.tx_hash is not None:
            try:
                evidence = await self._reader.read_transaction(order.tx_hash)
            except TransactionRevertedError as error:  # after a reorg: it had succeeded
                _log.warning("channel 0x%s is not opened: %s", order.key.channel_id.hex(), error)
                return True
        fact = await self._read(order)
        if evidence is None or fact is None or evidence.confirmations < self._confirmations:
            return False
        opened = [log for log in evidence.opened if log.channel_id == order.key.channel_id]
        voucher = await self._verify(order, fact.terms.signer)
        if voucher is None or not opened:
            return True  # nothing that the ledger could add
        proof = ConsumeProof(evidence.tx_hash, opened[0].log_index)
        try:
            await self._ledger.apply(
                order.key, [OpenChannel(fact, voucher, self._latest())], proof=proof
            )
        except PeerError as refusal:
            _log.info("channel 0x%s is not taken: %s", order.key.channel_id.hex(), refusal)
        else:
            _log.warning("channel 0x%s was never claimed", order.key.channel_id.hex())
        return True

    async def _read(self, order: DepositOrder) -> ChannelFact | None:
        """Return the channel as of the head, with a deposit of the configured depth (OPEN-12)."""
        fact = await self._reader.read_channel(order.key.channel_id)
        if fact is None or self._confirmations == 1:
            return fact
        deep = await self._reader.read_channel(
            order.key.channel_id, block_number=max(0, fact.block_number - self._confirmations + 1)
        )
        return deep and replace(fact, deposit=min(fact.deposit, deep.deposit))

    async def _verify(self, order: DepositOrder, signer: Address) -> VerifiedVoucher | None:
        first = order.first_voucher
        if first is None:
            return None
        signed = SignedVoucher(order.key.channel_id, first.cumulative_amount, first.signature)
        try:
            return verify_voucher(signed, order.key, signer, self._reader.interface.domain)
        except PeerError:
            digest = voucher_digest(
                order.key, first.cumulative_amount, self._reader.interface.domain
            )
            if not await self._reader.is_valid_wallet_signature(signer, digest, first.signature):
                return None
            return verify_wallet_voucher(signed, order.key, is_valid=True)
