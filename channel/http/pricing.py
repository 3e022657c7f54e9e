"""The prices of requests: routes, their prices, and the route of a request."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote

import msgspec
from msgspec.structs import replace

from channel.engine import Engine, Offer
from channel.errors import ConfigError, MethodNotSoldError, OtherSpellingError
from channel.http.websocket_meter import require_countable
from channel.limits import AMOUNT_MAX, DESCRIPTION_CHARS_MAX, SOCKET_IDLE_S_MAX
from channel.state.commands import StreamPolicy
from channel.tariff import Rate, Tariff, parse_money, parse_rate, plain_tariff
from channel.types import TokenUnit
from channel.wire.challenge import SessionRequest
from channel.wire.encoding import canonical_json
from channel.wire.spelling import Unreadable, is_regular, read_path
from channel.wire.tariff import tariff_object

__all__ = ["VARIANT", "WEBSOCKET", "Price", "PriceOf", "Priced", "Route", "RouteTable"]

WEBSOCKET: Final = "WEBSOCKET"
"""The method of a `Route` that sells websockets, or with `price=None` lets them pass unpaid."""

VARIANT: Final = "channel.variant"
"""The scope's entry with the variant of a credential that manages a channel, for a `PriceOf`."""

_PLAIN = "/{}:!$&'()*+,;=@~"
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_SEGMENT, _REST = "\ue000", "\ue001"  # placeholders for parameters while a template is read


RatePrice: TypeAlias = int | str | Sequence[int | str]
"""Base units for one unit, a text such as `"0.40 / 1M"`, or a list: the first rate, then steps such
as `"0.80 / 1M above 200K"`. See `channel.tariff.parse_rate`."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a request costs: one price for a unit, rates by kind, or a tariff.

        Price(unit_price=250, unit_type="request")
        Price(rates={"output_token": "0.40 / 1M", "input_token": "0.10 / 1M"}, minimum="0.0001")

    Amounts are base units of the token. A text is an amount of the whole token, and may name it:
    `"0.40 usdc / 1M"`.
    """

    unit_price: int | None = None
    unit_type: str | None = None
    """The name of one unit for the payer: `request`, `llm_token`, `image`."""
    rates: Mapping[str, RatePrice] | None = None
    """Rates by kind. The first is the main one: a plain number of units is of its kind, and a
    client that knows one rate only is shown it."""
    minimum: int | str | None = None
    """With `rates`: the least that a request costs which used anything."""
    maximum: int | str | None = None
    """With `rates`: the most that a request costs."""
    tariff: Tariff | None = None
    units: int = 1
    """Units of the main kind of a fixed-price request; a metered request counts its own."""
    variant: str = ""
    """The part of the request that the price depends on, such as a model's name. With it, a
    challenge keeps its price for this variant when prices change. Without it, the price itself is
    the variant, and a change voids the open challenges of a price that depends on the request."""
    min_voucher_delta: int | None = None
    """Minimum increase between vouchers: for a metered route, some seconds' worth of units. None:
    0, or the value in the settings."""
    suggested_deposit: int | None = None
    """None: no suggestion, or the value in the settings."""
    description: str | None = None
    """For display only: payers should not decide by it (CHAL-13)."""

    def __post_init__(self) -> None:
        """Refuse a price that sells nothing, is free, or fits no challenge.

        Raises:
            ConfigError: An amount is not positive or exceeds `uint128`, a text is too long, or the
                price is stated in two ways.
        """
        self._require_one_form()
        deposit = 1 if self.suggested_deposit is None else self.suggested_deposit
        delta = self.min_voucher_delta or 0
        price = 1 if self.unit_price is None else self.unit_price
        if min(price, self.units, deposit) <= 0 or delta < 0:
            raise ConfigError("a price, its units and a suggested deposit must be positive")
        if max(price * self.units, delta, deposit) > AMOUNT_MAX:
            raise ConfigError("a price is more than any channel can hold; lower it")
        if self.unit_type is not None and not 0 < len(self.unit_type) <= DESCRIPTION_CHARS_MAX:
            raise ConfigError(
                f"a price must name its unit in 1 to {DESCRIPTION_CHARS_MAX} characters"
            )
        if len(self.description or "") > DESCRIPTION_CHARS_MAX:
            raise ConfigError(f"a description has at most {DESCRIPTION_CHARS_MAX} characters")

    def _require_one_form(self) -> None:
        is_short = self.unit_price is not None and self.unit_type is not None
        is_whole = (self.unit_price is None) == (self.unit_type is None)
        if not is_whole or is_short + (self.rates is not None) + (self.tariff is not None) != 1:
            raise ConfigError(
                "expected a price as unit_price and unit_type, as rates, or as a tariff"
            )
        if self.rates is None and (self.minimum, self.maximum) != (None, None):
            raise ConfigError("a minimum and a maximum go with rates; state the price as rates")

    def tariff_in(self, unit: TokenUnit | None) -> Tariff:
        """Return the tariff, its texts read as amounts of this token.

        Raises:
            ConfigError: A text without a token, or one that cannot be read; a rate out of range.
        """
        if self.tariff is not None:
            return self.tariff
        if self.rates is None:
            return plain_tariff(self.unit_type or "", self.unit_price or 0)
        rates = tuple(
            (kind, tuple(price) if isinstance(price, list | tuple) else (price,))
            for kind, price in self.rates.items()
        )
        return _read_tariff(rates, self.minimum, self.maximum, unit)


@lru_cache(maxsize=1024)
def _read_tariff(
    rates: tuple[tuple[str, tuple[Any, ...]], ...],
    minimum: int | str | None,
    maximum: int | str | None,
    unit: TokenUnit | None,
) -> Tariff:
    """Return the tariff of a price; cached for prices that depend on the request."""
    return Tariff(
        tuple(_read_rate(kind, price, unit) for kind, prices in rates for price in prices),
        0 if minimum is None else _read_amount("minimum", minimum, unit),
        None if maximum is None else _read_amount("maximum", maximum, unit),
    )


def _read_rate(kind: str, price: int | str, unit: TokenUnit | None) -> Rate:
    if isinstance(price, str):
        return parse_rate(kind, price, _require_unit(kind, price, unit))
    return Rate(kind, price)


def _read_amount(name: str, amount: int | str, unit: TokenUnit | None) -> int:
    if isinstance(amount, str):
        return parse_money(amount, _require_unit(name, amount, unit))
    return amount


def _require_unit(name: str, text: str, unit: TokenUnit | None) -> TokenUnit:
    if unit is None:
        raise ConfigError(
            f"{name}: {text!r} is an amount of the whole token, whose symbol and decimals are not "
            "known; give whole base units as an int, or the gate a `unit`"
        )
    return unit


PriceOf: TypeAlias = Callable[[Mapping[str, Any]], Price | Sequence[Price]]
"""A price that depends on the request: a pure function of the ASGI scope, never of the body.

Several prices, each with a `variant` of its own, mean that the request does not say which it is
for, such as a HEAD: each is offered. If the scope has `VARIANT`, the credential of a request that
buys nothing is for that variant; it may be unknown. An error of `channel.errors` that it raises is
the answer.
"""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method and path with a price, or a free one under a priced path."""

    method: str
    path: str
    """A template relative to the gate's mount: `/v1/images/{size}`, `/files/{rest:path}`."""
    price: Price | PriceOf | None
    """None: free. Unlisted methods of a priced path are refused."""
    metered: bool = False
    """Whether the handler counts units itself; otherwise the price is per request."""
    stream_policy: StreamPolicy | None = None
    """What a new stream does to a running one of the same channel (ACC-06). None: it replaces
    it, or what the settings say."""
    pause_s: float | None = None
    """How long a stream waits for a voucher; None: the gate's own bound (SSE-03)."""
    idle_s: float = SOCKET_IDLE_S_MAX
    """How long a websocket stays open without a message or a voucher."""


class Priced(msgspec.Struct, frozen=True):
    """A route with its price and offer for one request."""

    route: Route
    price: Price
    offer: Offer


class RouteTable:
    """Finds the priced routes of a request. Paths match as in Starlette.

    A path that matches no template exactly, but that another framework might take for one that
    does, is refused: see `channel.wire.spelling`.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        engine: Engine,
        *,
        roots: Iterable[str] = (),
        unit: TokenUnit | None = None,
    ) -> None:
        """Compile the templates. `roots` are further paths under which the application answers.

        `unit` is that of the token; without it a price is in base units only.

        Raises:
            ConfigError: No routes, a method and path listed twice, a parameter of another kind, a
                price that cannot be read, or something that cannot be sold, such as HEAD.
        """
        self._engine = engine
        self._unit = unit
        self._roots = tuple(roots)
        self._routes: list[tuple[re.Pattern[str], Route]] = []
        self._readings: list[tuple[re.Pattern[str], Route]] = []
        seen: set[tuple[str, str]] = set()
        for route in routes:
            _require_sellable(route)
            name = (route.method, route.path)
            if name in seen:
                raise ConfigError(f"{route.method} {route.path} is listed twice; remove one")
            seen.add(name)
            self._routes.append((_compile(route.path), route))
            if route.price is not None:
                self._readings += [(pattern, route) for pattern in _compile_readings(route.path)]
        if not self._readings:
            raise ConfigError("a gate without priced routes would let everything through")
        self._literals = {route.path for route in routes if "{" not in route.path}
        self._fixed: dict[tuple[str, str], Priced] = {
            (route.method, route.path): self._price(route, route.price)
            for route in routes
            if isinstance(route.price, Price)
        }

        # Literal paths with constant prices need no search.
        self._by_path: dict[str, Sequence[Priced]] = {}
        for path in self._literals:
            matching = [one for pattern, one in self._routes if pattern.fullmatch(path)]
            if all(isinstance(one.price, Price) for one in matching):
                self._by_path[path] = self.match({"path": path})

    def match(self, scope: Mapping[str, Any]) -> Sequence[Priced]:
        """Return the priced routes for this request's path, for all methods.

        If several templates match under one method, the first counts, as in a router.

        Raises:
            OtherSpellingError: The application might take the path for one with a price.
        """
        path: str = scope["path"]
        raw_path = scope.get("raw_path") or b""
        if not scope.get("root_path") and not self._roots and len(raw_path) in (0, len(path)):
            known = self._by_path.get(path)
            if known is not None:
                return known
        mount, routes = self._find(scope)
        return [
            priced
            for route in routes
            if route.price is not None
            for priced in self._prices_for(scope, mount, route)
        ]

    def price(self, route: Route, price: Price) -> Priced:
        """Return one price of a route whose price depends on the request, as it is offered."""
        return self._price(route, price, is_variable=True)

    def listed(self) -> Iterator[tuple[Route, Priced | None]]:
        """Yield every route, with None for a price that is free or depends on the request."""
        for _, route in self._routes:
            yield route, self._fixed.get((route.method, route.path))

    def is_free(self, scope: Mapping[str, Any], method: str) -> bool:
        """Whether a method of a priced path is listed without a price."""
        _, routes = self._find(scope)
        return any(route.method == method and route.price is None for route in routes)

    def match_websocket(self, scope: Mapping[str, Any]) -> Sequence[Priced]:
        """Return the price of a websocket on this path; nothing where it is free.

        Raises:
            MethodNotSoldError: The path is sold under other methods only.
            OtherSpellingError: As for `match`.
        """
        mount, routes = self._find(scope)
        own = next((route for route in routes if route.method == WEBSOCKET), None)
        if own is not None:
            return [] if own.price is None else self._prices_for(scope, mount, own)
        if any(route.price is not None for route in routes):
            raise MethodNotSoldError("A websocket", self.methods(scope))
        return []

    def sells(self, scope: Mapping[str, Any]) -> bool:
        """Whether this path has a price under any method.

        Raises:
            OtherSpellingError: As for `match`.
        """
        return any(route.price is not None for route in self._find(scope)[1])

    def methods(self, scope: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the methods that are served under this path."""
        return tuple(route.method for route in self._find(scope)[1] if route.method != WEBSOCKET)

    def _find(self, scope: Mapping[str, Any]) -> tuple[str, Sequence[Route]]:
        """Return the mount of the routes, and for each method the route that counts."""
        path: str = scope["path"]
        matching: list[Route] = []
        below = path
        for below in _below_roots(path, self._roots_of(scope)):
            matching = [route for pattern, route in self._routes if pattern.fullmatch(below)]
            if matching:
                break
        self._require_own_spelling(scope, below, matching)
        first: dict[str, Route] = {}
        for route in matching:
            first.setdefault(route.method, route)
        return _find_mount(path, below, scope.get("raw_path")), [*first.values()]

    def _require_own_spelling(
        self, scope: Mapping[str, Any], below: str, matching: Sequence[Route]
    ) -> None:
        if below in self._literals:
            return
        own = {route.path for route in matching}
        if any(callable(route.price) for route in matching) and not is_regular(below):
            raise OtherSpellingError(matching[0].path)  # its price may be another path's
        try:
            readings = _read(scope["path"], scope.get("raw_path"), self._roots_of(scope))
        except Unreadable:
            raise OtherSpellingError(self._readings[0][1].path) from None
        for pattern, route in self._readings:
            if route.path not in own and any(map(pattern.fullmatch, readings)):
                raise OtherSpellingError(route.path)

    def _roots_of(self, scope: Mapping[str, Any]) -> Sequence[str]:
        root: str = scope.get("root_path", "")
        return [root, *self._roots] if root else self._roots

    def _prices_for(self, scope: Mapping[str, Any], mount: str, route: Route) -> list[Priced]:
        fixed = self._fixed.get((route.method, route.path))
        found = [] if fixed is None else [fixed]
        if fixed is None:
            price = route.price
            if not callable(price):  # pragma: no cover - always in _fixed
                raise ConfigError(f"{route.method} {route.path} has no price")
            asked = price({**scope, "path": scope["path"].rstrip("/") or "/"})
            several = [asked] if isinstance(asked, Price) else asked
            if not several:  # without a price it would be served unpaid
                raise ConfigError(f"{route.method} {route.path} has no price")
            found = [self._price(route, one, is_variable=True) for one in several]
        return [_below(mount, priced) for priced in found] if mount else found

    def _price(self, route: Route, price: Price, *, is_variable: bool = False) -> Priced:
        tariff = price.tariff_in(self._unit)
        tariff.cost({tariff.main.kind: price.units})  # a price beyond all bounds fails here
        if route.method == WEBSOCKET:
            name = f"{route.method} {route.path}"
            require_countable(tariff, metered=route.metered, units=price.units, name=name)
        asked = self._engine.ask(
            unit_price=price.unit_price or 0,
            unit_type=price.unit_type or "",
            tariff=tariff if price.unit_type is None else None,
            min_voucher_delta=price.min_voucher_delta or 0,
            suggested_deposit=price.suggested_deposit,
            description=price.description,
        )
        # The variant is part of the scope, because a challenge for the cheap one must not pay for
        # the expensive one (F-31).
        variant = price.variant
        if is_variable and not variant:
            variant = f"{_fingerprint(asked)}x{price.units}"
        offer = Offer(
            request=asked,
            http_method=route.method,
            route=quote(route.path, safe=_PLAIN),
            variant=variant,
            units=1 if route.metered else price.units,
        )
        return Priced(route, price, offer)


def _fingerprint(asked: SessionRequest) -> str:
    """Return what tells this price from every other one of a route."""
    if asked.tariff is None:
        return str(asked.unit_price)
    return sha256(canonical_json(tariff_object(asked.tariff))).hexdigest()[:32]


def _below(mount: str, priced: Priced) -> Priced:
    """Bind an offer to its gate's mount: another mount may sell the same template (F-31)."""
    offer = replace(priced.offer, route=quote(mount) + priced.offer.route)
    return Priced(priced.route, priced.price, offer)


def _require_sellable(route: Route) -> None:
    name = f"{route.method} {route.path}"
    if route.method != route.method.upper() or route.method == "HEAD":
        raise ConfigError(f"{name}: expected an upper-case method other than HEAD")
    if route.metered and route.price is None:
        raise ConfigError(f"{name}: a metered route needs a price")


def _compile(template: str) -> re.Pattern[str]:
    """Return a pattern for every path that a router might serve under this template.

    A router's `$` also matches before a line feed at the end. So does this pattern; otherwise
    `/joke%0A` would be served without payment.

    Raises:
        ConfigError: A brace remains, as in `{id:int}`: it would match no path, and sell nothing.
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
        raise ConfigError(f"{template}: expected parameters of the form {{name}} or {{name:path}}")
    return re.escape(text)


def _compile_readings(template: str) -> Iterator[re.Pattern[str]]:
    """Yield patterns for paths that `read_path` returns and a router might serve here."""
    text = _PARAMETER.sub(lambda parameter: _REST if parameter[2] else _SEGMENT, template)
    for reading in read_path(text):
        pattern = re.escape(reading.rstrip("/"))
        if pattern.endswith("/" + _REST):  # some routers match the parent with an empty rest
            pattern = pattern.removesuffix("/" + _REST) + "(?:/.*)?"
        pattern = pattern.replace(_SEGMENT, "[^/]+").replace(_REST, ".*")
        yield re.compile(pattern + "/?", re.DOTALL)


def _below_roots(path: str, roots: Iterable[str]) -> Iterator[str]:
    """Yield the path relative to each root, and the path itself.

    Each also without a final slash: below a mount Litestar writes `/joke/` for `/joke`.
    """
    for root in (*roots, ""):
        if path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
            yield path[len(root) :]
            if path.endswith("/") and len(path) > len(root) + 1:
                yield path[len(root) : -1]


def _find_mount(path: str, below: str, raw_path: bytes | None) -> str:
    """Return the gate's mount, even below a layer that cuts its path off and sets no root."""
    path = path if path.endswith(below) else path.rstrip("/")
    if raw_path is not None:
        whole = unquote(raw_path.decode("latin-1")).rstrip("/")
        if whole.endswith(path):
            path = whole
    return path[: len(path) - len(below)]


def _read(path: str, raw_path: bytes | None, roots: Iterable[str]) -> set[str]:
    """Return every reading of a path, and of the rest of it behind a root.

    Some frameworks look for a root at the start, some anywhere, and not all check what follows it.

    Raises:
        Unreadable: See `read_path`.
    """
    readings = set(read_path(path, raw_path))
    for root in roots:
        if path.startswith(root):
            readings |= read_path(path[len(root) :])
        for stem in read_path(root):
            behind = [one.partition(stem.rstrip("/"))[2] for one in readings if stem in one]
            readings.update("/" + rest.lstrip("/") for rest in behind)
    return readings
