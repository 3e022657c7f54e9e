"""What one request to any HTTP server used, by the kinds of units that its tariff prices (pure).

`request`, `second` and `byte` are measured here, unless the row says that the server states them.
Every other kind is stated by the server, in a header or a member of its JSON. A statement counts
only as a whole number from 0 to `USAGE_MAX`.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from channel.limits import ANSWER_DEPTH_MAX, USAGE_MAX
from channel.tariff import Tariff, Usage
from channel.wire.depth import is_shallow
from channel.wire.sse import DONE
from mpp_session.gateway.counting import size_of
from mpp_session.settings import PriceRow

__all__ = ["Measure", "Sources", "read_count"]

_JSON: Final = "json "
_COUNT_DIGITS: Final = len(str(USAGE_MAX))


class Sources(msgspec.Struct, frozen=True):
    """Where a row says that the server states its usage, by kind."""

    members: Mapping[str, tuple[str, ...]]
    """Of the JSON: the names, and the places in arrays, that lead to it."""
    headers: Mapping[str, str]

    @classmethod
    def of(cls, row: PriceRow) -> "Sources":
        """Return those of a row."""
        members, headers = {}, {}
        for kind, source in row.usage.items():
            if source.startswith(_JSON):
                members[kind] = tuple(source.removeprefix(_JSON).split("."))
            else:
                headers[kind] = source.partition(" ")[2].lower()
        return cls(members, headers)


class Measure:
    """Counts one request. Each unit is returned once, when it is due."""

    def __init__(self, row: PriceRow, tariff: Tariff, *, asked_at: float) -> None:
        """Begin when the request is sent to the server, by a monotonic clock in seconds."""
        self.tariff = tariff
        self._sources = Sources.of(row)
        self._asked_at = asked_at
        self._used: dict[str, int] = {}
        self._events = 0
        self.reported: dict[str, int] = {}
        """What the server stated so far."""

    @property
    def is_whole(self) -> bool:
        """Whether every kind that the tariff prices can be counted for this row."""
        return all(self._counts(kind) or self.is_stated(kind) for kind in self.tariff.kinds)

    @property
    def is_bounded(self) -> bool:
        """Whether the tariff bounds what an answer in one piece can cost."""
        return self.tariff.maximum is not None or self.tariff.kinds == ("request",)

    @property
    def reads_body(self) -> bool:
        """Whether the whole of an answer must be read before it can be priced."""
        return bool(self._sources.members)

    @property
    def unreported(self) -> list[str]:
        """The kinds that the server should state and has not."""
        stated = (*self._sources.members, *self._sources.headers)
        return [kind for kind in stated if kind not in self.reported]

    def is_stated(self, kind: str) -> bool:
        """Whether the server states a kind."""
        return kind in self._sources.members or kind in self._sources.headers

    def _counts(self, kind: str) -> bool:
        return kind in ("request", "second", "byte") and not self.is_stated(kind)

    def greatest(self) -> Usage:
        """Return a usage that costs as much as any."""
        return {kind: 1 if kind == "request" else USAGE_MAX for kind in self.tariff.kinds}

    def first(self) -> Usage:
        """Return what a stream uses at least before its first event is passed on."""
        return dict.fromkeys({"request", self.tariff.main.kind}.intersection(self.tariff.kinds), 1)

    def read_headers(self, headers: Mapping[str, str]) -> None:
        """Note what the head of an answer states."""
        for kind, name in self._sources.headers.items():
            self._note(kind, read_count(headers.get(name)))

    def read_body(self, body: bytes | str) -> None:
        """Note what JSON states; nothing if it is none."""
        members = self._sources.members
        if not any(self._may_hold(path[0], body) for path in members.values()):
            return
        text = body if isinstance(body, bytes) else body.encode("utf-8", "replace")
        if not is_shallow(text, ANSWER_DEPTH_MAX):
            return
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        for kind, path in members.items():
            self._note(kind, read_count(_find(value, path)))

    @staticmethod
    def _may_hold(name: str, body: bytes | str) -> bool:
        """Whether JSON might have this member; an event without it is not decoded."""
        if name.isdecimal():
            return True
        return name in body if isinstance(body, str) else name.encode() in body

    def _note(self, kind: str, count: int | None) -> None:
        if count is not None:
            self.reported[kind] = max(count, self.reported.get(kind, 0))

    def piece(self, size: int, at: float) -> dict[str, int]:
        """Return what is due with so many bytes of an answer at a time; the request with the first.

        A second that has begun counts.
        """
        return self._measured(size, at) | self._due(self.reported)

    def event(self, data: str, at: float) -> dict[str, int]:
        """Return what is due with an event. A kind that is stated counts one an event at least.

        Its bytes are those of its data, which a payer can count.
        """
        members = self._sources.members
        if members and data != DONE:
            self._events += 1
            self.read_body(data)
        least = dict.fromkeys(members, self._events)
        stated = {kind: max(self.reported.get(kind, 0), least[kind]) for kind in least}
        return self._measured(size_of(data), at) | self._due({**self.reported, **stated})

    def _measured(self, size: int, at: float) -> dict[str, int]:
        sent = self._used.get("byte", 0) + size
        totals = {"request": 1, "second": self._seconds(at), "byte": sent}
        return self._due({kind: total for kind, total in totals.items() if self._counts(kind)})

    def left(self, at: float) -> dict[str, int]:
        """Return what is due when the client left: the request, and the seconds until now."""
        totals = {"request": 1, "second": self._seconds(at)}
        return self._due({kind: total for kind, total in totals.items() if self._counts(kind)})

    def _seconds(self, at: float) -> int:
        return max(1, math.ceil(at - self._asked_at))

    def _due(self, totals: Usage) -> dict[str, int]:
        due = {}
        for kind, total in totals.items():
            more = total - self._used.get(kind, 0)
            if more > 0 and self.tariff.rate_of(kind) is not None:
                due[kind] = more
                self._used[kind] = total
        return due


def read_count(value: Any) -> int | None:
    """Return a whole number from 0 to `USAGE_MAX`, of JSON or in digits; None for anything else."""
    if isinstance(value, str):
        is_digits = value.isascii() and value.isdecimal() and len(value) <= _COUNT_DIGITS
        value = int(value) if is_digits else None
    return value if type(value) is int and 0 <= value <= USAGE_MAX else None


def _find(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value if not isinstance(value, str) else None
