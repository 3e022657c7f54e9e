"""A deposit order: a web worker's request to the settler to send a deposit (see `tx.orders`)."""

from typing import Protocol

import msgspec

from channel.types import Address, ChannelKey, TxHash
from settlement.tx.orders import OrderBook, OrderLimits, OrderStatus

__all__ = ["DepositOrder", "DepositOrders", "FirstVoucher"]


class FirstVoucher(msgspec.Struct, frozen=True, gc=False):
    """The voucher that came with an opening, verified by the worker."""

    cumulative_amount: int
    signature: bytes

    def __repr__(self) -> str:
        return f"FirstVoucher({self.cumulative_amount})"


class DepositOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One deposit, identified by the call that makes it."""

    order_id: bytes
    """See `deposit_calls.deposit_id`: derived only from what was signed."""
    key: ChannelKey
    funder: Address
    calldata: bytes
    deadline: int
    """Chain time in Unix seconds after which the escrow refuses the call."""
    gas_gwei: int
    """Most gas cost in gwei; after mining, the actual cost."""
    wanted_at: int
    """Unix seconds."""
    status: OrderStatus = OrderStatus.WANTED
    tx_hash: TxHash | None = None
    """The transaction that was sent, or that made the deposit."""
    reason: str = ""
    """Why it was refused: a `RevertReason`'s name, and the contract's text."""
    first_voucher: FirstVoucher | None = None
    """For an opening: the ledger can add the channel with it if the payer never returns."""

    def __repr__(self) -> str:
        return f"DepositOrder(0x{self.order_id.hex()}, {self.status.name})"


class DepositOrders(OrderBook[DepositOrder], Protocol):
    """The orders of one escrow. Every method may raise `LedgerUnavailableError`."""

    async def place(self, order: DepositOrder, limits: OrderLimits) -> DepositOrder:
        """Store an order durably. Returns it, or the stored one with the same id.

        A refused order that was not broadcast is placed again, with the new terms.

        Raises:
            SponsoringPausedError: It would exceed the period's gas; nothing was stored.
            TooManyDepositsError: The funder has used its number; nothing was stored.
        """

    async def adopt(self, order: DepositOrder) -> None:
        """Record a deposit that another sender has made; it costs no gas here."""

    async def find(self, order_id: bytes) -> DepositOrder | None:
        """Return an order, or None."""

    async def gas_gwei_since(self, since: int) -> int:
        """Return the gas in gwei of the deposits placed since a time, actual or most."""

    async def list_unknown(self, before: int) -> list[DepositOrder]:
        """Return openings made, and placed before a time, that are not marked known."""

    async def mark_known(self, order_id: bytes) -> None:
        """Record that the ledger knows the channel, or need not know it."""

    async def close(self) -> None:
        """Release the database."""
