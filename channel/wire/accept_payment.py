"""`Accept-Payment`: the payment methods that a client prefers (CORE-11)."""

import re
from collections.abc import Sequence

import msgspec

from channel.limits import ACCEPT_PAYMENT_RANGES_MAX, REQUEST_PARAM_BYTES_MAX

__all__ = ["PaymentRange", "parse_accept_payment", "rank_offers"]

_RANGE = re.compile(
    r"(\*|[a-z][a-z0-9:_-]*)/(\*|[A-Za-z0-9-]+)"
    r"(?:[ \t]*;[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
).fullmatch


class PaymentRange(msgspec.Struct, frozen=True, gc=False):
    """One entry: `*` stands for any method or any intent."""

    method: str
    intent: str
    quality: float = 1.0

    @property
    def specificity(self) -> int:
        """How many parts are named rather than `*`; a named method counts twice."""
        return 2 * (self.method != "*") + (self.intent != "*")


def parse_accept_payment(value: str) -> tuple[PaymentRange, ...] | None:
    """Return the ranges, or None when the header is malformed; the caller then ignores it."""
    entries = value.split(",", ACCEPT_PAYMENT_RANGES_MAX)
    if len(value) > REQUEST_PARAM_BYTES_MAX or len(entries) > ACCEPT_PAYMENT_RANGES_MAX:
        return None
    ranges = []
    for entry in entries:
        match = _RANGE(entry.strip(" \t"))
        if match is None:
            return None
        ranges.append(PaymentRange(match[1], match[2], float(match[3] or 1)))
    return tuple(ranges)


def rank_offers(value: str | None, offers: Sequence[tuple[str, str]]) -> list[int]:
    """Return the indices of the `(method, intent)` offers to make, best first.

    The order is falling quality, then the server's own order. An offer whose most specific range
    has quality 0 is left out. Without a header, with a malformed one, or when no offer would be
    left, every offer is made, because a 402 always carries a challenge (CORE-01).
    """
    ranges = None if value is None else parse_accept_payment(value)
    if ranges is None:
        return list(range(len(offers)))
    qualities = [_quality(ranges, *offer) for offer in offers]
    wanted = [index for index, quality in enumerate(qualities) if quality > 0]
    wanted.sort(key=lambda index: -qualities[index])
    return wanted or list(range(len(offers)))


def _quality(ranges: Sequence[PaymentRange], method: str, intent: str) -> float:
    matching = [
        entry for entry in ranges if entry.method in ("*", method) and entry.intent in ("*", intent)
    ]
    return max(matching, key=lambda entry: entry.specificity).quality if matching else 0.0
