"""What a request costs: routes, their prices, and which route a request is for."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from channel.engine import Engine, Offer
from channel.errors import ConfigError
from channel.limits import AMOUNT_MAX, DESCRIPTION_CHARS_MAX
from channel.state.commands import StreamPolicy

__all__ = ["Price", "PriceOf", "Priced", "Route", "RouteTable"]

_PLAIN = "/{}:!$&'()*+,;=@~"
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit costs. Amounts in base units of the token."""

    unit_price: int
    unit_type: str
    """What one unit is, as the payer reads it: `request`, `llm_token`, `image`."""
    units: int = 1
    """Units that a request of a fixed price costs; a metered one counts its own."""
    variant: str = ""
    """What of the request the price depends on, such as a model's name. With it a challenge keeps
    its price for this variant when prices change; without it the price itself is the variant, and
    a change voids the open challenges of a price that depends on the request."""
    min_voucher_delta: int = 0
    """Least rise between vouchers: a metered route sets it to some seconds' worth of units."""
    suggested_deposit: int | None = None
    description: str | None = None
    """For display: no payer should decide by it (CHAL-13)."""

    def __post_init__(self) -> None:
        """Refuse a price that sells nothing, gives it away, or fits no challenge.

        Raises:
            ConfigError: An amount is not positive, or beyond `uint128`; a text is too long.
        """
        deposit = 1 if self.suggested_deposit is None else self.suggested_deposit
        if min(self.unit_price, self.units, deposit) <= 0 or self.min_voucher_delta < 0:
            raise ConfigError("a price, its units and a suggested deposit must be positive")
        if max(self.unit_price * self.units, self.min_voucher_delta, deposit) > AMOUNT_MAX:
            raise ConfigError("a price holds more than any channel could")
        if not 0 < len(self.unit_type) <= DESCRIPTION_CHARS_MAX:
            raise ConfigError("a price must say in a few words what its unit is")
        if len(self.description or "") > DESCRIPTION_CHARS_MAX:
            raise ConfigError(f"a description has at most {DESCRIPTION_CHARS_MAX} characters")


PriceOf: TypeAlias = Callable[[Mapping[str, Any]], Price]
"""A price that depends on the request: a pure function of the ASGI scope, never of the body.

What it raises of `channel.errors` is the answer.
"""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method and path that must be paid for."""

    method: str
    path: str
    """A template relative to where the gate stands: `/v1/images/{size}`, `/files/{rest:path}`."""
    price: Price | PriceOf
    metered: bool = False
    """Whether the handler counts units itself; else the price is the price of a request."""
    stream_policy: StreamPolicy = StreamPolicy.REPLACE
    """What a new stream does to a running one of the same channel (ACC-06)."""
    pause_s: float | None = None
    """How long a stream waits for a voucher; the gate's own bound when None (SSE-03)."""


class Priced(msgspec.Struct, frozen=True):
    """A route as it stands for one request."""

    route: Route
    price: Price
    offer: Offer


class RouteTable:
    """Finds the priced routes of a request. Paths are matched as Starlette matches them."""

    def __init__(self, routes: Sequence[Route], engine: Engine) -> None:
        """Compile the templates.

        Raises:
            ConfigError: No routes, a path twice under one method, a parameter of another kind, or
                HEAD, which is never sold.
        """
        self._engine = engine
        self._routes: list[tuple[re.Pattern[str], Route]] = []
        seen: set[tuple[str, str]] = set()
        for route in routes:
            name = (route.method, route.path)
            if name in seen or route.method != route.method.upper() or route.method == "HEAD":
                raise ConfigError(f"{route.method} {route.path}: no method of its own to sell")
            seen.add(name)
            self._routes.append((_compile(route.path), route))
        if not seen:
            raise ConfigError("a gate without priced routes would let everything through")
        self._fixed: dict[tuple[str, str], Priced] = {
            (route.method, route.path): self._price(route, route.price)
            for route in routes
            if isinstance(route.price, Price)
        }

        # Whole paths whose prices depend on nothing else are found without a search.
        self._by_path: dict[str, Sequence[Priced]] = {}
        for path in {route.path for route in routes if "{" not in route.path}:
            matching = [one for pattern, one in self._routes if pattern.fullmatch(path)]
            if all(isinstance(one.price, Price) for one in matching):
                self._by_path[path] = self.match({"path": path})

    def match(self, scope: Mapping[str, Any]) -> Sequence[Priced]:
        """Return the priced routes under this request's path, whatever their methods.

        Of several templates that match under one method the first counts, as in a router.
        """
        if not scope.get("root_path"):
            known = self._by_path.get(scope["path"])
            if known is not None:
                return known
        path = _route_path(scope)
        mount = scope["path"][: len(scope["path"]) - len(path)]
        found: dict[str, Priced] = {}
        for pattern, route in self._routes:
            if route.method not in found and pattern.fullmatch(path) is not None:
                fixed = self._fixed.get((route.method, route.path))
                if fixed is None:
                    if isinstance(route.price, Price):  # pragma: no cover - always in _fixed
                        continue
                    fixed = self._price(route, route.price(scope), is_variable=True)
                found[route.method] = _below(mount, fixed) if mount else fixed
        return [*found.values()]

    def _price(self, route: Route, price: Price, *, is_variable: bool = False) -> Priced:
        asked = self._engine.ask(
            unit_price=price.unit_price,
            unit_type=price.unit_type,
            min_voucher_delta=price.min_voucher_delta,
            suggested_deposit=price.suggested_deposit,
            description=price.description,
        )
        # What a price depends on is part of the scope: a challenge of the cheap variant must not
        # buy the dear one (F-31).
        variant = price.variant
        if is_variable and not variant:
            variant = f"{price.unit_price}x{price.units}"
        offer = Offer(
            request=asked,
            http_method=route.method,
            route=quote(route.path, safe=_PLAIN),
            variant=variant,
            units=1 if route.metered else price.units,
        )
        return Priced(route, price, offer)


def _below(mount: str, priced: Priced) -> Priced:
    """Bind an offer to where its gate stands: another mount may sell the same template (F-31)."""
    offer = replace(priced.offer, route=quote(mount) + priced.offer.route)
    return Priced(priced.route, priced.price, offer)


def _compile(template: str) -> re.Pattern[str]:
    """Return what matches every path that a router might serve under this template.

    A router's `$` also matches before a line feed at the end: so does ours, or `/joke%0A` would
    be served for nothing.

    Raises:
        ConfigError: A brace is left, as of `{id:int}`: it would match no path, and sell nothing.
    """
    pattern, at = "", 0
    for parameter in _PARAMETER.finditer(template):
        pattern += _literal(template, at, parameter.start())
        pattern += ".*" if parameter[2] else "[^/]+"
        at = parameter.end()
    return re.compile(pattern + _literal(template, at, len(template)) + r"\n?", re.DOTALL)


def _literal(template: str, start: int, end: int) -> str:
    text = template[start:end]
    if "{" in text or "}" in text:
        raise ConfigError(f"{template}: parameters are {{name}} and {{name:path}}")
    return re.escape(text)


def _route_path(scope: Mapping[str, Any]) -> str:
    """Return the path below the mount point, as Starlette's router sees it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path
