"""The payee's side of the chain: settles and closes (`channel.chain.ChannelCloser`)."""

import asyncio

import msgspec

from channel.chain import CloseResult
from channel.errors import ChainUnavailableError, ConfigError, TransactionRevertedError
from channel.types import Address, ChannelFact, ChannelId, ChannelKey, TxHash
from settlement import abi
from settlement.errors import ContractRevertedError
from settlement.escrow import EscrowReader
from settlement.tx_manager import TxManager
from settlement.types import Receipt, RevertReason

__all__ = ["EscrowSettler", "SettleResult"]


class SettleResult(msgspec.Struct, frozen=True, gc=False):
    """A channel after a settle; `tx_hash` is None when so much was settled before."""

    tx_hash: TxHash | None
    fact: ChannelFact


class EscrowSettler:
    """Settles and closes the channels of one escrow with the payee's key.

    Which voucher to use is not decided here (`channel.state.ladder`). A close under way is
    joined, not repeated, and goes on when whoever waits for it is cancelled.
    """

    def __init__(self, reader: EscrowReader, sender: TxManager) -> None:
        self._reader = reader
        self._sender = sender
        self._closing: dict[ChannelId, asyncio.Task[CloseResult]] = {}
        self._broadcast: dict[ChannelId, TxHash] = {}

    @property
    def payee(self) -> Address:
        """The account that settles and closes."""
        return self._sender.address

    def require_payee(self, payee: Address) -> None:
        """Check that our key is the payee that challenges name (F-81, decision 15).

        Raises:
            ConfigError: It is not: every settle would revert.
        """
        if payee != self.payee:
            msg = f"The key is 0x{self.payee.hex()}'s, the payee 0x{payee.hex()}."
            raise ConfigError(msg)

    async def close_channel(
        self, key: ChannelKey, cumulative_amount: int, signature: bytes
    ) -> CloseResult:
        """Close the channel at `cumulative_amount` and return once it is mined.

        Repeating it for a channel that is closed already returns that close.

        Raises:
            ContractRevertedError: The contract refused; nothing changed on chain.
            TransactionPendingError: Not mined within the bound; ask again (F-75).
            ChainUnavailableError: Nothing was broadcast.
        """
        self._require_ours(key)
        closing = self._closing.get(key.channel_id)
        if closing is None:
            closing = asyncio.create_task(self._close(key, cumulative_amount, signature))
            self._closing[key.channel_id] = closing
            closing.add_done_callback(lambda done: self._end(key.channel_id, done))
        return await asyncio.shield(closing)

    async def settle_channel(
        self, key: ChannelKey, cumulative_amount: int, signature: bytes
    ) -> SettleResult:
        """Settle up to `cumulative_amount`; the channel stays open.

        Raises:
            ContractRevertedError: The contract refused; nothing changed on chain.
            TransactionPendingError: Not mined within the bound; ask again.
            ChainUnavailableError: Nothing was broadcast.
        """
        self._require_ours(key)
        calldata = abi.settle.encode(key.channel_id, cumulative_amount, signature)
        try:
            receipt = await self._sender.send(self._reader.escrow, calldata)
        except ContractRevertedError as error:
            if error.reason is not RevertReason.AMOUNT_NOT_INCREASING:
                raise
            return SettleResult(tx_hash=None, fact=await self._fact(key.channel_id))
        fact = await self._fact(key.channel_id, receipt.block_number)
        return SettleResult(tx_hash=receipt.tx_hash, fact=fact)

    async def drain(self) -> None:
        """Wait for the closes under way: before the process ends."""
        await asyncio.gather(*self._closing.values(), return_exceptions=True)

    def _end(self, channel_id: ChannelId, done: asyncio.Task[CloseResult]) -> None:
        del self._closing[channel_id]
        if not done.cancelled():
            done.exception()  # seen, even when nobody waits for it any more

    async def _close(self, key: ChannelKey, amount: int, signature: bytes) -> CloseResult:
        channel_id = key.channel_id
        try:
            receipt = await self._see_through(channel_id, amount, signature)
        except ContractRevertedError as error:
            if error.reason is not RevertReason.CHANNEL_FINALIZED:
                raise
            return await self._closed_before(channel_id)
        fact = await self._fact(channel_id, receipt.block_number)
        return CloseResult(tx_hash=receipt.tx_hash, fact=fact, gas_used=receipt.gas_used)

    async def _see_through(self, channel_id: ChannelId, amount: int, signature: bytes) -> Receipt:
        """Broadcast a close, unless one of ours is on its way, and wait for its receipt."""
        tx_hash = self._broadcast.get(channel_id)
        if tx_hash is None:
            calldata = abi.close.encode(channel_id, amount, signature)
            tx_hash = await self._sender.broadcast(self._reader.escrow, calldata)
            self._broadcast[channel_id] = tx_hash
        try:
            receipt = await self._sender.resume(tx_hash)
        except TransactionRevertedError:
            del self._broadcast[channel_id]
            raise
        del self._broadcast[channel_id]
        return receipt

    async def _closed_before(self, channel_id: ChannelId) -> CloseResult:
        """Return how a finalized channel was closed, by whomever, from its own log."""
        log = await self._reader.find_closing(channel_id)
        receipt = None if log is None else await self._sender.rpc.receipt(log.tx_hash)
        if receipt is None:
            msg = "The channel is finalized; the node does not have the close's log."
            raise ChainUnavailableError(msg)
        fact = await self._fact(channel_id)
        return CloseResult(tx_hash=receipt.tx_hash, fact=fact, gas_used=receipt.gas_used)

    async def _fact(self, channel_id: ChannelId, block_number: int | None = None) -> ChannelFact:
        fact = await self._reader.read_channel(channel_id, block_number=block_number)
        if fact is None:
            msg = "The node does not show the channel that was just settled or closed."
            raise ChainUnavailableError(msg)
        return fact

    def _require_ours(self, key: ChannelKey) -> None:
        if (key.chain_id, key.escrow) != (self._reader.chain_id, self._reader.escrow):
            msg = f"The channel is of escrow 0x{key.escrow.hex()} on chain {key.chain_id}."
            raise ConfigError(msg)
