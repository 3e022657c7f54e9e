"""A chat completion as far as its price goes: what is asked for, and what was produced.

Pure: bytes in, values out. The request is always written anew from what was parsed, so that
the model server cannot read it in another way than it was priced.
"""

from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec

from channel.errors import BadRequestError, WireError
from channel.limits import REQUEST_ELEMENTS_MAX
from channel.wire.depth import is_shallow, scan_json
from service.gateway.errors import UpstreamError

__all__ = [
    "DONE",
    "ChatRequest",
    "UnitCounter",
    "parse_chat_request",
    "parse_completion_tokens",
    "scan_request",
]

DONE: Final = "[DONE]"
"""The last event of a stream."""

_CHOICES_MAX: Final = 128
_NULL: Final = msgspec.Raw(b"null")
_DEPTH_MAX: Final = 64

_TOKEN_BOUNDS: Final = ("max_tokens", "max_completion_tokens")
_ALIASES: Final = ("n_predict", "n_cmpl")
"""llama.cpp's own names for `max_tokens` and `n`: they would get around both bounds."""


class ChatRequest(msgspec.Struct, frozen=True):
    """One request, ready to be priced and passed on."""

    body: bytes
    is_stream: bool
    units_max: int
    """Most output tokens it can produce, all choices together."""


def parse_chat_request(
    body: bytes, *, max_tokens: int, default_max_tokens: int, wants_exact_counts: bool
) -> ChatRequest:
    """Read a request's body and bound what it can cost.

    A stream needs no bound of its own: it is paid for as it goes, up to `max_tokens` a choice.

    Raises:
        BadRequestError: It is no JSON object, a bound is not a whole number from 1 to
            `max_tokens`, or an answer in one piece names none and there is no default.
    """
    fields = _decode_object(body)
    try:
        is_stream = bool(msgspec.json.decode(fields.get("stream", _NULL), type=bool | None))
    except msgspec.DecodeError:
        raise BadRequestError("`stream` must be true or false.") from None
    choices = _whole_number(fields, "n", _CHOICES_MAX) or 1
    bounds = [_whole_number(fields, name, max_tokens) for name in _TOKEN_BOUNDS]
    named = min((bound for bound in bounds if bound is not None), default=None)
    bound = named or (max_tokens if is_stream else default_max_tokens)
    if not bound:
        raise BadRequestError(
            "`max_tokens` is needed: an answer that is not streamed is paid for from a "
            "reservation of its greatest length."
        )
    for alias in _ALIASES:
        fields.pop(alias, None)
    fields["max_tokens"] = bound
    if "max_completion_tokens" in fields:
        fields["max_completion_tokens"] = bound
    if is_stream and wants_exact_counts:
        fields["timings_per_token"] = True
    return ChatRequest(msgspec.json.encode(fields), is_stream, bound * choices)


def scan_request(body: bytes) -> Iterator[None]:
    """Check the size of a body's contents, a little at a time: before `parse_chat_request`.

    Raises:
        BadRequestError: It is nested too deeply, or has too many elements.
    """
    try:
        yield from scan_json(body, depth_max=_DEPTH_MAX, elements_max=REQUEST_ELEMENTS_MAX)
    except WireError as error:
        raise BadRequestError(f"The body is {error}.") from error


def _decode_object(body: bytes) -> dict[str, Any]:
    """Return the fields of a body that `scan_request` has passed; no object is made of a value."""
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise BadRequestError("The body is not a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError("The body is not JSON.") from error


def _whole_number(fields: dict[str, Any], name: str, largest: int) -> int | None:
    try:
        value = msgspec.json.decode(fields.get(name, _NULL), type=int | None)
    except msgspec.DecodeError:
        value = 0
    if value is not None and not 1 <= value <= largest:
        raise BadRequestError(f"`{name}` must be a whole number from 1 to {largest}.")
    return value


class _Timings(msgspec.Struct):
    predicted_n: int = 0


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    timings: _Timings | None = None
    usage: _Usage | None = None


class _Completion(msgspec.Struct):
    usage: _Usage | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_COMPLETION: Final = msgspec.json.Decoder(_Completion)


_Answer = TypeVar("_Answer")


def _decode(decoder: msgspec.json.Decoder[_Answer], text: bytes) -> _Answer:
    if not is_shallow(text, _DEPTH_MAX):
        raise UpstreamError("The model server's answer is nested too deeply, or is not JSON.")
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise UpstreamError("The model server's answer cannot be read.") from error


class UnitCounter:
    """Counts the units of one stream, chunk by chunk.

    Without exact counts every choice with content in a chunk is one unit. With them the server's
    running count decides wherever a chunk carries one, so that the units of the whole stream
    are its `usage.completion_tokens`, the end token included; where it carries none, content
    is one unit: nothing is free because a count is missing (F-57).
    """

    def __init__(self, *, is_exact: bool) -> None:
        self._is_exact = is_exact
        self._by_choice: dict[int, int] = {}
        self.reported: int | None = None
        """What the server's last usage record said; None when there was none."""

    @property
    def total(self) -> int:
        """Units counted so far."""
        return sum(self._by_choice.values())

    def count(self, data: str) -> int:
        """Return how many units this chunk adds; 0 for one without content.

        Raises:
            UpstreamError: It is not a chunk of a chat completion.
        """
        if data == DONE:
            return 0
        chunk = _decode(_CHUNK, data.encode())
        before = self.total
        for choice in chunk.choices:
            self._count_choice(choice, chunk.timings)
        if chunk.usage is not None and chunk.usage.completion_tokens is not None:
            self.reported = chunk.usage.completion_tokens
            if self._is_exact:
                missing = max(0, self.reported - self.total)
                self._by_choice[0] = self._by_choice.get(0, 0) + missing
        return self.total - before

    def _count_choice(self, choice: _Choice, timings: _Timings | None) -> None:
        counted = self._by_choice.get(choice.index, 0)
        if self._is_exact and timings is not None:
            counted = max(counted, timings.predicted_n)
        elif _has_content(choice.delta):
            counted += 1
        self._by_choice[choice.index] = counted


def _has_content(delta: dict[str, Any] | None) -> bool:
    """Whether a delta carries output of any kind: text, reasoning, a tool call, a refusal."""
    return any(value for name, value in (delta or {}).items() if name != "role")


def parse_completion_tokens(body: bytes) -> int | None:
    """Return `usage.completion_tokens` of an answer in one piece, None when it has none (F-57).

    Raises:
        UpstreamError: It is not JSON, or the count is not a number from zero.
    """
    usage = _decode(_COMPLETION, body).usage
    tokens = None if usage is None else usage.completion_tokens
    if tokens is not None and tokens < 0:
        raise UpstreamError("The model server reported a negative number of tokens.")
    return tokens
