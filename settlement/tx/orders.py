"""An order: what a web worker, which holds no key, asks the settler to send.

The worker has checked and simulated the call. From the moment the order is on disk the settler must
send it, once. The same database transaction counts the gas it may cost, later replaced by the
actual cost, so that no number of workers can spend more in a period than the operator allows
(F-98).
"""

import enum
from typing import Final, Protocol, TypeVar

import msgspec

from channel.types import TxHash

__all__ = [
    "FEE_TOO_HIGH",
    "GWEI",
    "NONCE_TAKEN",
    "NOT_SENT",
    "Order",
    "OrderBook",
    "OrderLimits",
    "OrderStatus",
    "to_gwei",
]

GWEI: Final = 10**9

FEE_TOO_HIGH: Final = "FEE_TOO_HIGH"
"""Refusal of an order: gas became too expensive."""

NONCE_TAKEN: Final = "NONCE_TAKEN"
"""Refusal of an order: a transaction that is not in the journal used its nonce."""

NOT_SENT: Final = "NOT_SENT"
"""Refusal of an order: no node, or no signer, accepted it for too long."""


class OrderStatus(enum.IntEnum):
    """State of an order."""

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


class OrderLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on orders within a period."""

    period_s: int
    gas_gwei: int
    """Gas of all orders together, in gwei."""
    per_funder: int
    """Number of orders of one payer."""


class Order(Protocol):
    """What the sender reads of an order."""

    @property
    def order_id(self) -> bytes:
        """32 bytes, derived from what the payer signed."""

    @property
    def funder(self) -> bytes:
        """The payer's address. One order of a payer is sent at a time."""

    @property
    def calldata(self) -> bytes:
        """The call; the same for every process that builds it from the same signature."""

    @property
    def deadline(self) -> int:
        """Chain time in Unix seconds after which the contract refuses the call."""

    @property
    def gas_gwei(self) -> int:
        """Most gas cost in gwei."""

    @property
    def wanted_at(self) -> int:
        """When it was placed, in Unix seconds."""

    @property
    def tx_hash(self) -> TxHash | None:
        """The transaction that was sent, or that had the same effect."""


AnyOrder = TypeVar("AnyOrder", bound=Order)


class OrderBook(Protocol[AnyOrder]):
    """Where the sender finds orders. Every method may raise `LedgerUnavailableError`."""

    async def list_open(self) -> list[AnyOrder]:
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

    async def prune(self, before: int) -> int:
        """Delete orders that ended and were placed before a time; return how many."""


def to_gwei(wei: int) -> int:
    """Return wei as gwei, rounded up, so that budgets are not exceeded."""
    return -(-wei // GWEI)
