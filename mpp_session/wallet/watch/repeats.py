"""The same paid request, again and again at any pace: what a breaker's window is too short for.

A loop need not fail to cost money. Among the last requests of an agent to an origin, the one that
stands there most often is counted; how often is usual, is learned (pure).
"""

from collections import Counter
from typing import Final

import msgspec

from mpp_session.wallet.watch.observation import Finding
from mpp_session.wallet.watch.sample import DAY_S

__all__ = ["Repeats", "accept_repeats", "judge_repeats", "note_request"]

RECENT: Final = 32
"""Requests among which repetitions are counted."""
REPEATS: Final = 12
"""So many equal requests among them may always be."""


class Repeats(msgspec.Struct, array_like=True, frozen=True):
    """Of one agent and origin."""

    recent: tuple[bytes, ...] = ()
    """The last paid requests, by digest."""
    requests: int = 0
    top: int = 1
    """How often one request is among them normally, at most."""
    top_at: float = 0.0
    """When that last grew."""

    def most(self) -> int:
        """Return how often the most frequent request is among the last ones."""
        return max(Counter(self.recent).values(), default=0)


def note_request(state: Repeats, digest: bytes, at: float, warm_up: int) -> Repeats:
    """Return the state after a paid request. What is usual grows by one a day at most."""
    recent = (*state.recent, digest)[-RECENT:]
    count, top, top_at = recent.count(digest), state.top, state.top_at
    if count > top and (state.requests < warm_up or at - top_at >= DAY_S):
        top, top_at = (count if state.requests < warm_up else top + 1), at
    return Repeats(recent, state.requests + 1, top, top_at)


def judge_repeats(state: Repeats, warm_up: int, name: str = "this origin") -> Finding | None:
    """Return whether one request stands among the last ones unusually often."""
    limit = max(REPEATS, 2 * state.top)
    if state.requests < warm_up or len(state.recent) <= limit or (most := state.most()) <= limit:
        return None
    return Finding(
        statistic="repeat",
        is_origin=True,
        seen=most,
        limit=limit,
        text=f"{most} of the last {len(state.recent)} paid requests to {name} are the same one; "
        f"usual are at most {state.top}",
    )


def accept_repeats(state: Repeats, at: float) -> Repeats:
    """A person agreed: so many repetitions are normal from now on."""
    return Repeats(state.recent, state.requests, max(state.top, state.most()), at)
