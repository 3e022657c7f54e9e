"""The text of a refusal, for programs and people: a problem body, or a page (O-43).

Besides the protocol's members the body has `price`, where paying would help, and `error`, which
clients of model servers read: the same sentence under the name that they look for.
"""

import html
from collections.abc import Sequence

from channel.errors import PaymentRequiredError, ProblemError
from channel.http.asgi import Headers
from channel.http.pricing import Priced
from channel.tariff import Rate, describe_rate, is_kind
from channel.types import TokenUnit
from channel.wire.challenge import SessionRequest
from channel.wire.encoding import format_checksum_address
from channel.wire.tariff import tariff_object

__all__ = [
    "PAGE_HEADERS",
    "describe_price",
    "explain",
    "format_page",
    "format_price",
    "wants_page",
]

PAGE_HEADERS: Headers = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"vary", b"accept"),
)


def wants_page(accept: str) -> bool:
    """Return whether a request comes from a browser, which would not show JSON well."""
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "text/html" in ranges and not any(one.endswith("json") for one in ranges)


def describe_price(
    priced: Sequence[Priced], unit: TokenUnit | None
) -> tuple[list[dict[str, object]], str]:
    """Return the price of each offer for programs, and the first as a sentence for people.

    Amounts are decimal strings in base units of the token; `display` is for people.
    """
    prices = [_members(one, unit) for one in priced]
    return prices, _sentence(priced[0], unit)


def _members(priced: Priced, unit: TokenUnit | None) -> dict[str, object]:
    asked = priced.offer.request
    members: dict[str, object] = {
        "method": priced.route.method,
        "amount": str(asked.unit_price),
        "unit": asked.unit_type,
        "currency": format_checksum_address(asked.currency),
        "chainId": asked.chain_id,
        "escrow": format_checksum_address(asked.escrow),
        "recipient": format_checksum_address(asked.recipient),
    }
    if asked.tariff is not None:
        members["tariff"] = tariff_object(asked.tariff)
    if not priced.route.metered:
        members["units"] = priced.offer.units
    if unit is not None:
        members["display"] = _describe(asked, unit)
    return members


def _sentence(priced: Priced, unit: TokenUnit | None) -> str:
    return f"It costs {format_price(priced, unit)}, {_where(priced.offer.request)}."


def format_price(priced: Priced, unit: TokenUnit | None) -> str:
    """Return the price of a route for people, and the units of a request that has several."""
    units = (
        ""
        if priced.route.metered or priced.offer.units == 1
        else f", {priced.offer.units} a request"
    )
    return _describe(priced.offer.request, unit) + units


def _describe(asked: SessionRequest, unit: TokenUnit | None) -> str:
    """Return a price for people: `0.40 USDC / 1M output tokens, 0.10 USDC / 1M input tokens`."""
    if asked.tariff is None and (unit is None or not is_kind(asked.unit_type)):
        amount = f"{asked.unit_price} base units" if unit is None else unit.format(asked.unit_price)
        return f"{amount} / {asked.unit_type}"
    tariff = asked.pricing
    parts = [_describe_rate(rate, unit) for rate in tariff.rates]
    if tariff.minimum:
        parts.append(f"at least {_describe_amount(tariff.minimum, unit)} a request")
    if tariff.maximum is not None:
        parts.append(f"at most {_describe_amount(tariff.maximum, unit)} a request")
    return ", ".join(parts)


def _describe_rate(rate: Rate, unit: TokenUnit | None) -> str:
    if unit is not None:
        return describe_rate(rate, unit)
    kind = rate.kind if rate.per == 1 else f"{rate.per} {rate.kind}s"
    above = f" above {rate.above}" if rate.above else ""
    return f"{rate.amount} base units / {kind}{above}"


def _describe_amount(amount: int, unit: TokenUnit | None) -> str:
    return f"{amount} base units" if unit is None else unit.format(amount)


def _where(asked: SessionRequest) -> str:
    token = format_checksum_address(asked.currency)
    return f"paid in the token {token} on chain {asked.chain_id} from a deposit in an escrow"


def explain(error: ProblemError, price: str | None, method: str) -> str:
    """Return the sentence for people; `method` is the payment method's name."""
    if price is None:
        return error.detail
    if isinstance(error, PaymentRequiredError):
        return (
            f"{error.detail} {price} A client of the Machine Payments Protocol (method {method}, "
            "intent session) pays by itself: `mpp-session pay`, or the Python package mpp-session. "
            "The challenge is in WWW-Authenticate."
        )
    return f"{error.detail} {price}"


def format_page(error: ProblemError, detail: str) -> bytes:
    """Return a page without scripts, styles, links or other fetched content."""
    title = html.escape(f"{error.status} {error.title}")
    return (
        "<!doctype html>\n"
        f'<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<h1>{title}</h1>\n<p>{html.escape(detail)}</p>\n</html>\n"
    ).encode()
