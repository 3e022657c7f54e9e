"""Bounds on JSON schemas in a request: servers compile them into a grammar (O-03).

A server tries each alternative of a schema on each token of its vocabulary, and expands a pattern's
repetitions: `^(a{0,99}){0,99}$` keeps a server busy for minutes for one token.
"""

import re
from typing import Any, Final

import msgspec

from channel.errors import BadRequestError
from channel.limits import PATTERN_CHARACTERS_MAX, PATTERN_COUNT_DIGITS_MAX, SCHEMA_VALUES_MAX

__all__ = ["require_small_schema"]

_REPETITION: Final = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]?", re.DOTALL)


def require_small_schema(name: str, value: msgspec.Raw) -> None:
    """Check the lists, objects and patterns of a request's schema field.

    Raises:
        BadRequestError: One of them is larger than the bound, or cannot be parsed.
    """
    try:
        waiting: list[Any] = [msgspec.json.decode(value)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError(f"`{name}` must be valid JSON.") from None
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict | list):
            continue
        if len(one) > SCHEMA_VALUES_MAX:
            raise BadRequestError(
                f"`{name}` has a list or an object of {len(one)} values; the most allowed is "
                f"{SCHEMA_VALUES_MAX}."
            )
        if isinstance(one, dict):
            named = one.get("patternProperties")
            for pattern in (one.get("pattern"), *(named if isinstance(named, dict) else ())):
                _require_short_pattern(name, pattern)
            waiting.extend(one.values())
        else:
            waiting.extend(one)


def _require_short_pattern(name: str, pattern: object) -> None:
    if isinstance(pattern, str) and _written_out(pattern) > PATTERN_CHARACTERS_MAX:
        raise BadRequestError(
            f"`{name}` has a pattern that expands to more than {PATTERN_CHARACTERS_MAX} characters "
            "with its repetitions."
        )


def _written_out(pattern: str) -> int:
    """Return the most characters that a regular expression matches, counting each `*` once."""
    if len(pattern) > PATTERN_CHARACTERS_MAX * 4:
        return len(pattern)
    sums, last, at = [0], 0, 0
    while at < len(pattern):
        step = 1
        if (repetition := _REPETITION.match(pattern, at)) is not None:
            counts = [_read_count(text) for text in repetition.groups()]
            sums[-1] += last * (max(1, *counts) - 1)
            last *= max(1, *counts)
            step = repetition.end() - at
        elif pattern[at] == "(":
            sums.append(0)
        elif pattern[at] == ")" and len(sums) > 1:
            last = sums.pop() + 1
            sums[-1] += last
        elif pattern[at] not in "*+?":
            if (characters := _CLASS.match(pattern, at)) is not None:
                step = characters.end() - at
            elif pattern[at] == "\\":
                step = 2
            last = 1
            sums[-1] += last
        at += step
    return sum(sums)


def _read_count(text: str | None) -> int:
    return int((text or "0")[:PATTERN_COUNT_DIGITS_MAX])
