"""Says in words how a decision comes about: rules, caps with what is left of them, the result."""

from channel.types import TokenUnit
from mpp_session.wallet.policy.caps import Check
from mpp_session.wallet.policy.compiled import Rule, WalletPolicy
from mpp_session.wallet.policy.deciding import Evaluation, evaluate
from mpp_session.wallet.policy.matching import shown
from mpp_session.wallet.policy.times import describe_time
from mpp_session.wallet.types import Ask, Decision, Snapshot

__all__ = ["explain"]


def explain(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> str:
    """Return several lines about one ask: the rules, the caps, the decision. Never raises."""
    found = evaluate(policy, ask, snapshot)
    token = policy.token_of(ask.chain_id, ask.token)
    unit = TokenUnit("base units", 0) if token is None else token.unit
    asked = (
        f"{ask.kind} of {unit.format(ask.amount)} by {shown(ask.agent)} for {shown(ask.method)} "
        f"{shown(ask.origin)}{shown(ask.path)}"
    )
    lines = [asked, "", "rules:", *_rules(policy, found), "", "caps:", *_caps(found)]
    return "\n".join([*lines, "", *_decision(found.decision)])


def _rules(policy: WalletPolicy, found: Evaluation) -> list[str]:
    lines = [f"  {rule.name}: {_effect(rule, found)}" for rule in found.matched]
    matched = {rule.name for rule in found.matched}
    lines += [
        f"  {rule.name}: does not match: "
        + "; ".join(f"{miss.key} is {miss.asked}, allowed {miss.allowed}" for miss in misses)
        for rule, misses in found.missed
        if misses and rule.name not in matched
    ]
    return lines or [f"  none was read (default: {policy.default})"]


def _effect(rule: Rule, found: Evaluation) -> str:
    if rule.action == "deny":
        return "denies"
    if rule in found.granting:
        return "allows" if rule.action == "allow" else "asks for an approval"
    return "does not allow by itself; its caps apply"


def _caps(found: Evaluation) -> list[str]:
    lines = [
        f"  {check.field}: {check.asked}, {check.allowed}{_mark(exceeded=check.is_exceeded)}"
        for check in found.prices
    ]
    lines += [f"  {_cap(check)}" for check in found.checks]
    return lines or ["  none was reckoned"]


def _cap(check: Check) -> str:
    parts = [
        f"limit {check.show(check.limit)}",
        f"used {check.show(check.used)}",
        f"asked {check.show(check.asked)}",
        f"left {check.show(max(0, check.left - check.asked))}",
    ]
    return f"{check.field}: {', '.join(parts)}{_mark(exceeded=check.is_exceeded)}"


def _mark(*, exceeded: bool) -> str:
    return "  EXCEEDED" if exceeded else ""


def _decision(decision: Decision) -> list[str]:
    lines = [f"{decision.action} ({decision.code}): {decision.reason}"]
    if decision.field:
        lines.append(f"decided by {decision.field}")
    if decision.retry_at is not None:
        lines.append(f"may be allowed from {describe_time(decision.retry_at)}")
    return [*lines, *(f"warning: {warning}" for warning in decision.warnings)]
