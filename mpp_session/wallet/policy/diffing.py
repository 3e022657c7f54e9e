"""Says in words what a change of the policy makes looser and what tighter (pure).

A change that cannot be ordered, such as another recipient, counts as looser: a person should read
it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from channel.tariff import Rate, format_rate
from channel.types import TokenUnit
from channel.wire.encoding import format_address
from mpp_session.wallet.policy.compiled import Agent, Caps, Envelope, Rule, WalletPolicy
from mpp_session.wallet.policy.times import describe_duration, describe_time

__all__ = ["Difference", "diff"]

T = TypeVar("T")
_BASE_UNITS: Final = TokenUnit("base units", 0)
_NONE: Final = "none"
Way = Literal["looser", "tighter", "other"]


class Difference(msgspec.Struct, frozen=True):
    """One change."""

    way: Way
    """`other` changes nothing about what is allowed."""
    field: str
    text: str

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.way.upper() if self.way == 'looser' else self.way}: {self.field}: {self.text}"
        )


def diff(old: WalletPolicy, new: WalletPolicy) -> list[Difference]:
    """Return every change from one policy to the next, the looser ones first."""
    order = ("looser", "tighter", "other")
    return sorted(_changes(old, new), key=lambda change: (order.index(change.way), change.field))


def _changes(old: WalletPolicy, new: WalletPolicy) -> Iterator[Difference]:
    yield from _value("default", old.default, new.default, ("deny", "ask"))
    yield from _flag("allow_loopback_http", old.allow_loopback_http, new.allow_loopback_http)
    yield from _named("token", old.tokens, new.tokens, _token_changes, added="looser")
    yield from _named("envelope", old.envelopes, new.envelopes, _envelopes(old, new), added="other")
    yield from _named("agent", old.agents, new.agents, _agent_changes(new), added="looser")
    freed = [task for task in old.tasks if task not in new.tasks]
    if freed:
        text = f"agents without `tasks` may now name {_listed(freed)}"
        yield Difference("looser", "agent tasks", text)
    yield from _rule_changes(old, new)
    yield from _approval_changes(old, new)
    yield from _breaker_changes(old, new)
    yield from _value("anomaly.action", old.anomaly.action, new.anomaly.action, _CARES)
    yield from _number("anomaly.warm_up", old.anomaly.warm_up, new.anomaly.warm_up, str)


_CARES: Final = ("pause", "ask", "note")
"""From the tightest on."""


def _value(field: str, old: str, new: str, tight_first: Sequence[str]) -> Iterator[Difference]:
    if old != new:
        is_looser = tight_first.index(new) > tight_first.index(old)
        yield Difference("looser" if is_looser else "tighter", field, f"{old} -> {new}")


def _flag(field: str, old: bool, new: bool) -> Iterator[Difference]:  # noqa: FBT001 -- two values
    if old != new:
        yield Difference("looser" if new else "tighter", field, f"{old} -> {new}".lower())


def _number(
    field: str, old: T | None, new: T | None, show: Callable[[Any], str], *, looser: str = "more"
) -> Iterator[Difference]:
    """Compare limits. None is no limit, so it is more than any number."""
    if old == new:
        return
    is_more = new is None or (old is not None and new > old)  # type: ignore[operator]
    way: Way = "looser" if is_more == (looser == "more") else "tighter"
    texts = ["no limit" if one is None else show(one) for one in (old, new)]
    yield Difference(way, field, " -> ".join(texts))


def _members(
    field: str, old: Sequence[Any] | None, new: Sequence[Any] | None, *, added: Way = "looser"
) -> Iterator[Difference]:
    """Compare lists of what may match. None is everything."""
    if old is None or new is None:
        if old is not new:
            texts = ["anything" if one is None else _listed(one) for one in (old, new)]
            widens = new is None
            yield Difference(_turn(added, same=widens), field, " -> ".join(texts))
        return
    more, less = [one for one in new if one not in old], [one for one in old if one not in new]
    if more:
        yield Difference(added, field, f"also {_listed(more)}")
    if less:
        yield Difference(_turn(added, same=False), field, f"no longer {_listed(less)}")


def _turn(way: Way, *, same: bool) -> Way:
    turned: dict[Way, Way] = {"looser": "tighter", "tighter": "looser", "other": "other"}
    return way if same else turned[way]


def _listed(values: Sequence[Any]) -> str:
    shown = (f"0x{one.hex()}" if isinstance(one, bytes) else str(one) for one in values)
    return ", ".join(shown) or _NONE


def _named(
    kind: str,
    old: Mapping[str, T],
    new: Mapping[str, T],
    changes: Callable[[str, T, T], Iterator[Difference]],
    *,
    added: Way,
) -> Iterator[Difference]:
    for name in sorted({*old, *new}):
        field = f"{kind}.{name}"
        if name not in old:
            yield Difference(added, field, "is new")
        elif name not in new:
            yield Difference(_turn(added, same=False), field, "is gone")
        elif old[name] != new[name]:
            yield from changes(field, old[name], new[name])


def _token_changes(field: str, old: Any, new: Any) -> Iterator[Difference]:
    for key in ("chain", "address", "unit"):
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            shown = [
                format_address(one) if key == "address" else str(one) for one in (before, after)
            ]
            yield Difference("looser", f"{field}.{key}", f"another: {' -> '.join(shown)}")
    if old.escrows != new.escrows:
        pairs = [
            None
            if token.escrows is None
            else [
                f"{format_address(one.address)}"
                + ("" if one.code_hash is None else f" with code 0x{one.code_hash.hex()}")
                for one in token.escrows
            ]
            for token in (old, new)
        ]
        yield from _members(f"{field}.escrows", pairs[0], pairs[1])


def _envelopes(
    old: WalletPolicy, new: WalletPolicy
) -> Callable[[str, Envelope, Envelope], Iterator[Difference]]:
    def changes(field: str, before: Envelope, after: Envelope) -> Iterator[Difference]:
        if before.token != after.token:
            yield Difference("looser", f"{field}.amount", f"{before.token} -> {after.token}")
            return
        show = _shower(new if after.token in new.tokens else old, after.token)
        yield from _number(f"{field}.amount", before.amount, after.amount, show)
        yield from _number(f"{field}.locked_max", before.locked_max, after.locked_max, show)
        yield from _value(f"{field}.on_exceed", before.on_exceed, after.on_exceed, ("deny", "ask"))
        yield from _windows(f"{field}.window", before, after)
        if before.parent != after.parent:
            way: Way = "tighter" if before.parent is None else "looser"
            texts = f"{before.parent or _NONE} -> {after.parent or _NONE}"
            yield Difference(way, f"{field}.parent", texts)
        if before.warn_at != after.warn_at:
            yield Difference("other", f"{field}.warn_at", "other shares")

    return changes


def _windows(field: str, old: Envelope, new: Envelope) -> Iterator[Difference]:
    if (old.window_s, old.per_task) == (new.window_s, new.per_task):
        return
    texts = ["task" if one.per_task else describe_duration(one.window_s) for one in (old, new)]
    if old.per_task or new.per_task:
        way: Way = "looser"
    else:  # the longer window counts more of what was spent
        is_shorter = new.window_s is not None and (
            old.window_s is None or new.window_s < old.window_s
        )
        way = "looser" if is_shorter else "tighter"
    yield Difference(way, field, " -> ".join(texts))


def _agent_changes(new: WalletPolicy) -> Callable[[str, Agent, Agent], Iterator[Difference]]:
    def changes(field: str, before: Agent, after: Agent) -> Iterator[Difference]:
        if before.token_digest != after.token_digest:
            yield Difference("other", f"{field}.token", "another token")
        if before.uid != after.uid:
            way: Way = "tighter" if before.uid is None else "looser"
            yield Difference(way, f"{field}.uid", f"{before.uid} -> {after.uid}")
        if before.envelopes != after.envelopes:
            # One more may count another token, one less is a limit less.
            texts = f"{_listed(before.envelopes)} -> {_listed(after.envelopes)}"
            yield Difference("looser", f"{field}.envelopes", texts)
        yield from _number(f"{field}.expires", before.expires, after.expires, describe_time)
        yield from _members(f"{field}.tasks", before.tasks, after.tasks)
        yield from _members(f"{field}.may_approve", before.may_approve, after.may_approve)
        for alias in sorted({*before.approve_max, *after.approve_max}):
            show = _shower(new, alias)
            amounts = (before.approve_max.get(alias, 0), after.approve_max.get(alias, 0))
            yield from _number(f"{field}.approve_max", *amounts, show)

    return changes


def _rule_changes(old: WalletPolicy, new: WalletPolicy) -> Iterator[Difference]:
    before, after = ({rule.name: rule for rule in one.rules} for one in (old, new))
    for name in sorted({*before, *after}):
        field = f"rule.{name}"
        if name not in before:
            yield Difference(_grants(after[name]), field, f"is new ({after[name].action})")
        elif name not in after:
            # Without the rule its caps are gone, too, and another rule may allow more.
            yield Difference("looser", field, f"is gone ({before[name].action}, with its caps)")
        elif before[name] != after[name]:
            yield from _of_rule(field, before[name], after[name], new)


def _grants(rule: Rule) -> Way:
    return "looser" if rule.may_grant else "tighter"


def _of_rule(field: str, old: Rule, new: Rule, policy: WalletPolicy) -> Iterator[Difference]:
    yield from _value(f"{field}.action", old.action, new.action, ("deny", "ask", "allow"))
    if old.may_grant != new.may_grant and old.action == new.action:
        text = "asks about what is new" if old.may_grant else "grants what it asks about"
        yield Difference("looser", f"{field}.match.first_seen", f"now {text} alone")
    for key in new.match.__struct_fields__:
        pair = getattr(old.match, key), getattr(new.match, key)
        for change in _members(f"{field}.match.{key}", *pair, added=_grants(new)):
            yield _with_others(change, new, policy)
    if old.when != new.when:
        yield Difference("looser", f"{field}.when", "other times")
    yield from _cap_changes(f"{field}.cap", old, new, policy)


def _with_others(change: Difference, rule: Rule, policy: WalletPolicy) -> Difference:
    """Return a narrower match as looser where other rules may allow what this one bounds no longer.

    That is so for a rule with caps, and for one that asks.
    """
    bounds = rule.action == "ask" or rule.caps != Caps()
    others = [one for one in policy.rules if one.name != rule.name and one.action != "deny"]
    if change.way != "tighter" or not rule.may_grant or not (bounds and others):
        return change
    return msgspec.structs.replace(
        change, way="looser", text=f"{change.text}, and there other rules decide alone"
    )


def _cap_changes(field: str, old: Rule, new: Rule, policy: WalletPolicy) -> Iterator[Difference]:
    alias = next(iter(new.match.token or policy.tokens), "")
    show = _shower(policy, alias)
    for key in ("request", "deposit", "channel", "channels", "streams"):
        how = str if key in ("channels", "streams") else show
        yield from _number(f"{field}.{key}", getattr(old.caps, key), getattr(new.caps, key), how)
    yield from _price_changes(f"{field}.unit_price", old, new, policy.tokens[alias].unit)
    for name in ("per", "rate"):
        entries = [_sums(getattr(rule.caps, name)) for rule in (old, new)]
        for by, window_s in sorted({*entries[0], *entries[1]}, key=str):
            path = f"{field}.{name} by {by} ({describe_duration(window_s)})"
            pair = entries[0].get((by, window_s)), entries[1].get((by, window_s))
            yield from _number(path, *pair, show if name == "per" else str)


def _sums(caps: Sequence[Any]) -> dict[tuple[str, int | None], int]:
    """Return the smallest cap of each sum."""
    found: dict[tuple[str, int | None], int] = {}
    for cap in caps:
        key, limit = (cap.by, cap.window_s), getattr(cap, "amount", None)
        limit = cap.count if limit is None else limit
        found[key] = min(limit, found.get(key, limit))
    return found


def _price_changes(field: str, old: Rule, new: Rule, unit: TokenUnit) -> Iterator[Difference]:
    before, after = old.caps.unit_price, new.caps.unit_price
    if before is None or after is None:
        if before is not after:
            way: Way = "looser" if after is None else "tighter"
            texts = ["no limit" if one is None else _listed(sorted(one)) for one in (before, after)]
            yield Difference(way, field, " -> ".join(texts))
        return
    for kind in sorted({*before, *after}):
        yield from _price(f"{field}.{kind}", before.get(kind), after.get(kind), unit)


def _price(field: str, old: Rate | None, new: Rate | None, unit: TokenUnit) -> Iterator[Difference]:
    """Compare the caps of one kind; a kind without one is refused."""
    if old == new:
        return
    is_more = old is None or (new is not None and new.exceeds(old))
    if new is None and field.endswith(".request"):
        is_more = True  # it was the cap of a tariff's least price, too
    texts = ["not bought" if one is None else format_rate(one, unit) for one in (old, new)]
    yield Difference("looser" if is_more else "tighter", field, " -> ".join(texts))


def _approval_changes(old: WalletPolicy, new: WalletPolicy) -> Iterator[Difference]:
    before, after = old.approval, new.approval
    for alias in sorted({*before.above, *after.above}):
        policy = new if alias in new.tokens else old
        # With amounts in other tokens only, every amount in this one is asked about.
        was, becomes = (one.above.get(alias, 0) if one.above else None for one in (before, after))
        yield from _number("approval.above", was, becomes, _shower(policy, alias))
    yield from _number("approval.quorum", before.quorum, after.quorum, str, looser="less")
    yield from _number("approval.timeout", before.timeout_s, after.timeout_s, describe_duration)
    scopes = ("once", "channel", "window")
    yield from _value("approval.scope_max", before.scope_max, after.scope_max, scopes)
    yield from _number("approval.pending_max", before.pending_max, after.pending_max, str)
    if before.webhook != after.webhook:
        yield Difference("other", "approval.webhook", "another")


def _breaker_changes(old: WalletPolicy, new: WalletPolicy) -> Iterator[Difference]:
    for name in new.breaker.__struct_fields__:
        before, after = getattr(old.breaker, name), getattr(new.breaker, name)
        field = f"breaker.{name}"
        yield from _number(f"{field}.count", before.count, after.count, str)
        for key, end in (("window", "window_s"), ("cooldown", "cooldown_s")):
            pair = getattr(before, end), getattr(after, end)
            yield from _number(f"{field}.{key}", *pair, describe_duration, looser="less")


def _shower(policy: WalletPolicy, alias: str) -> Callable[[Any], str]:
    token = policy.tokens.get(alias)
    return (_BASE_UNITS if token is None else token.unit).format
