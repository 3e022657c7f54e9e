"""The description of a service, from which everything that it publishes is written (pure)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from channel.errors import ConfigError
from channel.http.middleware import PaymentGate
from channel.http.pricing import Price, Priced, Route
from channel.http.rails import RailPrice
from channel.http.refusals import format_price
from channel.methods.registry import DEFAULT
from channel.types import Address, TokenUnit
from mpp_session.settings import Discovery, Listen

__all__ = [
    "Description",
    "Operation",
    "Service",
    "Variant",
    "describe_service",
    "public_url",
]

_PARAMETER: Final = re.compile(r"\{([^{}:]+)(?::[^{}]*)?\}")
_HOST_NAME: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}", re.IGNORECASE)
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
"""Those that OpenAPI 3.1 can describe."""
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 -- compared only
_DEPENDS: Final = "depends on the request"
_NO_VARIANTS: Final[Mapping[tuple[str, str], Sequence[tuple[str, Price]]]] = {}
_NONE: Final[Mapping[tuple[str, str], "Description"]] = {}
_PAID: Final = (
    f"Each request is paid for by the Machine Payments Protocol (HTTP 402, method {DEFAULT.name}, "
    "intent session)."
)


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation takes and returns, as OpenAPI's media type objects."""

    summary: str
    body: Mapping[str, Any] | None = None
    """The JSON body of a request: `schema` and `example`; None if it takes none."""
    answers: Mapping[str, Any] | None = None
    """The content of a success, by media type; None if it is not known."""


class Variant(msgspec.Struct, frozen=True):
    """One of several prices of an operation."""

    name: str
    """What the price is for, such as a model's name or a pattern of names."""
    priced: Priced
    price: str
    """The price for people."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method and path of a service."""

    method: str
    path: str
    """A template as OpenAPI writes it: `/v1/images/{size}`."""
    parameters: tuple[str, ...]
    """The names in the template."""
    is_paid: bool
    is_metered: bool = False
    priced: Priced | None = None
    """The price and its challenge; None if it is free or depends on the request."""
    price: str = ""
    """The price for people; empty if it is free."""
    variants: tuple[Variant, ...] = ()
    """The prices of which a request's content chooses one."""
    rails: tuple[RailPrice, ...] = ()
    """The other ways to pay one request."""
    description: Description

    @property
    def price_text(self) -> str:
        """The price for people, on one line; where a request's content chooses it, all of them."""
        if not self.variants:
            return self.price
        return "; ".join(f"{one.name}: {one.price}" for one in self.variants)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """All that is published of a service."""

    title: str
    realm: str
    description: str
    contact: str | None
    """An e-mail address or a URL."""
    url: str | None
    """The public address, without a slash at the end."""
    compat: tuple[str, ...]
    """Registries whose own forms and members are published as well."""
    currency: str
    """The currency of which one whole token is worth one unit."""
    token: Address
    chain_id: int
    unit: TokenUnit | None
    categories: tuple[str, ...]
    operations: tuple[Operation, ...]

    @property
    def paid(self) -> list[Operation]:
        """The operations with a price."""
        return [one for one in self.operations if one.is_paid]

    @property
    def free(self) -> list[Operation]:
        """The operations without one."""
        return [one for one in self.operations if not one.is_paid]

    def require_url(self) -> str:
        """Return the public address, without a slash at the end.

        Raises:
            ConfigError: It is not known.
        """
        if self.url is None:
            raise ConfigError(
                "this form states whole URLs, and the public address of the service is not known: "
                "set `discovery.url`"
            )
        return self.url

    def require_public_url(self) -> str:
        """Return the public address, for a registry that lists no others.

        Raises:
            ConfigError: It is not known, or not HTTPS with a host name.
        """
        url = self.require_url()
        host = urlsplit(url).hostname or ""
        if not url.startswith("https://") or not _HOST_NAME.fullmatch(host):
            raise ConfigError(
                f"registries list services at https:// and a host name, found {url}: set "
                "`discovery.url` to the public address"
            )
        return url


def describe_service(  # noqa: PLR0913 -- what a gate does not know of its service
    gate: PaymentGate,
    settings: Discovery,
    *,
    chain_id: int,
    descriptions: Mapping[tuple[str, str], Description] = _NONE,
    free: Sequence[tuple[str, str]] = (),
    variants: Mapping[tuple[str, str], Sequence[tuple[str, Price]]] = _NO_VARIANTS,
    url: str | None,
    what: str = "",
    categories: tuple[str, ...] = (),
) -> Service:
    """Return the description of a gate's routes.

    Args:
        gate: It sells the routes.
        settings: Their values come before the others.
        chain_id: The chain that is paid on.
        descriptions: By method and path, as the routes state them.
        free: Methods and paths that are served beside the gate's routes, without payment.
        variants: By method and path, the prices of a route that has one for each model, with the
            name of each.
        url: The public address, if it is known.
        what: What the service sells, if the settings do not say it.
        categories: Of the draft's vocabulary: compute, data, media, ...
    """
    engine = gate.engine.settings
    operations = [
        *_operations(gate, descriptions, variants),
        *(_free(method, path, descriptions) for method, path in free),
    ]
    named = {(one.method, one.path): one for one in reversed(operations)}  # the first one counts
    return Service(
        title=_one_line(settings.title or engine.realm),
        realm=engine.realm,
        description=_one_line(settings.description or f"{what} {_PAID}"),
        contact=settings.contact,
        url=url,
        compat=settings.compat,
        currency=settings.currency,
        token=engine.token,
        chain_id=chain_id,
        unit=gate.unit,
        categories=categories,
        operations=tuple(reversed(named.values())),
    )


def _operations(
    gate: PaymentGate,
    descriptions: Mapping[tuple[str, str], Description],
    variants: Mapping[tuple[str, str], Sequence[tuple[str, Price]]],
) -> Iterator[Operation]:
    for route, priced in gate.table.listed():
        if route.method not in _METHODS:
            continue
        if route.price is None:
            yield _free(route.method, route.path, descriptions)
            continue
        several = variants.get((route.method, route.path), ()) if priced is None else ()
        yield Operation(
            method=route.method,
            path=_PARAMETER.sub(r"{\1}", route.path),
            parameters=tuple(_PARAMETER.findall(route.path)),
            is_paid=True,
            is_metered=route.metered,
            priced=priced,
            price=_DEPENDS if priced is None else _one_line(format_price(priced, gate.unit)),
            variants=tuple(_variant(gate, route, name, price) for name, price in several),
            rails=() if gate.rails is None or priced is None else tuple(gate.rails.prices(priced)),
            description=descriptions.get((route.method, route.path)) or _describe(route, priced),
        )


def _variant(gate: PaymentGate, route: Route, name: str, price: Price) -> Variant:
    priced = gate.table.price(route, price)
    return Variant(_one_line(name), priced, _one_line(format_price(priced, gate.unit)))


def _free(method: str, path: str, descriptions: Mapping[tuple[str, str], Description]) -> Operation:
    return Operation(
        method=method,
        path=_PARAMETER.sub(r"{\1}", path),
        parameters=tuple(_PARAMETER.findall(path)),
        is_paid=False,
        description=descriptions.get((method, path)) or Description(summary=f"{method} {path}"),
    )


def _describe(route: Route, priced: Priced | None) -> Description:
    """Return what the route itself says of an operation."""
    said = None if priced is None else priced.price.description
    takes: dict[str, Any] | None = (
        {"schema": {}} if route.method in {"POST", "PUT", "PATCH"} else None
    )
    return Description(summary=_one_line(said or f"{route.method} {route.path}"), body=takes)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def public_url(settings: Discovery, realm: str, listen: Listen | None = None) -> str | None:
    """Return the public address of a service: as set, else from its realm, else its socket's."""
    if settings.url is not None:
        return settings.url.rstrip("/")
    if _HOST_NAME.fullmatch(realm):
        return f"https://{realm}"
    if listen is None or listen.host in _EVERYWHERE or not listen.port:
        return None
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"http://{host}:{listen.port}"
