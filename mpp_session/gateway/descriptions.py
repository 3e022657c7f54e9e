"""What the gateway's operations take and return, for the OpenAPI document (pure)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from channel.limits import CHOICES_MAX, TOP_LOGPROBS_MAX
from mpp_session.discovery.service import Description
from mpp_session.gateway.chat import FIELDS
from mpp_session.settings import Upstream

__all__ = ["MODELS_PATH", "describe_completions", "describe_models"]

MODELS_PATH: Final = "/v1/models"

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_MESSAGE: Final = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": _TEXT, "content": {"type": ["string", "array", "null"]}},
}
_USAGE: Final = {
    "type": ["object", "null"],
    "properties": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
    },
}
_ANSWER: Final = {
    "type": "object",
    "required": ["choices"],
    "properties": {
        "id": _TEXT,
        "object": _TEXT,
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "index": _COUNT,
                    "message": _MESSAGE,
                    "finish_reason": {"type": ["string", "null"]},
                },
            },
        },
        "usage": _USAGE,
    },
}
_ANSWER_EXAMPLE: Final = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1767225600,
    "model": "default",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}
_STREAM: Final = {
    "type": "string",
    "description": "Server-sent events. The data of each is a JSON object as in OpenAI's stream, "
    "and at the end [DONE]. Events named payment-need-voucher and payment-receipt concern the "
    "payment.",
}
_STREAM_EXAMPLE: Final = (
    'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello!"},'
    '"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
_MODELS: Final = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "object": _TEXT,
        "data": {
            "type": "array",
            "items": {"type": "object", "required": ["id"], "properties": {"id": _TEXT}},
        },
    },
}


def describe_completions(settings: Upstream) -> Description:
    """Return the description of chat completions, with the bounds that the gateway enforces."""
    return Description(
        summary="Chat completion",
        body={
            "schema": {
                "type": "object",
                "required": ["messages"],
                "properties": _fields(settings),
            },
            "example": {
                "model": "default",
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "max_tokens": min(256, settings.max_tokens),
                "stream": True,
            },
        },
        answers={
            "application/json": {"schema": _ANSWER, "example": _ANSWER_EXAMPLE},
            "text/event-stream": {"schema": _STREAM, "example": _STREAM_EXAMPLE},
        },
    )


def describe_models() -> Description:
    """Return the description of the list of models."""
    return Description(
        summary="List of models, free",
        answers={"application/json": {"schema": _MODELS, "example": {"data": [{"id": "default"}]}}},
    )


def _fields(settings: Upstream) -> Mapping[str, Any]:
    """Return a schema for each field of a request; others are ignored."""
    bound = {"type": "integer", "minimum": 1, "maximum": settings.max_tokens}
    known: dict[str, Any] = {
        "model": {**_TEXT, "description": f"A name that GET {MODELS_PATH} lists."},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "stream": {"type": "boolean", "description": "Whether the answer is an event stream."},
        "max_tokens": bound,
        "max_completion_tokens": bound,
        "n": {"type": "integer", "minimum": 1, "maximum": CHOICES_MAX},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX},
        "tools": {"type": "array", "items": {"type": "object"}},
        "temperature": {"type": "number"},
        "top_p": {"type": "number"},
        "stream_options": {
            "type": "object",
            "properties": {"include_usage": {"type": "boolean"}},
        },
    }
    others: Sequence[str] = sorted(FIELDS.union(settings.fields) - known.keys())
    return known | {name: {} for name in others}
