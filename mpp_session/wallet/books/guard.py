"""Decides about each commitment in the transaction that commits it, and books it there.

Check, booking, record and amount are one transaction of one thread, and the amount is signed after
its commit. So neither concurrent requests nor a crash pass a budget: LiteLLM#34732 checked first
and booked later, LiteLLM#26672 booked after the call, LiteLLM#40095 let the first requests of a new
user pass. Every voucher is decided, also one whose amount was signed before: a session that was
revoked must not go on (okx/wallet-core#21), a freeze must be read before each signature
(Steward#102), and stopping must stop something (agent-governance-toolkit PR#795).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args
from weakref import WeakSet

import msgspec
from msgspec.structs import replace

from channel.client.policy.context import PaymentContext
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.errors import AgentError, PolicyRefusedError, StoreError
from channel.types import Address, ChannelId, ChannelKey
from mpp_session.wallet.audit.pace import RefusalPace
from mpp_session.wallet.audit.records import decision_fields, describe_change, voucher_fields
from mpp_session.wallet.books.asks import (
    ask_of_refused,
    charge_ask,
    deposit_ask,
    request_id_of,
    require_context,
    sign_ask,
)
from mpp_session.wallet.books.parts import (
    ApprovalsPart,
    ApprovedLike,
    CountersFor,
    Decide,
    Judge,
    PolicyLike,
    TrailPart,
    WatchPart,
)
from mpp_session.wallet.books.running import Running
from mpp_session.wallet.books.sums import QUERIES, Sum, Sums, unpack
from mpp_session.wallet.types import (
    Ask,
    Code,
    Counter,
    Decision,
    Purpose,
    Snapshot,
    WalletRequest,
)

__all__ = ["AgentGuard", "Channel", "Decisions", "LazySums", "RefusedError"]

MINUTE_S: Final = 60
_RAISES: Final = frozenset({Code.ENVELOPE_EXCEEDED, Code.LOCKED_EXCEEDED})
First = Literal["origin", "recipient", "chain"]
_FIRSTS: Final[tuple[First, ...]] = get_args(First)


class RefusedError(AgentError):
    """A decision against an ask, on its way to `refuse`."""

    def __init__(self, ask: Ask, decision: Decision) -> None:
        super().__init__(decision.reason)
        self.ask = ask
        self.decision = decision


class LazySums(Mapping[Counter, int]):
    """The sums of a transaction, read from the file where a decision looks at them."""

    def __init__(self, db: sqlite3.Connection, sums: Sums, at: float) -> None:
        self._db = db
        self._sums = sums
        self._at = at
        self._found: dict[Counter, Sum] = {}

    def row(self, counter: Counter) -> Sum:
        """Return a sum with how to write it."""
        found = self._found.get(counter)
        if found is None:
            found = self._sums.read(self._db, counter, self._at)
            self._found[counter] = found
        return found

    def __getitem__(self, counter: Counter) -> int:
        return self.row(counter).total

    def __iter__(self) -> Iterator[Counter]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Channel(NamedTuple):
    """A channel in these books."""

    number: int
    is_live: bool


class Decisions:
    """Where all agents' asks are decided: the policy in force, the sums, and the other parts.

    Every method with a connection runs in a transaction that its caller opened.
    """

    def __init__(
        self,
        policy: PolicyLike,
        *,
        decide: Decide,
        counters_for: CountersFor,
        trail: TrailPart,
        approvals: ApprovalsPart,
        watch: WatchPart,
    ) -> None:
        self.policy = policy
        self.trail = trail
        self.running = Running()
        self.sums = Sums()
        self._decide = decide
        self._counters_for = counters_for
        self._approvals = approvals
        self._watch = watch
        self._seen: dict[str, int] = {}
        self._pace = RefusalPace()
        self.recorded = WeakSet[AgentError]()
        """Refusals that are in the trail already."""
        self._channels: dict[ChannelKey, Channel] = {}

    def agree(self, db: sqlite3.Connection, ask: Ask, record: ChannelRecord | None = None) -> None:
        """Decide about an ask, and book it.

        Raises:
            RefusedError: The policy refuses it, or a person must be asked. Nothing is booked.
        """
        channel = None if record is None else self._known(db, record.key)
        decision, sums, approval = self._answer(db, ask, channel)
        if decision.action != "allow":
            raise RefusedError(ask, decision)
        number = None if channel is None else channel.number
        if record is not None and channel is None:
            number = _add_channel(db, ask, record, decision, approval)
        self._book(db, ask, decision, sums, number)
        self._note(db, ask, decision, approval)
        if ask.amount:
            self._watch.learn(db, ask, is_approved=bool(approval))

    def agree_again(self, db: sqlite3.Connection, ask: Ask, record: ChannelRecord) -> None:
        """Decide about a deposit that was allowed before; people are not asked a second time.

        Raises:
            RefusedError: The policy refuses it now.
        """
        sums = LazySums(db, self.sums, ask.at)
        snapshot = self._snapshot(db, ask, sums, self.find_channel(db, record.key))
        decision = self._decide(self.policy, ask, snapshot)
        if decision.action == "deny":
            raise RefusedError(ask, decision)

    def explain(self, db: sqlite3.Connection, ask: Ask) -> tuple[Snapshot, Decision]:
        """Return what an ask would be decided by, and how; nothing is booked or asked."""
        sums = LazySums(db, self.sums, ask.at)
        read = {counter: sums[counter] for counter in self._counters_for(self.policy, ask)}
        snapshot = self._snapshot(db, ask, read, None)
        decision = self._decide(self.policy, ask, snapshot)
        approved = self._approvals.valid(
            db, ask, self.policy.revision, ask.at, is_raise=decision.code in _RAISES
        )
        if approved is not None:
            snapshot = _with(approved, snapshot)
            decision = self._decide(self.policy, ask, snapshot)
        return snapshot, decision

    def check(self, db: sqlite3.Connection, ask: Ask, judge: Judge) -> AgentError | None:
        """Record and return why a request may not be sent; None where it may."""
        frozen, revoked = _stops(db)
        decision = judge(Snapshot(frozen=frozen, revoked=revoked))
        return None if decision is None else self.refuse(db, RefusedError(ask, decision))

    def refuse(self, db: sqlite3.Connection, refused: RefusedError) -> AgentError:
        """Record a decision against an ask, and return what the agent gets."""
        ask, decision = refused.ask, refused.decision
        left_out = self._pace.admit(ask.agent, ask.at)
        if left_out is not None:
            fields = decision_fields(ask, decision, policy_hash=self.policy.hash)
            fields["left_out"] = left_out or None
            self.trail.append(db, "decision", at=ask.at, agent=ask.agent, **fields)
        error: AgentError
        if decision.action == "ask":
            error = self._approvals.request(db, ask, decision, ask.at)
        else:
            error = PolicyRefusedError(
                decision.reason,
                code=decision.code,
                field=decision.field or None,
                asked=decision.asked,
                allowed=decision.allowed,
                rule=decision.rule or None,
                retry_at=decision.retry_at,
            )
        self.recorded.add(error)
        return error

    def note_refusal(
        self, db: sqlite3.Connection, agent: str, error: AgentError, *, at: float, **fields: Any
    ) -> None:
        """Record what the paying client, or the wallet before it, refused without an ask."""
        left_out = self._pace.admit(agent, at)
        if left_out is None:
            return
        code = error.code if isinstance(error, PolicyRefusedError) else Code.CLIENT_LIMIT
        self.trail.append(
            db,
            "refusal",
            at=at,
            agent=agent,
            code=str(code),
            reason=str(error),
            left_out=left_out or None,
            **fields,
        )
        self.recorded.add(error)

    def _known(self, db: sqlite3.Connection, key: ChannelKey) -> Channel | None:
        """Return a channel, from memory once it was found: its number never changes."""
        known = self._channels.get(key)
        if known is None and (known := self.find_channel(db, key)) is not None:
            self._channels[key] = known
        return known

    def count_deposits(self, db: sqlite3.Connection, policy: PolicyLike, at: float) -> None:
        """Count the deposits that stand open in the envelopes that a new policy adds to them."""
        for row in db.execute(QUERIES["load_live"]).fetchall():
            locks = dict(db.execute(QUERIES["load_locks"], (row["id"],)).fetchall())
            locked = max(map(unpack, locks.values()), default=0)
            for counter in self._counters_for(policy, _standing_ask(row, locked, at)):
                if counter.what == "locked" and locked:
                    to = self.sums.read(db, counter, at)
                    if to.id not in locks:
                        self.sums.lock(db, to, locked, at, row["id"])

    def find_channel(self, db: sqlite3.Connection, key: ChannelKey) -> Channel | None:
        """Return a channel that these books know."""
        row = db.execute(
            QUERIES["find_channel"], (key.chain_id, key.escrow, key.channel_id)
        ).fetchone()
        return None if row is None else Channel(row["id"], bool(row["is_live"]))

    def end_channel(
        self,
        db: sqlite3.Connection,
        key: ChannelKey,
        *,
        signed: int,
        settled: int,
        at: float,
        agent: str,
    ) -> None:
        """Return what a channel holds and did not pay, once, because it has ended on chain."""
        channel = self.find_channel(db, key)
        if channel is None or not channel.is_live:
            return
        self.sums.lower_locked(db, channel.number, 0)
        self.sums.give_back(db, channel.number, signed=signed, settled=settled, now=at)
        db.execute(QUERIES["end_channel"], (0, channel.number))
        self._channels.pop(key, None)
        if signed > settled:
            self.trail.append(
                db,
                "refund",
                at=at,
                agent=agent,
                channel_id=key.channel_id,
                settled=settled,
                returned=signed - settled,
            )

    def _answer(
        self, db: sqlite3.Connection, ask: Ask, channel: Channel | None
    ) -> tuple[Decision, LazySums, str]:
        """Return the decision, the sums it read, and the id of the approval it used."""
        sums = LazySums(db, self.sums, ask.at)
        snapshot = self._snapshot(db, ask, sums, channel)
        decision = self._decide(self.policy, ask, snapshot)
        if decision.action != "ask":  # an approval is for what is not allowed without it
            return decision, sums, ""
        is_raise = decision.code in _RAISES
        approved = self._approvals.valid(db, ask, self.policy.revision, ask.at, is_raise=is_raise)
        if approved is None:
            return decision, sums, ""
        decision = self._decide(self.policy, ask, _with(approved, snapshot))
        used = None
        if decision.action == "allow":
            used = self._approvals.use(db, ask, ask.at, is_raise=is_raise)
        return decision, sums, used or ""

    def _snapshot(
        self,
        db: sqlite3.Connection,
        ask: Ask,
        sums: Mapping[Counter, int],
        channel: Channel | None,
    ) -> Snapshot:
        frozen, revoked = _stops(db)
        channels, breaker, finding, never_paid = 0, None, "", frozenset[First]()
        if ask.kind == "deposit":  # which may open one more
            (channels,) = db.execute(QUERIES["count_channels"], (ask.agent, ask.origin)).fetchone()
            channels -= channel is not None and channel.is_live
        if ask.is_first or ask.is_commitment:  # a request that is served goes on
            breaker = self._watch.breaker(db, ask.agent, ask.origin, ask.at)
            finding = self._watch.finding(db, ask)
        if channel is None:  # else its opening was committed to
            never_paid = _never_paid(db, ask)
        return Snapshot(
            frozen=frozen,
            revoked=revoked,
            sums=sums,
            channels=channels,
            streams=self.running.streams(ask.agent, ask.origin, without=ask.request_id),
            never_paid=never_paid,
            breaker_until=None if breaker is None else breaker[1],
            breaker="" if breaker is None else breaker[0],
            finding=finding,
        )

    def _book(
        self,
        db: sqlite3.Connection,
        ask: Ask,
        decision: Decision,
        sums: LazySums,
        channel: int | None,
    ) -> None:
        booked = [self._add(db, ask, sums.row(counter), channel) for counter in decision.counters]
        if ask.kind == "sign" and ask.amount and channel is not None:
            spent = [each for each in booked if each is not None]
            before = ask.total - ask.amount
            self.sums.add_entries(db, channel, spent, before=before, after=ask.total, now=ask.at)
        if ask.is_commitment:
            for what, value in zip(_FIRSTS, _firsts(ask), strict=True):
                db.execute(QUERIES["note_paid"], (ask.agent, what, value))
        minute = int(ask.at // MINUTE_S)
        if self._seen.get(ask.agent) != minute:
            self._seen[ask.agent] = minute
            db.execute(QUERIES["note_seen"], {"agent": ask.agent, "at": minute})

    def _add(self, db: sqlite3.Connection, ask: Ask, to: Sum, channel: int | None) -> Sum | None:
        """Add an ask to a sum, and return it if it is one of what is spent."""
        match to.counter.what:
            case "requests" if ask.is_first:
                self.sums.add(db, to, 1, ask.at)
            case "locked" if ask.kind == "deposit" and ask.amount and channel is not None:
                self.sums.lock(db, to, ask.amount, ask.at, channel)
            case "spent" if ask.kind != "deposit" and ask.amount:
                self.sums.add(db, to, ask.amount, ask.at)
                return to
        return None

    def _note(self, db: sqlite3.Connection, ask: Ask, decision: Decision, approval: str) -> None:
        if ask.is_first or ask.is_commitment or approval:
            fields = decision_fields(
                ask, decision, policy_hash=self.policy.hash, approval_id=approval
            )
            self.trail.append(db, "decision", at=ask.at, agent=ask.agent, **fields)
        if ask.kind == "sign" and ask.amount:
            self.trail.append(db, "voucher", at=ask.at, agent=ask.agent, **voucher_fields(ask))


class AgentGuard:
    """Guards the payments of one agent; see `channel.client.store.guard`."""

    def __init__(self, agent: str, decisions: Decisions, now: Callable[[], float]) -> None:
        self._agent = agent
        self._decisions = decisions
        self._now = now

    def deposit(
        self,
        db: sqlite3.Connection,
        before: ChannelRecord | None,
        after: ChannelRecord,
        context: PaymentContext | None,
    ) -> None:
        """Decide about an opening, a top-up, or one of them once more; see `Guard`."""
        context, decisions = require_context(context), self._decisions
        total = decisions.running.total(request_id_of(context)) or 0
        ask = deposit_ask(self._agent, before, after, context, request_total=total, at=self._now())
        if before is not None and before.locked == after.locked:
            decisions.agree_again(db, ask, after)
            return
        decisions.agree(db, ask, after)
        self._record_change(db, before, after, ask.at)

    def sign(
        self,
        db: sqlite3.Connection,
        before: ChannelRecord,
        after: ChannelRecord,
        context: PaymentContext | None,
    ) -> None:
        """Decide about a voucher; see `Guard`."""
        context, decisions = require_context(context), self._decisions
        total = decisions.running.total(request_id_of(context))
        ask = sign_ask(self._agent, before, after, context, request_total=total, at=self._now())
        decisions.agree(db, ask, after)
        self._remember(ask, context)

    def charge(
        self, db: sqlite3.Connection, record: ChargeRecord, context: PaymentContext | None
    ) -> None:
        """Decide about a payment for one request; see `Guard`."""
        context, decisions = require_context(context), self._decisions
        total = decisions.running.total(request_id_of(context))
        ask = charge_ask(self._agent, record, context, request_total=total, at=self._now())
        decisions.agree(db, ask)
        self._remember(ask, context)

    def change(self, db: sqlite3.Connection, before: ChannelRecord, after: ChannelRecord) -> None:
        """Note what the chain or the server says; return what an ended channel did not pay."""
        at = self._now()
        self._record_change(db, before, after, at)
        if after.state == "closed":
            self._decisions.end_channel(
                db,
                after.key,
                signed=after.signed,
                settled=after.settled,
                at=at,
                agent=self._agent,
            )
        elif before.locked != after.locked:
            channel = self._decisions.find_channel(db, after.key)
            if channel is not None and after.locked < before.locked:
                self._decisions.sums.lower_locked(db, channel.number, after.locked)
            elif channel is not None:
                increase = after.locked - before.locked
                self._decisions.sums.raise_locked(db, channel.number, increase)

    def refuse(
        self, db: sqlite3.Connection, context: PaymentContext | None, error: AgentError
    ) -> AgentError:
        """Record why a payment is refused, and ask people if they may allow it; see `Guard`."""
        if isinstance(error, RefusedError):
            return self._decisions.refuse(db, error)
        at, decisions = self._now(), self._decisions
        if isinstance(error, StoreError):
            return error
        if context is None:
            decisions.note_refusal(db, self._agent, error, at=at)
            return error
        code = error.code if isinstance(error, PolicyRefusedError) else Code.CLIENT_LIMIT
        decision = Decision(
            action="deny",
            code=Code(code),
            reason=str(error),
            policy_revision=decisions.policy.revision,
        )
        ask = ask_of_refused(self._agent, context, error, at)
        decisions.refuse(db, RefusedError(ask, decision))
        decisions.recorded.add(error)
        return error

    def _remember(self, ask: Ask, context: PaymentContext) -> None:
        """Count what a request has cost; more than it did if the commit fails now."""
        running = self._decisions.running
        is_ended_later = isinstance(context.purpose, WalletRequest)
        running.store_total(ask.request_id, ask.request_total, is_ended_later=is_ended_later)
        if ask.is_stream and is_ended_later:
            running.begin_stream(ask.agent, ask.origin, ask.request_id)

    def _record_change(
        self,
        db: sqlite3.Connection,
        before: ChannelRecord | None,
        after: ChannelRecord,
        at: float,
    ) -> None:
        for kind, fields in describe_change(before, after):
            self._decisions.trail.append(db, kind, at=at, agent=self._agent, **fields)


def _add_channel(
    db: sqlite3.Connection, ask: Ask, record: ChannelRecord, decision: Decision, approval: str
) -> int | None:
    key = record.key
    return db.execute(
        QUERIES["add_channel"],
        {
            "chain_id": key.chain_id,
            "escrow": key.escrow,
            "channel_id": key.channel_id,
            "agent": ask.agent,
            "origin": ask.origin,
            "task": ask.purpose.task,
            "rule": decision.rule,
            "envelopes": msgspec.json.encode(decision.envelopes).decode(),
            "approval": approval,
            "policy_revision": decision.policy_revision,
            "opened_at": ask.at,
        },
    ).lastrowid


def _standing_ask(row: sqlite3.Row, locked: int, at: float) -> Ask:
    """Return an ask about a deposit that was made, of nothing more."""
    return Ask(
        kind="deposit",
        agent=row["agent"],
        request_id="",
        origin=row["origin"],
        method="POST",
        path="/",
        purpose=Purpose(),
        chain_id=row["chain_id"],
        token=Address(row["token"]),
        recipient=Address(row["payee"]),
        escrow=Address(row["escrow"]),
        tariff=None,
        request_max=0,
        amount=0,
        total=locked,
        request_total=0,
        channel_id=ChannelId(row["channel_id"]),
        is_first=False,
        at=at,
    )


def _with(approved: ApprovedLike, snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, approved=approved.amount, approved_raise=approved.is_raise)


def _stops(db: sqlite3.Connection) -> tuple[frozenset[str], frozenset[str]]:
    """Return what is frozen, and what is revoked."""
    rows = db.execute(QUERIES["load_stops"]).fetchall()
    frozen = frozenset(row["scope"] for row in rows if row["kind"] == "freeze")
    return frozen, frozenset(row["scope"] for row in rows if row["kind"] == "revoke")


def _firsts(ask: Ask) -> tuple[str, str, str]:
    """Return what is looked up to see whether an agent pays it for the first time."""
    return ask.origin, ask.recipient.hex(), str(ask.chain_id)


def _never_paid(db: sqlite3.Connection, ask: Ask) -> frozenset[First]:
    values: dict[str, str] = dict(zip(_FIRSTS, _firsts(ask), strict=True))
    paid: Iterable[sqlite3.Row] = db.execute(QUERIES["has_paid"], {**values, "agent": ask.agent})
    return frozenset(_FIRSTS) - {row["what"] for row in paid}
