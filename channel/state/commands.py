"""What may happen to a channel, as frozen values. The rules are in `transitions`."""

from enum import IntEnum

import msgspec

from channel.state.channel_state import ChannelState, LadderVoucher, ReservationKind
from channel.types import ChannelFact, VerifiedVoucher

__all__ = [
    "AbortClose",
    "AcceptVoucher",
    "BeginClose",
    "Command",
    "CommitClose",
    "EndReservations",
    "ExpireReservations",
    "Extend",
    "Idle",
    "Observe",
    "OpenChannel",
    "Publish",
    "RecordClose",
    "Release",
    "Renew",
    "Repair",
    "Reserve",
    "Restore",
    "Spend",
    "StreamPolicy",
]


class StreamPolicy(IntEnum):
    """What a new stream does to one that is already live on its channel (ACC-06)."""

    REPLACE = 1
    REJECT = 2
    ALLOW = 3


class OpenChannel(msgspec.Struct, frozen=True, gc=False):
    """Take a channel that exists on chain into the books, with its first voucher."""

    fact: ChannelFact
    voucher: VerifiedVoucher
    at: int


class AcceptVoucher(msgspec.Struct, frozen=True, gc=False):
    """Raise `accepted` to the voucher's amount, or leave all as it is if that is not a rise."""

    voucher: VerifiedVoucher
    min_voucher_delta: int
    at: int


class Reserve(msgspec.Struct, frozen=True, gc=False):
    """Hold money for a new request or stream: as many units as are covered, up to a bound."""

    reservation_id: bytes
    kind: ReservationKind
    unit_price: int
    units_min: int
    units_max: int
    presented: int
    """Cumulative amount of the voucher that came with the request: a public one buys nothing."""
    min_voucher_delta: int
    lease_expires_at: int
    stream_policy: StreamPolicy = StreamPolicy.REPLACE


class Extend(msgspec.Struct, frozen=True, gc=False):
    """Fill a stream's reservation up again: as many units as are covered, at least one."""

    reservation_id: bytes
    unit_price: int
    units_max: int
    min_voucher_delta: int
    lease_expires_at: int


class Renew(msgspec.Struct, frozen=True, gc=False):
    """Keep a reservation alive without changing it."""

    reservation_id: bytes
    lease_expires_at: int


class Spend(msgspec.Struct, frozen=True, gc=False):
    """Turn part of a reservation into `spent`."""

    reservation_id: bytes
    amount: int


class Release(msgspec.Struct, frozen=True, gc=False):
    """Give back what is left of a reservation, and end it. Repeating it changes nothing."""

    reservation_id: bytes


class ExpireReservations(msgspec.Struct, frozen=True, gc=False):
    """End each reservation whose owner let its lease run out."""

    now: int
    unrenewed: tuple[tuple[bytes, int], ...] = ()
    """Ids, and the leases they have had for longer than a lease lasts, whatever clocks say."""


class EndReservations(msgspec.Struct, frozen=True, gc=False):
    """End every reservation as if its owner had died: a close waits no longer, or we restarted."""


class Observe(msgspec.Struct, frozen=True, gc=False):
    """Take over what the chain says. `spent` and `accepted` never move by it."""

    fact: ChannelFact
    is_rollback: bool = False
    """The chain went back: an older block's values replace newer ones."""
    at: int = 0
    """Chain time of the fact, in Unix seconds; 0 where that is not known."""


class Publish(msgspec.Struct, frozen=True, gc=False):
    """Record, before it is broadcast, that a voucher of this amount becomes public."""

    cumulative_amount: int


class Idle(msgspec.Struct, frozen=True, gc=False):
    """How a channel stood when nobody seemed to use it any more."""

    active_at: int
    spent: int


class BeginClose(msgspec.Struct, frozen=True, gc=False):
    """Stop accepting and reserving; what is running may finish."""

    presented: VerifiedVoucher | None = None
    """The voucher of the payer's own close; None when it is us who close."""
    only_if_idle: Idle | None = None
    """Begin nothing when something was bought since, or runs."""


class CommitClose(msgspec.Struct, frozen=True, gc=False):
    """Decide what the close is made with. From here on the settler owes the channel a close."""

    voucher: LadderVoucher


class AbortClose(msgspec.Struct, frozen=True, gc=False):
    """The close failed for good and moved nothing: the channel goes on (CLOSE-04)."""

    undecided_only: bool = False
    """Leave a close alone that somebody has decided meanwhile: it is owed."""


class RecordClose(msgspec.Struct, frozen=True, gc=False):
    """The close was mined."""

    fact: ChannelFact
    tx_hash: bytes


class Repair(msgspec.Struct, frozen=True, gc=False):
    """An operator raises `accepted` and `spent` of books that are older than the chain.

    What was settled or closed by somebody else is accounted for with it.
    """

    accepted: int
    spent: int


class Restore(msgspec.Struct, frozen=True, gc=False):
    """Take a channel over from an export of other books, if these do not know it."""

    state: ChannelState


Command = (
    OpenChannel
    | AcceptVoucher
    | Reserve
    | Extend
    | Renew
    | Spend
    | Release
    | ExpireReservations
    | EndReservations
    | Observe
    | Publish
    | BeginClose
    | CommitClose
    | AbortClose
    | RecordClose
    | Repair
    | Restore
)
