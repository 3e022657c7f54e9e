"""Decides about one ask: a pure function of policy, ask and snapshot that never raises.

The order: freeze; the agent known, not revoked, not expired, and its task its own to name; what no
rule could allow; rules that deny; a rule that allows; hard caps of every rule that matches and
every envelope up to the roots; breaker; what people are asked about; allowed. Hard caps come before
people, since no question should be about what an approval cannot permit. Deny beats ask, ask beats
allow, and the order of the rules is of no account.
"""

import math
from collections.abc import Iterator
from typing import Final

import msgspec

from channel.limits import AMOUNT_MAX
from mpp_session.wallet.policy.caps import (
    Check,
    PriceCheck,
    envelope_checks,
    price_checks,
    rule_checks,
)
from mpp_session.wallet.policy.compiled import Agent, Rule, WalletPolicy
from mpp_session.wallet.policy.matching import (
    Facts,
    Miss,
    Refusal,
    is_near,
    is_read_alike,
    misses_of,
    nearest,
    read_facts,
    shown,
)
from mpp_session.wallet.policy.patterns import matches, normalise_origin
from mpp_session.wallet.policy.times import describe_time
from mpp_session.wallet.types import Ask, Code, Counter, Decision, Snapshot

__all__ = ["Evaluation", "counters_for", "decide", "denied", "evaluate", "refuse_agent"]

_NOTHING: Final = Snapshot()
_NAMED: Final = 3
_WORDS_CHARS: Final = 400
_RAISES: Final = frozenset({Code.ENVELOPE_EXCEEDED, Code.LOCKED_EXCEEDED})


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A decision with everything that it was made from."""

    decision: Decision
    matched: tuple[Rule, ...] = ()
    """Rules whose caps apply and which deny or ask; also those that allow."""
    granting: tuple[Rule, ...] = ()
    """Rules that allow it by themselves, caps aside."""
    missed: tuple[tuple[Rule, list[Miss]], ...] = ()
    prices: tuple[PriceCheck, ...] = ()
    checks: tuple[Check, ...] = ()


class _Question(msgspec.Struct, frozen=True, kw_only=True):
    """Why a person must be asked."""

    code: Code
    field: str
    reason: str
    rule: str = ""
    asked: int | None = None
    allowed: int | None = None
    retry_at: float | None = None


def decide(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> Decision:
    """Return what becomes of an ask. Never raises, for no ask and no snapshot.

    `snapshot.sums` should hold a sum for each counter of `counters_for`; a missing one counts as 0.
    """
    return evaluate(policy, ask, snapshot).decision


def counters_for(policy: WalletPolicy, ask: Ask) -> tuple[Counter, ...]:
    """Return every sum that a decision about this ask may read. Never raises."""
    if _invalid(ask) is not None:
        return ()
    facts = read_facts(policy, ask)
    if isinstance(facts, Refusal):
        return ()
    checks = [check for rule in policy.rules for check in _checks_if_matched(rule, facts)]
    checks += envelope_checks(policy, facts, _NOTHING)
    return _counters(checks)


def _checks_if_matched(rule: Rule, facts: Facts) -> Iterator[Check]:
    if not misses_of(rule, facts, exactly=False, never_paid=None):
        yield from rule_checks(rule, facts, _NOTHING)


def _counters(checks: list[Check]) -> tuple[Counter, ...]:
    found = (check.counter for check in checks if check.counter is not None)
    return tuple(dict.fromkeys(found))


def evaluate(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> Evaluation:
    """Return the decision about an ask, with what it was made from. Never raises."""
    found = _read(policy, ask, snapshot)
    if isinstance(found, Refusal):
        return Evaluation(decision=denied(policy, found))
    return _evaluate(policy, found, snapshot)


def _read(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> Facts | Refusal:
    """Return the ask as rules read it, or why it is refused without them."""
    refused = refuse_agent(policy, ask, snapshot) or _invalid(ask)
    if refused is not None:
        return refused
    facts = read_facts(policy, ask)
    if isinstance(facts, Refusal):
        return facts
    return _refuse_envelopes(policy, facts) or facts


def _evaluate(policy: WalletPolicy, facts: Facts, snapshot: Snapshot) -> Evaluation:
    seen = snapshot.never_paid
    wide = {
        rule.name: misses_of(rule, facts, exactly=False, never_paid=seen) for rule in policy.rules
    }
    matched = tuple(rule for rule in policy.rules if not wide[rule.name])
    missed = tuple(
        (rule, _grant_misses(rule, facts, snapshot, wide[rule.name]))
        for rule in policy.rules
        if rule.may_grant
    )
    granting = tuple(rule for rule, misses in missed if not misses)
    prices = tuple(check for rule in matched for check in price_checks(rule, facts))
    checks = [check for rule in matched for check in rule_checks(rule, facts, snapshot)]
    checks += envelope_checks(policy, facts, snapshot)
    return Evaluation(
        decision=_decide(
            policy, facts, snapshot, _Found(matched, granting, missed, prices, checks)
        ),
        matched=matched,
        granting=granting,
        missed=missed,
        prices=prices,
        checks=tuple(checks),
    )


class _Found(msgspec.Struct, frozen=True):
    matched: tuple[Rule, ...]
    granting: tuple[Rule, ...]
    missed: tuple[tuple[Rule, list[Miss]], ...]
    prices: tuple[PriceCheck, ...]
    checks: list[Check]


def _decide(policy: WalletPolicy, facts: Facts, snapshot: Snapshot, found: _Found) -> Decision:
    denying = next((rule for rule in found.matched if rule.action == "deny"), None)
    if denying is not None:
        return denied(
            policy,
            Refusal(
                code=Code.RULE_DENIED,
                field=f"rule.{denying.name}",
                reason=f"rule {denying.name} denies this",
            ),
            rule=denying.name,
        )
    if not found.granting and policy.default == "deny":
        return _deny_unmatched(policy, facts, found)
    refused = _refuse_prices(policy, found.prices) or _refuse_sums(policy, facts, found.checks)
    if refused is None:
        refused = _refuse_state(policy, facts.ask, snapshot)
    if refused is not None:
        return refused
    questions = _questions(policy, facts, snapshot, found)
    question = next((q for q in questions if not _is_approved(q, facts.ask, snapshot)), None)
    if question is not None:
        return _ask_people(policy, facts, found, question)
    return _allow(policy, facts, snapshot, found)


def refuse_agent(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> Refusal | None:
    """Return why this agent may pay nothing now."""
    frozen = _frozen(policy, ask, snapshot)
    if frozen is not None:
        reason = f"{frozen} is frozen; its owner can unfreeze it"
        return Refusal(code=Code.FROZEN, field="", reason=reason)
    agent = policy.agents.get(ask.agent)
    if agent is None:
        reason = f"the policy has no agent {shown(ask.agent)}; add it as [agent.NAME]"
        return Refusal(code=Code.AGENT_UNKNOWN, field="agent", reason=reason)
    field = f"agent.{agent.name}"
    if f"agent {agent.name}" in snapshot.revoked:
        reason = f"agent {agent.name} is revoked; add an agent with another name and token"
        return Refusal(code=Code.AGENT_REVOKED, field=field, reason=reason)
    if not (math.isfinite(ask.at) and 0 <= ask.at < agent.expires):
        reason = (
            f"agent {agent.name} expired at {describe_time(agent.expires)}, and it is "
            f"{describe_time(ask.at)}; extend {field}.expires"
        )
        return Refusal(code=Code.AGENT_EXPIRED, field=f"{field}.expires", reason=reason)
    return _refuse_task(policy, agent, ask.purpose.task)


def _refuse_task(policy: WalletPolicy, agent: Agent, task: str) -> Refusal | None:
    """Refuse a task that is another agent's: rules and budgets by task would take its word.

    A request without a task names no agent's task, so it is not refused.
    """
    if not task:
        return None
    field = f"agent.{agent.name}.tasks"
    if agent.tasks is not None:
        if any(matches(pattern, task) for pattern in agent.tasks):
            return None
        allowed = f"it may name {', '.join(agent.tasks[:_NAMED])}"
        if len(agent.tasks) > _NAMED:
            allowed += f" and {len(agent.tasks) - _NAMED} more"
    elif any(matches(pattern, task) for pattern in policy.tasks):
        allowed = "the task is one of another agent's `tasks`"
    else:
        return None
    return Refusal(
        code=Code.TASK_NOT_ALLOWED,
        field=field,
        reason=f"agent {agent.name} names the task {shown(task)}, and {allowed}; name another "
        f"task, or add this one to {field}",
    )


def _frozen(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> str | None:
    if not snapshot.frozen:
        return None
    if "all" in snapshot.frozen:
        return "the whole wallet"
    origin = normalise_origin(ask.origin)
    names = [f"agent {ask.agent}", f"origin {ask.origin}", f"origin {origin}"]
    names += [f"origin {origin.removesuffix(end)}" for end in (":443", ":80") if origin]
    names += [f"envelope {envelope.name}" for envelope in policy.envelopes_of(ask.agent)]
    found = next((name for name in names if name in snapshot.frozen), None)
    return None if found is None else shown(found)


def _invalid(ask: Ask) -> Refusal | None:
    """Return why the numbers of an ask make no sense."""
    for name in ("amount", "total", "request_total", "request_max"):
        value = getattr(ask, name)
        if not 0 <= value <= AMOUNT_MAX:
            return Refusal(
                code=Code.REQUEST_EXCEEDED,
                field=name,
                reason=f"{name} must be from 0 to 2**128 - 1 base units, found "
                f"{'a negative number' if value < 0 else 'more'}",
            )
    return None


def _refuse_envelopes(policy: WalletPolicy, facts: Facts) -> Refusal | None:
    """Refuse a token that no envelope of the agent counts: it would be spent without a limit."""
    alias, agent = facts.token.alias, facts.ask.agent
    if policy.envelopes_of(agent, alias):
        return None
    counted = sorted({envelope.token for envelope in policy.envelopes_of(agent)})
    return Refusal(
        code=Code.TOKEN_NOT_ALLOWED,
        field=f"agent.{agent}.envelopes",
        reason=f"payment in {alias} is asked; the envelopes of agent {agent} count "
        f"{', '.join(counted) or 'nothing'}; add one in {alias} to allow it",
    )


def _grant_misses(rule: Rule, facts: Facts, snapshot: Snapshot, wide: list[Miss]) -> list[Miss]:
    """Return why a rule does not allow an ask by itself; `wide` is what it misses widely."""
    found = list(wide)
    if not is_read_alike(rule):
        found = misses_of(rule, facts, exactly=True, never_paid=snapshot.never_paid)
    if f"rule {rule.name}" in snapshot.revoked:
        found.append(
            Miss(key="rule", field=f"rule.{rule.name}", asked="revoked", allowed="not revoked")
        )
    return found


def _deny_unmatched(policy: WalletPolicy, facts: Facts, found: _Found) -> Decision:
    ask = facts.ask
    near = nearest(
        (rule, misses) for rule, misses in found.missed if is_near(rule, ask.agent) and misses
    )
    if near is None:
        refusal = Refusal(
            code=Code.NO_RULE, field="rule", reason=f"no rule is about agent {ask.agent}"
        )
        return denied(policy, refusal)
    rule, misses = near
    first = misses[0]
    parts = "; ".join(
        f"{miss.key} is {miss.asked}, allowed {miss.allowed} ({miss.field})"
        for miss in misses[:_NAMED]
    )
    refusal = Refusal(
        code=first.code,
        field=first.field,
        reason=f"no rule allows {shown(ask.method)} {facts.origin}{shown(ask.path)}; rule "
        f"{rule.name} comes nearest: {parts}",
    )
    retry_at = first.retry_at if len(misses) == 1 else None
    return denied(policy, refusal, rule=rule.name, retry_at=retry_at)


def _refuse_prices(policy: WalletPolicy, prices: tuple[PriceCheck, ...]) -> Decision | None:
    found = next((check for check in prices if check.is_exceeded), None)
    if found is None:
        return None
    refusal = Refusal(
        code=Code.UNIT_PRICE_EXCEEDED,
        field=found.field,
        reason=f"{found.asked} is asked; rule {found.rule} allows {found.allowed}; raise "
        f"{found.field} or buy elsewhere",
    )
    return denied(policy, refusal, rule=found.rule)


def _refuse_sums(policy: WalletPolicy, facts: Facts, checks: list[Check]) -> Decision | None:
    found = next((check for check in checks if check.is_exceeded and not check.is_soft), None)
    if found is None:
        return None
    return Decision(
        action="deny",
        code=found.code,
        reason=_excess(found, facts.ask.at),
        rule=found.rule,
        field=found.field,
        asked=found.asked,
        allowed=found.left,
        retry_at=found.retry_at(facts.ask.at),
        policy_revision=policy.revision,
    )


def _excess(check: Check, at: float) -> str:
    used = f", of which {check.show(check.used)} is used" if check.used else ""
    retry_at = check.retry_at(at)
    later = "" if retry_at is None else f", or try again by {describe_time(retry_at)}"
    return (
        f"{check.show(check.asked)} is asked for {check.what}; allowed is "
        f"{check.show(check.limit)}{used}; ask for at most {check.show(check.left)}, raise "
        f"{check.field}{later}"
    )


def _words(text: str) -> str:
    """Return a sentence of the wallet's own, whole; it may name an origin."""
    return "".join(c for c in text if c.isprintable())[:_WORDS_CHARS]


def _refuse_state(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> Decision | None:
    until = snapshot.breaker_until
    if until is not None and not until <= ask.at:
        refusal = Refusal(
            code=Code.BREAKER_OPEN,
            field="breaker",
            reason=f"payments of {ask.agent} to {shown(ask.origin)} are stopped until "
            f"{describe_time(until)}: {_words(snapshot.breaker)}",
        )
        return denied(policy, refusal, retry_at=until)
    if snapshot.finding and policy.anomaly.action == "pause":
        refusal = Refusal(
            code=Code.ANOMALY_HELD,
            field="anomaly.action",
            reason=f"this is unusual for {ask.agent}: {_words(snapshot.finding)}; the owner can "
            "look into it",
        )
        return denied(policy, refusal)
    return None


def _questions(
    policy: WalletPolicy, facts: Facts, snapshot: Snapshot, found: _Found
) -> Iterator[_Question]:
    """Yield why people must be asked: about deposits and charges, and about few vouchers.

    A voucher is a question where it exceeds an envelope, and where no rule allows its request by
    itself, because the deposit it is paid from may have been made for another request. The approval
    of a request covers its later vouchers.
    """
    ask = facts.ask
    for check in found.checks:
        if check.is_exceeded:
            yield _Question(
                code=check.code,
                field=check.field,
                reason=_excess(check, ask.at),
                asked=check.asked,
                allowed=check.left,
                retry_at=check.retry_at(ask.at),
            )
    is_allowed = any(rule.action == "allow" for rule in found.granting)
    if not ask.is_commitment and (is_allowed or not _adds_cost(ask)):
        return
    for rule in found.matched:
        if rule.action == "ask":
            reason = f"rule {rule.name} asks for an approval"
            yield _Question(
                code=Code.APPROVAL_PENDING,
                field=f"rule.{rule.name}",
                reason=reason,
                rule=rule.name,
            )
    if not found.granting:
        reason = "no rule allows this, and such payments need an approval"
        yield _Question(code=Code.APPROVAL_PENDING, field="default", reason=reason)
    if not ask.is_commitment:
        return
    yield from _amount_questions(policy, facts)
    if snapshot.finding and policy.anomaly.action == "ask":
        reason = f"this is unusual for {ask.agent}: {_words(snapshot.finding)}"
        yield _Question(code=Code.ANOMALY_HELD, field="anomaly.action", reason=reason)


def _adds_cost(ask: Ask) -> bool:
    """Whether a voucher adds an amount, or is the first of a request that may cost something.

    The first may add nothing: what was signed for others and not used pays for the request, too.
    """
    return ask.amount > 0 or (ask.is_first and ask.request_max > 0)


def _amount_questions(policy: WalletPolicy, facts: Facts) -> Iterator[_Question]:
    """Ask above an amount; of a channel its whole deposit counts, so that no top-ups evade it."""
    above = policy.approval.above
    if not above:
        return
    ask, token = facts.ask, facts.token
    amount = max(ask.amount, ask.total) if ask.kind == "deposit" else ask.amount
    allowed = above.get(token.alias, 0)
    if amount > allowed:
        what = "a deposit" if ask.kind == "deposit" else "a payment"
        yield _Question(
            code=Code.APPROVAL_PENDING,
            field="approval.above",
            reason=f"{what} of {token.unit.format(amount)} needs an approval, as any above "
            f"{token.unit.format(allowed)}",
            asked=amount,
            allowed=allowed,
        )


def _is_approved(question: _Question, ask: Ask, snapshot: Snapshot) -> bool:
    """Whether an approval answers a question: only one for a raise says that an envelope may end.

    Who approved anything else was shown what is left, and may have refused without it.
    """
    if question.code in _RAISES and not snapshot.approved_raise:
        return False
    return snapshot.approved is not None and snapshot.approved >= ask.amount


def _ask_people(policy: WalletPolicy, facts: Facts, found: _Found, question: _Question) -> Decision:
    return Decision(
        action="ask",
        code=question.code,
        reason=question.reason,
        rule=question.rule,
        field=question.field,
        asked=question.asked,
        allowed=question.allowed,
        retry_at=question.retry_at,
        left=_left(found),
        policy_revision=policy.revision,
        envelopes=_envelopes(policy, facts),
    )


def _left(found: _Found) -> int | None:
    """Return the smallest rest of all caps after this ask."""
    rests = [max(0, check.left - check.asked) for check in found.checks if check.unit is not None]
    return min(rests, default=None)


def _envelopes(policy: WalletPolicy, facts: Facts) -> tuple[str, ...]:
    """Return what the ask is booked to."""
    envelopes = policy.envelopes_of(facts.ask.agent, facts.token.alias)
    return tuple(envelope.name for envelope in envelopes)


def _allow(policy: WalletPolicy, facts: Facts, snapshot: Snapshot, found: _Found) -> Decision:
    warnings = [words for check in found.checks if (words := check.warning()) is not None]
    if snapshot.finding and policy.anomaly.action != "pause":
        warnings.append(f"unusual for {facts.ask.agent}: {_words(snapshot.finding)}")
    rule = found.granting[0].name if found.granting else ""
    return Decision(
        action="allow",
        code=Code.ALLOWED,
        reason=f"rule {rule} allows this" if rule else "an approval allows this",
        rule=rule,
        left=_left(found),
        policy_revision=policy.revision,
        counters=_counters(found.checks),
        envelopes=_envelopes(policy, facts),
        warnings=tuple(warnings),
    )


def denied(
    policy: WalletPolicy, refusal: Refusal, *, rule: str = "", retry_at: float | None = None
) -> Decision:
    """Return the decision of a refusal."""
    return Decision(
        action="deny",
        code=refusal.code,
        reason=refusal.reason,
        rule=rule,
        field=refusal.field,
        retry_at=retry_at,
        policy_revision=policy.revision,
    )
