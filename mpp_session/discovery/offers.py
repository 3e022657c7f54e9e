"""The prices of an operation as registries state them, all from what the gate asks for (pure)."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec

from channel.http.pricing import Priced
from channel.methods.registry import DEFAULT
from channel.wire.challenge import INTENT
from channel.wire.encoding import format_checksum_address
from mpp_session.discovery.service import Operation, Service

__all__ = ["Offered", "list_offers", "request_price"]


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """One price of an operation."""

    method: str = DEFAULT.name
    intent: str = INTENT
    amount: str | None
    """Base units for one unit, decimal; None if the price depends on the request."""
    unit_type: str | None
    currency: str
    """The token's address."""
    description: str

    @property
    def members(self) -> dict[str, Any]:
        """The offer as draft-payment-discovery-01 writes it."""
        return {
            "intent": self.intent,
            "method": self.method,
            "amount": self.amount,
            "currency": self.currency,
            "description": self.description,
        }


def list_offers(service: Service, operation: Operation) -> list[Offered]:
    """Return the offers of a paid operation: for each challenge one.

    A session states its price of one unit, any other way to pay that of one request.
    """
    return list(_list(service, operation))


def _list(service: Service, operation: Operation) -> Iterator[Offered]:
    currency = format_checksum_address(service.token)
    where = f"on chain {service.chain_id}"
    if operation.variants:
        for one in operation.variants:
            yield _offered(one.priced, currency, f"{one.name}: per ", f" {where}: {one.price}")
    elif operation.priced is not None:
        yield _offered(operation.priced, currency, "per ", f" {where}: {operation.price}")
        for rail in operation.rails:
            yield Offered(
                method=rail.method,
                intent=rail.intent,
                amount=str(rail.amount),
                unit_type=None,
                currency=currency,
                description=f"One request, paid by one transfer {where}",
            )
    else:
        text = f"The price {operation.price}, {where}"
        yield Offered(amount=None, unit_type=None, currency=currency, description=text)


def _offered(priced: Priced, currency: str, before: str, after: str) -> Offered:
    asked = priced.offer.request
    return Offered(
        amount=str(asked.unit_price),
        unit_type=asked.unit_type,
        currency=currency,
        description=f"{before}{asked.unit_type}{after}",
    )


def request_price(service: Service, operation: Operation) -> dict[str, str]:
    """Return the price of one request as AgentCash reads it, in whole tokens.

    What is metered has no price beforehand, only bounds.
    """
    price = {"mode": "dynamic", "currency": service.currency}
    priced, unit = operation.priced, service.unit
    if priced is None or unit is None:
        return price
    tariff = priced.offer.request.pricing
    if not operation.is_metered:
        cost = tariff.cost({tariff.main.kind: priced.offer.units})
        return {**price, "mode": "fixed", "amount": _decimal(cost, unit.decimals)}
    price["min"] = _decimal(tariff.minimum, unit.decimals)
    if tariff.maximum is not None:
        price["max"] = _decimal(tariff.maximum, unit.decimals)
    return price


def _decimal(amount: int, decimals: int) -> str:
    return f"{Decimal(amount).scaleb(-decimals):f}" if amount else "0"
