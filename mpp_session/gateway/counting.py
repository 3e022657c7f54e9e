"""What an answer is charged: what the server says it made and what was delivered, the larger.

Pure: bytes in, units out. A count of the server's that cannot be right is not believed: fewer
units than were delivered, less than nothing, more than was asked for.
"""

from typing import Any, Final, Literal, TypeAlias

import msgspec

from channel.limits import ANSWER_DEPTH_MAX
from channel.wire.depth import is_shallow
from mpp_session.gateway.errors import UpstreamError

__all__ = ["DONE", "ServerKind", "UnitCounter", "WholeAnswer", "is_error", "read_whole"]

DONE: Final = "[DONE]"
"""The last event of a stream."""

ServerKind: TypeAlias = Literal["llama.cpp", "vllm", "usage", "chunks"]
"""How a model server counts.

`llama.cpp` says in each chunk how many tokens its choice has (`timings`), and its `usage` is that
of one choice. `vllm` says the same in the `usage` of each chunk, and at the end that of all. With
`usage` the last record covers all choices. Of `chunks` nothing is known.
"""

_TOKEN_BYTES_MAX: Final = 128
"""No vocabulary in use has a longer token, so a text has at least this many to a unit."""
_LUMP_BYTES: Final = 32
"""A chunk with more text than this holds several tokens, but for a rare long word."""
_BYTES_PER_TOKEN: Final = 4
"""English and code in the vocabularies in use: what a text is taken for that nobody counted."""
_SPARE: Final = 16


class _Timings(msgspec.Struct):
    predicted_n: int = 0


class _LogProbs(msgspec.Struct):
    content: list[msgspec.Raw] | None = None
    refusal: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    text: str | None = None
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    """A chunk of a stream, or a whole answer."""

    choices: list[_Choice] | None = None
    timings: _Timings | None = None
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_DECODER: Final = msgspec.json.Decoder(_Answer)


def _decode(text: bytes) -> _Answer:
    """Read what is needed; what is strange beside it is left out, not judged (O-47).

    Raises:
        UpstreamError: It is not JSON, or not an object.
    """
    if not is_shallow(text, ANSWER_DEPTH_MAX):
        raise UpstreamError("The model server's answer is nested too deeply, or is not JSON.")
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UpstreamError("The model server's answer is not JSON.") from None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UpstreamError("The model server's answer is not JSON.") from None
    if not isinstance(value, dict):
        raise UpstreamError("The model server's answer is not a JSON object.")
    choices = value.get("choices")
    return _Answer(
        choices=[
            _read_choice(one, position)
            for position, one in enumerate(choices if isinstance(choices, list) else [])
            if isinstance(one, dict)
        ],
        timings=_convert(value.get("timings"), _Timings),
        usage=_read_usage(value.get("usage")),
        error=msgspec.Raw(msgspec.json.encode(value.get("error"))),
    )


def _convert(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _read_choice(value: dict[str, Any], position: int) -> _Choice:
    index = value.get("index")
    logprobs = value.get("logprobs")
    parts: dict[str, Any] = {}
    for name in ("delta", "message"):
        part = value.get(name)
        # A delta of another form is output of another form: it is not free.
        parts[name] = part if isinstance(part, dict) else {"content": part} if part else None
    return _Choice(
        index=index if type(index) is int else position,
        text=_convert(value.get("text"), str),
        logprobs=_LogProbs(
            *[
                [msgspec.Raw(b"0")] * len(tokens) if isinstance(tokens, list) else None
                for tokens in (logprobs.get("content"), logprobs.get("refusal"))
            ]
        )
        if isinstance(logprobs, dict)
        else None,
        finish_reason=_convert(value.get("finish_reason"), str),
        **parts,
    )


def _read_usage(value: Any) -> _Usage | None:
    if not isinstance(value, dict):
        return None
    return _Usage(*[_convert(value.get(name), int) for name in _Usage.__struct_fields__])


def _made(usage: _Usage | None) -> int | None:
    """Return the tokens that a usage record says were made; hidden reasoning is among them.

    Some servers leave reasoning out of `completion_tokens`, but never out of the total.
    """
    if usage is None or usage.completion_tokens is None:
        return None
    made = usage.completion_tokens
    if usage.total_tokens is not None and usage.prompt_tokens is not None:
        made = max(made, usage.total_tokens - max(0, usage.prompt_tokens))
    return made


def _delivered(choice: _Choice) -> tuple[int, int]:
    """Return the least number of tokens in what a choice brings, and the bytes of its text."""
    size = tokens = 0
    if choice.text:
        size, tokens = _size(choice.text), 1
    part = choice.delta or choice.message
    if part:
        for name, value in part.items():
            if value and name != "role":
                tokens = 1
                size += _size(value)
    if choice.logprobs is not None:  # one for each token
        tokens = max(tokens, len(choice.logprobs.content or ()), len(choice.logprobs.refusal or ()))
    return tokens, size


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    return len(msgspec.json.encode(value))


class UnitCounter:
    """Counts the units of one stream, chunk by chunk, each choice by itself.

    Every chunk with output of a choice is a unit at least: text, reasoning, a tool call, tokens
    that show in `logprobs` alone. What the server counts is charged where it is more, with the
    chunk that says so, and at the latest with the record before `[DONE]`.
    """

    def __init__(self, kind: ServerKind, *, choices: int, tokens_max: int) -> None:
        """Begin at nothing. `tokens_max` is the bound of each of the `choices`."""
        self._kind = kind
        self._choices_max = choices
        self._tokens_max = tokens_max
        self._absurd = _absurd(tokens_max)
        self._units_max = choices * tokens_max
        self._by_chunks: dict[int, int] = {}
        self._by_server: dict[int, int] = {}
        self._of_choices = 0
        """The sum over all choices of the larger of both counts."""
        self._of_all = 0
        """The server's count of all choices together."""
        self._estimate = 0
        """What chunks hold by their text beyond their units, where no server counted."""
        self._last = 0
        """The choice of the last chunk that had one."""
        self._finished: set[int] = set()
        self.total = 0
        """Units counted so far."""
        self.is_usage_only = False
        """Whether the last chunk had a record of usage and nothing else."""

    @property
    def uncounted(self) -> int:
        """Units that the text holds beyond `total` by its length, while no server has counted."""
        if self._by_server or self._of_all:
            return 0
        return min(self._estimate, self._units_max - self.total)

    @property
    def is_complete(self) -> bool:
        """Whether every choice that has begun has ended."""
        return bool(self._finished) and self._finished >= self._by_chunks.keys()

    def count(self, data: str) -> int:
        """Return how many units this chunk adds; 0 for one that says nothing.

        Raises:
            UpstreamError: It is not a JSON object, or the answer is longer than was asked for.
        """
        chunk = _decode(data.encode("utf-8", "replace"))
        choices = chunk.choices or ()
        for choice in choices:
            self._count_choice(choice)
        if chunk.timings is not None and (choices or self._kind == "llama.cpp"):
            self._note(choices[0].index if choices else self._last, chunk.timings.predicted_n)
        self.is_usage_only = False
        if chunk.usage is not None:
            self.is_usage_only = not choices
            made = _made(chunk.usage)
            if made is not None:
                self._note_usage(made, choices)
        before = self.total
        counted = max(self._of_all, self._of_choices)
        if counted > before:
            self.total = min(self._units_max, counted)
        return self.total - before

    def finish(self) -> int:
        """Return what is added at the end: what the text holds that no server has counted."""
        added = self.uncounted
        self.total += added
        self._estimate = 0
        return added

    def _count_choice(self, choice: _Choice) -> None:
        index = choice.index
        tokens, size = _delivered(choice)
        known = self._by_chunks.get(index)
        if known is None and len(self._by_chunks) >= self._choices_max:
            raise UpstreamError("The model server's answer has more choices than were asked for.")
        known = known or 0
        count = self._by_chunks[index] = known + tokens
        if count > self._absurd:  # a token may bring two deltas
            raise UpstreamError("The model server's answer is longer than was asked for.")
        server = self._by_server.get(index, 0)
        if count > server:
            self._of_choices += count - (max(server, known))
        if size > _LUMP_BYTES:
            self._estimate += max(0, -(-size // _BYTES_PER_TOKEN) - tokens)
        if choice.finish_reason:
            self._finished.add(index)
        self._last = index

    def _note(self, index: int, count: int) -> None:
        """Take the server's count of one choice, unless it is far beyond what was asked for."""
        if 0 < count <= self._absurd:
            count = min(count, self._tokens_max)
            known = self._by_server.get(index, 0)
            if count > known:
                self._by_server[index] = count
                known = max(known, self._by_chunks.setdefault(index, 0))
                self._of_choices += max(0, count - known)

    def _note_usage(self, made: int, choices: Any) -> None:
        if self._kind == "llama.cpp":  # one record behind the end of each choice
            self._note(choices[0].index if choices else self._last, made)
        elif self._kind == "vllm" and len(choices) == 1:
            self._note(choices[0].index, made)
        elif made <= _absurd(self._units_max):
            self._of_all = max(self._of_all, made)


def _absurd(bound: int) -> int:
    """Return what no count within a bound can pass; some servers count a few tokens more."""
    return 2 * bound + _SPARE


def is_error(body: bytes) -> bool:
    """Say whether a JSON object says what went wrong and nothing else.

    Raises:
        UpstreamError: It is not a JSON object.
    """
    answer = _decode(body)
    return not answer.choices and _has_error(answer)


def _has_error(answer: _Answer) -> bool:
    return answer.error is not None and bytes(answer.error) != b"null"


class WholeAnswer(msgspec.Struct, frozen=True):
    """What an answer in one piece says of its length."""

    units: int | None
    """What it is charged; None when the server did not count."""
    is_believed: bool = False
    """Whether that is the server's own count."""
    is_error: bool = False
    """Whether it says what went wrong and nothing else."""


def read_whole(body: bytes, *, units_max: int) -> WholeAnswer:
    """Return what an answer in one piece is charged (F-57, O-02).

    Fewer tokens than were delivered are not believed: then the text's length decides, within
    `units_max`. An answer longer than that is not sold.

    Raises:
        UpstreamError: It is not a JSON object, holds neither a choice nor an error, or is longer
            than was asked for.
    """
    answer = _decode(body)
    if not answer.choices:
        if not _has_error(answer):
            raise UpstreamError("The model server's answer holds no choice.")
        return WholeAnswer(0, is_error=True)
    least = estimate = 0
    for choice in answer.choices:
        tokens, size = _delivered(choice)
        least += max(tokens, -(-size // _TOKEN_BYTES_MAX))
        estimate += max(tokens, -(-size // _BYTES_PER_TOKEN))
    made = _made(answer.usage)
    if made is None:
        return WholeAnswer(None)
    if made > units_max:
        raise UpstreamError("The model server's answer is longer than was asked for.")
    if made < least:
        return WholeAnswer(min(estimate, units_max))
    return WholeAnswer(made, is_believed=True)
