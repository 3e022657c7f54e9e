"""A deposit order: a web worker's request to the settler to send a deposit.

The worker has checked and simulated it. From `place` on it is on disk, and the settler must send
it. The same database transaction counts the gas it may cost, later replaced by the actual cost, so
that no number of workers can spend more in a period than the operator allows (F-98).
"""

import enum
from typing import Final, Protocol

import msgspec

from channel.types import Address, ChannelKey, TxHash

__all__ = [
    "GWEI",
    "DepositOrder",
    "DepositOrders",
    "FirstVoucher",
    "OrderLimits",
    "OrderStatus",
    "to_gwei",
]

GWEI: Final = 10**9


class OrderStatus(enum.IntEnum):
    """State of a deposit order."""

    WANTED = 1
    """On disk. The settler has not broadcast it, or has not recorded yet that it did."""
    SENT = 2
    """In the settler's journal, and sent."""
    MADE = 3
    """Mined with success: by the settler, or by another sender that was faster."""
    REVERTED = 4
    """Mined and reverted. Gas was paid; it is not sent again."""
    REFUSED = 5
    """Not broadcast. It may be placed again."""

    @property
    def is_open(self) -> bool:
        """Whether the settler must still act on it."""
        return self <= OrderStatus.SENT


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


class OrderLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on orders within a period."""

    period_s: int
    gas_gwei: int
    """Gas of all deposits together, in gwei."""
    per_funder: int
    """Number of deposits of one funder."""


class DepositOrders(Protocol):
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

    async def list_open(self) -> list[DepositOrder]:
        """Return the open orders, oldest first; a bounded number."""

    async def update(
        self,
        order_id: bytes,
        status: OrderStatus,
        *,
        tx_hash: TxHash | None = None,
        reason: str = "",
        gas_gwei: int | None = None,
    ) -> None:
        """Record the outcome of an open order; an ended one stays unchanged."""

    async def list_unknown(self, before: int) -> list[DepositOrder]:
        """Return openings made, and placed before a time, that are not marked known."""

    async def mark_known(self, order_id: bytes) -> None:
        """Record that the ledger knows the channel, or need not know it."""

    async def prune(self, before: int) -> int:
        """Delete orders that ended and were placed before a time; return how many."""

    async def close(self) -> None:
        """Release the database."""


def to_gwei(wei: int) -> int:
    """Return wei as gwei, rounded up, so that budgets are not exceeded."""
    return -(-wei // GWEI)
