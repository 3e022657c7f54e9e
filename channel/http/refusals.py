"""The text of a refusal, for programs and people: a problem body, or a page (O-43).

Besides the protocol's members the body has `price`, where paying would help, and `error`, which
clients of model servers read: the same sentence under the name that they look for.
"""

import html
from collections.abc import Callable, Sequence

from channel.errors import PaymentRequiredError, ProblemError
from channel.http.asgi import Headers
from channel.http.pricing import Priced
from channel.wire.challenge import SessionRequest
from channel.wire.encoding import format_checksum_address

__all__ = ["PAGE_HEADERS", "describe_price", "explain", "format_page", "wants_page"]

PAGE_HEADERS: Headers = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"vary", b"accept"),
)

_HOW: str = (
    "A client of the Machine Payments Protocol (method evm, intent session) pays by itself: "
    "`mpp-session pay`, or the Python package mpp-session. The challenge is in WWW-Authenticate."
)


def wants_page(accept: str) -> bool:
    """Return whether a request comes from a browser, which would not show JSON well."""
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "text/html" in ranges and not any(one.endswith("json") for one in ranges)


def describe_price(
    priced: Sequence[Priced], show: Callable[[int], str] | None
) -> tuple[list[dict[str, object]], str]:
    """Return the price of each offer for programs, and the first as a sentence for people.

    Amounts are decimal strings in base units of the token; `show` formats one for people.
    """
    prices = [_members(one, show) for one in priced]
    return prices, _sentence(priced[0], show)


def _members(priced: Priced, show: Callable[[int], str] | None) -> dict[str, object]:
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
    if not priced.route.metered:
        members["units"] = priced.offer.units
    if show is not None:
        members["display"] = show(asked.unit_price)
    return members


def _sentence(priced: Priced, show: Callable[[int], str] | None) -> str:
    asked = priced.offer.request
    shown = f" ({show(asked.unit_price)})" if show is not None else ""
    units = (
        ""
        if priced.route.metered or priced.offer.units == 1
        else f", {priced.offer.units} a request"
    )
    return (
        f"It costs {asked.unit_price} base units{shown} for each {asked.unit_type}{units}, "
        f"{_where(asked)}."
    )


def _where(asked: SessionRequest) -> str:
    token = format_checksum_address(asked.currency)
    return f"paid in the token {token} on chain {asked.chain_id} from a deposit in an escrow"


def explain(error: ProblemError, price: str | None) -> str:
    """Return the sentence for people."""
    if price is None:
        return error.detail
    if isinstance(error, PaymentRequiredError):
        return f"{error.detail} {price} {_HOW}"
    return f"{error.detail} {price}"


def format_page(error: ProblemError, detail: str) -> bytes:
    """Return a page without scripts, styles, links or other fetched content."""
    title = html.escape(f"{error.status} {error.title}")
    return (
        "<!doctype html>\n"
        f'<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<h1>{title}</h1>\n<p>{html.escape(detail)}</p>\n</html>\n"
    ).encode()
