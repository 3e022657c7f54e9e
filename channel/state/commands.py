"""The commands that can change a channel, as frozen values. The rules are in `transitions`."""

from enum import IntEnum

import msgspec

from channel.state.channel_state import ChannelState, LadderVoucher, ReservationKind
from channel.state.charges import ChargeEnd
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
    """What a new stream does to a running one on its channel (ACC-06)."""

    REPLACE = 1
    REJECT = 2
    ALLOW = 3


class OpenChannel(msgspec.Struct, frozen=True, gc=False):
    """Add a channel that exists on chain to the ledger, with its first voucher."""

    fact: ChannelFact
    voucher: VerifiedVoucher
    at: int


class AcceptVoucher(msgspec.Struct, frozen=True, gc=False):
    """Raise `accepted` to the voucher's amount; a lower or equal amount changes nothing."""

    voucher: VerifiedVoucher
    min_voucher_delta: int
    at: int


class Reserve(msgspec.Struct, frozen=True, gc=False):
    """Hold an amount for a new request or stream: as much as is covered, up to a bound."""

    reservation_id: bytes
    kind: ReservationKind
    amount_min: int
    """Refuse to hold less."""
    amount_max: int
    presented: int
    """Cumulative amount of the voucher in the request: a public one pays for nothing."""
    min_voucher_delta: int
    lease_expires_at: int
    stream_policy: StreamPolicy = StreamPolicy.REPLACE
    note: bytes = b""
    """A `charges.ChargeNote` for the accounts, encoded; empty for none."""
    replaces: bool = False
    """End the owner's earlier reservation of this id; the new one takes over what it has spent."""


class Extend(msgspec.Struct, frozen=True, gc=False):
    """Refill a reservation with as much as is covered, up to a bound. It never shrinks."""

    reservation_id: bytes
    amount_min: int
    """Refuse to hold less afterwards."""
    amount_max: int
    """What it should hold afterwards."""
    min_voucher_delta: int
    lease_expires_at: int


class Renew(msgspec.Struct, frozen=True, gc=False):
    """Extend the lease of a reservation without changing its amount."""

    reservation_id: bytes
    lease_expires_at: int


class Spend(msgspec.Struct, frozen=True, gc=False):
    """Turn part of a reservation into `spent`."""

    reservation_id: bytes
    amount: int


class Release(msgspec.Struct, frozen=True, gc=False):
    """Give back the rest of a reservation, and end it. Repeating it changes nothing."""

    reservation_id: bytes
    end: ChargeEnd | None = None
    """For the accounts: how the request ended; None when nothing of it is known."""


class ExpireReservations(msgspec.Struct, frozen=True, gc=False):
    """End each reservation whose lease has expired."""

    now: int
    unrenewed: tuple[tuple[bytes, int], ...] = ()
    """Ids and leases that stayed unrenewed longer than a lease lasts, independent of clocks."""


class EndReservations(msgspec.Struct, frozen=True, gc=False):
    """End every reservation as if its owner had died: before a forced close, or at start-up."""

    by_close: bool = False
    """For the accounts: whether a close ends them."""


class Observe(msgspec.Struct, frozen=True, gc=False):
    """Record what the chain says. It never changes `spent` or `accepted`."""

    fact: ChannelFact
    is_rollback: bool = False
    """The chain reorganized: values of an older block replace newer ones."""
    at: int = 0
    """Chain time of the fact, in Unix seconds; 0 when it is unknown."""


class Publish(msgspec.Struct, frozen=True, gc=False):
    """Record, before the broadcast, that a voucher of this amount becomes public."""

    cumulative_amount: int


class Idle(msgspec.Struct, frozen=True, gc=False):
    """The state of a channel when it was judged idle."""

    active_at: int
    spent: int


class BeginClose(msgspec.Struct, frozen=True, gc=False):
    """Stop accepting and reserving. Running requests and streams may finish."""

    presented: VerifiedVoucher | None = None
    """The voucher of the payer's own close; None when the payee closes."""
    only_if_idle: Idle | None = None
    """Do not begin if the channel was used since then, or has a reservation."""


class CommitClose(msgspec.Struct, frozen=True, gc=False):
    """Decide the voucher of the close. From then on the settler must close the channel."""

    voucher: LadderVoucher


class AbortClose(msgspec.Struct, frozen=True, gc=False):
    """The close failed permanently and moved nothing: the channel continues (CLOSE-04)."""

    undecided_only: bool = False
    """Do not abort a close whose voucher was decided meanwhile: the settler must send it."""


class RecordClose(msgspec.Struct, frozen=True, gc=False):
    """The close was mined."""

    fact: ChannelFact
    tx_hash: bytes


class Repair(msgspec.Struct, frozen=True, gc=False):
    """An operator raises `accepted` and `spent` of a ledger that is older than the chain.

    This also accounts for what other programs settled or closed with the payee's key.
    """

    accepted: int
    spent: int


class Restore(msgspec.Struct, frozen=True, gc=False):
    """Add a channel from another ledger's export, if this ledger does not have it."""

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
