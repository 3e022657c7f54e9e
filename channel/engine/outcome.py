"""What a content request asks to be held, and what an action left in the books."""

from collections.abc import Awaitable, Callable

import msgspec

from channel.state.channel_state import ChannelState
from channel.state.requests import RequestClaim, StoredResponse
from channel.types import TxHash

__all__ = ["Hold", "Outcome"]


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Money to hold, in the transaction that takes the credential, before a handler runs (F-24)."""

    reservation_id: bytes
    units_min: int
    units_max: int
    claim: Callable[[bytes], Awaitable[RequestClaim]] | None = None
    """Reads the request for its idempotency key, when it has one: asked once the payer is known."""


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The channel after an action, as it is on disk."""

    state: ChannelState
    stored: StoredResponse | None = None
    """The answer this idempotency key was given before: nothing is held, repeat it."""
    claim: RequestClaim | None = None
    """The idempotency key that was claimed with the reservation."""
    shown_max: int | None = 0
    """What the credential may learn of the books: all of them if None, else no amount above this
    one, or above what the chain says (O-20). Set to None only for who has proven the key."""
    tx_hash: TxHash | None = None
    confirmations: int | None = None
