"""Charges for requests: a gate that demands payment and a meter, for any ASGI application."""

from channel.http.events import Event, Frame, PaidEventStream
from channel.http.metering import Meter, metered
from channel.http.middleware import PaymentGate
from channel.http.pricing import Price, PriceOf, Route

__all__ = [
    "Event",
    "Frame",
    "Meter",
    "PaidEventStream",
    "PaymentGate",
    "Price",
    "PriceOf",
    "Route",
    "metered",
]
