"""Reads and bounds the fields that the requests of several endpoints share (pure).

The gateway writes each request anew from the parsed fields, so that the model server cannot
interpret it differently from its price. It writes only known fields and those the operator lists: a
payer must not choose how much a unit contains (O-03).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from channel.errors import BadRequestError, WireError
from channel.limits import (
    REQUEST_DEPTH_MAX,
    REQUEST_ELEMENTS_MAX,
    STOP_BYTES_MAX,
    STOPS_MAX,
)
from channel.wire.depth import scan_json
from mpp_session.gateway.counting import ServerKind
from mpp_session.gateway.endpoints.schemas import require_small_schema

__all__ = [
    "SAMPLING",
    "Bounds",
    "Fields",
    "ModelRequest",
    "begins",
    "bound_output",
    "counting_fields",
    "read",
    "read_items",
    "read_members",
    "read_model",
    "read_object",
    "require_countable",
    "require_short_stops",
    "require_small_schemas",
    "scan_request",
    "select",
    "wants_usage",
    "whole_number",
]

Fields = dict[str, msgspec.Raw]
"""Members of an object, with undecoded values."""

SAMPLING: Final = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "min_p",
        "model",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stream",
        "temperature",
        "top_k",
        "top_p",
        "user",
    }
)
"""Fields that every endpoint with output passes on. None of them causes work that is not
counted."""


_READ: Final = frozenset(
    {
        "background",
        "conversation",
        "echo",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "n",
        "previous_response_id",
        "store",
        "stream",
    }
)
"""Fields with a meaning for the bill, which each endpoint reads by itself if it has them."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows in a request."""

    max_tokens: int
    """Most output tokens of one choice."""
    default_max_tokens: int
    """The bound of an answer in one piece that names none; 0: such a request is refused."""
    kind: ServerKind
    """How the model server counts."""
    more_fields: Collection[str] = ()
    """Fields that are passed on beside the known ones."""
    allows_media: bool = False
    """Whether a prompt may hold images, sounds and files."""


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request, ready to be priced and passed on."""

    body: bytes
    fields: Mapping[str, Any]
    """The fields in it, for the server's tokenizer."""
    bytes_received: int
    """Size of the client's body: its prompt has no more tokens than that, and a few for the
    template around it."""
    kind: ServerKind
    """How the server for which it was written counts."""
    is_stream: bool = False
    choices: int = 1
    tokens_max: int = 0
    """Most output tokens of one choice; 0 where the answer has none."""
    wants_usage: bool = False
    """Whether the client asked for the usage record at the end of the stream."""
    texts: Sequence[str] | None = None
    """The prompt, where it is texts without a template."""
    tokens: int = 0
    """Tokens of the prompt that the client sent as numbers."""
    count_path: str | None = None
    """Where some servers tell how many tokens this very request would read."""

    @property
    def units_max(self) -> int:
        """Most output tokens of all choices together."""
        return self.choices * self.tokens_max

    @property
    def model(self) -> str:
        """The name of the model, if the client gave one."""
        name = self.fields.get("model")
        return "" if name is None else read({"model": name}, "model", str, "a text") or ""


def scan_request(body: bytes) -> Iterator[None]:
    """Check a body's structure step by step; call it before `parse_chat_request`.

    Raises:
        BadRequestError: The body is nested too deeply, or has too many elements.
    """
    try:
        yield from scan_json(body, depth_max=REQUEST_DEPTH_MAX, elements_max=REQUEST_ELEMENTS_MAX)
    except WireError as error:
        raise BadRequestError(f"The body is {error}.") from error


def read_model(body: bytes) -> str:
    """Return the model that a body names, which `scan_request` accepted; empty if it names none.

    Raises:
        BadRequestError: The body is not a JSON object, names a field twice, or its model is no
            text.
    """
    model: str | None = read(read_object(body), "model", str, "a text")
    return model or ""


def select(fields: Fields, names: Collection[str], bounds: Bounds) -> dict[str, Any]:
    """Return the fields that reach the model server.

    One that bounds an answer under some endpoint never passes unread under another.
    """
    more = frozenset(bounds.more_fields) - _READ
    return {name: value for name, value in fields.items() if name in names or name in more}


def bound_output(
    fields: Fields, sent: dict[str, Any], names: Sequence[str], bounds: Bounds, *, is_stream: bool
) -> int:
    """Return the most tokens of one choice, and write it into `sent`.

    A stream needs no bound: it is paid as it goes, up to `max_tokens` a choice. An unstreamed
    request without a bound gets `default_max_tokens`, unless that is 0.

    Args:
        fields: The request's.
        sent: Those that reach the model server.
        names: How this endpoint calls the bound, the usual name first.
        bounds: The operator's.
        is_stream: Whether the answer is a stream.

    Raises:
        BadRequestError: A bound is not a whole number from 1 to `max_tokens`, or there is none.
    """
    found = {name: whole_number(fields, name, bounds.max_tokens) for name in names}
    default = min(bounds.default_max_tokens, bounds.max_tokens)
    bound = min(
        (value for value in found.values() if value),
        default=bounds.max_tokens if is_stream else default,
    )
    if not bound:
        raise BadRequestError(
            f"`{names[0]}` is missing: set it, as an answer that is not streamed is paid from a "
            "reservation of its greatest length."
        )
    # Only the name that the client used: some servers refuse the other name, or both (O-45).
    for name, value in found.items():
        if value:
            sent[name] = bound
        else:
            sent.pop(name, None)
    if not any(found.values()):
        sent[names[0]] = bound
    return bound


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _UsageOptions(msgspec.Struct):
    """OpenRouter's name for the same."""

    include: bool | None = None


def wants_usage(fields: Fields) -> bool:
    """Whether the client asks for the usage record at the end of a stream."""
    options = read(fields, "stream_options", _StreamOptions, "an object")
    accounting = read(fields, "usage", _UsageOptions, "an object")
    return (options is not None and bool(options.include_usage)) or (
        accounting is not None and bool(accounting.include)
    )


def counting_fields(kind: ServerKind) -> dict[str, Any]:
    """Return the fields that make a server report its counts, in each chunk or at the end."""
    options = {"include_usage": True}
    if kind == "vllm":
        options["continuous_usage_stats"] = True
    if kind == "llama.cpp":
        return {"stream_options": options, "timings_per_token": True}
    return {"stream_options": options}


def require_countable(kind: ServerKind, choices: int, *, is_stream: bool) -> None:
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


def require_short_stops(fields: Fields) -> None:
    """Bound the text that a server holds back for `stop` before it is charged.

    Raises:
        BadRequestError: There are too many sequences, or one is too long.
    """
    stop = read(fields, "stop", str | list[str], "a text or a list of texts")
    stops = stop if isinstance(stop, list) else [stop or ""]
    if len(stops) > STOPS_MAX:
        raise BadRequestError(f"`stop` must have at most {STOPS_MAX} sequences.")
    if any(len(text.encode("utf-8", "replace")) > STOP_BYTES_MAX for text in stops):
        raise BadRequestError(f"Each `stop` must have at most {STOP_BYTES_MAX} bytes.")


def require_small_schemas(fields: Fields) -> None:
    """Bound the schemas that a server compiles (O-03).

    Raises:
        BadRequestError: One is larger than the bound, or cannot be parsed.
    """
    for name in ("response_format", "text"):
        if name in fields:
            require_small_schema(name, fields[name])
    for name in ("tools", "functions"):
        if name in fields:
            for tool in read_items(fields[name]):
                require_small_schema(name, tool)


def read_items(value: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the objects of an array. Other elements are dropped, as the server ignores them."""
    if not begins(value, b"["):
        return []
    items = msgspec.json.decode(value, type=list[msgspec.Raw])
    return [item for item in items if begins(item, b"{")]


def begins(value: msgspec.Raw, bracket: bytes) -> bool:
    """Whether a value is of the kind that this bracket or quote opens."""
    return memoryview(value)[:1] == bracket


class _Name:
    """A member's name that is unequal to every other, so that duplicates are seen."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


_MEMBERS: Final = msgspec.json.Decoder(
    dict[_Name, msgspec.Raw], dec_hook=lambda _, text: _Name(text)
)


def read_object(body: bytes) -> Fields:
    """Return the fields of a body, with undecoded values.

    Raises:
        BadRequestError: It is not a JSON object, or names a field twice.
    """
    try:
        return read_members(body)
    except msgspec.ValidationError as error:
        raise BadRequestError("The body is not a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError("The body is not JSON.") from error


def read_members(value: bytes | msgspec.Raw) -> Fields:
    """Return the members of an object, with undecoded values.

    Raises:
        BadRequestError: It names one twice.
        msgspec.DecodeError: The text is not a JSON object.
    """
    members: Fields = {}
    for name, member in _MEMBERS.decode(value).items():
        if name.text in members:
            raise BadRequestError(f"The body names `{name.text[:64]}` twice in one object.")
        members[name.text] = member
    return members


@lru_cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of an optional value; building one takes longer than its use."""
    return msgspec.json.Decoder(kind | None)


def read(fields: Fields, name: str, kind: Any, expected: str) -> Any:
    """Return a field's value; None if it is missing or null.

    Raises:
        BadRequestError: The value has another type.
    """
    member = fields.get(name)
    if member is None:
        return None
    try:
        return _decoder(kind).decode(member)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError(f"`{name}` must be {expected}.") from None


def whole_number(fields: Fields, name: str, largest: int) -> int | None:
    """Return a field's number from 1 to `largest`; None if it is missing or null.

    Raises:
        BadRequestError: It is anything else.
    """
    expected = f"a whole number from 1 to {largest}"
    value: int | None = read(fields, name, int, expected)
    if value is not None and not 1 <= value <= largest:
        raise BadRequestError(f"`{name}` must be {expected}.")
    return value
