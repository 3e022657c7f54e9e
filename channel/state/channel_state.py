"""The accounting of one channel, and the order of amounts that always holds.

    spent + reserved <= accepted       always
    accepted <= deposit                whenever something is accepted
    settled <= deposit                 on the chain

A reorg may lower `deposit` below `accepted`, and an old backup may leave `accepted` below
`settled`. Then the channel is stopped, not broken (decision 4: nothing moves until they agree).
"""

from enum import IntEnum

import msgspec

from channel.errors import InvariantError
from channel.limits import AMOUNT_MAX
from channel.types import ChannelKey, ChannelTerms

__all__ = ["ChannelState", "LadderVoucher", "Reservation", "ReservationKind", "require_invariants"]


class ReservationKind(IntEnum):
    """Who gets the reserved amount when the owner of a reservation dies (decision 8)."""

    STREAM = 1
    """It becomes spent, since its units may have been sent. Never more than one step."""
    REQUEST = 2
    """It is released: no answer was sent, and the idempotency key says "outcome unknown"."""


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """An amount held durably, in advance, for one running request or stream."""

    reservation_id: bytes
    kind: ReservationKind
    amount: int
    lease_expires_at: int
    """Unix seconds after which the owner counts as dead."""
    is_replaced: bool = False
    """A newer stream replaced it: the held amount may be spent, but is not refilled."""
    spent: int = 0
    """What its request has spent so far; it is entered in the accounts when the request ends."""
    note: bytes = b""
    """A `charges.ChargeNote` for that entry, encoded; empty for none."""


class LadderVoucher(msgspec.Struct, frozen=True, gc=False):
    """An accepted voucher worth keeping: amount and signature as one value (F-38)."""

    cumulative_amount: int
    signature: bytes


class ChannelState(msgspec.Struct, frozen=True, gc=False):
    """The durable state of one channel. Amounts in base units of the token."""

    key: ChannelKey
    terms: ChannelTerms
    deposit: int
    """All ever put into the channel, according to the chain at `fact_block`."""
    settled: int
    """Running total paid out on chain, according to the chain at `fact_block`."""
    accepted: int
    """Greatest cumulative amount accepted and stored."""
    spent: int
    """Running total of service delivered. Never falls."""
    published: int
    """Greatest voucher amount ever broadcast or settled, and so public (decision 5)."""
    close_requested_at: int
    """Unix seconds of the block with the payer's close request; 0 when there is none."""
    is_finalized: bool
    fact_block: int
    """Block of the newest chain fact that changed a value."""
    highest: LadderVoucher
    at_or_below_spent: LadderVoucher | None
    """The greatest kept voucher at or below `spent`; a live channel settles with it."""
    above_spent: LadderVoucher | None
    """The lowest kept voucher above `spent`."""
    active_at: int
    """Unix seconds of the last voucher that raised `accepted`."""
    reservations: tuple[Reservation, ...] = ()
    is_closing: bool = False
    """A close has begun: nothing new is accepted or reserved."""
    closing_with: LadderVoucher | None = None
    """The voucher of the decided close. Durable before the settler broadcasts it."""
    close_tx: bytes = b""
    """The transaction that closed the channel, once mined."""
    foreign_block: int = 0
    """Block by which the payee's key settled or closed the channel without this ledger: another
    program has the key, or the payee has another ledger. 0: that has not happened."""

    @property
    def reserved(self) -> int:
        """Sum held by running requests and streams."""
        return sum([held.amount for held in self.reservations])

    def find_reservation(self, reservation_id: bytes) -> Reservation | None:
        """Return a reservation, or None when it does not exist or has ended."""
        for held in self.reservations:
            if held.reservation_id == reservation_id:
                return held
        return None

    @property
    def has_stream(self) -> bool:
        """Whether a stream holds money of the channel."""
        return any(held.kind is ReservationKind.STREAM for held in self.reservations)

    @property
    def available(self) -> int:
        """The amount that may still be reserved: accepted, neither spent nor reserved."""
        return self.accepted - self.spent - self.reserved

    @property
    def at_or_above_spent(self) -> LadderVoucher | None:
        """The lowest kept voucher at or above `spent`; a unilateral close uses it."""
        below = self.at_or_below_spent
        if below is not None and below.cumulative_amount == self.spent:
            return below
        return self.above_spent

    @property
    def is_stopped(self) -> bool:
        """Whether ledger and chain disagree, so that nothing may be accepted or served."""
        return self.deposit < self.accepted or self.accepted < self.settled


def require_invariants(state: ChannelState) -> None:
    """Raise `InvariantError` if the state contradicts itself (ACC-07)."""
    spent, accepted, published = state.spent, state.accepted, state.published
    reserved = 0
    for held in state.reservations:
        if held.amount < 0 or not 0 <= held.spent <= spent:
            raise InvariantError(f"a reservation holds {held.amount}, has spent {held.spent}")
        reserved += held.amount
    if not 0 <= spent <= spent + reserved <= accepted <= AMOUNT_MAX:
        raise InvariantError(f"spent {spent} + reserved {reserved} > accepted {accepted}")
    if not 0 <= state.settled <= published <= AMOUNT_MAX:
        raise InvariantError(f"published {published} < settled {state.settled}")
    if not 0 <= state.deposit <= AMOUNT_MAX:
        raise InvariantError(f"deposit {state.deposit} does not fit uint128")
    below, above = state.at_or_below_spent, state.above_spent
    if (
        not 0 <= state.highest.cumulative_amount <= accepted
        or (below is not None and below.cumulative_amount > spent)
        or (above is not None and above.cumulative_amount <= spent)
    ):
        raise InvariantError(f"a kept voucher is on the wrong side of spent {spent}")
