"""The approvals of one wallet: asked, answered and used inside the wallet's own transactions.

Every method runs on a connection in a transaction that the caller has opened, takes the time as an
argument, and changes nothing if it raises. So an approval is used in the transaction that commits
the payment, or not at all.
"""

import secrets
import sqlite3
from collections.abc import Iterable
from typing import Final, Literal, Protocol

from msgspec.structs import replace

from channel.errors import AgentError, ApprovalPendingError, PolicyRefusedError
from channel.limits import APPROVAL_ALTERNATIVES_MAX, APPROVAL_TEXT_CHARS_MAX
from mpp_session.wallet.approvals import rows
from mpp_session.wallet.approvals.coverage import amount_left, covers, goes_on, is_deposit_of
from mpp_session.wallet.approvals.record import (
    SCOPES,
    ApprovalError,
    Approved,
    Decider,
    Kind,
    Question,
    Record,
    Scope,
    State,
    Vote,
)
from mpp_session.wallet.approvals.rules import ApprovalRules
from mpp_session.wallet.approvals.terms import amount_in_question, terms_of
from mpp_session.wallet.approvals.votes import count_votes, require_vote
from mpp_session.wallet.types import Alternative, Ask, Code, Decision

__all__ = ["Approvals", "Trail"]

_ID_BYTES: Final = 6
_RAISES: Final = frozenset({Code.ENVELOPE_EXCEEDED, Code.LOCKED_EXCEEDED})


class Trail(Protocol):
    """Where every step of an approval is recorded."""

    def append(
        self, db: sqlite3.Connection, kind: str, *, at: float, agent: str = "", **fields: object
    ) -> int:
        """Append one record in the caller's transaction, and return its number."""


class Approvals:
    """Questions, answers and their use."""

    SCHEMA: Final = rows.SCHEMA

    def __init__(self, rules: ApprovalRules, trail: Trail | None = None) -> None:
        self.rules = rules
        """Of the policy in force. Replace it when another policy is loaded."""
        self._trail = trail

    # For the guard.

    def valid(
        self,
        db: sqlite3.Connection,
        ask: Ask,
        policy_revision: int,
        now: float,
        *,
        is_raise: bool = False,
    ) -> Approved | None:
        """Return the approval that covers an ask in full, or None.

        One that was given under another policy covers nothing: the policy decides anew whether
        anyone is asked. Where several cover it, one that was asked for going beyond an envelope
        comes first with `is_raise`, and last without.
        """
        if policy_revision != self.rules.policy_revision:
            return None
        found = self._find(db, ask, now, is_raise=is_raise)
        if found is None:
            return None
        return Approved(found.id, amount_left(found, ask), _is_raise(found, ask))

    def use(
        self, db: sqlite3.Connection, ask: Ask, now: float, *, is_raise: bool = False
    ) -> str | None:
        """Use the approval that `valid` returns, and return its id.

        Call it in the same transaction, and only for an ask that the policy refuses without one. A
        voucher that is paid from an approved deposit uses nothing more of it.
        """
        found = self._find(db, ask, now, is_raise=is_raise)
        if found is None:
            return None
        if is_deposit_of(found, ask):
            if found.scope == "once" and found.used_by_request != ask.request_id:
                self._change(db, replace(found, used_by_request=ask.request_id), now)
            return found.id
        used = found.used + ask.amount
        is_over = found.scope == "once" or used == found.approved
        is_open = found.state == State.APPROVED
        self._change(
            db,
            replace(
                found,
                state=State.USED if is_over and is_open else found.state,
                used=used,
                used_at=now,
                used_by_channel=ask.channel_id or found.used_by_channel,
                used_by_request=ask.request_id,
            ),
            now,
        )
        return found.id

    def request(
        self, db: sqlite3.Connection, ask: Ask, decision: Decision, now: float
    ) -> AgentError:
        """Ask the question that a decision calls for, and return what the agent reads.

        The same terms join the question that waits. An answer that denied them, or that did not
        come in time, stands for the policy's timeout. An approval of less is said as such.

        Returns:
            `ApprovalPendingError`, or `PolicyRefusedError` with `approval_denied`,
            `approval_expired` or `approvals_full`.
        """
        self.expire(db, now)
        try:
            terms = terms_of(ask)
        except PolicyRefusedError as error:
            return error
        question = self._question(ask, decision, now)
        earlier = rows.read_records(db, "load_same", subject_hash=terms.subject)
        known = self._answered(earlier, question, now) or self._full(db, ask.agent, now)
        if known is not None:
            return known
        rows.add(db, question, terms)
        self._note(db, self.get(db, question.id), now)
        return _pending(question, self.rules)

    # For those who answer.

    def decide(
        self,
        db: sqlite3.Connection,
        approval_id: str,
        *,
        by: Decider,
        verdict: Literal["approve", "deny"],
        now: float,
        amount: int | None = None,
        scope: Scope = "once",
        comment: str = "",
    ) -> Record:
        """Count one answer, and return the record with it.

        Args:
            db: In a transaction.
            approval_id: Of the question.
            by: Who answers; authenticated by the caller.
            verdict: One denial denies; enough approvals approve.
            now: Unix seconds.
            amount: Base units; what was asked if None. Less is a partial approval. With a wider
                scope it is the sum of all uses, and may be more than was asked.
            scope: `once`; `channel` for the channel that it opens, `window` for the same terms at
                any amount, both until the approval expires.
            comment: For the record, and for the agent.

        Raises:
            ApprovalError: The question is unknown or no longer pending, or this answer may not be
                given.
        """
        record = self.get(db, approval_id)
        self._require_pending(record, now)
        cast = Vote(
            by=by,
            verdict=verdict,
            amount=record.question.amount if amount is None else amount,
            scope=scope,
            comment=_cut(comment),
            at=now,
        )
        require_vote(record.question, cast, self.rules)
        rows.vote(db, approval_id, cast)
        record = self.get(db, approval_id)
        outcome = count_votes(record.votes, self.rules.quorum)
        if outcome.verdict == "deny":
            again_at = now + self.rules.timeout_s
            ended = replace(record, state=State.DENIED, again_at=again_at, decided_at=now)
            return self._change(db, replace(ended, comment=cast.comment), now)
        if outcome.verdict == "approve":
            given = replace(
                record,
                state=State.APPROVED,
                expires_at=now + self.rules.valid_s,
                approved=outcome.amount,
                scope=outcome.scope,
                decided_at=now,
                comment=cast.comment,
            )
            return self._change(db, given, now)
        self._note(db, record, now)
        return record

    def withdraw(
        self, db: sqlite3.Connection, approval_id: str, *, by: Decider, now: float
    ) -> Record:
        """Take back a question, or an approval that is not used; what was used stays paid.

        A person may do so for every record, an agent for its own questions. An agent that takes a
        question back cannot ask it again before the answer would have been due.

        Raises:
            ApprovalError: It is unknown or has ended, or another agent asked it.
        """
        record = self.get(db, approval_id)
        if by.kind == "agent" and by.id != record.question.agent:
            raise ApprovalError(f"The agent {by.id!r} did not ask {approval_id}.")
        if record.state not in {State.PENDING, State.APPROVED}:
            raise ApprovalError(f"{approval_id} is {record.state} already.")
        again_at = record.expires_at if by.kind == "agent" else None
        comment = f"withdrawn by the {by.kind} {by.id}"
        ended = replace(record, state=State.WITHDRAWN, again_at=again_at, comment=comment)
        return self._change(db, ended, now)

    def expire(self, db: sqlite3.Connection, now: float) -> list[str]:
        """End what has passed its time or was asked under another policy; return the ids."""
        ended = []
        for record in rows.read_records(db, "load_open"):
            comment, again_at = "", None
            if not self._is_of_policy(record):
                comment = "the policy has changed since it was asked"
            elif record.expires_at <= now and record.state == State.PENDING:
                comment = "no answer came in time"
                again_at = record.expires_at + self.rules.timeout_s
            elif record.expires_at <= now:
                comment = "it was not used in time"
            if comment:
                over = replace(record, state=State.EXPIRED, again_at=again_at, comment=comment)
                self._change(db, over, now)
                ended.append(record.id)
        return ended

    # Reading.

    def get(self, db: sqlite3.Connection, approval_id: str) -> Record:
        """Return one record.

        Raises:
            ApprovalError: There is none of this id.
        """
        found = rows.read_records(db, "load", id=approval_id)
        if not found:
            raise ApprovalError(f"There is no approval {approval_id[:APPROVAL_TEXT_CHARS_MAX]!r}.")
        return found[0]

    def pending(self, db: sqlite3.Connection) -> list[Record]:
        """Return the questions that wait, oldest first."""
        return rows.read_records(db, "load_by_state", state=State.PENDING)

    def recent(self, db: sqlite3.Connection, count: int) -> list[Record]:
        """Return the newest records of every state, newest first."""
        return rows.read_records(db, "load_recent", count=count)

    # For messages.

    def note_sent(
        self, db: sqlite3.Connection, ids: Iterable[str], *, channel: str, status: str, now: float
    ) -> None:
        """Note that a message about questions was sent, or was given up."""
        for each in ids:
            values = {"approval": each, "channel": channel, "at": now, "status": status}
            rows.execute(db, "note", values)

    def take_token(self, db: sqlite3.Connection, digest: bytes, now: float) -> bool:
        """Return whether a one-time token is taken for the first time, and take it."""
        return bool(rows.execute(db, "take_token", {"digest": digest, "at": now}))

    def forget(self, db: sqlite3.Connection, before: float) -> None:
        """Delete what was asked before then and has ended."""
        for query in ("forget_votes", "forget_notices", "forget_tokens", "forget"):
            rows.execute(db, query, {"before": before})

    # Within.

    def _find(
        self, db: sqlite3.Connection, ask: Ask, now: float, *, is_raise: bool
    ) -> Record | None:
        usable = rows.read_records(
            db,
            "load_usable",
            agent=ask.agent,
            request_id=ask.request_id,
            channel_id=ask.channel_id,
        )
        if not usable:
            return None
        terms = terms_of(ask)
        found = [
            record
            for record in usable
            if (now < record.expires_at or goes_on(record, ask))
            and self._is_of_policy(record)
            and covers(record, ask, terms)
        ]
        return min(
            found,
            key=lambda record: (
                _is_raise(record, ask) != is_raise,
                not is_deposit_of(record, ask),
                record.used_by_request != ask.request_id,
                SCOPES.index(record.scope),
            ),
            default=None,
        )

    def _is_of_policy(self, record: Record) -> bool:
        question, rules = record.question, self.rules
        return (question.policy_revision, question.policy_hash) == (
            rules.policy_revision,
            rules.policy_hash,
        )

    def _require_pending(self, record: Record, now: float) -> None:
        if record.state != State.PENDING:
            raise ApprovalError(f"{record.id} is {record.state} already: this answer is late.")
        if record.expires_at <= now:
            raise ApprovalError(f"{record.id} was to be answered in time and has expired.")
        if not self._is_of_policy(record):
            raise ApprovalError(
                f"{record.id} was asked under another policy: the agent must ask again."
            )

    def _answered(
        self, earlier: Iterable[Record], question: Question, now: float
    ) -> AgentError | None:
        """Return what is known about this subject: a question that waits, or an answer."""
        for record in earlier:
            asked = record.question
            is_enough = asked.amount >= question.amount and asked.is_raise >= question.is_raise
            is_cut = record.approved < min(asked.amount, question.amount)
            if record.state == State.PENDING and is_enough:
                return _pending(asked, self.rules)
            if record.again_at is not None and now < record.again_at:
                return _refused(record)
            if record.state == State.APPROVED and is_cut and not record.used:
                return _partial(record, question, self.rules)
        return None

    def _full(self, db: sqlite3.Connection, agent: str, now: float) -> AgentError | None:
        (row,) = rows.execute(db, "count_pending", {"agent": agent, "now": now})
        most = self.rules.pending_max
        if row["number"] < most:
            return None
        return PolicyRefusedError(
            f"{row['number']} questions of {agent} wait for an answer, or were taken back before "
            f"it was due, and the policy allows {most}: wait for answers.",
            code=Code.APPROVALS_FULL,
            field="approval.pending_max",
            asked=row["number"] + 1,
            allowed=most,
            retry_at=row["first_at"],
        )

    def _question(self, ask: Ask, decision: Decision, now: float) -> Question:
        purpose = ask.purpose
        amount = amount_in_question(ask)
        before = decision.allowed if decision.code in _RAISES else None
        if before is None and decision.left is not None:
            before = decision.left + ask.amount
        return Question(
            id=secrets.token_hex(_ID_BYTES),
            created_at=now,
            answer_by=now + self.rules.timeout_s,
            kind=_kind(ask, decision),
            ask=ask.kind,
            agent=ask.agent,
            task=_cut(purpose.task),
            on_behalf_of=_cut(purpose.on_behalf_of),
            reason=_cut(purpose.reason),
            alternatives=tuple(
                Alternative(_cut(each.origin), _cut(each.price), _cut(each.why_not))
                for each in purpose.alternatives[:APPROVAL_ALTERNATIVES_MAX]
            ),
            request_id=ask.request_id,
            method=ask.method,
            origin=ask.origin,
            path=_cut(ask.path),
            tool=_cut(purpose.tool),
            chain_id=ask.chain_id,
            token=ask.token,
            recipient=ask.recipient,
            escrow=ask.escrow,
            tariff=ask.tariff,
            channel_id=None if ask.is_opening else ask.channel_id,
            amount=amount,
            envelopes=decision.envelopes,
            left_before=before,
            rule=decision.rule,
            code=decision.code,
            why=decision.reason,
            is_raise=decision.code in _RAISES,
            policy_revision=self.rules.policy_revision,
            policy_hash=self.rules.policy_hash,
            request_max=ask.request_max,
        )

    def _change(self, db: sqlite3.Connection, record: Record, now: float) -> Record:
        rows.change(db, record)
        self._note(db, record, now)
        return record

    def _note(self, db: sqlite3.Connection, record: Record, now: float) -> None:
        if self._trail is None:
            return
        question = record.question
        last = record.votes[-1].by if record.votes else None
        self._trail.append(
            db,
            "approval",
            at=now,
            agent=question.agent,
            task=question.task,
            approval_id=record.id,
            request_id=question.request_id,
            state=str(record.state),
            terms_hash=record.terms.exact.hex(),
            amount=str(question.amount),
            approved=str(record.approved),
            used=str(record.used),
            scope=record.scope,
            by="" if last is None else f"{last.kind} {last.id}",
            comment=record.comment,
        )


def _is_raise(record: Record, ask: Ask) -> bool:
    """Whether an approval was given for going beyond the envelope that this ask goes beyond."""
    return record.question.is_raise and not is_deposit_of(record, ask)


def _kind(ask: Ask, decision: Decision) -> Kind:
    if decision.code in _RAISES:
        return "raise"
    if decision.code == Code.ANOMALY_HELD:
        return "anomaly"
    if ask.kind == "charge":
        return "charge"
    if ask.kind == "sign":
        return "request"
    return "open" if ask.is_opening else "top_up"


def _cut(text: str) -> str:
    """Return text that can be stored and is not longer than people read."""
    return text[:APPROVAL_TEXT_CHARS_MAX].encode("utf-8", "backslashreplace").decode()


def _pending(question: Question, rules: ApprovalRules) -> ApprovalPendingError:
    unit = rules.unit(question.chain_id, question.token)
    return ApprovalPendingError(
        f"{question.why}. The question is whether {question.agent} may pay "
        f"{unit.format(question.amount)} to {question.origin}.",
        approval_id=question.id,
        expires_at=question.answer_by,
    )


def _refused(record: Record) -> PolicyRefusedError:
    """Return the answer that still stands."""
    said = f" ({record.comment})" if record.comment else ""
    is_denied = record.state == State.DENIED
    return PolicyRefusedError(
        f"These terms were asked about as {record.id}, which is {record.state}{said}. They are "
        "not asked about again before the time in `retry_at`.",
        code=Code.APPROVAL_DENIED if is_denied else Code.APPROVAL_EXPIRED,
        asked=record.question.amount,
        allowed=0,
        rule=record.question.rule or None,
        retry_at=record.again_at,
    )


def _partial(record: Record, question: Question, rules: ApprovalRules) -> PolicyRefusedError:
    unit = rules.unit(question.chain_id, question.token)
    return PolicyRefusedError(
        f"{unit.format(question.amount)} was asked and {unit.format(record.approved)} approved "
        f"({record.id}): ask for at most that.",
        code=Code.APPROVAL_DENIED,
        asked=question.amount,
        allowed=record.approved,
        rule=question.rule or None,
    )
