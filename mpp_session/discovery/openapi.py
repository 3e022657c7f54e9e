"""The OpenAPI document of draft-payment-discovery-01: `x-payment-info` and `x-service-info` (pure).

It is advice: the challenge of a 402 alone says what is paid (DISC-07).
"""

from typing import Any, Final

from channel.wire.encoding import format_checksum_address
from channel.wire.problem import PROBLEM_CONTENT_TYPE
from mpp_session.discovery.offers import list_offers, request_price
from mpp_session.discovery.service import Operation, Service

__all__ = ["openapi_document"]

_VERSION: Final = "1"
"""Of the interface that the paths offer, which the software does not number."""
_REFUSAL: Final = {
    "description": "Payment required: `WWW-Authenticate: Payment` holds the challenge, which "
    "alone says what is paid.",
    "headers": {
        "WWW-Authenticate": {
            "description": "One challenge for each offer.",
            "schema": {"type": "string"},
        }
    },
    "content": {PROBLEM_CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_PROBLEM: Final = {
    "type": "object",
    "description": "Why a request is refused (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "price": {
            "type": "array",
            "description": "What paying costs, for each offer; amounts in base units.",
            "items": {"type": "object"},
        },
    },
}


def openapi_document(service: Service) -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    info: dict[str, Any] = {
        "title": service.title,
        "version": _VERSION,
        "description": service.description,
    }
    if service.contact is not None:
        info["contact"] = {"url" if "://" in service.contact else "email": service.contact}
    if "agentcash" in service.compat:
        info["x-guidance"] = _guidance(service)
    about: dict[str, Any] = {}
    if service.categories:
        about["categories"] = list(service.categories)
    document: dict[str, Any] = {"openapi": "3.1.0", "info": info, "x-service-info": about}
    if service.url is not None:
        document["servers"] = [{"url": service.url}]
        about["docs"] = {"homepage": f"{service.url}/", "llms": f"{service.url}/llms.txt"}
        if "agentcash" in service.compat:
            document["x-agentcash-guidance"] = {"llmsTxtUrl": f"{service.url}/llms.txt"}
    paths: dict[str, Any] = {}
    for operation in service.operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            service, operation
        )
    return {**document, "paths": paths, "components": {"schemas": {"Problem": _PROBLEM}}}


def _guidance(service: Service) -> str:
    prices = "; ".join(f"{one.method} {one.path}: {one.price}" for one in service.paid)
    return (
        f"{service.description} {prices}. Open a payment channel once, then sign a voucher for "
        "each request: `mpp-session pay`, or the Python package mpp-session."
    )


def _operation(service: Service, operation: Operation) -> dict[str, Any]:
    described = operation.description
    responses: dict[str, Any] = {"200": {"description": "Success."}}
    if described.answers is not None:
        responses["200"]["content"] = described.answers
    members: dict[str, Any] = {"summary": described.summary, "security": []}
    if operation.parameters:
        members["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in operation.parameters
        ]
    if operation.is_paid:
        members["x-payment-info"] = _payment_info(service, operation)
        responses["402"] = _REFUSAL
    if described.body is not None:
        members["requestBody"] = {"required": True, "content": {"application/json": described.body}}
    members["responses"] = responses
    return members


def _payment_info(service: Service, operation: Operation) -> dict[str, Any]:
    """Return the offers: for each challenge one (DISC-04)."""
    offers = list_offers(service, operation)
    info: dict[str, Any] = {"offers": [one.members for one in offers]}
    if "agentcash" in service.compat:
        currency = format_checksum_address(service.token)
        info["price"] = request_price(service, operation)
        ways = dict.fromkeys((one.method, one.intent) for one in offers)
        info["protocols"] = [
            {"mpp": {"method": method, "intent": intent, "currency": currency}}
            for method, intent in ways
        ]
    return info
