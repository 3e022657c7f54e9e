"""Tokens of an answer and its prompt, as the model server reports and delivers them (pure).

An answer's units are the larger of the server's count and of what was delivered. A server's count
is ignored if it cannot be right: below the delivered units, negative, or above the requested bound.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, get_type_hints

import msgspec

from channel.limits import ANSWER_DEPTH_MAX
from channel.wire.depth import is_shallow
from mpp_session.gateway.errors import UpstreamError

__all__ = [
    "BYTES_PER_TOKEN",
    "Answer",
    "Choice",
    "OutputDetails",
    "PromptDetails",
    "PromptReport",
    "Reader",
    "ServerKind",
    "Timings",
    "UnitCounter",
    "UsageRecord",
    "WholeAnswer",
    "decode_object",
    "is_error",
    "read_answer",
    "read_error",
    "read_timings",
    "read_whole",
    "size_of",
]

ServerKind: TypeAlias = Literal["llama.cpp", "vllm", "usage", "chunks"]
"""How a model server counts.

`llama.cpp` reports in each chunk the tokens of its choice (`timings`); its `usage` is that of one
choice. `vllm` reports the same in the `usage` of each chunk, and the total at the end. With `usage`
the last record covers all choices. `chunks` reports nothing.
"""

_TOKEN_BYTES_MAX: Final = 128
"""No known vocabulary has a longer token, so a text has at least its length over this in units."""
_LUMP_BYTES: Final = 32
"""A longer chunk holds several tokens, except for a rare long word."""
BYTES_PER_TOKEN: Final = 4
"""Typical for English and code: the estimate for text that no server counted."""
_SPARE: Final = 16
_REASONING: Final = ("reasoning_content", "reasoning")
"""Members of a delta or message that hold reasoning instead of the answer."""


class PromptReport(msgspec.Struct):
    """What a model server reported of a prompt so far; None where it reported nothing."""

    tokens: int | None = None
    cached: int | None = None
    """Tokens of them that it read from its cache."""
    written: int | None = None
    """Tokens of them that it wrote to its cache."""

    def note(self, other: "PromptReport") -> None:
        """Take over a later report. Of several choices the first one read the prompt."""
        if other.tokens is not None:
            self.tokens = max(self.tokens or 0, other.tokens)
        self.cached = other.cached if self.cached is None else self.cached
        self.written = other.written if self.written is None else self.written


class Timings(msgspec.Struct):
    """llama.cpp's counts of one choice."""

    predicted_n: int = 0
    prompt_n: int | None = None
    cache_n: int | None = None


class _LogProbs(msgspec.Struct):
    content: list[msgspec.Raw] | None = None
    refusal: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None
    """Of a completion; a chat has `content`."""


class Choice(msgspec.Struct):
    """What a chunk, or a whole answer, holds of one choice."""

    index: int = 0
    delta: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    text: str | None = None
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None
    lump: int = 0
    """Bytes of output that the reader of another protocol found."""
    is_reasoning: bool = False


class PromptDetails(msgspec.Struct):
    """Shares of a prompt, as servers report them."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OutputDetails(msgspec.Struct):
    """Shares of an output, as servers report them."""

    reasoning_tokens: int | None = None


class UsageRecord(msgspec.Struct):
    """What a model server reports of a request; None where it says nothing."""

    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: OutputDetails | None = None


class Answer(msgspec.Struct):
    """A chunk of a stream, or a whole answer."""

    choices: list[Choice] | None = None
    timings: Timings | None = None
    usage: UsageRecord | None = None
    error: msgspec.Raw | None = None
    event: str | None = None
    """The name of a stream's event, in protocols that have them."""
    is_end: bool = False
    """Whether a stream ends with it, in protocols without `[DONE]`."""


Reader: TypeAlias = Callable[[bytes], Answer]
"""Reads whole answers and chunks of one protocol. It raises UpstreamError for a text
that is not a JSON object."""

_DECODER: Final = msgspec.json.Decoder(Answer)


def read_answer(text: bytes) -> Answer:
    """Decode the needed fields; unknown or odd ones are ignored (O-47).

    Raises:
        UpstreamError: The text is not a JSON object.
    """
    _require_shallow(text)
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UpstreamError("The model server's answer is not JSON.") from None
    value = decode_object(text)
    choices = value.get("choices")
    return Answer(
        choices=[
            _read_choice(one, position)
            for position, one in enumerate(choices if isinstance(choices, list) else [])
            if isinstance(one, dict)
        ],
        timings=read_timings(value),
        usage=_read_usage(value.get("usage")),
        error=read_error(value),
    )


def decode_object(text: bytes) -> dict[str, Any]:
    """Return an answer of any form.

    Raises:
        UpstreamError: It is not a JSON object.
    """
    _require_shallow(text)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UpstreamError("The model server's answer is not JSON.") from None
    if not isinstance(value, dict):
        raise UpstreamError("The model server's answer is not a JSON object.")
    return value


def _require_shallow(text: bytes) -> None:
    if not is_shallow(text, ANSWER_DEPTH_MAX):
        raise UpstreamError("The model server's answer is nested too deeply, or is not JSON.")


def read_error(value: dict[str, Any]) -> msgspec.Raw | None:
    """Return the error in an answer; None if there is none."""
    error = value.get("error")
    return None if error is None else msgspec.Raw(msgspec.json.encode(error))


def read_timings(value: dict[str, Any]) -> Timings | None:
    """Return llama.cpp's own counts in a chunk."""
    found: Timings | None = _convert(value.get("timings"), Timings)
    return found


def _convert(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _read_choice(value: dict[str, Any], position: int) -> Choice:
    index = value.get("index")
    logprobs = value.get("logprobs")
    parts: dict[str, Any] = {}
    for name in ("delta", "message"):
        part = value.get(name)
        # A delta of another form is still output, and is not free.
        parts[name] = part if isinstance(part, dict) else {"content": part} if part else None
    return Choice(
        index=index if type(index) is int else position,
        text=_convert(value.get("text"), str),
        logprobs=_LogProbs(
            *[
                [msgspec.Raw(b"0")] * len(tokens) if isinstance(tokens, list) else None
                for tokens in map(logprobs.get, ("content", "refusal", "tokens"))
            ]
        )
        if isinstance(logprobs, dict)
        else None,
        finish_reason=_convert(value.get("finish_reason"), str),
        **parts,
    )


def _read_usage(value: Any) -> UsageRecord | None:
    if not isinstance(value, dict):
        return None
    kinds = get_type_hints(UsageRecord)
    return UsageRecord(**{name: _convert(value.get(name), kind) for name, kind in kinds.items()})


def _made(usage: UsageRecord | None) -> int | None:
    """Return the tokens generated by a usage record; hidden reasoning is included.

    Some servers omit reasoning from `completion_tokens`, but never from the total.
    """
    if usage is None or usage.completion_tokens is None:
        return None
    made = usage.completion_tokens
    if usage.total_tokens is not None and usage.prompt_tokens is not None:
        made = max(made, usage.total_tokens - max(0, usage.prompt_tokens))
    return made


def _read_prompt(answer: Answer) -> PromptReport:
    """Return what an answer or a chunk reports of the prompt; impossible numbers are dropped."""
    usage, timings, found = answer.usage, answer.timings, PromptReport()
    if usage is not None:
        details = usage.prompt_tokens_details
        found.tokens = usage.prompt_tokens
        if details is not None:
            found.cached, found.written = details.cached_tokens, details.cache_write_tokens
    elif timings is not None and timings.prompt_n is not None and timings.cache_n is not None:
        found.tokens, found.cached = timings.prompt_n + timings.cache_n, timings.cache_n
    for name in PromptReport.__struct_fields__:
        value = getattr(found, name)
        if value is not None and value < 0:
            setattr(found, name, None)
    return found


def _reasoned(usage: UsageRecord | None) -> int | None:
    """Return the tokens that a usage record calls reasoning; None if it says nothing of them."""
    details = None if usage is None else usage.completion_tokens_details
    return None if details is None else details.reasoning_tokens


def _is_reasoning(choice: Choice) -> bool:
    """Whether the output in a chunk's choice is reasoning alone."""
    if choice.lump:
        return choice.is_reasoning
    part = choice.delta or choice.message or {}
    return {name for name, value in part.items() if value and name != "role"} in (
        {_REASONING[0]},
        {_REASONING[1]},
        {*_REASONING},
    )


def _delivered(choice: Choice) -> tuple[int, int]:
    """Return the least number of tokens in a choice, and the bytes of its text."""
    size = tokens = 0
    if choice.text:
        size, tokens = size_of(choice.text), 1
    if choice.lump:
        size, tokens = choice.lump, 1
    part = choice.delta or choice.message
    if part:
        for name, value in part.items():
            if value and name != "role":
                tokens = 1
                size += size_of(value)
    if choice.logprobs is not None:  # one entry for each token
        shown = choice.logprobs
        lists = (shown.content, shown.refusal, shown.tokens)
        tokens = max(tokens, *[len(one or ()) for one in lists])
    return tokens, size


def size_of(value: Any) -> int:
    """Return the bytes of an output: of a text, or of anything else as JSON."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    return len(msgspec.json.encode(value))


class UnitCounter:
    """Counts the units of one stream, chunk by chunk, each choice separately.

    Every chunk with output of a choice counts as one unit or more: text, reasoning, a tool call,
    tokens shown only in `logprobs`. If the server's count is higher, it is charged with the chunk
    that reports it, and at the latest with the record before `[DONE]`.
    """

    def __init__(
        self,
        kind: ServerKind,
        *,
        choices: int,
        tokens_max: int,
        read: Reader | None = None,
    ) -> None:
        """Start at zero. `tokens_max` bounds each of the `choices`; `read` reads their chunks."""
        self._kind = kind
        self._read = read_answer if read is None else read
        self._choices_max = choices
        self._tokens_max = tokens_max
        self._absurd = _absurd(tokens_max)
        self._units_max = choices * tokens_max
        self._by_chunks: dict[int, int] = {}
        self._by_server: dict[int, int] = {}
        self._of_choices = 0
        """Sum over all choices of the larger of both counts."""
        self._of_all = 0
        """The server's count of all choices together."""
        self._has_reported = False
        """Whether the server reported a count, even of nothing."""
        self._estimate = 0
        """Units of text beyond the counted ones, for chunks that no server counted."""
        self._last = 0
        """The choice of the last chunk that had one."""
        self._finished: set[int] = set()
        self.total = 0
        """Units counted so far."""
        self.reasoning = 0
        """Units of `total` that are reasoning; what is counted as either is never moved."""
        self.prompt = PromptReport()
        """What the server reported of the prompt so far."""
        self.event: str | None = None
        """The name of the last chunk's event, if its protocol has names."""
        self.is_end = False
        """Whether the last chunk ended the stream, in protocols without `[DONE]`."""
        self.has_usage = False
        """Whether the last chunk had a usage record."""
        self.is_usage_only = False
        """Whether the last chunk had only a usage record."""
        self.is_of_choice = kind == "llama.cpp" and choices > 1
        """Whether a usage record is that of one choice of several."""

    @property
    def reported(self) -> int | None:
        """The server's own count of all output; None if it reported none."""
        of_choices = sum(self._by_server.values())
        return max(self._of_all, of_choices) or (0 if self._has_reported else None)

    @property
    def has_answered(self) -> bool:
        """Whether a choice has started: the model has read the prompt."""
        return bool(self._by_chunks)

    @property
    def uncounted(self) -> int:
        """Units of the text's length beyond `total`, while the server has reported no count."""
        if self._by_server or self._of_all:
            return 0
        return min(self._estimate, self._units_max - self.total)

    @property
    def is_complete(self) -> bool:
        """Whether every choice that has started has ended."""
        return bool(self._finished) and self._finished >= self._by_chunks.keys()

    def count(self, data: str) -> int:
        """Return how many units this chunk adds; 0 for a chunk without output.

        Raises:
            UpstreamError: The chunk is not a JSON object, or the answer is longer than requested.
        """
        chunk = self._read(data.encode("utf-8", "replace"))
        choices = chunk.choices or ()
        self.event, self.is_end = chunk.event, chunk.is_end
        for choice in choices:
            self._count_choice(choice)
        if chunk.timings is not None and (choices or self._kind == "llama.cpp"):
            self._note(choices[0].index if choices else self._last, chunk.timings.predicted_n)
        self.has_usage = chunk.usage is not None
        self.is_usage_only = self.has_usage and not choices
        if chunk.usage is not None:
            made = _made(chunk.usage)
            if made is not None:
                self._has_reported = True
                self._note_usage(made, choices)
        if chunk.usage is not None or chunk.timings is not None:
            self.prompt.note(_read_prompt(chunk))
        before = self.total
        counted = max(self._of_all, self._of_choices)
        if counted > before:
            self.total = min(self._units_max, counted)
            self._note_reasoning(self.total - before, _reasoned(chunk.usage), choices)
        return self.total - before

    def finish(self) -> int:
        """Return the units added at the end: text that no server has counted."""
        added = self.uncounted
        self.total += added
        self._estimate = 0
        return added

    def _count_choice(self, choice: Choice) -> None:
        index = choice.index
        tokens, size = _delivered(choice)
        known = self._by_chunks.get(index)
        if known is None and len(self._by_chunks) >= self._choices_max:
            raise UpstreamError("The model server's answer has more choices than requested.")
        known = known or 0
        count = self._by_chunks[index] = known + tokens
        if count > self._absurd:  # one token may come in two deltas
            raise UpstreamError("The model server's answer is longer than requested.")
        server = self._by_server.get(index, 0)
        if count > server:
            self._of_choices += count - (max(server, known))
        if size > _LUMP_BYTES:
            self._estimate += max(0, -(-size // BYTES_PER_TOKEN) - tokens)
        if choice.finish_reason:
            self._finished.add(index)
        self._last = index

    def _note_reasoning(self, added: int, reported: int | None, choices: Any) -> None:
        if reported is not None:
            self.reasoning += min(added, max(0, reported - self.reasoning))
        elif choices and all(map(_is_reasoning, choices)):
            self.reasoning += added

    def _note(self, index: int, count: int) -> None:
        """Use the server's count of one choice, unless it is far above the requested bound."""
        if 0 < count <= self._absurd:
            count = min(count, self._tokens_max)
            known = self._by_server.get(index, 0)
            if count > known:
                self._by_server[index] = count
                known = max(known, self._by_chunks.setdefault(index, 0))
                self._of_choices += max(0, count - known)

    def _note_usage(self, made: int, choices: Any) -> None:
        if self._kind == "llama.cpp":  # one record after the end of each choice
            self._note(choices[0].index if choices else self._last, made)
        elif self._kind == "vllm" and len(choices) == 1:
            self._note(choices[0].index, made)
        elif made <= _absurd(self._units_max):
            self._of_all = max(self._of_all, made)


def _absurd(bound: int) -> int:
    """Return a count that no valid answer reaches; some servers count a few tokens more."""
    return 2 * bound + _SPARE


def is_error(body: bytes, read: Reader | None = None) -> bool:
    """Whether a JSON object only reports an error.

    Raises:
        UpstreamError: The body is not a JSON object.
    """
    answer = (read or read_answer)(body)
    return not answer.choices and _has_error(answer)


def _has_error(answer: Answer) -> bool:
    return answer.error is not None and bytes(answer.error) != b"null"


class WholeAnswer(msgspec.Struct, frozen=True):
    """The length of an unstreamed answer."""

    units: int | None
    """Units to charge; None if the server did not count."""
    is_believed: bool = False
    """Whether `units` is the server's own count."""
    is_error: bool = False
    """Whether the answer only reports an error."""
    reported: int | None = None
    """The server's own count."""
    reasoning: int = 0
    """Units of `units` that are reasoning."""
    prompt: PromptReport = msgspec.field(default_factory=PromptReport)
    """What the server reported of the prompt."""


def read_whole(body: bytes, *, units_max: int, read: Reader | None = None) -> WholeAnswer:
    """Return the units of an unstreamed answer (F-57, O-02).

    A count below the delivered tokens is ignored; the text's length then decides, within
    `units_max`. A longer answer is not sold.

    Raises:
        UpstreamError: The answer is not a JSON object, has neither choice nor error, or is longer
            than requested.
    """
    answer = (read or read_answer)(body)
    if not answer.choices:
        if not _has_error(answer):
            raise UpstreamError("The model server's answer has no choice.")
        return WholeAnswer(0, is_error=True)
    least = estimate = text = thought = 0
    for choice in answer.choices:
        tokens, size = _delivered(choice)
        text += size
        thought += sum(size_of((choice.message or {}).get(name) or "") for name in _REASONING)
        least += max(tokens, -(-size // _TOKEN_BYTES_MAX))
        estimate += max(tokens, -(-size // BYTES_PER_TOKEN))
    made = _made(answer.usage)
    if not units_max:
        return WholeAnswer(0, is_believed=True, prompt=_read_prompt(answer))
    if made is None:
        return WholeAnswer(None)
    if made > units_max:
        raise UpstreamError("The model server's answer is longer than requested.")
    is_believed = made >= least
    units = made if is_believed else min(estimate, units_max)
    reasoning = _reasoned(answer.usage)
    if reasoning is None:  # its share of the text
        reasoning = units * thought // text if text else 0
    return WholeAnswer(
        units,
        is_believed=is_believed,
        reported=made,
        reasoning=max(0, min(reasoning, units)),
        prompt=_read_prompt(answer),
    )
