"""The forms of x402: `/.well-known/x402`, and the Bazaar's description of a resource (pure).

The Bazaar learns of a resource from the `PAYMENT-REQUIRED` header of its 402. A server that offers
x402 puts `bazaar_resource` and `bazaar_extension` there, so that it says what the gate says.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mpp_session.discovery.service import Operation, Service

__all__ = ["bazaar_extension", "bazaar_resource", "x402_document"]

_VERSION: Final = 1
_NAME_CHARS_MAX: Final = 32
"""Of a service's name, and of each tag."""
_TAGS_MAX: Final = 5
_BODY_METHODS: Final = frozenset({"PATCH", "POST", "PUT"})
_JSON: Final = "application/json"
_TEXT: Final = {"type": "string"}


def x402_document(service: Service) -> dict[str, Any]:
    """Return `/.well-known/x402`: the whole URL of each paid operation, and its price for people.

    Raises:
        ConfigError: The public address is not known.
    """
    base = service.require_url()
    prices = "; ".join(f"{one.method} {one.path}: {one.price_text}" for one in service.paid)
    return {
        "version": _VERSION,
        "resources": list(dict.fromkeys(f"{base}{one.path}" for one in service.paid)),
        "instructions": f"{service.description} {prices}. See {base}/llms.txt.",
    }


def bazaar_resource(service: Service, operation: Operation) -> dict[str, Any]:
    """Return `resource` of `PAYMENT-REQUIRED`.

    Raises:
        ConfigError: The public address is not known.
    """
    answers = operation.description.answers or {}
    return {
        "url": f"{service.require_url()}{operation.path}",
        "description": f"{operation.description.summary}: {operation.price_text}",
        "mimeType": next(iter(answers), ""),
        "serviceName": service.title[:_NAME_CHARS_MAX],
        "tags": [one[:_NAME_CHARS_MAX] for one in service.categories[:_TAGS_MAX]],
    }


def bazaar_extension(operation: Operation) -> dict[str, Any]:
    """Return `extensions` of `PAYMENT-REQUIRED`, with what a request takes and returns.

    `info` is an example, and `schema` is JSON Schema 2020-12 that `info` matches.
    """
    takes: dict[str, Any] = {"type": "http", "method": operation.method}
    schema: dict[str, Any] = {
        "type": {"type": "string", "const": "http"},
        "method": {"type": "string", "enum": [operation.method]},
    }
    for name, value, described in _inputs(operation):
        takes[name], schema[name] = value, described
    info: dict[str, Any] = {"input": takes}
    members: dict[str, Any] = {
        "input": {
            "type": "object",
            "properties": schema,
            "required": list(takes),
            "additionalProperties": False,
        }
    }
    answer = _answer(operation)
    if answer is not None:
        info["output"] = {"type": "json", "example": answer["example"]}
        members["output"] = {
            "type": "object",
            "properties": {"type": _TEXT, "example": answer.get("schema", {})},
            "required": ["type"],
        }
    return {
        "bazaar": {
            "info": info,
            "schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": members,
                "required": ["input"],
            },
        }
    }


def _inputs(operation: Operation) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield the name, an example and the schema of each part of a request."""
    if operation.parameters:
        properties = dict.fromkeys(operation.parameters, _TEXT)
        example = {name: name for name in operation.parameters}
        yield "pathParams", example, {"type": "object", "properties": properties}
    if operation.method in _BODY_METHODS:
        body: Mapping[str, Any] = operation.description.body or {}
        yield "bodyType", "json", {"type": "string", "enum": ["json"]}
        yield "body", body.get("example", {}), dict(body.get("schema", {}))


def _answer(operation: Operation) -> Mapping[str, Any] | None:
    """Return the media type object of a JSON answer, if it has an example."""
    answer = (operation.description.answers or {}).get(_JSON)
    return answer if answer is not None and "example" in answer else None
