"""What the books need of the wallet's other parts, which work in the books' transactions."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from channel.errors import AgentError, PolicyRefusedError
from mpp_session.wallet.types import Ask, Counter, Decision, Snapshot

__all__ = [
    "AgentLike",
    "ApprovalsPart",
    "ApprovedLike",
    "CountersFor",
    "Decide",
    "EnvelopeLike",
    "Judge",
    "NoApprovals",
    "NoTrail",
    "NoWatch",
    "PolicyLike",
    "RuleLike",
    "TrailPart",
    "WatchPart",
]


class AgentLike(Protocol):
    """An agent as the policy names it."""

    @property
    def expires(self) -> float:
        """Unix seconds."""


class EnvelopeLike(Protocol):
    """A budget of the policy. Amounts in base units of its token."""

    @property
    def token(self) -> str:
        """Alias."""

    @property
    def amount(self) -> int:
        """The most that may be signed and charged within the window."""

    @property
    def window_s(self) -> int | None:
        """Rolling; None counts for ever, and with `per_task`."""

    @property
    def per_task(self) -> bool:
        """Whether each task has the amount for itself."""

    @property
    def locked_max(self) -> int:
        """The most that may lie in deposits."""


class RuleLike(Protocol):
    """A rule of the policy."""

    @property
    def name(self) -> str:
        """By which it can be revoked."""


class Judge(Protocol):
    """A policy's word on a request that is not sent yet."""

    def __call__(self, snapshot: Snapshot, /) -> Decision | None:
        """Return why it may not be sent, by what is frozen and revoked; None where it may."""


class PolicyLike(Protocol):
    """What the books read of a policy themselves; the rest is for `Decide`."""

    @property
    def revision(self) -> int:
        """Grows with each change."""

    @property
    def hash(self) -> str:
        """Equal policies have equal ones."""

    @property
    def agents(self) -> Mapping[str, AgentLike]:
        """By name."""

    @property
    def envelopes(self) -> Mapping[str, EnvelopeLike]:
        """By name."""

    @property
    def rules(self) -> Sequence[RuleLike]:
        """All of them."""


Decide = Callable[[Any, Ask, Snapshot], Decision]
CountersFor = Callable[[Any, Ask], Sequence[Counter]]


class TrailPart(Protocol):
    """The audit trail."""

    @property
    def SCHEMA(self) -> str:  # noqa: N802 -- as the parts name it
        """Statements, separated by semicolons."""

    def append(
        self, db: sqlite3.Connection, kind: str, *, at: float, agent: str = "", **fields: Any
    ) -> int:
        """Add a record, and return its number."""


class ApprovedLike(Protocol):
    """An approval that covers an ask."""

    @property
    def amount(self) -> int:
        """The most that the ask may be for."""

    @property
    def is_raise(self) -> bool:
        """Whether it was asked for, and given, to go beyond an envelope."""


class ApprovalsPart(Protocol):
    """What people and supervisors are asked."""

    @property
    def SCHEMA(self) -> str:  # noqa: N802
        """Statements, separated by semicolons."""

    def valid(
        self,
        db: sqlite3.Connection,
        ask: Ask,
        policy_revision: int,
        now: float,
        *,
        is_raise: bool = False,
    ) -> ApprovedLike | None:
        """Return the approval that covers an ask, or None.

        With `is_raise` one that was asked for going beyond an envelope is preferred.
        """

    def use(
        self, db: sqlite3.Connection, ask: Ask, now: float, *, is_raise: bool = False
    ) -> str | None:
        """Use it, and return its id."""

    def request(
        self, db: sqlite3.Connection, ask: Ask, decision: Decision, now: float
    ) -> AgentError:
        """Ask, and return what the agent gets."""


class WatchPart(Protocol):
    """Breakers, and what is unusual."""

    @property
    def SCHEMA(self) -> str:  # noqa: N802
        """Statements, separated by semicolons."""

    def finding(self, db: sqlite3.Connection, ask: Ask) -> str:
        """Return what is unusual about an ask, in words; empty for nothing."""

    def breaker(
        self, db: sqlite3.Connection, agent: str, origin: str, now: float
    ) -> tuple[str, float] | None:
        """Return which breaker is open, and until when."""

    def learn(self, db: sqlite3.Connection, ask: Ask, *, is_approved: bool = False) -> object:
        """Learn from an ask that was allowed and adds an amount."""


class NoTrail:
    """Records nothing."""

    SCHEMA = ""

    def append(self, *_positional: object, **_fields: object) -> int:
        """Record nothing."""
        return 0


class NoApprovals:
    """No person can be asked."""

    SCHEMA = ""

    def valid(self, *_: object, is_raise: bool = False) -> None:
        """Find none."""

    def use(self, *_: object, is_raise: bool = False) -> None:
        """Use none."""

    def request(
        self, _db: sqlite3.Connection, _ask: Ask, decision: Decision, _now: float
    ) -> AgentError:
        """Refuse, because no answer can come."""
        return PolicyRefusedError(
            f"{decision.reason} It needs an approval, and this wallet asks no one.",
            code=decision.code,
            field=decision.field or None,
            asked=decision.asked,
            allowed=decision.allowed,
            rule=decision.rule or None,
        )


class NoWatch:
    """Finds nothing unusual."""

    SCHEMA = ""

    def finding(self, *_: object) -> str:
        """Find nothing."""
        return ""

    def breaker(self, *_: object) -> None:
        """Find none open."""

    def learn(self, *_: object, is_approved: bool = False) -> None:
        """Learn nothing."""
