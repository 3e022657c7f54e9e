"""What one request uses and costs: what is counted of it, and the most that it can become (pure).

The agent counts what arrives. A server's statement by kind is counted as far as this client can
bound it: input by the bytes of the prompt, a request as one, everything else by the text of the
event that states it, or in an answer in one piece by the policy.

Kinds that a server may exchange for each other, such as cached input for input, share one bound,
and what may still come of them is priced at the dearest of their rates.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from channel.client.policy.meter import Expectation, UnitMeter
from channel.errors import ConfigError, ReceiptViolationError
from channel.limits import AMOUNT_MAX, PROMPT_TOKENS_BESIDE
from channel.tariff import Rate, RunningCost, Tariff, Usage, dearest_of

__all__ = ["UNBOUNDED", "Counted", "RequestCost"]

UNBOUNDED: Final = 2**63
"""More units than any request has: of a stream whose request names no length."""

_INPUT: Final = frozenset({"input_token", "cached_input_token", "cache_write_token"})
_OUTPUT: Final = frozenset({"output_token", "reasoning_token"})
_REQUEST: Final = "request"


class Counted(NamedTuple):
    """What one call counted."""

    value: int
    """In base units; 0 where a base unit is many units."""
    units: int
    """Of the main kind."""
    delivered: int
    """The part of `value` that is no input: by it a stream's pace is measured."""


class RequestCost:
    """One request's usage and cost, by its tariff; amounts in base units."""

    def __init__(
        self,
        tariff: Tariff,
        expectation: Expectation,
        *,
        units_max: int,
        believes_counts: bool = True,
    ) -> None:
        """Start with nothing counted.

        Args:
            tariff: What the request costs.
            expectation: What its body states about its answer.
            units_max: The policy's bound on each kind of an answer in one piece, and on each
                statement of a kind that this client cannot count.
            believes_counts: See `UnitMeter`.
        """
        self.tariff = tariff
        self._is_stream = expectation.is_stream
        self._is_bounded = expectation.units_max is not None
        self._units_max = units_max
        self._meter = UnitMeter(believes_counts=believes_counts)
        self._groups, self._dearest = _group(tariff, is_stream=expectation.is_stream)
        self._main = tariff.main.kind
        self._main_group = self._groups[self._main]
        """Its group is the first of `_dearest`, too."""
        self._bounds = {
            group: self._bound(role, expectation) for group, role in self._groups.values()
        }
        """The most units of each group."""
        self._left = dict(self._bounds)
        """Those that may still be counted."""
        self._counted = RunningCost(tariff)
        self._unstated: RunningCost | None = None
        """What is counted, and all of input and request that may still be stated."""
        if self._is_stream and (before := self._known_before()):
            self._unstated = RunningCost(self._dearest)
            self._unstated.add(before)

    def _bound(self, role: str, expectation: Expectation) -> int:
        """Return the most units of a group: twice what the body names in a stream.

        Twice, because servers differ in how they cut text into tokens. A server that sends events
        without end is paid for no more than these.
        """
        if role == "input":
            return expectation.prompt_bytes + PROMPT_TOKENS_BESIDE
        if role == "request":
            return 1
        named = expectation.units_max
        if self._is_stream:
            return UNBOUNDED if named is None or role == "other" else 2 * named
        return self._units_max if named is None or role == "other" else min(named, self._units_max)

    def _known_before(self) -> dict[str, int]:
        """Return what the request may use before anything arrives."""
        return {
            group: self._bounds[group]
            for group, role in self._groups.values()
            if role in ("input", "request")
        }

    @property
    def usage(self) -> Usage:
        """What is counted, by kind."""
        return self._counted.usage

    @property
    def charged(self) -> int:
        """The cost of what is counted."""
        return self._counted.charged

    @property
    def in_flight(self) -> int:
        """What a stream may still charge for input and request, beyond what is counted."""
        if self._unstated is None:
            return 0
        return max(0, self._unstated.charged - self._counted.charged)

    @property
    def unseen(self) -> int:
        """The same where nothing of it was stated, so that all of it may have been charged."""
        known = any(self._groups[kind][1] in ("input", "request") for kind in self.usage)
        return 0 if known else self.in_flight

    @property
    def units_left(self) -> int:
        """Units of the main kind that may still be counted."""
        return self._left[self._main_group[0]]

    @property
    def first(self) -> int:
        """What must be paid before anything is served: a stream's first unit, or all output.

        Of an answer in one piece whose length the request does not name, it is the first unit.
        """
        return max(1, self._price(self._first_usage()))

    @property
    def first_known(self) -> int:
        """The same with all that the request may use of input."""
        return max(1, self._price(self._first_usage() | self._known_before()))

    @property
    def greatest(self) -> int:
        """The most that may be charged before anything is counted; of a stream, see `first_known`.

        A stream is paid for as it is delivered.
        """
        if self._is_stream:
            return self.first_known
        return max(1, self._price(self._bounds))

    def greatest_by_kind(self) -> dict[str, int | None]:
        """Return the most units of each kind; None where only what arrives bounds it.

        Kinds that share a bound each have the whole of it.
        """
        return {
            kind: None if self._bounds[group] >= UNBOUNDED else self._bounds[group]
            for kind, (group, _) in self._groups.items()
        }

    def greatest_total(self) -> int | None:
        """Return the most that the whole request can cost; None where only its answer bounds it."""
        if any(units >= UNBOUNDED for units in self._bounds.values()):
            return self.tariff.maximum
        return self._price(self._bounds)

    def _first_usage(self) -> dict[str, int]:
        usage = {self._main_group[0]: 1}
        if not self._is_stream and self._is_bounded:
            usage |= {
                group: self._bounds[group]
                for group, role in self._groups.values()
                if role == "output"
            }
        return usage

    def _price(self, usage: Usage) -> int:
        try:
            return self._dearest.cost(usage)
        except ConfigError:  # more than any channel can hold, so the policy's caps refuse it
            return AMOUNT_MAX

    def take_event(self, data: str, stated: Usage | int | None = None) -> Counted | None:
        """Count one event of a stream; None where it used nothing.

        Its own statement is used where it is lower than this client's count. For a batch it may
        be higher, up to the bytes of its text, because a unit is at least a byte long.

        Args:
            data: The event's data.
            stated: Its usage by kind, its units of the main kind, or None where it states nothing.

        Raises:
            ReceiptViolationError: It states a kind that the offer does not price.
        """
        units = self._meter.count(data)
        if stated is None:
            return self._take_main(units)
        main = self._main
        room = max(units, len(data) if data.isascii() else len(data.encode("utf-8", "replace")))
        usage: dict[str, int] = {}
        for kind, said in ({main: stated} if isinstance(stated, int) else stated).items():
            role = self._require_priced(kind, said)
            if role in ("input", "request"):
                usage[kind] = said
                continue
            usage[kind] = min(said, room) if role == "output" else min(said, room, self._units_max)
            room -= usage[kind]
        return self._take(usage)

    def take_measured(self, usage: Usage) -> Counted | None:
        """Count what this client measured by itself, as far as the offer prices it."""
        return self._take({kind: units for kind, units in usage.items() if kind in self._groups})

    def take_answer(self, units: int | None, usage: Usage | None) -> Counted | None:
        """Count an answer in one piece, by its receipt; without a statement it is one unit.

        Raises:
            ReceiptViolationError: It states a kind that the offer does not price.
        """
        if usage is None:
            usage = {self._main: 1 if units is None else units}
        for kind, said in usage.items():
            self._require_priced(kind, said)
        return self._take(usage)

    def take_rest(self, usage: Usage) -> Counted | None:
        """Count what the receipt of a stream states and no event did, except output.

        Raises:
            ReceiptViolationError: It states a kind that the offer does not price.
        """
        rest = {}
        for kind, said in usage.items():
            role = self._require_priced(kind, said)
            more = said - self._counted.usage.get(kind, 0)
            if role != "output" and more > 0:
                rest[kind] = min(more, self._units_max) if role == "other" else more
        return self._take(rest)

    def _require_priced(self, kind: str, said: int) -> str:
        """Return the role of a kind that a server states."""
        found = self._groups.get(kind)
        if found is None:
            raise ReceiptViolationError(
                field=f"usage of {kind}",
                said=said,
                expected=f"only what the offer prices: {', '.join(self._groups)}",
            )
        return found[1]

    def _take_main(self, units: int) -> Counted | None:
        """Count units of the main kind alone, as `_take` does: nearly every event."""
        group, role = self._main_group
        if role != "output":
            return self._take({self._main: units})
        units = min(units, self._left[group])
        if not units:
            return None
        self._left[group] -= units
        if self._unstated is not None:
            self._unstated.add_main(units)
        value = self._counted.add_main(units)
        return Counted(value, units, value)

    def _take(self, usage: Usage) -> Counted | None:
        """Count this within the bounds, input first; None where there is none."""
        taken: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for kind, said in usage.items():
            group, role = self._groups[kind]
            units = min(said, self._left[group])
            if units > 0:
                self._left[group] -= units
                taken[role not in ("input", "request")][kind] = units
                if self._unstated is not None and role in ("output", "other"):
                    self._unstated.add({group: units})
        known, delivered = taken
        if not known and not delivered:
            return None
        first = self._counted.add(known) if known else 0
        then = self._counted.add(delivered) if delivered else 0
        main = self._main
        return Counted(first + then, known.get(main, 0) + delivered.get(main, 0), then)


_Groups = Mapping[str, tuple[str, str]]
"""For each kind, the kind after which its group is called, and the group's role."""


@lru_cache(maxsize=256)
def _group(tariff: Tariff, *, is_stream: bool) -> tuple[_Groups, Tariff]:
    """Return the kinds that share a bound, and the tariff that prices each group at its dearest."""
    kinds = tariff.kinds
    first: dict[str, str] = {}
    groups: dict[str, tuple[str, str]] = {}
    for kind in kinds:
        role = "output" if is_stream and len(kinds) == 1 else _role(kind, tariff.main.kind)
        groups[kind] = (kind if role == "other" else first.setdefault(role, kind)), role
    rates: list[Rate] = []
    for name in dict.fromkeys(group for group, _ in groups.values()):
        members = [kind for kind in kinds if groups[kind][0] == name]
        if len(members) == 1:
            rates += [rate for rate in tariff.rates if rate.kind == name]
        else:
            dearest = dearest_of([rate for rate in tariff.rates if rate.kind in members])
            rates.append(Rate(name, dearest.amount, dearest.per))
    return groups, Tariff(tuple(rates), tariff.minimum, tariff.maximum)


def _role(kind: str, main: str) -> str:
    if kind in _INPUT:
        return "input"
    if kind == _REQUEST:
        return "request"
    return "output" if kind in _OUTPUT or kind == main else "other"
