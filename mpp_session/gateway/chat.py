"""Parses a chat completion request as far as pricing needs it, and bounds its cost (pure).

The gateway writes the request anew from the parsed fields, so that the model server cannot
interpret it differently from its price. It writes only known fields and those the operator lists: a
payer must not choose how much a unit contains (O-03).
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from channel.errors import BadRequestError, WireError
from channel.limits import (
    CHOICES_MAX,
    REQUEST_DEPTH_MAX,
    REQUEST_ELEMENTS_MAX,
    STOP_BYTES_MAX,
    STOPS_MAX,
    TOP_LOGPROBS_MAX,
)
from channel.wire.depth import scan_json
from mpp_session.gateway.counting import ServerKind
from mpp_session.gateway.schemas import require_small_schema

__all__ = ["FIELDS", "ChatRequest", "parse_chat_request", "read_model", "scan_request"]


_TOKEN_BOUNDS: Final = ("max_tokens", "max_completion_tokens")

FIELDS: Final = frozenset(
    {
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "min_p",
        "model",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "repetition_penalty",
        "response_format",
        "seed",
        "stop",
        "stream",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)
"""Fields passed to a model server. None of them causes work that is not counted."""


class ChatRequest(msgspec.Struct, frozen=True):
    """A request, ready to be priced and passed on."""

    body: bytes
    fields: Mapping[str, Any]
    """The fields in it, for the server's tokenizer."""
    bytes_received: int
    """Size of the client's body: its prompt has no more tokens than that, and a few for the
    template around it."""
    kind: ServerKind
    """How the server for which it was written counts."""
    is_stream: bool
    choices: int
    tokens_max: int
    """Most output tokens of one choice."""
    wants_usage: bool
    """Whether the client asked for the usage record at the end of the stream."""

    @property
    def units_max(self) -> int:
        """Most output tokens of all choices together."""
        return self.choices * self.tokens_max


def scan_request(body: bytes) -> Iterator[None]:
    """Check a body's structure step by step; call it before `parse_chat_request`.

    Raises:
        BadRequestError: The body is nested too deeply, or has too many elements.
    """
    try:
        yield from scan_json(body, depth_max=REQUEST_DEPTH_MAX, elements_max=REQUEST_ELEMENTS_MAX)
    except WireError as error:
        raise BadRequestError(f"The body is {error}.") from error


def parse_chat_request(
    body: bytes,
    *,
    max_tokens: int,
    default_max_tokens: int,
    kind: ServerKind,
    more_fields: Collection[str] = (),
    allows_media: bool = False,
) -> ChatRequest:
    """Parse a body that `scan_request` accepted, and bound its cost.

    A stream needs no bound: it is paid as it goes, up to `max_tokens` a choice. An unstreamed
    request without a bound gets `default_max_tokens`, unless that is 0.

    Raises:
        BadRequestError: The body is not a JSON object, names a field twice, has a bound that is not
            a whole number from 1 to `max_tokens`, or asks for output that cannot be counted.
    """
    fields = _read_object(body)
    is_stream = bool(_read(fields, "stream", bool, "true or false"))
    choices = _whole_number(fields, "n", CHOICES_MAX) or 1
    _require_countable(kind, choices, is_stream=is_stream)
    _require_short_stops(fields)
    _require_few_logprobs(fields)
    _require_small_schemas(fields)
    if not allows_media and "messages" in fields:
        _require_text(fields["messages"])
    sent: dict[str, Any] = {
        name: value for name, value in fields.items() if name in FIELDS or name in more_fields
    }
    bounds = [bound for name in _TOKEN_BOUNDS if (bound := _whole_number(fields, name, max_tokens))]
    default = max_tokens if is_stream else min(default_max_tokens, max_tokens)
    bound = min(bounds, default=default)
    if not bound:
        raise BadRequestError(
            "`max_tokens` is missing: set it, as an answer that is not streamed is paid from a "
            "reservation of its greatest length."
        )
    # Only the name that the client used: some servers refuse the other name, or both (O-45).
    for name in _TOKEN_BOUNDS:
        if _whole_number(fields, name, max_tokens):
            sent[name] = bound
        else:
            sent.pop(name, None)
    if not bounds:
        sent["max_tokens"] = bound
    options = _read(fields, "stream_options", _StreamOptions, "an object")
    accounting = _read(fields, "usage", _UsageOptions, "an object")
    if is_stream:
        sent |= _counting_fields(kind)
    return ChatRequest(
        msgspec.json.encode(sent),
        fields=sent,
        bytes_received=len(body),
        kind=kind,
        is_stream=is_stream,
        choices=choices,
        tokens_max=bound,
        wants_usage=(options is not None and bool(options.include_usage))
        or (accounting is not None and bool(accounting.include)),
    )


def read_model(body: bytes) -> str:
    """Return the model that a body names, which `scan_request` accepted; empty if it names none.

    Raises:
        BadRequestError: The body is not a JSON object, names a field twice, or its model is no
            text.
    """
    model: str | None = _read(_read_object(body), "model", str, "a text")
    return model or ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _UsageOptions(msgspec.Struct):
    """OpenRouter's name for the same."""

    include: bool | None = None


def _counting_fields(kind: ServerKind) -> dict[str, Any]:
    """Return the fields that make a server report its counts, in each chunk or at the end."""
    options = {"include_usage": True}
    if kind == "vllm":
        options["continuous_usage_stats"] = True
    if kind == "llama.cpp":
        return {"stream_options": options, "timings_per_token": True}
    return {"stream_options": options}


def _require_countable(kind: ServerKind, choices: int, *, is_stream: bool) -> None:
    """Refuse several choices if the server does not report the counts of all (O-02)."""
    if choices == 1 or kind in ("vllm", "usage") or (kind == "llama.cpp" and is_stream):
        return
    if kind == "llama.cpp":
        raise BadRequestError(
            "`n` above 1 needs `stream: true`: in one piece the model server counts the tokens of "
            "one choice only."
        )
    raise BadRequestError(
        "`n` must be 1: this model server may not count every choice. Send the request "
        "several times instead."
    )


def _require_short_stops(fields: dict[str, msgspec.Raw]) -> None:
    stop = _read(fields, "stop", str | list[str], "a text or a list of texts")
    stops = stop if isinstance(stop, list) else [stop or ""]
    if len(stops) > STOPS_MAX:
        raise BadRequestError(f"`stop` must have at most {STOPS_MAX} sequences.")
    if any(len(text.encode("utf-8", "replace")) > STOP_BYTES_MAX for text in stops):
        raise BadRequestError(f"Each `stop` must have at most {STOP_BYTES_MAX} bytes.")


def _require_few_logprobs(fields: dict[str, msgspec.Raw]) -> None:
    """Refuse the whole vocabulary beside each token: 4 MiB of output in one unit (O-03)."""
    _read(fields, "logprobs", bool, "true or false")
    expected = f"a whole number from 0 to {TOP_LOGPROBS_MAX}"
    shown = _read(fields, "top_logprobs", int, expected)
    if shown is not None and not 0 <= shown <= TOP_LOGPROBS_MAX:
        raise BadRequestError(f"`top_logprobs` must be {expected}.")


def _require_small_schemas(fields: dict[str, msgspec.Raw]) -> None:
    if "response_format" in fields:
        require_small_schema("response_format", fields["response_format"])
    for name in ("tools", "functions"):
        if name in fields:
            for tool in _read_items(fields[name]):
                require_small_schema(name, tool)


def _require_text(messages: msgspec.Raw) -> None:
    """Refuse images, sounds and files: a short link can stand for any number of tokens (O-04)."""
    for message in _read_items(messages):
        content = _read_members(message).get("content")
        for part in () if content is None else _read_items(content):
            kind = _read_members(part).get("type", msgspec.Raw(b"null"))
            if bytes(kind) not in (b'"text"', b'"refusal"'):
                raise BadRequestError(
                    f"`messages` holds a part of type {bytes(kind)[:40]!r}; only text is sold here."
                )


def _read_items(value: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the objects of an array. Other elements are dropped, as the server ignores them."""
    if not _begins(value, b"["):
        return []
    items = msgspec.json.decode(value, type=list[msgspec.Raw])
    return [item for item in items if _begins(item, b"{")]


def _begins(value: msgspec.Raw, bracket: bytes) -> bool:
    return memoryview(value)[:1] == bracket


class _Name:
    """A member's name that is unequal to every other, so that duplicates are seen."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


_MEMBERS: Final = msgspec.json.Decoder(
    dict[_Name, msgspec.Raw], dec_hook=lambda _, text: _Name(text)
)


def _read_object(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of a body, with undecoded values."""
    try:
        return _read_members(body)
    except msgspec.ValidationError as error:
        raise BadRequestError("The body is not a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError("The body is not JSON.") from error


def _read_members(value: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    members: dict[str, msgspec.Raw] = {}
    for name, member in _MEMBERS.decode(value).items():
        if name.text in members:
            raise BadRequestError(f"The body names `{name.text[:64]}` twice in one object.")
        members[name.text] = member
    return members


def _read(fields: dict[str, msgspec.Raw], name: str, kind: Any, expected: str) -> Any:
    """Return a field's value; None if it is missing or null.

    Raises:
        BadRequestError: The value has another type.
    """
    try:
        return msgspec.json.decode(fields.get(name, b"null"), type=kind | None)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError(f"`{name}` must be {expected}.") from None


def _whole_number(fields: dict[str, msgspec.Raw], name: str, largest: int) -> int | None:
    expected = f"a whole number from 1 to {largest}"
    value: int | None = _read(fields, name, int, expected)
    if value is not None and not 1 <= value <= largest:
        raise BadRequestError(f"`{name}` must be {expected}.")
    return value
