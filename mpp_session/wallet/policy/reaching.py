"""Decides whether a request may be sent at all, before any server is asked for its price (pure).

An agent could otherwise use the wallet as a way to servers that only the wallet's user reaches. A
request may go to an origin of which some rule would let the agent buy; there it may ask for what is
free, too. A rule that denies by agent, origin, method and path denies this as well.
"""

from collections.abc import Iterator

import msgspec

from mpp_session.wallet.policy.compiled import Rule, WalletPolicy
from mpp_session.wallet.policy.deciding import denied, refuse_agent
from mpp_session.wallet.policy.matching import Refusal, is_near, place_misses, shown, time_misses
from mpp_session.wallet.policy.patterns import (
    is_canonical_path,
    matches_origin,
    normalise_origin,
)
from mpp_session.wallet.types import Ask, Code, Decision, Snapshot

__all__ = ["refuse_reach"]

_PLACE = frozenset({"agent", "origin", "method", "path"})


def refuse_reach(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> Decision | None:
    """Return why a request may not be sent; None where it may. Never raises.

    Args:
        policy: The policy in force.
        ask: Of the request; what it says of a payment is not read.
        snapshot: `frozen` and `revoked` are read.
    """
    refusal = refuse_agent(policy, ask, snapshot) or _refuse_place(policy, ask, snapshot)
    return None if refusal is None else denied(policy, refusal)


def _refuse_place(policy: WalletPolicy, ask: Ask, snapshot: Snapshot) -> Refusal | None:
    origin = normalise_origin(ask.origin)
    if origin is None:
        reason = f"{shown(ask.origin)} is not an origin in its plain spelling"
        return Refusal(code=Code.ORIGIN_NOT_ALLOWED, field="origin", reason=reason)
    for rule in policy.rules:
        if _denies(rule, ask, origin):
            reason = f"rule {rule.name} denies this"
            return Refusal(code=Code.RULE_DENIED, field=f"rule.{rule.name}", reason=reason)
    if policy.default == "ask" or any(
        rule.match.origin is None or any(matches_origin(one, origin) for one in rule.match.origin)
        for rule in _granting(policy, ask.agent, snapshot)
    ):
        return None
    known = sorted(
        {one for rule in _granting(policy, ask.agent, snapshot) for one in rule.match.origin or ()}
    )
    return Refusal(
        code=Code.ORIGIN_NOT_ALLOWED,
        field="rule",
        reason=f"no rule lets {shown(ask.agent)} buy from {origin}; allowed is "
        f"{', '.join(known[:8]) or 'nothing'}; add a rule to allow it",
    )


def _granting(policy: WalletPolicy, agent: str, snapshot: Snapshot) -> Iterator[Rule]:
    for rule in policy.rules:
        is_grant = rule.action != "deny" and f"rule {rule.name}" not in snapshot.revoked
        if is_grant and is_near(rule, agent):
            yield rule


def _denies(rule: Rule, ask: Ask, origin: str) -> bool:
    """Whether a rule denies a request at any price and for any payee."""
    if rule.action != "deny" or _limits_payment(rule):
        return False
    if not is_canonical_path(ask.path) and rule.match.path is not None:
        return not place_misses(rule, ask, origin, exactly=False, with_path=False)
    return not (place_misses(rule, ask, origin, exactly=False) or time_misses(rule, ask.at))


def _limits_payment(rule: Rule) -> bool:
    match = msgspec.structs.asdict(rule.match)
    return any(value is not None for name, value in match.items() if name not in _PLACE)
