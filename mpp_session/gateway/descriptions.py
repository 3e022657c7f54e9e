"""What the gateway's operations take and return, for the OpenAPI document (pure)."""

from collections.abc import Mapping
from typing import Any, Final

from channel.limits import CHOICES_MAX, LOGPROBS_MAX, TOP_LOGPROBS_MAX
from mpp_session.discovery.service import Description
from mpp_session.gateway.endpoints import GatewayEndpoint
from mpp_session.settings import PriceRow, Upstream

__all__ = ["MODELS_PATH", "describe_endpoint", "describe_models", "describe_path"]

MODELS_PATH: Final = "/v1/models"

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_MESSAGE: Final = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": _TEXT, "content": {"type": ["string", "array", "null"]}},
}
_COSTS: Final = {
    "cost": {"type": "number", "description": "What was charged, in whole tokens."},
    "cost_details": {
        "type": "object",
        "properties": {
            "amount": {"type": "string", "description": "The same in base units."},
            "currency": _TEXT,
            "usage": {"type": "object", "description": "Units that were charged, by kind."},
        },
    },
}
_USAGE: Final = {
    "type": ["object", "null"],
    "properties": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        **_COSTS,
    },
}


def _choices(**shown: Any) -> dict[str, Any]:
    """Return the schema of an answer's choices, each of which shows this beside its reason."""
    properties = {"index": _COUNT, **shown, "finish_reason": {"type": ["string", "null"]}}
    return {"type": "array", "items": {"type": "object", "properties": properties}}


_ANSWER: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["choices"],
    "properties": {
        "id": _TEXT,
        "object": _TEXT,
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": _choices(message=_MESSAGE),
        "usage": _USAGE,
    },
}
_COST_EXAMPLE: Final = {"cost": 0.000002, "cost_details": {"amount": "2", "currency": "USDC"}}
_USAGE_EXAMPLE: Final = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "total_tokens": 11,
    **_COST_EXAMPLE,
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
    "usage": _USAGE_EXAMPLE,
}
_COMPLETION: Final = {
    "type": "object",
    "required": ["choices"],
    "properties": {
        **_ANSWER["properties"],
        "choices": _choices(text=_TEXT),
    },
}
_COMPLETION_EXAMPLE: Final = {
    "object": "text_completion",
    "choices": [{"index": 0, "text": " blue.", "finish_reason": "stop"}],
    "usage": _USAGE_EXAMPLE,
}
_RESPONSE: Final = {
    "type": "object",
    "required": ["output"],
    "properties": {
        "id": _TEXT,
        "object": _TEXT,
        "status": _TEXT,
        "model": _TEXT,
        "output": {"type": "array", "items": {"type": "object"}},
        "usage": {
            "type": ["object", "null"],
            "properties": {
                "input_tokens": _COUNT,
                "output_tokens": _COUNT,
                "total_tokens": _COUNT,
                **_COSTS,
            },
        },
    },
}
_RESPONSE_EXAMPLE: Final = {
    "object": "response",
    "status": "completed",
    "output": [
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello!", "annotations": []}],
        }
    ],
    "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11, **_COST_EXAMPLE},
}
_EMBEDDINGS: Final = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "object": _TEXT,
        "model": _TEXT,
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "index": _COUNT,
                    "embedding": {"type": ["array", "string"], "items": {"type": "number"}},
                },
            },
        },
        "usage": _USAGE,
    },
}
_EMBEDDINGS_EXAMPLE: Final = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
    "usage": {"prompt_tokens": 9, "total_tokens": 9},
}
_STREAM: Final = {
    "type": "string",
    "description": "Server-sent events. The data of each is a JSON object as in OpenAI's stream. "
    "Events named payment-need-voucher and payment-receipt concern the "
    "payment.",
}
_STREAM_EXAMPLE: Final = (
    'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello!"},'
    '"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
_COMPLETION_STREAM: Final = (
    'data: {"object":"text_completion","choices":[{"index":0,"text":" blue.",'
    '"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
_RESPONSE_STREAM: Final = (
    "event: response.output_text.delta\n"
    'data: {"type":"response.output_text.delta","output_index":0,"content_index":0,'
    '"delta":"Hello!"}\n\n'
)
_Examples = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]
_ENDPOINTS: Final[dict[str, _Examples]] = {
    "chat.completions": (
        "Chat completion",
        {"messages": [{"role": "user", "content": "Why is the sky blue?"}]},
        _ANSWER,
        _ANSWER_EXAMPLE,
        _STREAM_EXAMPLE,
    ),
    "completions": (
        "Completion of a text",
        {"prompt": "The sky is"},
        _COMPLETION,
        _COMPLETION_EXAMPLE,
        _COMPLETION_STREAM,
    ),
    "responses": (
        "Response",
        {"input": "Why is the sky blue?"},
        _RESPONSE,
        _RESPONSE_EXAMPLE,
        _RESPONSE_STREAM,
    ),
    "embeddings": (
        "Embeddings of texts",
        {"input": ["Why is the sky blue?"]},
        _EMBEDDINGS,
        _EMBEDDINGS_EXAMPLE,
        "",
    ),
}
"""By endpoint: what it is, the required field of a request, and answers whole and streamed."""
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


def describe_endpoint(endpoint: GatewayEndpoint, settings: Upstream) -> Description:
    """Return the description of an endpoint, with the bounds that the gateway enforces."""
    summary, asked, schema, example, stream = _ENDPOINTS[endpoint.name]
    answers: dict[str, dict[str, Any]] = {
        "application/json": {"schema": schema, "example": example}
    }
    body: dict[str, Any] = {"model": "default", **asked}
    if endpoint.has_output:
        bound = "max_output_tokens" if endpoint.nested else "max_tokens"
        body |= {bound: min(256, settings.max_tokens), "stream": True}
        answers["text/event-stream"] = {"schema": _STREAM, "example": stream}
    return Description(
        summary=summary,
        body={
            "schema": {
                "type": "object",
                "required": list(asked),
                "properties": _fields(endpoint, settings),
            },
            "example": body,
        },
        answers=answers,
    )


def describe_models() -> Description:
    """Return the description of the list of models."""
    return Description(
        summary="List of models, free",
        answers={"application/json": {"schema": _MODELS, "example": {"data": [{"id": "default"}]}}},
    )


def describe_path(row: PriceRow) -> Description:
    """Return the description of a path of another server, of which only the row is known."""
    takes_body = row.method in {"POST", "PUT", "PATCH"}
    return Description(
        summary=row.description or row.sold_path or "",
        body={"schema": {}} if takes_body else None,
    )


def _fields(endpoint: GatewayEndpoint, settings: Upstream) -> Mapping[str, Any]:
    """Return a schema for each field of a request; others are ignored."""
    bound = {"type": "integer", "minimum": 1, "maximum": settings.max_tokens}
    is_chat = endpoint.name == "chat.completions"
    known: dict[str, Any] = {
        "model": {**_TEXT, "description": f"A name that GET {MODELS_PATH} lists."},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "prompt": {"type": ["string", "array"], "description": "Texts, or tokens as numbers."},
        "input": {"type": ["string", "array"]},
        "stream": {"type": "boolean", "description": "Whether the answer is an event stream."},
        "max_tokens": bound,
        "max_completion_tokens": bound,
        "max_output_tokens": bound,
        "n": {"type": "integer", "minimum": 1, "maximum": CHOICES_MAX},
        "logprobs": {"type": "boolean"}
        if is_chat
        else {"type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX},
        "tools": {"type": "array", "items": {"type": "object"}},
        "temperature": {"type": "number"},
        "top_p": {"type": "number"},
    }
    names = sorted(endpoint.fields.union(settings.fields))
    fields = {name: known.get(name, {}) for name in names}
    if endpoint.has_output and endpoint.nested is None:
        options = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}
        fields["stream_options"] = options
    return fields
