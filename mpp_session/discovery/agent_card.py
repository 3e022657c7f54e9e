"""The agent card of A2A, `/.well-known/agent-card.json` (a2a-protocol.org, version 1.0; pure).

The service does not speak A2A: its interface is plain HTTP, described by OpenAPI. The card says so,
and names payment as an extension that a client must support.
"""

import re
from typing import Any, Final

from mpp_session.discovery.offers import list_offers
from mpp_session.discovery.service import Operation, Service

__all__ = ["PAYMENT_EXTENSION", "agent_card"]

PAYMENT_EXTENSION: Final = "https://paymentauth.org"
"""Names the extension: the home of the `Payment` scheme of HTTP authentication."""
_HTTP: Final = "https://spec.openapis.org/oas/v3.1.0"
"""The binding of the interface; A2A leaves the names of others than its own open."""
_A2A_VERSION: Final = "1.0"
_CARD_VERSION: Final = "1"
_JSON: Final = "application/json"


def agent_card(service: Service) -> dict[str, Any]:
    """Return the card: a skill for each paid operation.

    Raises:
        ConfigError: The public address is not known.
    """
    base = service.require_url()
    offers = {
        _id(one): [offer.members for offer in list_offers(service, one)] for one in service.paid
    }
    return {
        "name": service.title,
        "description": service.description,
        "version": _CARD_VERSION,
        "supportedInterfaces": [
            {"url": base, "protocolBinding": _HTTP, "protocolVersion": _A2A_VERSION}
        ],
        "provider": {"organization": service.title, "url": base},
        "documentationUrl": f"{base}/llms.txt",
        "capabilities": {
            "streaming": False,
            "pushNotifications": False,
            "extensions": [
                {
                    "uri": PAYMENT_EXTENSION,
                    "description": "Each request is paid for by HTTP 402 and `WWW-Authenticate: "
                    "Payment`; the offers are by skill.",
                    "required": True,
                    "params": {"openapi": f"{base}/openapi.json", "offers": offers},
                }
            ],
        },
        "defaultInputModes": [_JSON],
        "defaultOutputModes": [_JSON],
        "skills": [_skill(service, one) for one in service.paid],
    }


def _skill(service: Service, operation: Operation) -> dict[str, Any]:
    described = operation.description
    skill: dict[str, Any] = {
        "id": _id(operation),
        "name": described.summary,
        "description": f"{operation.method} {operation.path}: {operation.price_text}",
        "tags": list(service.categories) or ["paid"],
    }
    if described.answers:
        skill["outputModes"] = list(described.answers)
    return skill


def _id(operation: Operation) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{operation.method} {operation.path}".lower()).strip("-")
