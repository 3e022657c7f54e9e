"""The entries of the accounts: what one request was charged, or why `spent` grew without one."""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Final

import msgspec

from channel.limits import CHARGE_TEXT_CHARS_MAX

__all__ = [
    "Charge",
    "ChargeEnd",
    "ChargeNote",
    "ChargeOutcome",
    "clean_text",
    "decode_note",
    "encode_note",
]


class ChargeOutcome(StrEnum):
    """How a paid request ended, or why `spent` grew without one."""

    DONE = "done"
    """Its answer was complete."""
    LEFT = "left"
    """The client left before the end; what was sent until then is charged."""
    FAILED = "failed"
    """Its answer ended early: an error, a stop, or a voucher that did not come."""
    EXPIRED = "expired"
    """Its process died: a stream's reserved step counts as sent."""
    CLOSED = "closed"
    """A close ended it; a stream's reserved step counts as sent."""
    REPAIRED = "repaired"
    """No request: an operator raised `spent`."""
    BEFORE = "before"
    """No request: spent when the channel came into this ledger, on chain or in another ledger."""


class ChargeNote(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the accounts record at a request's start, besides its amount."""

    route: str
    """Method and path template."""
    variant: str = ""
    """What else its price depends on, such as a model's name."""


class ChargeEnd(msgspec.Struct, frozen=True, gc=False):
    """What the accounts record at a request's end, besides its amount."""

    outcome: ChargeOutcome
    usage: Mapping[str, int]
    """Units by kind."""
    response_id: str = ""
    """The id that the answer itself states; empty when there is none."""


class Charge(msgspec.Struct, frozen=True, gc=False):
    """One entry: the part of `spent` that one request, or a change without a request, added."""

    amount: int
    outcome: ChargeOutcome
    reservation_id: bytes = b""
    """The request's reservation; empty without a request."""
    is_stream: bool = False
    note: bytes = b""
    """An encoded `ChargeNote`, or empty."""
    usage: Mapping[str, int] | None = None
    """Units by kind; None when they are unknown."""
    response_id: str = ""


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(ChargeNote)


@lru_cache(maxsize=4096)
def encode_note(route: str, variant: str = "") -> bytes:
    """Return a `ChargeNote` for a reservation to carry. Its texts are those of `clean_text`."""
    return _encoder.encode(ChargeNote(clean_text(route), clean_text(variant)))


@lru_cache(maxsize=4096)
def decode_note(note: bytes) -> ChargeNote:
    """Return what `encode_note` encoded; empty texts for an empty note.

    Raises:
        ValueError: `encode_note` did not write it.
    """
    return _decoder.decode(note) if note else ChargeNote("")


def clean_text(text: str) -> str:
    """Return a text of a stranger as any database stores it: short, and printable.

    PostgreSQL refuses a NUL, and would refuse the other requests of the batch with it.
    """
    text = text[:CHARGE_TEXT_CHARS_MAX]
    if text.isprintable():
        return text
    return "".join([one if one.isprintable() else "\ufffd" for one in text])
