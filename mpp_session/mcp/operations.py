"""The operations of an MCP server that have a price, and which of them a request asks for."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate

from channel.errors import ConfigError
from channel.http import Price, Route

__all__ = ["MEMBERS", "METHOD", "Operation", "Operations", "list_operations"]

METHOD: Final = "POST"
"""The method under which the gate knows every operation."""
MEMBERS: Final[Mapping[str, str]] = {
    "tools/call": "content",
    "resources/read": "contents",
    "prompts/get": "messages",
}
"""The methods that may have a price (MCP-12), each with what its result delivers."""
_KEYS: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "resources/read": "uri",
    "prompts/get": "name",
}
_DECODINGS: Final = 4
"""How often escapes are resolved: to the end it takes time quadratic in the length of a URI."""


class Operation(msgspec.Struct, frozen=True):
    """One tool, resource or prompt, and its price."""

    method: str
    """`tools/call`, `resources/read` or `prompts/get`."""
    name: str
    """The tool's or prompt's name; a resource's URI or template as the server registers it."""
    price: Price
    metered: bool = False
    """Whether the tool counts its own units; see `mpp_session.mcp.current_meter`."""

    @property
    def path(self) -> str:
        """The path that stands for it in challenges, in the ledger and in hooks."""
        return f"/{self.method}/{quote(self.name, safe='')}"

    @property
    def route(self) -> Route:
        """The route by which the gate sells it."""
        return Route(method=METHOD, path=self.path, price=self.price, metered=self.metered)


class Operations:
    """Finds the priced operation of a request."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        """Index the operations.

        Raises:
            ConfigError: None has a price, one is listed twice, or a template cannot be read.
        """
        if not operations:
            raise ConfigError("expected a price for a tool, a resource or a prompt; found none")
        self.all = tuple(operations)
        self._exact = {(one.method, one.name): one for one in operations}
        if len(self._exact) != len(operations):
            raise ConfigError("an operation is priced twice; remove one of its prices")
        self._templates = [
            (_parse_template(one.name), one)
            for one in operations
            if one.method == "resources/read" and "{" in one.name
        ]

    def find(self, method: str, params: Mapping[str, Any]) -> Operation | None:
        """Return the operation that a request asks for; None if it has no price.

        Raises:
            ValueError: The URI is spelt so that the server might take it for a priced one.
        """
        name = params.get(_KEYS.get(method, ""))
        if not isinstance(name, str):
            return None  # the server refuses it
        found = self._match(method, name)
        if found is None and method == "resources/read":
            plain = _decode(name)
            if plain != name and self._match(method, plain) is not None:
                raise ValueError("the URI has escapes where the priced one has none")
        return found

    def _match(self, method: str, name: str) -> Operation | None:
        exact = self._exact.get((method, name))
        if exact is not None or method != "resources/read":
            return exact
        for template, operation in self._templates:
            if template.match(name) is not None:
                return operation
        return None


def list_operations(
    tools: Mapping[str, Price],
    resources: Mapping[str, Price],
    prompts: Mapping[str, Price],
    metered: Collection[str],
) -> list[Operation]:
    """Return one operation for each price; `metered` names tools that count their own units.

    Raises:
        ConfigError: A metered tool has no price.
    """
    unpriced = set(metered) - set(tools)
    if unpriced:
        raise ConfigError(f"metered tools need a price: {', '.join(sorted(unpriced))}")
    return [
        *(Operation("tools/call", name, tools[name], name in metered) for name in tools),
        *(Operation("resources/read", uri, resources[uri]) for uri in resources),
        *(Operation("prompts/get", name, prompts[name]) for name in prompts),
    ]


def _parse_template(text: str) -> UriTemplate:
    try:
        return UriTemplate.parse(text)
    except InvalidUriTemplate as error:
        raise ConfigError(f"{text}: {error}") from error


def _decode(uri: str) -> str:
    """Return a URI without any escape, also of escapes that are escaped.

    Raises:
        ValueError: They are escaped more often than any server reads them.
    """
    for _ in range(_DECODINGS):
        decoded = unquote(uri)
        if decoded == uri:
            return uri
        uri = decoded
    raise ValueError("the URI has escapes of escapes of escapes")
