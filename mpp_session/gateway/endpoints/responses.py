"""`POST /v1/responses` (pure): what OpenAI's newer interface asks for and answers.

Its stream has named events. A text arrives in `*.delta` events and is repeated in later ones; the
usage stands in the last event, with the whole response.
"""

import re
from typing import Any, Final

import msgspec

from channel.errors import BadRequestError
from mpp_session.gateway.counting import (
    Answer,
    Choice,
    OutputDetails,
    PromptDetails,
    UsageRecord,
    decode_object,
    read_error,
    read_timings,
    size_of,
)
from mpp_session.gateway.endpoints.fields import (
    SAMPLING,
    Bounds,
    Fields,
    ModelRequest,
    bound_output,
    read,
    read_items,
    read_members,
    read_object,
    require_small_schemas,
    select,
)

__all__ = ["FIELDS", "ResponseReader", "parse_response_request"]

FIELDS: Final = SAMPLING | {
    "input",
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "text",
    "tool_choice",
    "tools",
    "truncation",
}
"""Fields passed to a model server. None of them causes work that is not counted."""

_REFUSED: Final = {
    "background": "an answer is paid for while it is delivered",
    "conversation": "no conversation is kept; send the whole of it as `input`",
    "previous_response_id": "no response is kept; send the whole conversation as `input`",
    "prompt": "no template is kept; send the text as `input`",
}
"""Fields without which the request would mean something else."""
_TOOLS: Final = (b'"function"', b'"custom"')
"""Tools that the client runs. Those that the server runs cause work that it does not count."""
_PARTS: Final = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text"})
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_EVENT: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")


def parse_response_request(body: bytes, bounds: Bounds) -> ModelRequest:
    """Parse a body that `scan_request` accepted, and bound its cost.

    Raises:
        BadRequestError: See `parse_chat_request`; or it needs what the server keeps, or has a tool
            that the server runs.
    """
    fields = read_object(body)
    is_stream = bool(read(fields, "stream", bool, "true or false"))
    for name, reason in _REFUSED.items():
        if bytes(fields.get(name, b"null")) not in (b"null", b"false"):
            raise BadRequestError(f"`{name}` is not sold: {reason}.")
    require_small_schemas(fields)
    _require_own_tools(fields)
    if not bounds.allows_media:
        _require_text(fields)
    sent = select(fields, FIELDS, bounds)
    names = ("max_output_tokens",)
    tokens_max = bound_output(fields, sent, names, bounds, is_stream=is_stream)
    sent["store"] = False  # another client must not read it later
    if is_stream and bounds.kind == "llama.cpp":
        sent["timings_per_token"] = True
    return ModelRequest(
        body=msgspec.json.encode(sent),
        fields=sent,
        bytes_received=len(body),
        kind=bounds.kind,
        is_stream=is_stream,
        tokens_max=tokens_max,
        wants_usage=True,  # it is part of the last event
        count_path="/v1/responses/input_tokens",
    )


def _require_own_tools(fields: Fields) -> None:
    for tool in read_items(fields.get("tools", msgspec.Raw(b"null"))):
        kind = bytes(read_members(tool).get("type", msgspec.Raw(b"null")))
        if kind not in _TOOLS:
            raise BadRequestError(
                f"`tools` holds one of type {kind[:40]!r}; only functions, which the client runs, "
                "are sold here."
            )


def _require_text(fields: Fields) -> None:
    """Refuse images, sounds and files, and references to what the server keeps (O-04)."""
    for item in read_items(fields.get("input", msgspec.Raw(b"null"))):
        members = read_members(item)
        raw = bytes(members.get("type", msgspec.Raw(b'"message"')))
        kind = raw.decode("utf-8", "replace").strip('"')
        if kind not in ("message", "function_call", "function_call_output", "reasoning") and (
            not kind.startswith("custom_tool_call")
        ):
            raise BadRequestError(f"`input` holds an item of type {kind[:40]!r}; it is not sold.")
        for name in ("content", "output", "summary"):
            for part in read_items(members.get(name, msgspec.Raw(b"null"))):
                said = bytes(read_members(part).get("type", msgspec.Raw(b"null")))
                if said.decode("utf-8", "replace").strip('"') not in _PARTS | {"summary_text"}:
                    raise BadRequestError(
                        f"`input` holds a part of type {said[:40]!r}; only text is sold here."
                    )


class ResponseReader:
    """Reads one response, whole or event by event."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        """Bytes of each item that its events have brought."""

    def __call__(self, data: bytes) -> Answer:
        """Return what an event, or a whole response, adds.

        Raises:
            UpstreamError: The text is not a JSON object.
        """
        value = decode_object(data)
        kind = value.get("type")
        if not isinstance(kind, str):
            return self._read_whole(value)
        answer = Answer(event=kind if _EVENT.fullmatch(kind) else None)
        answer.timings = read_timings(value)
        index = value.get("output_index")
        index = index if type(index) is int else 0
        if kind.endswith(".delta"):
            answer.choices = [self._add(index, size_of(value.get("delta") or ""), kind)]
        elif kind == "response.output_item.added":
            item = value.get("item")
            is_call = isinstance(item, dict) and bool(item.get("name"))
            answer.choices = [Choice(lump=1 if is_call else 0)]
        elif kind == "response.output_item.done":
            size = _size_of_item(value.get("item")) - self._sizes.get(index, 0)
            answer.choices = [self._add(index, max(0, size), kind)]
        elif kind in _ENDS:
            end = self._read_end(value.get("response"), kind)
            end.event, end.timings = kind, answer.timings
            return end
        elif kind == "error":
            answer.error = read_error({"error": value})
        return answer

    def _add(self, index: int, size: int, kind: str) -> Choice:
        self._sizes[index] = self._sizes.get(index, 0) + size
        return Choice(lump=size, is_reasoning="reasoning" in kind)

    def _read_end(self, response: Any, kind: str) -> Answer:
        answer = self._read_whole(response if isinstance(response, dict) else {})
        seen = sum(self._sizes.values())
        (choice,) = answer.choices or [Choice()]
        answer.choices = [Choice(lump=max(0, choice.lump - seen), finish_reason=kind)]
        answer.is_end = True
        return answer

    def _read_whole(self, response: dict[str, Any]) -> Answer:
        output, error = response.get("output"), read_error(response)
        choices = None
        if isinstance(output, list) and not (error is not None and not output):
            choices = [Choice(lump=sum(map(_size_of_item, output)))]
        return Answer(choices=choices, usage=_read_usage(response.get("usage")), error=error)


def _size_of_item(item: Any) -> int:
    """Return the bytes of an item's output, as its deltas bring them."""
    if not isinstance(item, dict):
        return 0
    size = 0
    for name in ("arguments", "input"):
        size += size_of(item.get(name) or "")
    for name in ("content", "summary"):
        parts = item.get(name)
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                size += sum(size_of(part.get(key) or "") for key in ("text", "refusal"))
    return size


def _read_usage(value: Any) -> UsageRecord | None:
    """Return a usage record under the names of the other endpoints."""
    if not isinstance(value, dict):
        return None
    read = value.get("input_tokens_details")
    made = value.get("output_tokens_details")
    return UsageRecord(
        completion_tokens=_count(value.get("output_tokens")),
        prompt_tokens=_count(value.get("input_tokens")),
        total_tokens=_count(value.get("total_tokens")),
        prompt_tokens_details=PromptDetails(
            _count(read.get("cached_tokens")), _count(read.get("cache_write_tokens"))
        )
        if isinstance(read, dict)
        else None,
        completion_tokens_details=OutputDetails(_count(made.get("reasoning_tokens")))
        if isinstance(made, dict)
        else None,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int else None
