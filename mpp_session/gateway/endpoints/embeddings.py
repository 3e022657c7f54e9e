"""`POST /v1/embeddings` (pure): input alone is read and paid for."""

from typing import Any, Final

import msgspec

from channel.errors import BadRequestError
from channel.limits import EMBEDDED_TEXTS_MAX
from mpp_session.gateway.counting import Answer, Choice, UsageRecord, decode_object, read_error
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest, read, read_object, select
from mpp_session.gateway.endpoints.prompts import read_prompts

__all__ = ["FIELDS", "parse_embedding_request", "read_embeddings"]

FIELDS: Final = frozenset({"dimensions", "encoding_format", "input", "model", "user"})
"""Fields passed to a model server. None of them causes work that is not counted."""


def parse_embedding_request(body: bytes, bounds: Bounds) -> ModelRequest:
    """Parse a body that `scan_request` accepted.

    Raises:
        BadRequestError: The body is not a JSON object, names a field twice, or has no input.
    """
    fields = read_object(body)
    prompts = read_prompts(fields, "input")
    if prompts.count > EMBEDDED_TEXTS_MAX:
        raise BadRequestError(
            f"`input` holds {prompts.count} texts; the most allowed is {EMBEDDED_TEXTS_MAX}."
        )
    read(fields, "encoding_format", str, "a text")
    sent = select(fields, FIELDS, bounds)
    return ModelRequest(
        body=msgspec.json.encode(sent),
        fields=sent,
        bytes_received=len(body),
        kind=bounds.kind,
        texts=prompts.texts,
        tokens=prompts.tokens,
    )


def read_embeddings(body: bytes) -> Answer:
    """Return what is needed of an answer: whether it holds an embedding, and its usage.

    Raises:
        UpstreamError: The text is not a JSON object.
    """
    value = decode_object(body)
    data = value.get("data")
    return Answer(
        choices=[Choice(index) for index in range(len(data))] if isinstance(data, list) else None,
        usage=_read_usage(value.get("usage")),
        error=read_error(value),
    )


def _read_usage(value: Any) -> UsageRecord | None:
    """Return the tokens read; some servers give the total alone."""
    if not isinstance(value, dict):
        return None
    counts = [value.get(name) for name in ("prompt_tokens", "total_tokens")]
    read = next((count for count in counts if type(count) is int and count > 0), None)
    return UsageRecord(completion_tokens=0, prompt_tokens=read)
