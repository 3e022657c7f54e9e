"""Holds the nodes against each other, now and then, and asks only those that can be believed.

What is judged is in `settlement.node.nodes`; here it is carried out, and told of. Whoever relies on
several nodes has one: the watcher of a provider, and its tower.
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
"""One has nobody to disagree with."""


class NodeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far nodes may differ."""

    lag_blocks_max: int = 20
    compare_depth: int = 5
    """Where no ordinary reorg reaches; deeper where a deposit has to be deeper."""


class NodeGuard:
    """Knows which nodes of a chain are believed."""

    def __init__(
        self,
        reader: EscrowReader,
        alarms: Alarms,
        *,
        limits: NodeLimits | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Guard `reader`'s nodes, and ring `alarms`; `wall` is this machine's clock."""
        self._reader = reader
        self._alarms = alarms
        self._limits = limits or NodeLimits()
        self._wall = wall
        self._left_out: frozenset[str] = frozenset()
        self._reached: int | None = None
        """The newest block that most nodes have."""
        self.is_disputed = False
        """They show different blocks, and no majority one."""

    async def check(self) -> None:
        """Compare the nodes, where there are several, and leave out who is not believed.

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
        """Return the newest block to rely on, if most nodes are far from having this one.

        None when they are not, by what they showed last.
        """
        if self._reached is None or number - self._reached < self._limits.lag_blocks_max:
            return None
        return max(0, self._reached - self._limits.compare_depth)

    def _avoid_behind(self, views: list[EndpointView]) -> None:
        """Let those rest that lag far behind the others."""
        behind = set(nodes_behind(views, blocks=self._limits.lag_blocks_max))
        for view in views:
            if view.name in behind:
                text = f"{self._limits.lag_blocks_max} blocks or more behind the others"
                self._alarms.ring(AlarmKind.NODE_BEHIND, text, subject=view.name)
            elif view.head is not None:
                self._alarms.end(AlarmKind.NODE_BEHIND, subject=view.name)
        self._reader.rpc.avoid(behind)

    def _tell(self, disputing: tuple[str, ...], left_out: list[str]) -> None:
        where = f"different blocks {self._limits.compare_depth} deep, or far ahead"
        if disputing:
            names = ", ".join(disputing)
            text = f"{where}, none in the majority: {names}: no deposit is believed"
            self._alarms.ring(AlarmKind.NODES_DISAGREE, text, level=2)
        elif left_out:
            text = f"{where}, left out: {', '.join(left_out)}"
            self._alarms.ring(AlarmKind.NODES_DISAGREE, text, level=1)
        else:
            self._alarms.end(AlarmKind.NODES_DISAGREE)
