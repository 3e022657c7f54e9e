"""The wallet's books: opens the file, gives each agent its view and guard, and obeys the owner."""

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import msgspec

from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import AgentError, ConfigError
from channel.types import Address, ChannelId, ChannelKey
from mpp_session.wallet.books.guard import MINUTE_S, AgentGuard, Decisions
from mpp_session.wallet.books.lock import lock_wallet, unlock_wallet
from mpp_session.wallet.books.parts import (
    ApprovalsPart,
    CountersFor,
    Decide,
    EnvelopeLike,
    Judge,
    NoApprovals,
    NoTrail,
    NoWatch,
    PolicyLike,
    TrailPart,
    WatchPart,
)
from mpp_session.wallet.books.sums import QUERIES, SCHEMA, prepare, unpack
from mpp_session.wallet.policy import counters_for, decide
from mpp_session.wallet.types import Ask, Counter, Decision, Snapshot

__all__ = ["AgentState", "BudgetState", "ChannelToClose", "Release", "Stop", "WalletBooks"]

_PORTS: Final = {"https": 443, "http": 80}


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """A freeze or a revocation in force."""

    kind: Literal["freeze", "revoke"]
    scope: str
    at: float
    by: str
    reason: str


class Release(msgspec.Struct, frozen=True):
    """When the next part of a budget is free again."""

    at: float
    """Unix seconds."""
    amount: int


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of an envelope, or of one task of it. Amounts in base units of its token."""

    envelope: str
    scope: str
    """`envelope NAME`, or `envelope NAME task TASK` where it counts by task."""
    token: str
    """Alias."""
    amount: int
    window_s: int | None
    spent: int
    """Within the window, by a bucket more at most."""
    left: int
    locked: int
    locked_max: int
    next_release: Release | None


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """An agent of the policy."""

    name: str
    state: Literal["active", "frozen", "revoked", "expired"]
    reason: str
    """Why it is frozen or revoked."""
    expires: float
    channels: int
    """Live ones."""
    spent: Mapping[str, int]
    """Signed and charged, less what ended channels did not pay; by `CHAIN:0xTOKEN`."""
    last_seen: float | None
    """Unix seconds, to the minute."""


class ChannelToClose(msgspec.Struct, frozen=True):
    """A live channel of an agent that may not pay any more."""

    agent: str
    record: ChannelRecord
    reason: str


class WalletBooks:
    """Open them with `await WalletBooks.open(...)`, and close them with `await books.close()`.

    Methods that wait may raise `StoreError`; then nothing was stored.
    """

    def __init__(
        self, store: PaymentStore, decisions: Decisions, lock: int, now: Callable[[], float]
    ) -> None:
        self.store = store
        """The whole file, without a guard: for reading and for the owner's commands."""
        self._decisions = decisions
        self._lock = lock
        self._now = now

    @classmethod
    async def open(
        cls,
        path: Path | str,
        policy: PolicyLike,
        *,
        decide: Decide = decide,
        counters_for: CountersFor = counters_for,
        trail: TrailPart | None = None,
        approvals: ApprovalsPart | None = None,
        watch: WatchPart | None = None,
        now: Callable[[], float] = time.time,
    ) -> Self:
        """Open or create the wallet's file for this process alone.

        Args:
            path: The file; its lock lies beside it.
            policy: Decides from now on.
            decide: The decision of a policy about an ask and a snapshot.
            counters_for: The sums that the decision reads.
            trail: Records what happens; None records nothing.
            approvals: Asks people; None refuses what they would be asked.
            watch: Breakers and findings; None finds nothing.
            now: Unix seconds.

        Raises:
            StoreError: Another wallet uses the file, or it cannot be opened.
            ConfigError: The file knows a newer policy, or another one of the same revision.
        """
        path = Path(path)
        decisions = Decisions(
            policy,
            decide=decide,
            counters_for=counters_for,
            trail=trail or NoTrail(),
            approvals=approvals or NoApprovals(),
            watch=watch or NoWatch(),
        )
        schemas = [part.SCHEMA for part in (trail, approvals, watch) if part is not None]
        lock = lock_wallet(path)
        try:
            store = await PaymentStore.open(path)
        except BaseException:
            unlock_wallet(lock)
            raise
        books = cls(store, decisions, lock, now)
        try:
            await store.transact(lambda db: books._begin(db, [SCHEMA, *schemas]))
        except BaseException:
            await books.close()
            raise
        return books

    async def close(self) -> None:
        """Close the file, and let another wallet use it."""
        try:
            await self.store.close()
        finally:
            unlock_wallet(self._lock)

    @property
    def policy(self) -> PolicyLike:
        """The policy in force."""
        return self._decisions.policy

    async def reload(self, policy: PolicyLike) -> None:
        """Decide by another policy from the next ask on.

        Raises:
            ConfigError: It is older, or has the revision of another one.
        """
        at, before = self._now(), self._decisions.policy

        def change(db: sqlite3.Connection) -> None:
            self._put_in_force(db, policy, at)
            self._decisions.policy = policy  # before any other transaction of this thread

        try:
            await self.store.transact(change)
        except BaseException:
            self._decisions.policy = before
            raise

    def guard(self, agent: str) -> AgentGuard:
        """Return the guard of one agent's payments."""
        return AgentGuard(agent, self._decisions, self._now)

    def view(self, agent: str) -> PaymentStore:
        """Return the payment store of one agent: its own channels, behind its guard."""
        return self.store.for_agent(agent, self.guard(agent))

    # Requests that run.

    def begin_stream(self, agent: str, origin: str, request_id: str) -> None:
        """Count a stream until `end_stream`; a second call does nothing."""
        self._decisions.running.begin_stream(agent, origin, request_id)

    def end_stream(self, request_id: str) -> None:
        """Count a stream no more; a second call does nothing."""
        self._decisions.running.end_stream(request_id)

    def paid(self, request_id: str) -> int:
        """Return what was signed or charged for a request that ran lately, in base units."""
        return self._decisions.running.total(request_id) or 0

    def end_request(self, request_id: str) -> None:
        """Count the stream of a request no more; a second call does nothing."""
        self._decisions.running.end_request(request_id)

    # The owner's commands.

    async def freeze(self, scope: str, *, reason: str, by: str) -> None:
        """Refuse everything of a scope from the next ask on; it keeps an earlier reason.

        Args:
            scope: `all`, `agent NAME`, `envelope NAME` or `origin ORIGIN`.
            reason: For people.
            by: Who freezes.

        Raises:
            ConfigError: The scope is malformed, or the policy does not know the name.
        """
        scope = self._scope(scope, ("agent", "envelope", "origin"))
        await self._stop("freeze", scope, reason=reason, by=by)

    async def unfreeze(self, scope: str, *, reason: str = "", by: str) -> bool:
        """Go on after a freeze, and return whether there was one."""
        scope, at = _spelled(scope), self._now()

        def change(db: sqlite3.Connection) -> bool:
            found = db.execute(QUERIES["delete_stop"], {"scope": scope}).rowcount > 0
            if found:
                self._decisions.trail.append(
                    db, "freeze", at=at, scope=scope, action="unfreeze", reason=reason, by=by
                )
            return found

        return await self.store.transact(change)

    async def revoke(self, scope: str, *, reason: str, by: str) -> None:
        """Refuse an agent, or what a rule allows, for ever: a new one needs another name.

        Args:
            scope: `agent NAME` or `rule NAME`.
            reason: For people.
            by: Who revokes.

        Raises:
            ConfigError: The scope is malformed, or the policy does not know the name.
        """
        scope = self._scope(scope, ("agent", "rule"))
        if scope == "all":
            raise ConfigError("expected `agent NAME` or `rule NAME`, found `all`: freeze that")
        await self._stop("revoke", scope, reason=reason, by=by)

    async def _stop(
        self, kind: Literal["freeze", "revoke"], scope: str, *, reason: str, by: str
    ) -> None:
        values = {"kind": kind, "scope": scope, "at": self._now(), "by": by, "reason": reason}

        def change(db: sqlite3.Connection) -> None:
            if db.execute(QUERIES["add_stop"], values).rowcount > 0:
                at = self._now()
                self._decisions.trail.append(
                    db, kind, at=at, scope=scope, action=kind, reason=reason, by=by
                )

        await self.store.transact(change)

    async def stops(self) -> list[Stop]:
        """Return what is frozen and revoked."""
        return await self.store.transact(_stops)

    async def budgets(self) -> list[BudgetState]:
        """Return every envelope of the policy, and the tasks of those that count by task."""
        now = self._now()
        return await self.store.transact(lambda db: self._budgets(db, now))

    async def agents(self) -> list[AgentState]:
        """Return every agent of the policy."""
        now = self._now()
        return await self.store.transact(lambda db: self._agents(db, now))

    async def channels_to_close(self) -> list[ChannelToClose]:
        """Return the live channels of agents that are frozen, revoked, expired or unknown.

        No channel outlives its agent (infrabroker#117). Closing them needs no agent's ask.
        """
        now = self._now()
        stops = await self.stops()
        owners = await self.store.transact(_owners)
        found = []
        for record in await self.store.records():
            agent = owners.get(record.key)
            if record.state == "closed" or agent is None:
                continue
            state, reason = self._state(agent, stops, now)
            if state != "active":
                found.append(ChannelToClose(agent, record, reason or state))
        return found

    async def check(self, ask: Ask, judge: Judge) -> None:
        """Check that a request may be sent, before anything is.

        Raises:
            PolicyRefusedError: It may not. The refusal is in the trail.
        """
        error = await self.store.transact(lambda db: self._decisions.check(db, ask, judge))
        if error is not None:
            raise error

    async def note_refusal(self, agent: str, error: AgentError, **fields: Any) -> None:
        """Record a refusal, unless it is in the trail already.

        A guard records what is refused where money is committed. What the paying client refuses
        before that, such as a price, no guard sees.
        """
        if error not in self._decisions.recorded:
            at = self._now()
            await self.store.transact(
                lambda db: self._decisions.note_refusal(db, agent, error, at=at, **fields)
            )

    async def what_if(self, ask: Ask) -> tuple[Snapshot, Decision]:
        """Return what an ask would be decided by now, and how; nothing is booked."""
        return await self.store.transact(lambda db: self._decisions.explain(db, ask))

    # In a transaction.

    def _begin(self, db: sqlite3.Connection, schemas: list[str]) -> None:
        prepare(db)
        for schema in schemas:
            for statement in schema.split(";"):
                db.execute(statement)
        now = self._now()
        self._put_in_force(db, self._decisions.policy, now)
        for row in db.execute(QUERIES["load_ended"]).fetchall():  # by another tool
            self._decisions.end_channel(
                db,
                _key(row),
                signed=unpack(row["signed"]),
                settled=unpack(row["settled"]),
                at=now,
                agent=row["agent"],
            )

    def _put_in_force(self, db: sqlite3.Connection, policy: PolicyLike, at: float) -> None:
        row = db.execute(QUERIES["load_policy"]).fetchone()
        if row is not None:
            if row["hash"] == policy.hash:
                return
            if policy.revision <= row["revision"]:
                raise ConfigError(
                    f"expected a policy of revision {row['revision'] + 1} or later, found "
                    f"{policy.revision}: another policy of revision {row['revision']} was in "
                    "force; raise `revision` in the file"
                )
        values = {"revision": policy.revision, "hash": policy.hash, "since": at}
        db.execute(QUERIES["store_policy"], values)
        self._decisions.count_deposits(db, policy, at)
        self._decisions.trail.append(
            db, "policy", at=at, policy_revision=policy.revision, policy_hash=policy.hash
        )

    def _scope(self, text: str, kinds: tuple[str, ...]) -> str:
        """Return a scope as it is stored; a mistyped name would stop nothing."""
        scope = _spelled(text)
        kind, _, name = scope.partition(" ")
        if scope == "all" and "origin" in kinds:
            return scope
        if kind not in kinds or not name:
            expected = ", ".join(f"`{kind} NAME`" for kind in kinds)
            raise ConfigError(f"expected `all`, {expected}, found {text[:100]!r}")
        known: dict[str, Collection[str]] = {
            "agent": self.policy.agents,
            "envelope": self.policy.envelopes,
            "rule": [rule.name for rule in self.policy.rules],
        }
        if kind in known and name not in known[kind]:
            has = ", ".join(known[kind]) or "none"
            raise ConfigError(f"the policy has no {kind} {name[:100]!r}; it has {has}")
        return scope

    def _budgets(self, db: sqlite3.Connection, now: float) -> list[BudgetState]:
        found = []
        for name, envelope in self.policy.envelopes.items():
            scope, token = f"envelope {name}", envelope.token
            locked = self._decisions.sums.read(db, Counter("locked", scope, token), now).total
            for counter in _spent_counters(db, scope, envelope):
                spent = self._decisions.sums.read(db, counter, now)
                release = self._decisions.sums.next_release(db, spent, now)
                found.append(
                    BudgetState(
                        envelope=name,
                        scope=counter.scope,
                        token=token,
                        amount=envelope.amount,
                        window_s=envelope.window_s,
                        spent=spent.total,
                        left=max(0, envelope.amount - spent.total),
                        locked=locked,
                        locked_max=envelope.locked_max,
                        next_release=None if release is None else Release(*release),
                    )
                )
        return found

    def _agents(self, db: sqlite3.Connection, now: float) -> list[AgentState]:
        stops = _stops(db)
        seen = {row["agent"]: row["at"] * MINUTE_S for row in db.execute(QUERIES["load_seen"])}
        live = {row["agent"]: row["channels"] for row in db.execute(QUERIES["count_live"])}
        spent = _spent(db)
        found = []
        for name, agent in self.policy.agents.items():
            state, reason = self._state(name, stops, now)
            found.append(
                AgentState(
                    name=name,
                    state=state,
                    reason=reason,
                    expires=agent.expires,
                    channels=live.get(name, 0),
                    spent=spent.get(name, {}),
                    last_seen=seen.get(name),
                )
            )
        return found

    def _state(
        self, agent: str, stops: list[Stop], now: float
    ) -> tuple[Literal["active", "frozen", "revoked", "expired"], str]:
        own = f"agent {agent}"
        known = self.policy.agents.get(agent)
        for stop in stops:
            if (stop.kind, stop.scope) == ("revoke", own):
                return "revoked", stop.reason
        if known is None:
            return "revoked", "the policy does not know it any more"
        if known.expires <= now:
            return "expired", ""
        for stop in stops:
            if stop.kind == "freeze" and stop.scope in ("all", own):
                return "frozen", stop.reason
        return "active", ""


def _spelled(scope: str) -> str:
    """Return a scope with one space, and an origin with its port, as asks have it."""
    kind, _, name = " ".join(scope.split()).partition(" ")
    if kind != "origin" or not name:
        return " ".join(scope.split())
    parts = urlsplit(name)
    try:
        port = parts.port or _PORTS[parts.scheme]
        host = parts.hostname or ""
    except (KeyError, ValueError):
        host, port = "", 0
    if not host or parts.path not in ("", "/") or parts.query or parts.username:
        raise ConfigError(
            f"expected an origin such as https://api.example:443, found {name[:100]!r}"
        )
    host = f"[{host}]" if ":" in host else host
    return f"origin {parts.scheme}://{host}:{port}"


def _spent_counters(db: sqlite3.Connection, scope: str, envelope: EnvelopeLike) -> list[Counter]:
    """Return what an envelope counts: one sum, or one for each task that has spent something."""
    if not envelope.per_task:
        return [Counter("spent", scope, envelope.token, envelope.window_s)]
    rows = db.execute(QUERIES["load_tasks"], {"task": f"{scope} task "})
    return [
        Counter("spent", row["scope"], row["token"])
        for row in rows
        if row["token"] == envelope.token
    ]


def _stops(db: sqlite3.Connection) -> list[Stop]:
    return [Stop(**dict(row)) for row in db.execute(QUERIES["load_stops"])]


def _key(row: sqlite3.Row) -> ChannelKey:
    return ChannelKey(row["chain_id"], Address(row["escrow"]), ChannelId(row["channel_id"]))


def _owners(db: sqlite3.Connection) -> dict[ChannelKey, str]:
    return {_key(row): row["agent"] for row in db.execute(QUERIES["load_channels"])}


def _spent(db: sqlite3.Connection) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in db.execute(QUERIES["load_spent"]):
        name = f"{row['chain_id']}:0x{row['token'].hex()}"
        by_token = found.setdefault(row["agent"], {})
        by_token[name] = by_token.get(name, 0) + unpack(row["amount"])
    return found
