"""Whose vote counts, and what the votes on one question add up to (pure)."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from channel.limits import AMOUNT_MAX
from mpp_session.wallet.approvals.record import (
    SCOPES,
    ApprovalError,
    Question,
    Scope,
    Vote,
)
from mpp_session.wallet.approvals.rules import ApprovalRules

__all__ = ["Outcome", "count_votes", "require_vote"]


class Outcome(msgspec.Struct, frozen=True):
    """What the votes so far say."""

    verdict: Literal["approve", "deny", ""]
    """Empty while too few have answered."""
    amount: int = 0
    scope: Scope = "once"


def count_votes(votes: Sequence[Vote], quorum: int) -> Outcome:
    """Return the outcome: one denial denies, and `quorum` distinct voters approve.

    All supervising agents together are one voter, since one program may run them all. The smallest
    amount and the narrowest scope of those who approve count.
    """
    if any(vote.verdict == "deny" for vote in votes):
        return Outcome("deny")
    people = {vote.by.id for vote in votes if vote.by.kind == "person"}
    agents = any(vote.by.kind == "agent" for vote in votes)
    if len(people) + agents < max(1, quorum):
        return Outcome("")
    return Outcome("approve", min(vote.amount for vote in votes), _narrowest(votes))


def require_vote(question: Question, vote: Vote, rules: ApprovalRules) -> None:
    """Check that this voter may give this answer.

    Raises:
        ApprovalError: It says what was expected.
    """
    if vote.by.kind == "person":
        if rules.people and vote.by.id not in rules.people:
            raise ApprovalError(
                f"{vote.by.id!r} may not answer: the policy names the people who may."
            )
    else:
        _require_supervisor(question, vote, rules)
    if vote.verdict == "approve":
        _require_measure(question, vote, rules)


def _require_supervisor(question: Question, vote: Vote, rules: ApprovalRules) -> None:
    name = vote.by.id
    if name in {question.agent, question.on_behalf_of}:
        raise ApprovalError("An agent cannot answer its own question: ask a person.")
    supervisor = rules.supervisors.get(name)
    if supervisor is None or question.agent not in supervisor.may_approve:
        raise ApprovalError(
            f"The agent {name!r} may not answer for {question.agent!r}: `may_approve` of the "
            "policy names the agents that it may answer for."
        )
    if vote.verdict == "deny":
        return
    if question.is_raise:
        raise ApprovalError("An envelope is its owner's limit: only people may lift it.")
    most = supervisor.approve_max.get((question.chain_id, question.token), 0)
    # A deposit that is approved also pays for its request, of which a top-up is a part.
    covered = max(vote.amount, question.request_max if question.ask == "deposit" else 0)
    if covered > most:
        unit = rules.unit(question.chain_id, question.token)
        raise ApprovalError(
            f"The agent {name!r} may approve {unit.format(most)} and not "
            f"{unit.format(covered)} (`approve_max`): ask a person."
        )


def _require_measure(question: Question, vote: Vote, rules: ApprovalRules) -> None:
    if SCOPES.index(vote.scope) > SCOPES.index(rules.scope_max):
        raise ApprovalError(
            f"Expected a scope no wider than {rules.scope_max!r} (`approval.scope_max`), found "
            f"{vote.scope!r}."
        )
    if vote.scope == "channel" and question.ask == "charge":
        raise ApprovalError("A single payment opens no channel: approve it once, or for a window.")
    is_top_up = question.ask == "deposit" and question.channel_id is not None
    is_fixed = question.ask == "charge" or is_top_up
    if vote.scope == "once" and is_fixed and vote.amount < question.amount:
        raise ApprovalError(
            "Only the deposit that opens a channel can be smaller than was asked: approve this in "
            "full, or deny it."
        )
    most = question.amount if vote.scope == "once" else AMOUNT_MAX
    if not 0 < vote.amount <= most:
        unit = rules.unit(question.chain_id, question.token)
        raise ApprovalError(
            f"Expected an amount above 0 and up to {unit.format(most)}, found "
            f"{unit.format(vote.amount)}: an approval for one payment cannot exceed what was asked."
        )


def _narrowest(votes: Iterable[Vote]) -> Scope:
    return min((vote.scope for vote in votes), key=SCOPES.index)
