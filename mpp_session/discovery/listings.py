"""The forms that a seller submits by hand to a registry, for the command to print (pure).

The MCP registry takes `server.json`, mpp.dev an entry of `schemas/services.ts`, and pay-skills a
`PAY.md`. Each checks its entry when it is submitted; what each demands is stated with its function.
"""

import re
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from channel.errors import ConfigError
from channel.methods.registry import DEFAULT
from channel.wire.challenge import INTENT
from channel.wire.encoding import format_checksum_address
from mpp_session.discovery.offers import list_offers
from mpp_session.discovery.service import Operation, Service

__all__ = ["mcp_server", "mpp_entry", "pay_skill"]

_MCP_SCHEMA: Final = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
_MCP_META: Final = "io.modelcontextprotocol.registry/publisher-provided"
_MCP_DESCRIPTION_MAX: Final = 100
_VERSION: Final = "1.0.0"
"""The first one of a listing; its registry wants a higher one for each change."""
_MPP_CATEGORIES: Final = frozenset(
    {"ai", "blockchain", "compute", "data", "media", "search", "social", "storage", "web"}
)
_SKILL_CATEGORIES: Final = {"compute": "ai_ml", "data": "data", "media": "media"}
_SKILL_TEXT_MIN, _SKILL_TEXT_MAX = 64, 255


def mcp_server(service: Service) -> dict[str, Any]:
    """Return `server.json` of the MCP registry, schema 2025-12-11, for a service that sells MCP.

    Its endpoint is the operation whose path ends with `/mcp`. The schema has no place for prices:
    they stand in the publisher's own part, as offers.

    Raises:
        ConfigError: The public address is not known, or nothing is sold under `/mcp`.
    """
    base = service.require_public_url()
    endpoints = [one for one in service.paid if one.path.endswith("/mcp")]
    if not endpoints:
        raise ConfigError(
            "the MCP registry lists servers that speak MCP, and this service sells none: expected "
            "an operation with a price whose path ends with /mcp"
        )
    endpoint = endpoints[0]
    host = (urlsplit(base).hostname or "").split(".")
    return {
        "$schema": _MCP_SCHEMA,
        "name": f"{'.'.join(reversed(host))}/{_slug(service.title)}",
        "title": service.title,
        "description": _cut(service.description, _MCP_DESCRIPTION_MAX),
        "version": _VERSION,
        "websiteUrl": f"{base}/",
        "remotes": [{"type": "streamable-http", "url": f"{base}{endpoint.path}"}],
        "_meta": {
            _MCP_META: {
                "price": endpoint.price_text,
                "offers": [one.members for one in list_offers(service, endpoint)],
            }
        },
    }


def mpp_entry(service: Service) -> dict[str, Any]:
    """Return an entry of mpp.dev's directory: an object for the list in `schemas/services.ts`.

    Raises:
        ConfigError: The public address is not known.
    """
    base = service.require_public_url()
    found = [one for one in service.categories if one in _MPP_CATEGORIES] or ["web"]
    return {
        "id": _slug(service.title),
        "name": service.title,
        "url": base,
        "serviceUrl": base,
        "description": service.description,
        "categories": found,
        "integration": "first-party",
        "tags": list(service.categories),
        "docs": {
            "homepage": f"{base}/",
            "llmsTxt": f"{base}/llms.txt",
            "apiReference": f"{base}/openapi.json",
        },
        "provider": {"name": service.title, "url": base},
        "realm": service.realm,
        "intent": INTENT,
        "payments": [
            {
                "method": DEFAULT.name,
                "currency": format_checksum_address(service.token),
                "decimals": 0 if service.unit is None else service.unit.decimals,
            }
        ],
        "endpoints": [_mpp_endpoint(service, one) for one in service.operations],
    }


def _mpp_endpoint(service: Service, operation: Operation) -> dict[str, Any]:
    path = re.sub(r"\{([^{}]+)\}", r":\1", operation.path)
    endpoint: dict[str, Any] = {
        "route": f"{operation.method} {path}",
        "desc": operation.description.summary,
    }
    if not operation.is_paid:
        return endpoint
    offers = [one for one in list_offers(service, operation) if one.intent == INTENT]
    if len(offers) == 1 and offers[0].amount is not None:
        endpoint |= {"amount": offers[0].amount, "unitType": offers[0].unit_type}
    if operation.is_metered or "amount" not in endpoint:
        endpoint |= {"dynamic": True, "amountHint": operation.price_text}
    return endpoint


def pay_skill(service: Service) -> str:
    """Return `PAY.md` of pay-skills; `openapi.json` must lie beside it.

    Raises:
        ConfigError: The public address is not known.
    """
    base = service.require_public_url()
    prices = "; ".join(one.price_text for one in service.paid)
    what = service.description
    if len(what) < _SKILL_TEXT_MIN:
        what = f"{what} Sold by HTTP 402, without an account: {prices}."
    tasks = ", ".join(dict.fromkeys(one.description.summary for one in service.paid))
    category = next(
        (_SKILL_CATEGORIES[one] for one in service.categories if one in _SKILL_CATEGORIES), "other"
    )
    head = {
        "name": _slug(service.title),
        "title": service.title,
        "description": _cut(what, _SKILL_TEXT_MAX),
        "use_case": _cut(f"Use for these requests, paid one by one: {tasks}.", _SKILL_TEXT_MAX),
        "category": category,
        "service_url": base,
    }
    lines = [f"{name}: {msgspec.json.encode(text).decode()}" for name, text in head.items()]
    return "\n".join(
        [
            "---",
            *lines,
            "openapi:",
            "  path: openapi.json",
            "---",
            "",
            service.description,
            "",
            "## Prices",
            "",
            *[f"- `{one.method} {one.path}`: {one.price_text}" for one in service.paid],
            "",
            "## Spend-aware usage",
            "",
            "- Open one channel with a small deposit, and pay many requests from it.",
            "- Bound each answer, for example with `max_tokens`: only what is delivered is paid.",
            "- Close the channel at the end; the rest of the deposit comes back.",
            "",
        ]
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "service"


def _cut(text: str, most: int) -> str:
    """Return a text of at most `most` characters, cut between words."""
    return text if len(text) <= most else f"{text[: most - 1].rpartition(' ')[0]}…"
