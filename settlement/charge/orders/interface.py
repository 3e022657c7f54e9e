"""A charge order: one authorization that a payer signed, and what became of it.

    claimed -> WANTED -> SENT -> MADE -> served
       |          |        |
    (deleted)  REFUSED  REVERTED

A worker claims the authorization before it runs the request, so that no other worker runs one for
it; nothing is broadcast. When the request succeeded the worker orders the transfer, with the answer
to send. When the transfer is mined the answer is sent, and the order is served. A transfer that is
mined and not served is the payer's credit.

An authorization is public once it may be broadcast. From then on a request must show
something that is not on the chain as well: see `ChargeOrders.claim`.
"""

from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from channel.limits import CHARGES_DAYS
from channel.state.requests import StoredResponse
from channel.types import Address, TxHash
from settlement.tx.orders import NONCE_TAKEN, OrderBook, OrderStatus

__all__ = [
    "PAID_KEPT_S",
    "ChargeClaim",
    "ChargeOrder",
    "ChargeOrders",
    "ClaimDecision",
    "GasLimit",
    "decide_claim",
]


PAID_KEPT_S: Final = CHARGES_DAYS * 24 * 3600
"""How long an order that was paid and served stays, for the accounts."""


class ChargeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One authorization, identified by chain, token, payer and nonce."""

    order_id: bytes
    """See `transfer.transfer_id`."""
    funder: Address
    """The payer, who signed it."""
    amount: int
    """Base units."""
    nonce: bytes
    calldata: bytes
    """The transfer."""
    deadline: int
    """Chain time in Unix seconds after which the token refuses the transfer."""
    from_block: int
    """A block in which the authorization was not used yet."""
    request_digest: bytes
    """SHA-256 over method, target and body of the request that it pays."""
    owner: bytes
    """16 bytes that name the request that may order the transfer, or serve it."""
    owned_until: int
    """Unix seconds. Afterwards another request may become the owner."""
    wanted_at: int
    """Unix seconds at which it was claimed, and later those at which it was ordered."""
    gas_gwei: int = 0
    """Most gas cost in gwei; after mining, the actual cost."""
    status: OrderStatus | None = None
    """None while the request that it pays runs: nothing may be broadcast."""
    tx_hash: TxHash | None = None
    """The transaction that was sent, or that made the transfer."""
    reason: str = ""
    """Why it was refused: a `RevertReason`'s name, and the token's text."""
    response: StoredResponse | None = None
    """The answer to send once it is paid; None if it is served as it is made."""
    is_served: bool = False
    paid_by: bytes | None = None
    """The order whose credit paid instead. This authorization is never broadcast."""

    def __repr__(self) -> str:
        name = "claimed" if self.status is None else self.status.name
        return f"ChargeOrder(0x{self.order_id.hex()}, {name})"

    @property
    def is_open(self) -> bool:
        """Whether the settler must still act on it."""
        return self.status is not None and self.status.is_open


class ChargeClaim(msgspec.Struct, frozen=True):
    """The answer to a claim."""

    order: ChargeOrder
    """As stored. For an authorization that a credit pays, the order with the credit."""
    is_owner: bool
    """Whether the claiming request owns it now."""


class GasLimit(msgspec.Struct, frozen=True):
    """A bound on the gas of all charges together."""

    period_s: int
    gas_gwei: int


class ChargeOrders(OrderBook[ChargeOrder], Protocol):
    """The charges of one token. Every method may raise `LedgerUnavailableError`."""

    async def claim(self, wanted: ChargeOrder, *, now: int, is_private: bool) -> ChargeClaim:
        """Make `wanted.owner` the owner of an authorization, durably, if it is free to take.

        `now` is in Unix seconds. `is_private` states that the request showed more than what is on
        the chain once the transfer is broadcast; without that, it never owns an ordered one.

        An authorization that is new here is not claimed if its payer has a credit of the same
        amount: then it is recorded as paid by that, and the credit is claimed.
        """

    async def place(self, order: ChargeOrder, limit: GasLimit) -> bool:
        """Order a claimed transfer: from then on it must be sent. False if another owns it.

        Writes the response, the gas, the time and the end of the ownership.

        Raises:
            SponsoringPausedError: It would exceed the period's gas; nothing was stored.
        """

    async def adopt(self, order_id: bytes, tx_hash: TxHash) -> None:
        """Record that the chain shows the transfer of an order that ended without one."""

    async def release(self, order_id: bytes, owner: bytes) -> None:
        """End an ownership. One that is claimed only is deleted, as if it never came."""

    async def serve(self, order_id: bytes, owner: bytes) -> None:
        """Record that a mined transfer was served, and drop its answer."""

    async def find(self, order_id: bytes) -> ChargeOrder | None:
        """Return an order, or None."""

    async def list_credits(self) -> list[ChargeOrder]:
        """Return what is paid and not served, oldest first; a bounded number."""

    async def list_made(
        self, since: int, until: int, *, after: ChargeOrder | None = None
    ) -> list[ChargeOrder]:
        """Return what was paid, ordered from `since` to before `until`, oldest first.

        A page of it: ask again with its last as `after`, until none is left.
        """

    async def close(self) -> None:
        """Release the database."""


class ClaimDecision(msgspec.Struct, frozen=True):
    """What a claim writes and returns."""

    claim: ChargeClaim
    stored: ChargeOrder | None = None
    """The row to write whole; otherwise only the claim's ownership is written."""


def decide_claim(
    known: ChargeOrder | None,
    credit: ChargeOrder | None,
    wanted: ChargeOrder,
    *,
    now: int,
    is_private: bool,
) -> ClaimDecision:
    """Decide a claim (pure); see `ChargeOrders.claim`.

    `known` is the stored order of the authorization. `credit` is the order that pays for it, if
    `known` names one. For an authorization that is new here it is a credit that is free to take.
    """
    if known is None and credit is not None:
        paid = replace(wanted, status=OrderStatus.MADE, is_served=True, paid_by=credit.order_id)
        return ClaimDecision(ChargeClaim(_owned(credit, wanted), is_owner=True), paid)
    if known is not None and known.paid_by is not None and credit is not None:
        known, is_private = credit, True  # it was never broadcast, so its payer alone has it
    if known is None or _may_be_tried_again(known, is_private=is_private):
        return ClaimDecision(ChargeClaim(wanted, is_owner=True), wanted)
    if known.owner != wanted.owner and known.owned_until > now:
        return ClaimDecision(ChargeClaim(known, is_owner=False))
    if known.status is None:
        return ClaimDecision(ChargeClaim(wanted, is_owner=True), wanted)
    is_payable = known.is_open or (known.status is OrderStatus.MADE and not known.is_served)
    if is_payable and is_private:
        return ClaimDecision(ChargeClaim(_owned(known, wanted), is_owner=True))
    return ClaimDecision(ChargeClaim(known, is_owner=False))


def _may_be_tried_again(known: ChargeOrder, *, is_private: bool) -> bool:
    """Whether nothing was paid. What was broadcast is public, and only its payer may try it."""
    if known.status is OrderStatus.REFUSED:
        return is_private or known.reason != NONCE_TAKEN
    return known.status is OrderStatus.REVERTED and is_private


def _owned(order: ChargeOrder, wanted: ChargeOrder) -> ChargeOrder:
    return replace(order, owner=wanted.owner, owned_until=wanted.owned_until)
