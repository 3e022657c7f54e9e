"""What another policy would have decided about the asks of the trail.

The books are rebuilt from the trail under the other policy: what was spent and locked in each of
its windows, which channels were open, and who was paid before. They grow by what was allowed then,
also where the other policy would have refused it.
"""

import sqlite3
from collections import deque
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from mpp_session.wallet.audit.sums import read_asks
from mpp_session.wallet.audit.trail import Entry, read_entries
from mpp_session.wallet.policy import WalletPolicy, counters_for
from mpp_session.wallet.policy.replaying import Changed, replay
from mpp_session.wallet.types import Ask, Code, Counter, Decision, Snapshot

__all__ = ["Replayed", "replay_trail", "snapshots"]

_OTHERWISE: Final = frozenset(
    {
        Code.FROZEN,
        Code.AGENT_REVOKED,
        Code.BREAKER_OPEN,
        Code.ANOMALY_HELD,
        Code.APPROVAL_DENIED,
        Code.APPROVAL_EXPIRED,
        Code.APPROVALS_FULL,
        Code.CLIENT_LIMIT,
    }
)
"""Refusals by what is not in a policy."""
_First = Literal["origin", "recipient", "chain"]


class Replayed(msgspec.Struct):
    """Asks of one request that the other policy decides alike, and otherwise than was decided."""

    first: Changed
    asks: int = 0
    amount: int = 0
    """Of all of them, in base units."""


def replay_trail(
    db: sqlite3.Connection, policy: WalletPolicy, *, since: float | None = None
) -> tuple[int, list[Replayed]]:
    """Return how many asks were decided again, and those that come out otherwise, in order.

    Raises:
        StoreError: A record cannot be read.
    """
    asked = 0

    def count_asks() -> Iterator[tuple[Ask, Snapshot, Decision]]:
        nonlocal asked
        for each in snapshots(db, policy, since=since):
            asked += 1
            yield each

    found: dict[tuple[str, ...], Replayed] = {}
    for one in replay(policy, count_asks()):
        ask, before, after = one.ask, one.before, one.after
        key = (ask.agent, ask.request_id, ask.kind, before.action, after.action, after.code)
        group = found.setdefault(key, Replayed(one))
        group.asks += 1
        group.amount += ask.amount
    return asked, list(found.values())


def snapshots(
    db: sqlite3.Connection, policy: WalletPolicy, *, since: float | None = None
) -> Iterator[tuple[Ask, Snapshot, Decision]]:
    """Yield each ask with the books that this policy would have had, and what was decided.

    Left out is what no policy decides: a freeze, a breaker, an anomaly, a person's no, and the
    client's own limits. An approval that was used counts as given.

    Args:
        db: With the trail, which is read from its beginning.
        policy: The one to try.
        since: Yield only what was asked since then, in Unix seconds.

    Raises:
        StoreError: A record cannot be read.
    """
    books = _Books()
    for entry, ask, decision in read_asks(read_entries(db)):
        if ask is None or decision is None:
            books.end(entry)
            continue
        counters = counters_for(policy, ask)
        if decision.code not in _OTHERWISE and (since is None or ask.at >= since):
            approved = ask.amount if entry.fields.get("approval_id") else None
            yield ask, books.snapshot(ask, counters, approved), decision
        if decision.action == "allow":
            books.add(ask, counters)


class _Books:
    def __init__(self) -> None:
        self._sums: dict[Counter, _Sum] = {}
        self._locked: dict[str, list[tuple[Counter, int]]] = {}
        self._open: dict[str, tuple[str, str]] = {}
        self._paid: set[tuple[str, str, object]] = set()

    def snapshot(self, ask: Ask, counters: tuple[Counter, ...], approved: int | None) -> Snapshot:
        channel = None if ask.channel_id is None else "0x" + ask.channel_id.hex()
        place = (ask.agent, ask.origin)
        return Snapshot(
            sums={
                counter: each.at(ask.at) if (each := self._sums.get(counter)) else 0
                for counter in counters
            },
            channels=sum(
                where == place and other != channel for other, where in self._open.items()
            ),
            never_paid=frozenset(
                what for what, value in _firsts(ask) if (ask.agent, what, value) not in self._paid
            ),
            approved=approved,
        )

    def add(self, ask: Ask, counters: tuple[Counter, ...]) -> None:
        channel = None if ask.channel_id is None else "0x" + ask.channel_id.hex()
        for counter in counters:
            if counter.what == "requests":
                amount = int(ask.is_first)
            elif (counter.what == "locked") == (ask.kind == "deposit"):
                amount = ask.amount
            else:
                continue
            window_s = None if counter.what == "locked" else counter.window_s
            self._sums.setdefault(counter, _Sum(window_s)).add(ask.at, amount)
            if counter.what == "locked" and channel is not None:
                self._locked.setdefault(channel, []).append((counter, amount))
        self._paid.update((ask.agent, what, value) for what, value in _firsts(ask))
        if ask.kind == "deposit" and channel is not None:
            self._open[channel] = (ask.agent, ask.origin)

    def end(self, entry: Entry) -> None:
        if entry.kind != "close":
            return
        channel = str(entry.fields.get("channel_id"))
        self._open.pop(channel, None)
        for counter, amount in self._locked.pop(channel, ()):
            self._sums[counter].add(entry.at, -amount)


class _Sum:
    """A sum over a rolling window, or for ever."""

    def __init__(self, window_s: int | None) -> None:
        self._window_s = window_s
        self._parts: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, at: float, amount: int) -> None:
        self._total += amount
        if self._window_s is not None:
            self._parts.append((at, amount))

    def at(self, now: float) -> int:
        while self._window_s is not None and self._parts:
            if self._parts[0][0] > now - self._window_s:
                break
            self._total -= self._parts.popleft()[1]
        return self._total


def _firsts(ask: Ask) -> tuple[tuple[_First, object], ...]:
    return ("origin", ask.origin), ("recipient", ask.recipient), ("chain", ask.chain_id)
