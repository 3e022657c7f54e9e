"""Decides recorded asks again by another policy, to see what a change would have changed (pure)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from mpp_session.wallet.policy.compiled import WalletPolicy
from mpp_session.wallet.policy.deciding import counters_for, decide
from mpp_session.wallet.types import Ask, Counter, Decision, Snapshot

__all__ = ["Changed", "replay"]

_First = Literal["origin", "recipient", "chain"]
_ORDER = {"deny": 0, "ask": 1, "allow": 2}


class Changed(msgspec.Struct, frozen=True):
    """An ask that this policy decides in another way."""

    ask: Ask
    before: Decision
    after: Decision

    @property
    def is_looser(self) -> bool:
        """Whether more is allowed than was."""
        return _ORDER[self.after.action] > _ORDER[self.before.action]


class _Books:
    """What was spent by the asks that were allowed, reckoned as this policy counts it."""

    def __init__(self, policy: WalletPolicy) -> None:
        self._policy = policy
        self._spent: defaultdict[Counter, list[tuple[float, int]]] = defaultdict(list)
        self._paid: set[tuple[str, str, object]] = set()

    def snapshot(self, ask: Ask) -> Snapshot:
        return Snapshot(
            sums={one: self._sum(one, ask.at) for one in counters_for(self._policy, ask)},
            never_paid=frozenset(
                what for what, value in _firsts(ask) if (ask.agent, what, value) not in self._paid
            ),
        )

    def book(self, ask: Ask) -> None:
        self._paid.update((ask.agent, what, value) for what, value in _firsts(ask))
        for counter in counters_for(self._policy, ask):
            if counter.what != "locked":
                amount = 1 if counter.what == "requests" else ask.amount
                self._spent[counter].append((ask.at, amount))

    def _sum(self, counter: Counter, at: float) -> int:
        entries = self._spent[counter]
        if counter.window_s is not None:
            entries[:] = [entry for entry in entries if entry[0] > at - counter.window_s]
        return sum(amount for _, amount in entries)


def _firsts(ask: Ask) -> tuple[tuple[_First, object], ...]:
    return ("origin", ask.origin), ("recipient", ask.recipient), ("chain", ask.chain_id)


def replay(
    policy: WalletPolicy, asks: Iterable[tuple[Ask, Snapshot | None, Decision]]
) -> Iterator[Changed]:
    """Yield the asks for which action or code differ from what was decided.

    Args:
        policy: The policy to try.
        asks: In their order, each with the snapshot that it was decided by, and the decision. With
            None the sums are reckoned from the asks before that were allowed then; what lies in
            deposits, open channels and streams, breakers and findings are left out.
    """
    books = _Books(policy)
    for ask, snapshot, before in asks:
        after = decide(policy, ask, books.snapshot(ask) if snapshot is None else snapshot)
        if before.action == "allow":
            books.book(ask)
        if (after.action, after.code) != (before.action, before.code):
            yield Changed(ask, before, after)
