"""Holds one ask against the rules: which match, and why the others do not (pure).

A rule grants only what it matches exactly. For what it denies, asks or caps it is read widely: in
any spelling of the path that a server might take for it, and if any kind of the tariff matches.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from channel.types import Address
from channel.wire.encoding import format_address
from mpp_session.wallet.policy.compiled import Rule, Token, WalletPolicy, When
from mpp_session.wallet.policy.patterns import (
    is_canonical_path,
    matches,
    matches_origin,
    matches_path,
    matches_reading,
    normalise_origin,
)
from mpp_session.wallet.policy.times import describe_time
from mpp_session.wallet.types import Ask, Code

__all__ = [
    "Facts",
    "Miss",
    "Refusal",
    "is_near",
    "is_read_alike",
    "misses_of",
    "nearest",
    "place_misses",
    "read_facts",
    "shown",
    "time_misses",
]

TEXT_CHARS: Final = 80
_CODES: Final = {
    "origin": Code.ORIGIN_NOT_ALLOWED,
    "path": Code.PATH_NOT_ALLOWED,
    "chain": Code.CHAIN_NOT_ALLOWED,
    "token": Code.TOKEN_NOT_ALLOWED,
    "recipient": Code.RECIPIENT_NOT_ALLOWED,
    "escrow": Code.ESCROW_NOT_ALLOWED,
}
_CHARGE_KIND: Final = "request"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """An ask as the rules read it."""

    ask: Ask
    origin: str
    """In its one spelling."""
    token: Token
    kinds: tuple[str, ...]
    """What is paid for; of a charge a request."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an ask is refused before any rule is read."""

    code: Code
    field: str
    reason: str


class Miss(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a rule that does not match."""

    key: str
    field: str
    asked: str
    allowed: str
    retry_at: float | None = None

    @property
    def code(self) -> Code:
        """The code of a refusal for it."""
        return _CODES.get(self.key, Code.NO_RULE)


def shown(text: str) -> str:
    """Return a text of an agent or a server, in one printable line of bounded length."""
    return text if text.isprintable() and 0 < len(text) <= TEXT_CHARS else f"{text!r:.80}"


def read_facts(policy: WalletPolicy, ask: Ask) -> Facts | Refusal:
    """Return the ask as rules read it, or why no rule could allow it."""
    origin = normalise_origin(ask.origin)
    if origin is None:
        return Refusal(
            code=Code.ORIGIN_NOT_ALLOWED,
            field="origin",
            reason=f"{shown(ask.origin)} is not an origin in its plain spelling; expected one such "
            "as https://api.example:443",
        )
    if not is_canonical_path(ask.path):
        return Refusal(
            code=Code.PATH_NOT_ALLOWED,
            field="path",
            reason=f"servers may read the path {shown(ask.path)} in several ways; send it without "
            "..,  //, ; or needless percent-encoding",
        )
    token = policy.token_of(ask.chain_id, ask.token)
    if token is None:
        return _unknown_token(policy, ask)
    if ask.kind != "charge" and token.escrows is not None:
        known = [escrow.address for escrow in token.escrows]
        if ask.escrow not in known:
            return Refusal(
                code=Code.ESCROW_NOT_ALLOWED,
                field=f"token.{token.alias}.escrows",
                reason=f"the escrow {_hex(ask.escrow)} is not one of token {token.alias}; it "
                f"allows {_listed(map(format_address, known))}",
            )
    kinds = (_CHARGE_KIND,) if ask.tariff is None else ask.tariff.kinds
    return Facts(ask=ask, origin=origin, token=token, kinds=kinds)


def _unknown_token(policy: WalletPolicy, ask: Ask) -> Refusal:
    chains = sorted({token.chain for token in policy.tokens.values()})
    if ask.chain_id not in chains:
        return Refusal(
            code=Code.CHAIN_NOT_ALLOWED,
            field="token",
            reason=f"payment on chain {ask.chain_id} is asked; the policy has tokens on "
            f"{_listed(map(str, chains))}",
        )
    known = (
        f"{token.alias} {format_address(token.address)}"
        for token in policy.tokens.values()
        if token.chain == ask.chain_id
    )
    return Refusal(
        code=Code.TOKEN_NOT_ALLOWED,
        field="token",
        reason=f"payment in token {format_address(ask.token)} is asked; the policy has on chain "
        f"{ask.chain_id} {_listed(known)}",
    )


def is_near(rule: Rule, agent: str) -> bool:
    """Whether a rule is about this agent at all."""
    named = rule.match.agent
    return named is None or any(matches(pattern, agent) for pattern in named)


def is_read_alike(rule: Rule) -> bool:
    """Whether a rule matches exactly what it matches widely."""
    return rule.match.path is None and rule.match.unit is None


def misses_of(
    rule: Rule, facts: Facts, *, exactly: bool, never_paid: frozenset[str] | None
) -> list[Miss]:
    """Return what of a rule does not match; empty where it does.

    Args:
        rule: The rule.
        facts: The ask.
        exactly: As it must match to grant something; otherwise widely.
        never_paid: What the agent has never paid; None to leave `first_seen` out.
    """
    found = place_misses(rule, facts.ask, facts.origin, exactly=exactly)
    found += _payment_misses(rule, facts)
    found += _use_misses(rule, facts, exactly=exactly)
    first_seen = rule.match.first_seen
    if first_seen is not None and never_paid is not None and never_paid.isdisjoint(first_seen):
        found.append(_miss(rule, "first_seen", "all paid before", _listed(first_seen)))
    return found + time_misses(rule, facts.ask.at)


def place_misses(
    rule: Rule, ask: Ask, origin: str, *, exactly: bool, with_path: bool = True
) -> list[Miss]:
    """Return what of agent, origin, method and path does not match; see `misses_of`."""
    match = rule.match
    found = []
    if not is_near(rule, ask.agent):
        found.append(_miss(rule, "agent", shown(ask.agent), _listed(match.agent)))
    if match.origin is not None and not any(
        matches_origin(pattern, origin) for pattern in match.origin
    ):
        found.append(_miss(rule, "origin", origin, _listed(match.origin)))
    method = ask.method.upper()
    if match.method is not None and not any(matches(one, method) for one in match.method):
        found.append(_miss(rule, "method", shown(method), _listed(match.method)))
    if match.path is not None and with_path:
        is_match = matches_path if exactly else matches_reading
        if not is_match(match.path, ask.path):
            found.append(_miss(rule, "path", shown(ask.path), _listed(match.path)))
    return found


def _payment_misses(rule: Rule, facts: Facts) -> list[Miss]:
    match, ask = rule.match, facts.ask
    found = []
    if match.chain is not None and ask.chain_id not in match.chain:
        found.append(_miss(rule, "chain", str(ask.chain_id), _listed(map(str, match.chain))))
    if match.token is not None and facts.token.alias not in match.token:
        found.append(_miss(rule, "token", facts.token.alias, _listed(match.token)))
    if match.recipient is not None and ask.recipient not in match.recipient:
        allowed = _listed(map(format_address, match.recipient))
        found.append(_miss(rule, "recipient", _hex(ask.recipient), allowed))
    if match.escrow is not None and ask.escrow not in match.escrow:
        allowed = _listed(map(format_address, match.escrow))
        found.append(_miss(rule, "escrow", _hex(ask.escrow), allowed))
    return found


def _use_misses(rule: Rule, facts: Facts, *, exactly: bool) -> list[Miss]:
    match, purpose = rule.match, facts.ask.purpose
    found = []
    if match.unit is not None:
        are = [any(matches(pattern, kind) for pattern in match.unit) for kind in facts.kinds]
        if not (all(are) if exactly else any(are)):
            found.append(_miss(rule, "unit", _listed(facts.kinds), _listed(match.unit)))
    for key, asked, patterns in (
        ("tool", purpose.tool, match.tool),
        ("task", purpose.task, match.task),
    ):
        if patterns is not None and not any(matches(pattern, asked) for pattern in patterns):
            found.append(_miss(rule, key, shown(asked) if asked else "none", _listed(patterns)))
    return found


def time_misses(rule: Rule, at: float) -> list[Miss]:
    """Return what of a rule's times does not match."""
    when = rule.when
    if when.not_before is not None and not at >= when.not_before:
        allowed = f"from {describe_time(when.not_before)}"
        return [_at_time(rule, "not_before", at, allowed, when.not_before)]
    if when.not_after is not None and not at < when.not_after:
        return [_at_time(rule, "not_after", at, f"before {describe_time(when.not_after)}", None)]
    if when.hours is not None and not when.hours.holds(at):
        return [_at_time(rule, "hours", at, str(when.hours), _next_start(when, at))]
    return []


def _next_start(when: When, at: float) -> float | None:
    start = None if when.hours is None else when.hours.next_start(at)
    ended = start is not None and when.not_after is not None and start >= when.not_after
    return None if ended else start


def _miss(rule: Rule, key: str, asked: str, allowed: str) -> Miss:
    return Miss(key=key, field=f"rule.{rule.name}.match.{key}", asked=asked, allowed=allowed)


def _at_time(rule: Rule, key: str, at: float, allowed: str, retry_at: float | None) -> Miss:
    field, asked = f"rule.{rule.name}.when.{key}", describe_time(at)
    return Miss(key=key, field=field, asked=asked, allowed=allowed, retry_at=retry_at)


def nearest(missed: Iterable[tuple[Rule, list[Miss]]]) -> tuple[Rule, list[Miss]] | None:
    """Return the rule with the fewest parts that do not match, and these."""
    order = {key: place for place, key in enumerate(("agent", "origin", "method", "path"))}
    return min(
        missed,
        key=lambda entry: (
            len(entry[1]),
            -order.get(entry[1][0].key, len(order)),
            entry[0].name,
        ),
        default=None,
    )


def _listed(texts: Iterable[str] | None) -> str:
    return ", ".join(texts or ()) or "none"


def _hex(value: Address | None) -> str:
    return "none" if value is None else format_address(value)
