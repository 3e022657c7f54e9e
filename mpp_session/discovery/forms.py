"""The forms in which registries take a service, by the name that settings and command use."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from mpp_session.discovery.agent_card import agent_card
from mpp_session.discovery.listings import mcp_server, mpp_entry, pay_skill
from mpp_session.discovery.llms import llms_text
from mpp_session.discovery.openapi import openapi_document
from mpp_session.discovery.service import Service
from mpp_session.discovery.x402 import x402_document

__all__ = ["FORMS", "JSON", "Form", "served_forms"]

JSON: Final = "application/json"
_MARKDOWN: Final = "text/markdown; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_ALWAYS: Final = frozenset({"openapi", "llms"})
"""Served without a setting."""


class Form(msgspec.Struct, frozen=True):
    """One form."""

    content_type: str
    write: Callable[[Service], dict[str, Any] | str]
    path: str | None = None
    """Where registries fetch it; None if a seller submits it."""

    def render(self, service: Service) -> bytes:
        """Return the document.

        Raises:
            ConfigError: It needs something that the service does not state.
        """
        document = self.write(service)
        if isinstance(document, str):
            return document.encode()
        text = msgspec.json.encode(document)
        return text if self.path is not None else msgspec.json.format(text, indent=2)


FORMS: Final = {
    "openapi": Form(JSON, openapi_document, "/openapi.json"),
    "llms": Form(_TEXT, llms_text, "/llms.txt"),
    "x402": Form(JSON, x402_document, "/.well-known/x402"),
    "a2a": Form(JSON, agent_card, "/.well-known/agent-card.json"),
    "mcp": Form(JSON, mcp_server),
    "mpp.dev": Form(JSON, mpp_entry),
    "pay-skills": Form(_MARKDOWN, pay_skill),
}


def served_forms(compat: Sequence[str]) -> list[tuple[str, Form]]:
    """Return the path and form of each document that is served with these settings."""
    return [
        (form.path, form)
        for name, form in FORMS.items()
        if form.path is not None and (name in _ALWAYS or name in compat)
    ]
