"""`POST /v1/chat/completions` (pure)."""

from typing import Final

import msgspec

from channel.errors import BadRequestError
from channel.limits import CHOICES_MAX, TOP_LOGPROBS_MAX
from mpp_session.gateway.endpoints.fields import (
    SAMPLING,
    Bounds,
    Fields,
    ModelRequest,
    bound_output,
    counting_fields,
    read,
    read_items,
    read_members,
    read_object,
    require_countable,
    require_short_stops,
    require_small_schemas,
    select,
    wants_usage,
    whole_number,
)

__all__ = ["FIELDS", "parse_chat_request"]

FIELDS: Final = SAMPLING | {
    "function_call",
    "functions",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "n",
    "parallel_tool_calls",
    "reasoning_effort",
    "response_format",
    "stop",
    "tool_choice",
    "tools",
    "top_logprobs",
    "verbosity",
}
"""Fields passed to a model server. None of them causes work that is not counted."""


def parse_chat_request(body: bytes, bounds: Bounds) -> ModelRequest:
    """Parse a body that `scan_request` accepted, and bound its cost.

    Raises:
        BadRequestError: The body is not a JSON object, names a field twice, has a bound that is not
            a whole number from 1 to `max_tokens`, or asks for output that cannot be counted.
    """
    fields = read_object(body)
    is_stream = bool(read(fields, "stream", bool, "true or false"))
    choices = whole_number(fields, "n", CHOICES_MAX) or 1
    require_countable(bounds.kind, choices, is_stream=is_stream)
    require_short_stops(fields)
    _require_few_logprobs(fields)
    require_small_schemas(fields)
    if not bounds.allows_media and "messages" in fields:
        _require_text(fields["messages"])
    sent = select(fields, FIELDS, bounds)
    names = ("max_tokens", "max_completion_tokens")
    tokens_max = bound_output(fields, sent, names, bounds, is_stream=is_stream)
    wants = wants_usage(fields)
    if is_stream:
        sent |= counting_fields(bounds.kind)
    return ModelRequest(
        body=msgspec.json.encode(sent),
        fields=sent,
        bytes_received=len(body),
        kind=bounds.kind,
        is_stream=is_stream,
        choices=choices,
        tokens_max=tokens_max,
        wants_usage=wants,
    )


def _require_few_logprobs(fields: Fields) -> None:
    """Refuse the whole vocabulary beside each token: 4 MiB of output in one unit (O-03)."""
    read(fields, "logprobs", bool, "true or false")
    expected = f"a whole number from 0 to {TOP_LOGPROBS_MAX}"
    shown = read(fields, "top_logprobs", int, expected)
    if shown is not None and not 0 <= shown <= TOP_LOGPROBS_MAX:
        raise BadRequestError(f"`top_logprobs` must be {expected}.")


def _require_text(messages: msgspec.Raw) -> None:
    """Refuse images, sounds and files: a short link can stand for any number of tokens (O-04)."""
    for message in read_items(messages):
        content = read_members(message).get("content")
        for part in () if content is None else read_items(content):
            kind = read_members(part).get("type", msgspec.Raw(b"null"))
            if bytes(kind) not in (b'"text"', b'"refusal"'):
                raise BadRequestError(
                    f"`messages` holds a part of type {bytes(kind)[:40]!r}; only text is sold here."
                )
