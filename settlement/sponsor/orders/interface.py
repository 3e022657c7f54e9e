"""A deposit that is owed to the chain: what a web worker asks of the settler.

A worker has checked and simulated it; from `place` on it is on disk, and whoever holds the key
owes it. The gas that it may cost is counted before, in the same transaction, and what it did cost
after: so that no number of workers can spend more in a period than the operator allows (F-98).
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
    """Where a deposit is."""

    WANTED = 1
    """On disk. The settler has not broadcast it, or we do not know yet that it has."""
    SENT = 2
    """In the settler's journal, and on its way."""
    MADE = 3
    """Mined with success: by us, or by whoever was faster."""
    REVERTED = 4
    """Mined and refused. Gas was paid: it is not sent again."""
    REFUSED = 5
    """Not broadcast. It may be placed again."""

    @property
    def is_open(self) -> bool:
        """Whether the settler has something to do about it."""
        return self <= OrderStatus.SENT


class FirstVoucher(msgspec.Struct, frozen=True, gc=False):
    """The voucher that came with an opening, checked by the worker that took it."""

    cumulative_amount: int
    signature: bytes

    def __repr__(self) -> str:
        return f"FirstVoucher({self.cumulative_amount})"


class DepositOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One deposit, known by the call that makes it."""

    order_id: bytes
    """See `deposit_calls.deposit_id`: what was signed, and nothing else."""
    key: ChannelKey
    funder: Address
    calldata: bytes
    deadline: int
    """The chain's time in Unix seconds after which the call would be refused."""
    gas_gwei: int
    """Most that it may cost, then what it did cost."""
    wanted_at: int
    """Unix seconds."""
    status: OrderStatus = OrderStatus.WANTED
    tx_hash: TxHash | None = None
    """Which transaction it is, or which made it."""
    reason: str = ""
    """Why it was refused: a `RevertReason`'s name, and what the contract said."""
    first_voucher: FirstVoucher | None = None
    """Of an opening: with it the books can take the channel, though its payer never comes back."""

    def __repr__(self) -> str:
        return f"DepositOrder(0x{self.order_id.hex()}, {self.status.name})"


class OrderLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be placed within a period."""

    period_s: int
    gas_gwei: int
    """Gas of all deposits together."""
    per_funder: int
    """Deposits of one funder."""


class DepositOrders(Protocol):
    """The orders of one escrow. Every method may raise `LedgerUnavailableError`."""

    async def place(self, order: DepositOrder, limits: OrderLimits) -> DepositOrder:
        """Make an order durable; return it, or the one with this id that is there already.

        One that was refused without a broadcast is wanted again, under the new terms.

        Raises:
            SponsoringPausedError: The period's gas would be exceeded; nothing was stored.
            TooManyDepositsError: The funder has had its share; nothing was stored.
        """

    async def adopt(self, order: DepositOrder) -> None:
        """Record a deposit that somebody else has made; it costs us nothing."""

    async def find(self, order_id: bytes) -> DepositOrder | None:
        """Return an order, or None."""

    async def gas_gwei_since(self, since: int) -> int:
        """Return what the deposits wanted after a time may cost, or did cost, together."""

    async def list_open(self) -> list[DepositOrder]:
        """Return what the settler owes, the oldest first; so many at a time."""

    async def update(
        self,
        order_id: bytes,
        status: OrderStatus,
        *,
        tx_hash: TxHash | None = None,
        reason: str = "",
        gas_gwei: int | None = None,
    ) -> None:
        """Record what became of an open order; one that has ended stays as it is."""

    async def list_unknown(self, before: int) -> list[DepositOrder]:
        """Return openings made and wanted before a time that nobody has called known yet."""

    async def mark_known(self, order_id: bytes) -> None:
        """Record that the books know the channel, or never need to."""

    async def prune(self, before: int) -> int:
        """Drop orders that ended and were wanted before a time; return how many."""

    async def close(self) -> None:
        """Release the database."""


def to_gwei(wei: int) -> int:
    """Return wei as gwei, rounded up: budgets are never undershot."""
    return -(-wei // GWEI)
