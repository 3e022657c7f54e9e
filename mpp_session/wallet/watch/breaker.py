"""Breakers: too many 402s, failures after paying, or the same request again and again (pure).

Times of the last events are kept, as many as the count that opens a breaker, so a state is small
and the window slides exactly. A loop whose requests all succeed opens `same_request`.
"""

from typing import Final, Literal

import msgspec

from mpp_session.wallet.policy.compiled import Breaker, Trip

__all__ = ["BreakerState", "Outcome", "Which", "note", "open_until"]

Which = Literal["repeated_402", "paid_errors", "same_request"]
SEEN_KEPT: Final = 128
"""Requests whose repetitions are counted for one agent and origin."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one request ended."""

    at: float
    digest: bytes
    status: int
    """Of the answer; 0 where there was none."""
    paid: int
    """What it was charged, or the most that it can have been, in base units."""

    def events(self) -> tuple[Which, ...]:
        """Return which breakers count it."""
        failed = self.status == 0 or self.status >= 400  # noqa: PLR2004 -- HTTP's errors
        again = self.status == 402  # noqa: PLR2004 -- payment is asked for again
        found: dict[Which, bool] = {
            "same_request": self.paid > 0,
            "repeated_402": again,
            "paid_errors": failed and not again and self.paid > 0,
        }
        return tuple(which for which, counts in found.items() if counts)


class BreakerState(msgspec.Struct, array_like=True, frozen=True):
    """Of one agent and origin."""

    times: dict[str, tuple[float, ...]] = {}
    """By breaker; `same_request` by digest, in hexadecimal."""
    until: dict[str, float] = {}
    """By breaker that opened: until when."""


def note(state: BreakerState, outcome: Outcome, settings: Breaker) -> BreakerState:
    """Return the state after a request has ended.

    A breaker that opens forgets what it counted: after its cooldown it counts anew.
    """
    times, until = dict(state.times), dict(state.until)
    for which in outcome.events():
        limit: Trip = getattr(settings, which)
        key = outcome.digest.hex() if which == "same_request" else which
        begin = outcome.at - limit.window_s
        seen = (*(at for at in times.pop(key, ()) if at > begin), outcome.at)
        if len(seen) >= limit.count:
            until[which] = max(until.get(which, 0.0), outcome.at + limit.cooldown_s)
        else:
            times[key] = seen
    if len(times) > SEEN_KEPT:
        del times[next(key for key in times if key not in _WORDS)]  # not seen for the longest time
    return BreakerState(times, until)


def open_until(state: BreakerState, now: float, settings: Breaker) -> tuple[str, float] | None:
    """Return in words which breaker is open and until when; None if none is."""
    found = [
        (until, which) for which, until in state.until.items() if until > now and which in _WORDS
    ]
    if not found:
        return None
    until, which = max(found)
    return _WORDS[which].format(limit=getattr(settings, which)), until


_WORDS: Final = {
    "repeated_402": "{limit.count} requests ended with another 402 within {limit.window_s:g} s",
    "paid_errors": "{limit.count} requests that were paid and failed within {limit.window_s:g} s",
    "same_request": "the same request {limit.count} times within {limit.window_s:g} s",
}
