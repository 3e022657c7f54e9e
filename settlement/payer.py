"""A payer's account on one chain: deposits, tops up, and leaves (`channel.chain.PayerChain`)."""

import asyncio
from collections.abc import Collection

from channel.types import Address, ChannelFact, ChannelId, TxHash
from settlement import abi
from settlement.addresses import SALT, create2_address, escrow_init_code, factory_address
from settlement.errors import ContractRevertedError, UntrustedEscrowError
from settlement.escrow import EscrowReader
from settlement.tx_manager import TxManager

__all__ = ["PayerAccount"]


class PayerAccount:
    """Implements `PayerChain` with a key that this process holds.

    Every method may raise `ChainUnavailableError`; those that send a transaction also
    `ContractRevertedError` (nothing moved) and `TransactionPendingError` (it may yet).
    """

    def __init__(
        self,
        sender: TxManager,
        *,
        factory: Address | None = None,
        trusted_escrows: Collection[Address] = (),
    ) -> None:
        """Pin what may hold our deposits.

        Args:
            sender: The payer's transactions.
            factory: The factory whose escrows are trusted; this package's own if None.
            trusted_escrows: Escrows trusted besides, each by the user's explicit word (F-91).
        """
        self._sender = sender
        self._factory = factory
        self._trusted = frozenset(trusted_escrows)
        self._spending_allowance = asyncio.Lock()

    @property
    def chain_id(self) -> int:
        """The chain the account is on."""
        return self._sender.rpc.chain_id

    @property
    def account(self) -> Address:
        """The account that deposits."""
        return self._sender.address

    async def require_escrow(self, escrow: Address, token: Address) -> None:
        """Check that `escrow` can only be our code for `token`, and is there (F-91, CLIENT-01).

        The address of an escrow follows from the pinned factory, the escrow's init code and the
        token (CREATE2): equal addresses mean equal code, without a list to keep.

        Raises:
            UntrustedEscrowError: It is another contract, or none.
        """
        expected = await asyncio.to_thread(self._expected_escrow, token)
        if escrow != expected and escrow not in self._trusted:
            raise UntrustedEscrowError(escrow, "is not the escrow this package knows for the token")
        if not await self._sender.rpc.code(escrow):
            raise UntrustedEscrowError(escrow, "has no code on this chain")

    def _expected_escrow(self, token: Address) -> Address:
        return create2_address(self._factory or factory_address(), SALT, escrow_init_code(token))

    async def read_channel(self, escrow: Address, channel_id: ChannelId) -> ChannelFact | None:
        """Return the channel as of the head, or None if it never existed."""
        return await EscrowReader(self._sender.rpc, escrow).read_channel(channel_id)

    async def open_channel(
        self,
        *,
        escrow: Address,
        payee: Address,
        token: Address,
        deposit: int,
        salt: bytes,
        authorized_signer: Address,
    ) -> TxHash:
        """Approve if needed, open, and return the opening transaction once it is mined."""
        calldata = abi.open_.encode(payee, token, deposit, salt, authorized_signer)
        return await self._deposit(escrow, token, deposit, calldata)

    async def find_opening(self, *, escrow: Address, channel_id: ChannelId) -> TxHash | None:
        """Return the transaction whose `ChannelOpened` log shows this channel, or None."""
        log = await EscrowReader(self._sender.rpc, escrow).find_opening(channel_id)
        return None if log is None else log.tx_hash

    async def top_up(
        self, *, escrow: Address, token: Address, channel_id: ChannelId, amount: int
    ) -> TxHash:
        """Approve if needed, top up, and return the transaction once it is mined."""
        return await self._deposit(escrow, token, amount, abi.top_up.encode(channel_id, amount))

    async def request_close(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Start the grace period, without the payee's help (CLOSE-08)."""
        receipt = await self._sender.send(escrow, abi.request_close.encode(channel_id))
        return receipt.tx_hash

    async def withdraw(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Take what is left after the grace period."""
        receipt = await self._sender.send(escrow, abi.withdraw.encode(channel_id))
        return receipt.tx_hash

    async def _deposit(
        self, escrow: Address, token: Address, amount: int, calldata: bytes
    ) -> TxHash:
        """One deposit at a time: two would count the same allowance as theirs (F-41)."""
        async with self._spending_allowance:
            await self._approve(escrow, token, amount)
            receipt = await self._sender.send(escrow, calldata)
        return receipt.tx_hash

    async def _approve(self, escrow: Address, token: Address, amount: int) -> None:
        """Allow exactly `amount`, unless so much is allowed already."""
        question = abi.allowance.encode(self.account, escrow)
        allowed = abi.allowance.decode_int(await self._sender.rpc.call(token, question))
        if allowed >= amount:
            return
        try:
            await self._sender.send(token, abi.approve.encode(escrow, amount))
        except ContractRevertedError as error:
            if allowed == 0 or error.tx_hash is not None:
                raise
            # USDT and its like change an allowance only by way of zero (F-89).
            await self._sender.send(token, abi.approve.encode(escrow, 0))
            await self._sender.send(token, abi.approve.encode(escrow, amount))
