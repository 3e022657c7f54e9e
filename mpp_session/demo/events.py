"""What the demo's agent says to the demo, one JSON object on each line."""

from typing import TypeAlias

import msgspec

__all__ = ["Answered", "Asked", "Closed", "Event", "Held", "Piece", "Refused"]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The wallet refused a payment."""

    code: str
    reason: str


class Held(msgspec.Struct, frozen=True, tag=True):
    """The wallet waits for its owner's approval."""

    approval_id: str
    reason: str


class Asked(msgspec.Struct, frozen=True, tag=True):
    """A question was asked, and its answer begins."""

    prompt: str


class Piece(msgspec.Struct, frozen=True, tag=True):
    """A piece of an answer."""

    text: str
    tokens: int
    """So far."""


class Answered(msgspec.Struct, frozen=True, tag=True):
    """An answer is complete; units and cost in base units are from its receipt."""

    prompt: str
    text: str
    input_tokens: int
    output_tokens: int
    units: int
    cost: int
    seconds: float


class Closed(msgspec.Struct, frozen=True, tag=True):
    """A channel was closed with the server."""

    channel_id: bytes
    vouchers: int
    spent: int


Event: TypeAlias = Refused | Held | Asked | Piece | Answered | Closed
