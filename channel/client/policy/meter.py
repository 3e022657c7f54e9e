"""The agent's own count of what arrived (pure): vouchers follow it, not the server (F-94).

A unit of a stream is one event with content; in a chat completion, one choice with content in one
event. A model server's exact count is accepted as far as the text allows: a token is at least one
byte long, and one more may end the text.
"""

from typing import Any

import msgspec

from channel.limits import CHOICES_MAX, REQUEST_DEPTH_MAX
from channel.wire.depth import is_shallow
from channel.wire.sse import DONE

__all__ = ["Expectation", "UnitMeter", "read_expectation"]


class Expectation(msgspec.Struct, frozen=True, gc=False):
    """What a request's own body states about its answer."""

    is_stream: bool
    units_max: int | None
    """Most units of an answer that is not a stream; None when the body names no bound."""
    is_guess: bool = False
    """Whether only `Accept` suggests a stream; then nothing is signed before it begins."""
    prompt_bytes: int = 0
    """The length of the body: no token of input is shorter than a byte."""
    model: str = ""
    """The model that the body names: a server may price each by itself."""


class _Body(msgspec.Struct):
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    prompt: Any = None
    """A completion's: each prompt of a list has answers of its own."""
    model: Any = None


_decode_body = msgspec.json.Decoder(_Body).decode


def read_expectation(body: bytes | None, accept: str, *, long_bytes: int = 0) -> Expectation:
    """Return what to expect of the answer to this body; a guess if it states nothing.

    A body that is not known, because it is too long to keep, counts as `long_bytes` of prompt.
    """
    wants_events = "text/event-stream" in accept.lower()
    is_guess = wants_events and accept.strip().lower() != "text/event-stream"
    prompt_bytes = long_bytes if body is None else len(body)
    unread = Expectation(wants_events, None, is_guess, prompt_bytes)
    if not body or body.lstrip()[:1] != b"{":
        return unread
    if not is_shallow(body, REQUEST_DEPTH_MAX):
        return unread
    try:
        fields = _decode_body(body)
    except msgspec.DecodeError:
        return unread
    bounds = [
        bound
        for bound in (fields.max_tokens, fields.max_completion_tokens, fields.max_output_tokens)
        if bound is not None and bound > 0
    ]
    choices = fields.n if fields.n is not None and 1 <= fields.n <= CHOICES_MAX else 1
    if isinstance(fields.prompt, list):
        choices = min(CHOICES_MAX, choices * _count_prompts(fields.prompt))
    return Expectation(
        wants_events if fields.stream is None else fields.stream,
        min(bounds) * choices if bounds else None,
        is_guess and fields.stream is None,
        prompt_bytes,
        fields.model if isinstance(fields.model, str) else "",
    )


def _count_prompts(prompt: list[Any]) -> int:
    """Return how many prompts a list is: one if it holds tokens as numbers."""
    return 1 if not prompt or isinstance(prompt[0], int) else len(prompt)


class _Timings(msgspec.Struct):
    predicted_n: int = 0


class _LogProbs(msgspec.Struct):
    content: list[msgspec.Raw] | None = None
    refusal: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, Any] | None = None
    text: str | None = None
    """The text of a completion; a chat has a delta instead."""
    logprobs: _LogProbs | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    timings: _Timings | None = None
    usage: _Usage | None = None


class _ResponseUsage(msgspec.Struct):
    output_tokens: int | None = None


class _Response(msgspec.Struct):
    usage: _ResponseUsage | None = None


class _ResponseEvent(msgspec.Struct):
    """An event of a stream of `/v1/responses`."""

    type: str
    delta: Any = None
    response: _Response | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_event = msgspec.json.Decoder(_ResponseEvent).decode


class UnitMeter:
    """Counts the units of one stream."""

    def __init__(self, *, believes_counts: bool = True) -> None:
        """Start at zero.

        Args:
            believes_counts: Whether the model server's counts are in the paid unit; False if that
                unit is the chunk.
        """
        self._believes_counts = believes_counts
        self._choices: dict[int, _Count] = {}
        self._plain = 0
        """Events that are not chunks of a chat completion."""
        self._of_all = 0
        """The model server's count of all choices, as far as the text allows."""
        self._last = 0
        self._counted = 0

    def count(self, data: str) -> int:
        """Return how many units this event adds."""
        if data == DONE:
            return 0
        chunk = _read_chunk(data.encode("utf-8", "replace"))
        if chunk is None:
            self._plain += 1
        else:
            for choice in chunk.choices:
                self._last = choice.index
                units, size = _delivered(choice)
                if units:
                    count = self._of_choice(choice.index)
                    count.chunks += units
                    count.bytes += size
            if self._believes_counts:
                self._believe(chunk)
        total = self._plain + max(self._of_all, sum(one.units for one in self._choices.values()))
        added, self._counted = total - self._counted, total
        return added

    def _of_choice(self, index: int) -> "_Count":
        if index not in self._choices and len(self._choices) >= CHOICES_MAX:
            index = next(iter(self._choices))
        return self._choices.setdefault(index, _Count())

    def _believe(self, chunk: "_Chunk") -> None:
        """Accept the server's counts: for one choice by its chunk, for all of them by `usage`."""
        made = 0 if chunk.usage is None else chunk.usage.completion_tokens or 0
        reported = 0 if chunk.timings is None else chunk.timings.predicted_n
        if len(chunk.choices) == 1:
            reported = max(reported, made)
        if reported > 0:
            index = chunk.choices[0].index if chunk.choices else self._last
            count = self._of_choice(index)
            count.reported = max(count.reported, min(reported, count.bytes + 1))
        bearable = sum(one.bytes + 1 for one in self._choices.values()) or 1
        self._of_all = max(self._of_all, min(made, bearable))


class _Count:
    """The counts of one choice."""

    __slots__ = ("bytes", "chunks", "reported")

    def __init__(self) -> None:
        self.bytes = self.chunks = self.reported = 0

    @property
    def units(self) -> int:
        return max(self.chunks, self.reported)


def _read_chunk(text: bytes) -> _Chunk | None:
    """Return a chunk of a chat completion, or None for another kind of event.

    Of a response, the events with output and the last one, which has the usage, are such chunks.
    """
    if not is_shallow(text, REQUEST_DEPTH_MAX):
        return None
    try:
        return _decode_chunk(text)
    except msgspec.DecodeError:
        pass
    if b'"response.' not in text:
        return None
    try:
        event = _decode_event(text)
    except msgspec.DecodeError:
        return None
    if event.type.endswith(".delta") and isinstance(event.delta, str):
        return _Chunk([_Choice(text=event.delta)])
    usage = None if event.response is None else event.response.usage
    return None if usage is None else _Chunk([], usage=_Usage(usage.output_tokens))


def _delivered(choice: _Choice) -> tuple[int, int]:
    """Return the units of a choice in a chunk, and the bytes of its output of any kind.

    With a probability for each token, the number of those is the number of tokens, visible or not.
    """
    output = [value for name, value in (choice.delta or {}).items() if name != "role" and value]
    if choice.text:
        output.append(choice.text)
    units = 1 if output else 0
    if choice.logprobs is not None:
        shown = (choice.logprobs.content or (), choice.logprobs.refusal or ())
        units = max(units, *map(len, shown))
    return units, sum(map(_size, output))


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    return len(msgspec.json.encode(value))
