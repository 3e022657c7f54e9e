"""Compares the nodes now and then, and leaves out those that are not believed.

`settlement.node.nodes` judges; this module applies the judgement and rings alarms. The provider's
watcher has one, and so has the tower.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from settlement.alarms import AlarmKind, Alarms
from settlement.escrow.reader import EscrowReader
from settlement.node.nodes import (
    EndpointView,
    judge_nodes,
    majority_head,
    nodes_ahead,
    nodes_behind,
)

__all__ = ["NodeGuard", "NodeLimits"]

_FRESH_S: Final = 60
_NODES_MIN: Final = 2
"""A comparison needs two nodes."""


class NodeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far nodes may differ."""

    lag_blocks_max: int = 20
    compare_depth: int = 5
    """Deeper than any ordinary reorg; deeper still if deposits must be."""


class NodeGuard:
    """Knows which nodes of a chain to believe."""

    def __init__(
        self,
        reader: EscrowReader,
        alarms: Alarms,
        *,
        limits: NodeLimits | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Guard `reader`'s nodes and ring `alarms`; `wall` is this machine's clock."""
        self._reader = reader
        self._alarms = alarms
        self._limits = limits or NodeLimits()
        self._wall = wall
        self._left_out: frozenset[str] = frozenset()
        self._reached: int | None = None
        """The newest block that most nodes have."""
        self.is_disputed = False
        """Whether nodes show different blocks and no majority agrees on one."""

    async def check(self) -> None:
        """Compare the nodes, if there are several, and leave out those a majority contradicts.

        Raises:
            ChainUnavailableError: No usable answer.
        """
        if self._reader.rpc.node_count < _NODES_MIN:
            return
        views = await self._reader.rpc.compare_nodes(depth=self._limits.compare_depth)
        since = int(self._wall()) - _FRESH_S
        majority = majority_head(views, since=since)
        self._reached = None if majority is None else majority.number
        ahead = nodes_ahead(views, majority, blocks=self._limits.lag_blocks_max)
        self._avoid_behind([view for view in views if view.name not in ahead])
        judged = judge_nodes(views, self._left_out)
        self._left_out = judged.left_out
        self.is_disputed = bool(judged.disputing)
        left_out = judged.left_out | ahead
        self._reader.rpc.leave_out(left_out)
        self._tell(judged.disputing, sorted(left_out))

    def fork_below(self, number: int) -> int | None:
        """Return the newest reliable block, if most nodes are far from having this one.

        None if they are not, by the last comparison.
        """
        if self._reached is None or number - self._reached < self._limits.lag_blocks_max:
            return None
        return max(0, self._reached - self._limits.compare_depth)

    def _avoid_behind(self, views: list[EndpointView]) -> None:
        """Start a cool-down for the nodes that lag far behind the others."""
        behind = set(nodes_behind(views, blocks=self._limits.lag_blocks_max))
        for view in views:
            if view.name in behind:
                text = f"{self._limits.lag_blocks_max} blocks or more behind the others"
                self._alarms.ring(AlarmKind.NODE_BEHIND, text, subject=view.name)
            elif view.head is not None:
                self._alarms.end(AlarmKind.NODE_BEHIND, subject=view.name)
        self._reader.rpc.avoid(behind)

    def _tell(self, disputing: tuple[str, ...], left_out: list[str]) -> None:
        where = f"nodes show different blocks {self._limits.compare_depth} deep, or are far ahead"
        if disputing:
            names = ", ".join(disputing)
            text = f"{where}, and no majority agrees: {names}: new deposits are refused"
            self._alarms.ring(AlarmKind.NODES_DISAGREE, text, level=2)
        elif left_out:
            text = f"{where}, left out: {', '.join(left_out)}"
            self._alarms.ring(AlarmKind.NODES_DISAGREE, text, level=1)
        else:
            self._alarms.end(AlarmKind.NODES_DISAGREE)
