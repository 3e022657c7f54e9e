"""Sponsored deposits as a web worker sees them: checked, stored as orders, waited for.

Workers hold no key (decision 14). An order that a worker stores was simulated and fits the
operator's bounds; from then on the settler (`settlement.sponsor.sender`) must send it.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec

from channel.chain import AuthorizedPull, SponsoredDeposit
from channel.errors import (
    AuthorizationExpiredError,
    ChannelFinalizedError,
    ConfigError,
    InvalidSignatureError,
    SettlementPendingError,
    SponsoringPausedError,
)
from channel.limits import SPONSORED_GAS_MAX
from channel.tasks import Tasks
from channel.types import Address, ChannelFact, ChannelKey, TxHash, VerifiedVoucher
from settlement import abi
from settlement.errors import ContractRevertedError, contract_reverted
from settlement.escrow.already_made import find_made
from settlement.escrow.deposit_calls import (
    build_deposit_call,
    deposit_id,
    expires_at,
    parse_deposit_call,
)
from settlement.escrow.reader import EscrowReader
from settlement.node import questions
from settlement.node.values import parse_bytes
from settlement.sponsor.orders.interface import DepositOrder, DepositOrders, FirstVoucher
from settlement.tx.gas_quote import GasQuote, ask_gas_quote, parse_gas_quote
from settlement.tx.orders import (
    FEE_TOO_HIGH,
    NONCE_TAKEN,
    NOT_SENT,
    OrderLimits,
    OrderStatus,
    to_gwei,
)
from settlement.types import BlockRef, RevertReason

__all__ = [
    "CLOSE_PENDING",
    "SponsorLimits",
    "WaitingSponsor",
]

CLOSE_PENDING: Final = "CLOSE_PENDING"
"""Refusal of an order: the payer requested a close of its channel."""

_LOOK_S: Final = 0.05


class SponsorLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator pays for."""

    orders: OrderLimits
    gas_max: int = SPONSORED_GAS_MAX
    """Most gas for one deposit."""
    gas_price_max_wei: int
    """Most wei per unit of gas."""
    margin_s: int
    """Seconds an authorization must still be valid by the chain's clock (OPEN-05)."""
    wait_s: float
    """Seconds a client waits for its deposit before the answer says to retry."""


class WaitingSponsor:
    """Implements `channel.chain.DepositSponsor` without a key."""

    def __init__(
        self,
        orders: DepositOrders,
        reader: EscrowReader,
        *,
        sender: Address,
        limits: SponsorLimits,
    ) -> None:
        """Take deposits for the settler that sends from `sender`."""
        self._orders = orders
        self._reader = reader
        self._sender = sender
        self._limits = limits
        self._waiting = Tasks()  # each caller gets its error

    async def is_taken(self, deposit: SponsoredDeposit) -> bool:
        """See `channel.chain.DepositSponsor.is_taken`."""
        order = await self._orders.find(deposit_id(deposit))
        return order is not None and order.status is not OrderStatus.REFUSED

    async def take(
        self, deposit: SponsoredDeposit, *, by_wallet: bool, first: VerifiedVoucher | None
    ) -> None:
        """See `channel.chain.DepositSponsor.take`."""
        order = DepositOrder(
            order_id=deposit_id(deposit),
            key=deposit.key,
            funder=deposit.funder,
            calldata=build_deposit_call(deposit),
            deadline=expires_at(deposit.pull),
            gas_gwei=0,
            wanted_at=int(time.time()),
            first_voucher=_first(first),
        )
        try:
            quote = await self._simulate(deposit, order.calldata)
        except ContractRevertedError as refusal:
            if not await self._adopt(order):
                await self._require_valid(deposit)
                raise refusal from None
            return
        self._require_window(deposit, quote.head)
        if by_wallet and not await self._reader.rpc.code(deposit.funder):
            raise contract_reverted(RevertReason.INVALID_SIGNATURE)
        budget_wei = self._budget(quote)
        order = msgspec.structs.replace(order, gas_gwei=to_gwei(budget_wei))
        await self._orders.place(order, self._limits.orders)

    async def wait(self, deposit: SponsoredDeposit) -> TxHash:
        """See `channel.chain.DepositSponsor.wait`."""
        order_id = deposit_id(deposit)
        waiting = self._waiting.share(order_id, partial(self._wait, order_id))
        order = await asyncio.shield(waiting)
        if order is None:
            raise SettlementPendingError("The server no longer knows this deposit: retry.")
        if order.status.is_open:
            raise SettlementPendingError("The deposit is being mined: retry later.")
        return _outcome(order)

    async def _wait(self, order_id: bytes) -> DepositOrder | None:
        """Poll until the order ends or the time is up. Concurrent callers share the answer."""
        deadline = time.monotonic() + self._limits.wait_s
        while True:
            order = await self._orders.find(order_id)
            if order is None or not order.status.is_open or time.monotonic() >= deadline:
                return order
            await asyncio.sleep(_LOOK_S)

    async def _simulate(self, deposit: SponsoredDeposit, calldata: bytes) -> GasQuote:
        """Run the call as the settler will, and price it, in one round trip.

        Raises:
            ChannelFinalizedError: The payer requested a close: a deposit now would soon be
                refunded, at the provider's cost.
        """
        escrow = "0x" + self._reader.escrow.hex()
        question = "0x" + abi.get_channel.encode(deposit.key.channel_id).hex()
        known, quote = await self._reader.rpc.parse_batch(
            [
                questions.call({"to": escrow, "data": question}),
                *ask_gas_quote(self._sender, self._reader.escrow, calldata),
            ],
            partial(_parse_quote, deposit.key),
        )
        if quote.head.base_fee_wei is None:
            raise ConfigError("The chain has no base fee (EIP-1559).")
        if known is not None and known.close_requested_at:
            raise _close_pending()
        return quote

    def _budget(self, quote: GasQuote) -> int:
        """Return the most that the transaction may cost, in wei.

        Raises:
            InvalidSignatureError: The funder is a wallet whose signature check uses too much gas.
            SponsoringPausedError: Gas costs more than the operator pays.
        """
        if quote.gas > self._limits.gas_max:
            raise InvalidSignatureError(
                f"The deposit needs {quote.gas} gas; the server pays for {self._limits.gas_max}."
            )
        price_max = self._limits.gas_price_max_wei
        if quote.price_wei > price_max:
            raise SponsoringPausedError("Gas costs more now than the server pays for deposits.")
        return quote.budget_wei(price_max)

    async def _adopt(self, order: DepositOrder) -> bool:
        call = parse_deposit_call(order.calldata)
        made = await find_made(self._reader, order.key.channel_id, call)
        if made is None:
            return False
        await self._orders.adopt(
            msgspec.structs.replace(order, status=OrderStatus.MADE, tx_hash=made)
        )
        return True

    async def _require_valid(self, deposit: SponsoredDeposit) -> None:
        """Raise `AuthorizationExpiredError` if time caused the refusal: the payer can sign anew."""
        self._require_window(deposit, await self._reader.rpc.block())

    def _require_window(self, deposit: SponsoredDeposit, head: BlockRef) -> None:
        pull = deposit.pull
        if isinstance(pull, AuthorizedPull) and pull.valid_after >= head.timestamp:
            raise AuthorizationExpiredError("The authorization is not valid yet on the chain.")
        if expires_at(pull) < head.timestamp + self._limits.margin_s:
            raise AuthorizationExpiredError(
                f"The authorization must be valid for {self._limits.margin_s} s from the chain's"
                f" time, which is {head.timestamp}."
            )


def _parse_quote(key: ChannelKey, said: Sequence[Any]) -> tuple[ChannelFact | None, GasQuote]:
    """Return the state of the deposit's channel, and the quote for the call."""
    quote = parse_gas_quote(said[1:])
    known = abi.decode_channel(key, parse_bytes(said[0]), block_number=quote.head.number)
    return known, quote


def _first(voucher: VerifiedVoucher | None) -> FirstVoucher | None:
    if voucher is None:
        return None
    return FirstVoucher(voucher.cumulative_amount, voucher.signature)


def _outcome(order: DepositOrder) -> TxHash:
    if order.status is OrderStatus.MADE and order.tx_hash is not None:
        return order.tx_hash
    if order.reason == FEE_TOO_HIGH:
        raise SponsoringPausedError("Gas costs more now than the server pays for deposits.")
    if order.reason == CLOSE_PENDING:
        raise _close_pending()
    if order.reason in (NONCE_TAKEN, NOT_SENT):
        raise SettlementPendingError("The deposit was not sent yet: retry.")
    name, _, text = order.reason.partition(" ")
    reason = RevertReason.__members__.get(name, RevertReason.UNKNOWN)
    raise contract_reverted(reason, text=text, tx_hash=order.tx_hash)


def _close_pending() -> ChannelFinalizedError:
    return ChannelFinalizedError("The channel has a pending close requested by its payer.")
