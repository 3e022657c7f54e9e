"""What a content request reserves, and the result of an action."""

from collections.abc import Awaitable, Callable

import msgspec

from channel.state.channel_state import ChannelState
from channel.state.requests import RequestClaim, StoredResponse
from channel.types import TxHash

__all__ = ["Hold", "Outcome"]


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """The amount to reserve with the credential, before a handler runs (F-24)."""

    reservation_id: bytes
    amount_min: int
    """What the request costs at least, in base units."""
    amount_max: int
    """What it may hold, as far as that is covered."""
    note: bytes = b""
    """What the accounts say about the request from its start (`ChargeNote`, encoded)."""
    claim: Callable[[bytes], Awaitable[RequestClaim]] | None = None
    """Reads the request for its idempotency key, if any; called once the payer is known."""


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The channel after an action, as it is on disk."""

    state: ChannelState
    stored: StoredResponse | None = None
    """The earlier answer for this idempotency key: nothing is reserved, repeat the answer."""
    claim: RequestClaim | None = None
    """The idempotency key that was claimed with the reservation."""
    shown_max: int | None = 0
    """What the credential may see: every amount if None, otherwise none above this and the
    chain's (O-20). None only for a client that has proven the voucher key."""
    tx_hash: TxHash | None = None
    confirmations: int | None = None
