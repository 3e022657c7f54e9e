"""The agent's own count of what arrived (pure): vouchers follow it, not the server (F-94).

A unit of a stream is one event with content, and of a chat completion one choice with content in
one event. A model server's exact count is believed as far as the text bears it: a token is at
least a byte long, and one more may end the text.
"""

from typing import Any

import msgspec

from channel.wire.depth import is_shallow

__all__ = ["Expectation", "UnitMeter", "read_expectation"]

CHOICES_MAX = 128
DEPTH_MAX = 64


class Expectation(msgspec.Struct, frozen=True, gc=False):
    """What a request's own body says about its answer."""

    is_stream: bool
    units_max: int | None
    """Most units an answer in one piece may cost; None when the body names no bound."""
    is_guess: bool = False
    """Only what the caller accepts speaks for a stream: nothing is signed before it begins."""


class _Body(msgspec.Struct):
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


def read_expectation(body: bytes | None, accept: str) -> Expectation:
    """Return what to expect of the answer to this body; a guess where it says nothing."""
    wants_events = "text/event-stream" in accept.lower()
    is_guess = wants_events and accept.strip().lower() != "text/event-stream"
    if not body or body.lstrip()[:1] != b"{":
        return Expectation(wants_events, None, is_guess)
    if not is_shallow(body, DEPTH_MAX):
        return Expectation(wants_events, None, is_guess)
    try:
        fields = _decode_body(body)
    except msgspec.DecodeError:
        return Expectation(wants_events, None, is_guess)
    bounds = [
        bound
        for bound in (fields.max_tokens, fields.max_completion_tokens)
        if bound is not None and bound > 0
    ]
    choices = fields.n if fields.n is not None and 1 <= fields.n <= CHOICES_MAX else 1
    return Expectation(
        wants_events if fields.stream is None else fields.stream,
        min(bounds) * choices if bounds else None,
        is_guess and fields.stream is None,
    )


class _Timings(msgspec.Struct):
    predicted_n: int = 0


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, Any] | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    timings: _Timings | None = None
    usage: _Usage | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class UnitMeter:
    """Counts one stream."""

    def __init__(self, *, believes_counts: bool = True) -> None:
        """Begin at nothing.

        Args:
            believes_counts: A model server's own counts are in the unit that is paid for; not
                where that is the chunk.
        """
        self._believes_counts = believes_counts
        self._counted = 0
        self._bytes = 0

    def count(self, data: str) -> int:
        """Return how many units this event's data adds."""
        if data == "[DONE]":
            return 0
        text = data.encode("utf-8", "replace")
        if not is_shallow(text, DEPTH_MAX):
            return self._add(1)
        try:
            chunk = _decode_chunk(text)
        except msgspec.DecodeError:
            return self._add(1)
        contents = [
            size for choice in chunk.choices if (size := _content_bytes(choice.delta)) is not None
        ]
        self._bytes += sum(contents)
        reported = max(
            chunk.timings.predicted_n if chunk.timings else 0,
            (chunk.usage.completion_tokens or 0) if chunk.usage else 0,
        )
        believable = min(reported, self._bytes + 1) if self._believes_counts else 0
        return self._add(max(len(contents), believable - self._counted))

    def _add(self, units: int) -> int:
        self._counted += units
        return units


def _content_bytes(delta: dict[str, Any] | None) -> int | None:
    """Return the size of a delta's output of any kind, or None when it carries none."""
    output = [value for name, value in (delta or {}).items() if name != "role" and value]
    if not output:
        return None
    return sum(
        len(value.encode("utf-8", "replace"))
        if isinstance(value, str)
        else len(msgspec.json.encode(value))
        for value in output
    )
