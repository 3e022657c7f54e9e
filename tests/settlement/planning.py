"""What is done now about some channels, as the watcher finds it: decide for each, then choose."""

from collections.abc import Iterable

from settlement.settle.schedule import Due, Moment, SettlePolicy, Watched, choose, decide

__all__ = ["plan"]


def plan(channels: Iterable[Watched], moment: Moment, policy: SettlePolicy) -> list[Due]:
    dues = [due for watched in channels if (due := decide(watched, moment, policy)) is not None]
    return choose(dues, moment, policy)
