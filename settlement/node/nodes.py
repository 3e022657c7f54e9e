"""Several nodes held against each other: who lags, who is elsewhere, whom to believe (pure).

Compared is the block that all should have by now, so deep that no ordinary reorg moves it. Nodes
that show different ones cannot all be right, and none of them can prove it. So:

- what more than half of all configured nodes show is believed, and the others are left out until
  they show it too;
- where no such majority is, nobody is left out and no deposit is believed: a new one is what a
  lying node would invent to be served for nothing.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from settlement.types import BlockRef

__all__ = [
    "EndpointView",
    "Quorum",
    "judge_nodes",
    "majority_head",
    "nodes_ahead",
    "nodes_behind",
]

_NODES_MIN: Final = 3


class EndpointView(msgspec.Struct, frozen=True):
    """What one node showed when all were asked."""

    name: str
    head: BlockRef | None
    """None: it did not answer."""
    at_depth: BlockRef | None = None
    """The block that all nodes should have by now."""


class Quorum(msgspec.Struct, frozen=True):
    """What came of a comparison."""

    left_out: frozenset[str] = frozenset()
    """Nodes that are not asked: the others outvoted them."""
    disputing: tuple[str, ...] = ()
    """Nodes of which no majority agrees; empty while one does."""


def judge_nodes(views: Sequence[EndpointView], left_out: Collection[str] = ()) -> Quorum:
    """Return whom to believe, given who was left out so far.

    Who was left out is taken in again once it shows what the believed ones show; silence is no
    reason. A node that is away takes no side.
    """
    shown = {  # with its time: a node may show true blocks, and date them falsely
        view.name: (view.at_depth.hash, view.at_depth.timestamp)
        for view in views
        if view.at_depth is not None
    }
    before = frozenset(left_out)
    believed = {shows for name, shows in shown.items() if name not in before}
    if len(believed) <= 1:
        taken_in = {name for name in before if shown.get(name) in believed}
        outvoted = {n for n, shows in shown.items() if believed and shows not in believed}
        return Quorum(left_out=(before - taken_in) | outvoted)
    shown_by_most, votes = Counter(shown.values()).most_common(1)[0]
    if 2 * votes > len(views):
        outvoted = {name for name, shows in shown.items() if shows != shown_by_most}
        silent = {name for name in before if name not in shown}
        return Quorum(left_out=frozenset(outvoted | silent))
    return Quorum(left_out=before, disputing=tuple(name for name in shown if name not in before))


def majority_head(views: Sequence[EndpointView], *, since: int) -> BlockRef | None:
    """Return the highest head that more than half of all nodes have reached.

    None when fewer answer, when that block is from before `since`, in Unix seconds (they may be
    stuck, and who is ahead of them right), and of two nodes: which of them is wrong none can say.
    """
    heads = sorted([view.head for view in views if view.head], key=lambda head: -head.number)
    place = len(views) // 2
    if len(views) < _NODES_MIN or len(heads) <= place or heads[place].timestamp < since:
        return None
    return heads[place]


def nodes_ahead(
    views: Sequence[EndpointView], head: BlockRef | None, *, blocks: int
) -> frozenset[str]:
    """Return the names of nodes so far ahead of the majority's head that theirs is invented."""
    if head is None:
        return frozenset()
    return frozenset(
        view.name for view in views if view.head and view.head.number - head.number >= blocks
    )


def nodes_behind(views: Sequence[EndpointView], *, blocks: int) -> list[str]:
    """Return the names of nodes that answer, and lag so many blocks behind the most advanced."""
    heads = [view.head.number for view in views if view.head is not None]
    best = max(heads, default=0)
    return [view.name for view in views if view.head and best - view.head.number >= blocks]
