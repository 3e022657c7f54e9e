"""Reckons one ask against the caps of rules and envelopes (pure).

Each cap becomes a `Check` with its limit, what is used of it and what is asked. A cap that is full
refuses no ask that adds nothing, as a voucher for an amount that was signed before.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from channel.client.policy.policy import Policy
from channel.client.policy.prices import worth
from channel.tariff import Rate, format_rate
from channel.types import TokenUnit
from channel.wire.encoding import format_address
from mpp_session.wallet.policy.compiled import By, Envelope, Rule, WalletPolicy
from mpp_session.wallet.policy.matching import Facts
from mpp_session.wallet.policy.times import describe_duration
from mpp_session.wallet.types import Ask, Code, Counter, Snapshot

__all__ = ["Check", "PriceCheck", "envelope_checks", "price_checks", "rule_checks"]

_TASK_CHARS: Final = 128
_DIGEST: Final = "sha256:"
_STEP_UNITS: Final = Policy(limits=()).voucher_step
_REQUEST: Final = "request"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One cap and the ask. Amounts in base units, or counts where `unit` is None."""

    field: str
    code: Code
    what: str
    """In words, for the text of a refusal."""
    limit: int
    used: int = 0
    asked: int
    """What is added to `used`."""
    unit: TokenUnit | None = None
    window_s: int | None = None
    counter: Counter | None = None
    rule: str = ""
    envelope: Envelope | None = None

    @property
    def left(self) -> int:
        """What may be asked; never below zero."""
        return max(0, self.limit - self.used)

    @property
    def is_exceeded(self) -> bool:
        """Whether more is asked than is left."""
        return self.asked > self.left

    def show(self, number: int) -> str:
        """Return an amount or a count as people read it."""
        return str(number) if self.unit is None else self.unit.format(number)

    @property
    def is_soft(self) -> bool:
        """Whether an approval may exceed it."""
        return self.envelope is not None and self.envelope.on_exceed == "ask"

    def retry_at(self, at: float) -> float | None:
        """Return when the window has freed all of it; None where waiting does not help.

        Books count in steps of a sixtieth of the window, and the oldest whole.
        """
        if self.window_s is None or self.asked > self.limit:
            return None
        return at + self.window_s + max(1, -(-self.window_s // 60))

    def warning(self) -> str | None:
        """Return the greatest share of `warn_at` that this ask crosses, in words."""
        if self.envelope is None or self.counter is None or self.counter.what != "spent":
            return None
        crossed = [
            (numerator, denominator)
            for numerator, denominator in self.envelope.warn_at
            if self.used * denominator < numerator * self.limit
            and (self.used + self.asked) * denominator >= numerator * self.limit
        ]
        if not crossed:
            return None
        share = f"{100 * crossed[-1][0] / crossed[-1][1]:g}%"
        return (
            f"{self.what}: with {self.show(self.used + self.asked)} of {self.show(self.limit)} "
            f"more than {share} is used"
        )


class PriceCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One price of a tariff and its cap."""

    field: str
    rule: str
    asked: str
    allowed: str
    is_exceeded: bool


def _used(sums: Mapping[Counter, int], counter: Counter) -> int:
    """Return a sum; one that the books do not have is 0, and none is below that."""
    return max(0, sums.get(counter, 0))


def price_checks(rule: Rule, facts: Facts) -> Iterator[PriceCheck]:
    """Yield each kind of the ask's tariff with its cap, and the least price of a request."""
    caps = rule.caps.unit_price
    if caps is None:
        return
    ask, unit = facts.ask, facts.token.unit
    rates: dict[str, Rate] = {}
    if ask.tariff is None:
        rates[_REQUEST] = Rate(_REQUEST, ask.amount)
    else:
        for kind in ask.tariff.kinds:
            rates[kind] = ask.tariff.dearest(kind) or ask.tariff.main
    for kind, rate in rates.items():
        cap = caps.get(kind)
        yield PriceCheck(
            field=f"rule.{rule.name}.cap.unit_price.{kind}",
            rule=rule.name,
            asked=f"{kind} at {format_rate(rate, unit)}",
            allowed=(
                f"prices of {', '.join(sorted(caps))} only"
                if cap is None
                else f"at most {format_rate(cap, unit)}"
            ),
            is_exceeded=cap is None or rate.exceeds(cap),
        )
    if ask.tariff is not None and ask.tariff.minimum:
        yield _minimum_check(rule, facts, ask.tariff.minimum)


def _minimum_check(rule: Rule, facts: Facts, minimum: int) -> PriceCheck:
    """Return the check of the least price of a request, which no price of a unit bounds."""
    caps, unit = rule.caps, facts.token.unit
    cap = (caps.unit_price or {}).get(_REQUEST)
    if cap is not None:
        most, is_exceeded = format_rate(cap, unit), Rate(_REQUEST, minimum).exceeds(cap)
    else:
        step = 0 if facts.ask.tariff is None else worth(facts.ask.tariff, _STEP_UNITS)
        limit = step if caps.request is None else min(step, caps.request)
        most, is_exceeded = unit.format(limit), minimum > limit
    return PriceCheck(
        field=f"rule.{rule.name}.cap.unit_price.{_REQUEST}",
        rule=rule.name,
        asked=f"a request at no less than {unit.format(minimum)}",
        allowed=f"at most {most}",
        is_exceeded=is_exceeded,
    )


def rule_checks(rule: Rule, facts: Facts, snapshot: Snapshot) -> Iterator[Check]:
    """Yield the caps of a rule that count for this kind of ask."""
    yield from _single_checks(rule, facts)
    yield from _sum_checks(rule, facts, snapshot)
    yield from _number_checks(rule, facts, snapshot)


def _single_checks(rule: Rule, facts: Facts) -> Iterator[Check]:
    ask, caps, unit = facts.ask, rule.caps, facts.token.unit
    field = f"rule.{rule.name}.cap"
    if caps.request is not None:
        costs = max(ask.request_max, ask.request_total)
        if ask.kind == "charge":
            costs = max(costs, ask.amount)
        yield Check(
            field=f"{field}.request",
            code=Code.REQUEST_EXCEEDED,
            what="the cost of a request",
            limit=caps.request,
            asked=costs,
            unit=unit,
            rule=rule.name,
        )
    if caps.deposit is not None and ask.kind == "deposit":
        yield Check(
            field=f"{field}.deposit",
            code=Code.DEPOSIT_EXCEEDED,
            what="the deposit of a channel",
            limit=caps.deposit,
            asked=max(ask.total, ask.amount),
            unit=unit,
            rule=rule.name,
        )
    if caps.channel is not None and ask.kind == "sign":
        yield Check(
            field=f"{field}.channel",
            code=Code.CHANNEL_EXCEEDED,
            what="the running total of a channel",
            limit=caps.channel,
            asked=max(ask.total, ask.amount),
            unit=unit,
            rule=rule.name,
        )


def _sum_checks(rule: Rule, facts: Facts, snapshot: Snapshot) -> Iterator[Check]:
    ask = facts.ask
    if ask.kind == "deposit":
        return
    for place, per in enumerate(rule.caps.per):
        counter = Counter("spent", _scope(rule, per.by, facts), facts.token.alias, per.window_s)
        yield Check(
            field=f"rule.{rule.name}.cap.per[{place}].amount",
            code=Code.WINDOW_EXCEEDED,
            what=f"what is spent by {per.by} ({describe_duration(per.window_s)})",
            limit=per.amount,
            used=_used(snapshot.sums, counter),
            asked=ask.amount,
            unit=facts.token.unit,
            window_s=per.window_s,
            counter=counter,
            rule=rule.name,
        )
    if not ask.is_first:
        return
    for place, rate in enumerate(rule.caps.rate):
        counter = Counter("requests", _scope(rule, rate.by, facts), "", rate.window_s)
        yield Check(
            field=f"rule.{rule.name}.cap.rate[{place}].count",
            code=Code.RATE_EXCEEDED,
            what=f"requests by {rate.by} within {describe_duration(rate.window_s)}",
            limit=rate.count,
            used=_used(snapshot.sums, counter),
            asked=1,
            window_s=rate.window_s,
            counter=counter,
            rule=rule.name,
        )


def _number_checks(rule: Rule, facts: Facts, snapshot: Snapshot) -> Iterator[Check]:
    ask, caps = facts.ask, rule.caps
    if caps.channels is not None and ask.kind == "deposit" and ask.is_opening:
        yield Check(
            field=f"rule.{rule.name}.cap.channels",
            code=Code.CHANNELS_EXCEEDED,
            what="channels with this origin at the same time",
            limit=caps.channels,
            used=max(0, snapshot.channels),
            asked=1,
            rule=rule.name,
        )
    if caps.streams is not None and ask.kind == "sign" and ask.is_stream and ask.is_first:
        yield Check(
            field=f"rule.{rule.name}.cap.streams",
            code=Code.STREAMS_EXCEEDED,
            what="streams with this origin at the same time",
            limit=caps.streams,
            used=max(0, snapshot.streams),
            asked=1,
            rule=rule.name,
        )


def envelope_checks(policy: WalletPolicy, facts: Facts, snapshot: Snapshot) -> Iterator[Check]:
    """Yield the amount, or for a deposit the locked amount, of each envelope up to the roots."""
    ask = facts.ask
    for envelope in policy.envelopes_of(ask.agent, facts.token.alias):
        is_deposit = ask.kind == "deposit"
        counter = _envelope_counter(envelope, ask)
        yield Check(
            field=f"envelope.{envelope.name}.{'locked_max' if is_deposit else 'amount'}",
            code=Code.LOCKED_EXCEEDED if is_deposit else Code.ENVELOPE_EXCEEDED,
            what=f"envelope {envelope.name}, {_envelope_words(envelope, is_deposit=is_deposit)}",
            limit=envelope.locked_max if is_deposit else envelope.amount,
            used=_used(snapshot.sums, counter),
            asked=ask.amount,
            unit=facts.token.unit,
            window_s=counter.window_s,
            counter=counter,
            envelope=envelope,
        )


def _envelope_counter(envelope: Envelope, ask: Ask) -> Counter:
    """Return the sum of an envelope that an ask increases."""
    scope = f"envelope {envelope.name}"
    if ask.kind == "deposit":
        return Counter("locked", scope, envelope.token)
    if envelope.per_task:
        return Counter("spent", f"{scope} task {_task(ask)}", envelope.token)
    return Counter("spent", scope, envelope.token, envelope.window_s)


def _envelope_words(envelope: Envelope, *, is_deposit: bool) -> str:
    if is_deposit:
        return "what lies in deposits"
    if envelope.per_task:
        return "what is spent for one task"
    return f"what is spent ({describe_duration(envelope.window_s)})"


def _scope(rule: Rule, by: By, facts: Facts) -> str:
    """Return whose sum it is. A rule's name has no space, so no two scopes have one text."""
    ask = facts.ask
    value = {
        "origin": facts.origin,
        "task": _task(ask),
        "agent": ask.agent,
        "recipient": format_address(ask.recipient),
        "rule": "",
    }[by]
    return f"rule {rule.name}" if by == "rule" else f"rule {rule.name} {by} {value}"


def _task(ask: Ask) -> str:
    """Return a task's name; its digest where it is long, not printable, or looks like a digest."""
    task = ask.purpose.task
    if task.isprintable() and len(task) <= _TASK_CHARS and not task.startswith(_DIGEST):
        return task
    return _DIGEST + hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()
