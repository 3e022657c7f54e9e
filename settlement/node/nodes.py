"""Compares several nodes: which lag, which disagree, which to believe (pure).

The block compared is one that every node should have by now, deep enough that no ordinary reorg
moves it. If nodes show different blocks at that depth, at least one is wrong, and none can prove
its own. Therefore:

- What more than half of all configured nodes show is believed. The others are left out until they
  show it too.
- Without such a majority no node is left out and no deposit is believed: a lying node would invent
  a deposit to be served for nothing.
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
    """What one node showed in a comparison."""

    name: str
    head: BlockRef | None
    """None: the node did not answer."""
    at_depth: BlockRef | None = None
    """The block that every node should have by now."""


class Quorum(msgspec.Struct, frozen=True):
    """The result of a comparison."""

    left_out: frozenset[str] = frozenset()
    """Nodes that are not asked, because a majority contradicts them."""
    disputing: tuple[str, ...] = ()
    """Nodes among which no majority agrees; empty while a majority does."""


def judge_nodes(views: Sequence[EndpointView], left_out: Collection[str] = ()) -> Quorum:
    """Return which nodes to believe, given which were left out so far.

    A node that was left out is included again once it shows what the majority shows. A node that
    does not answer is neither left out nor included for that.
    """
    shown = {  # with its timestamp: a node may show true blocks with false timestamps
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

    None when fewer than half answer; when that block is older than `since` in Unix seconds, as
    those nodes may be stuck and a node ahead of them right; and with two nodes, because neither can
    be shown to be wrong.
    """
    heads = sorted([view.head for view in views if view.head], key=lambda head: -head.number)
    place = len(views) // 2
    if len(views) < _NODES_MIN or len(heads) <= place or heads[place].timestamp < since:
        return None
    return heads[place]


def nodes_ahead(
    views: Sequence[EndpointView], head: BlockRef | None, *, blocks: int
) -> frozenset[str]:
    """Return the names of nodes so far ahead of the majority that their head must be invented."""
    if head is None:
        return frozenset()
    return frozenset(
        view.name for view in views if view.head and view.head.number - head.number >= blocks
    )


def nodes_behind(views: Sequence[EndpointView], *, blocks: int) -> list[str]:
    """Return the names of nodes that answer but lag `blocks` or more behind the highest head."""
    heads = [view.head.number for view in views if view.head is not None]
    best = max(heads, default=0)
    return [view.name for view in views if view.head and best - view.head.number >= blocks]
