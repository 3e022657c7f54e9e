"""`POST /v1/completions` (pure): a prompt without a template, as a text or as tokens.

Each prompt of a list has `n` answers of its own, so that all of them together bound the cost. What
a server generates and does not deliver (`best_of`), or repeats (`echo`), is not sold.
"""

from typing import Final

import msgspec

from channel.errors import BadRequestError
from channel.limits import CHOICES_MAX, LOGPROBS_MAX
from mpp_session.gateway.endpoints.fields import (
    SAMPLING,
    Bounds,
    Fields,
    ModelRequest,
    bound_output,
    counting_fields,
    read,
    read_object,
    require_countable,
    require_short_stops,
    require_small_schemas,
    select,
    wants_usage,
    whole_number,
)
from mpp_session.gateway.endpoints.prompts import read_prompts

__all__ = ["FIELDS", "parse_completion_request"]

FIELDS: Final = SAMPLING | {
    "logprobs",
    "max_tokens",
    "n",
    "prompt",
    "response_format",
    "stop",
    "suffix",
}
"""Fields passed to a model server. None of them causes work that is not counted."""


def parse_completion_request(body: bytes, bounds: Bounds) -> ModelRequest:
    """Parse a body that `scan_request` accepted, and bound its cost.

    Raises:
        BadRequestError: See `parse_chat_request`; or it has no prompt, or more answers are asked
            for than OpenAI allows.
    """
    fields = read_object(body)
    is_stream = bool(read(fields, "stream", bool, "true or false"))
    each = whole_number(fields, "n", CHOICES_MAX) or 1
    prompts = read_prompts(fields, "prompt")
    choices = each * prompts.count
    if choices > CHOICES_MAX:
        raise BadRequestError(f"`prompt` and `n` ask for {choices} answers, above {CHOICES_MAX}.")
    require_countable(bounds.kind, choices, is_stream=is_stream)
    require_short_stops(fields)
    require_small_schemas(fields)
    _require_delivered(fields, each)
    if not is_stream and bounds.kind not in ("vllm", "usage"):
        _require_no_logprobs(fields)
    sent = select(fields, FIELDS, bounds)
    tokens_max = bound_output(fields, sent, ("max_tokens",), bounds, is_stream=is_stream)
    wants = wants_usage(fields)
    if is_stream:
        sent |= counting_fields(bounds.kind)
    has_suffix = bool(read(fields, "suffix", str, "a text"))
    return ModelRequest(
        body=msgspec.json.encode(sent),
        fields=sent,
        bytes_received=len(body),
        kind=bounds.kind,
        is_stream=is_stream,
        choices=choices,
        tokens_max=tokens_max,
        wants_usage=wants,
        # With a suffix the server adds tokens of its own around both texts.
        texts=None if has_suffix else prompts.texts,
        tokens=prompts.tokens,
    )


def _require_no_logprobs(fields: Fields) -> None:
    """Refuse what ends llama.cpp's whole process (b6800): `logprobs` of an answer in one piece."""
    if bytes(fields.get("logprobs", b"null")) != b"null":
        raise BadRequestError(
            "`logprobs` needs `stream: true`: in one piece this model server may not survive it."
        )


def _require_delivered(fields: Fields, each: int) -> None:
    """Refuse output that is made and not delivered, and input that is sent back as output."""
    shown = read(fields, "logprobs", int, f"a whole number from 0 to {LOGPROBS_MAX}")
    if shown is not None and not 0 <= shown <= LOGPROBS_MAX:
        raise BadRequestError(f"`logprobs` must be a whole number from 0 to {LOGPROBS_MAX}.")
    best_of = whole_number(fields, "best_of", CHOICES_MAX)
    if best_of is not None and best_of != each:
        raise BadRequestError(
            f"`best_of` must be left out, or equal to `n` ({each}): answers that are not delivered "
            "are not sold."
        )
    if read(fields, "echo", bool, "true or false"):
        raise BadRequestError("`echo` must be false: the prompt is not sold as an answer.")
