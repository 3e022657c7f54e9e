"""Sells several models on one path: finds the model of a request before the gate prices it.

The body of a request is read for that, bounded in size, time and memory, only where prices differ
by model. The model's name is the variant of its challenge, so the challenge of one model buys no
other one (F-31).
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channel.errors import BadRequestError, BodyTimeoutError, ProblemError
from channel.http import Price
from channel.http.bodies import BodyBounds, BodyRoom
from channel.http.pricing import VARIANT, PriceOf
from channel.http.request import read_client
from channel.limits import LENGTH_DIGITS_MAX
from mpp_session.gateway.endpoints.fields import read_model, scan_request
from mpp_session.gateway.errors import (
    ModelNotSoldError,
    RequestTooLargeError,
    UnsupportedCodingError,
)
from mpp_session.gateway.free import problem_response
from mpp_session.prices.table import Listing, PriceTable
from mpp_session.settings import Payment

__all__ = ["MODEL", "ModelPrices", "ModelReader"]

MODEL: Final = "mpp_session.model"
"""The entry of a scope's `state` with the model of a request; None if it has no body to name one.
It is missing where prices do not differ."""

_MODEL_FIELD: Final = "payment-model"
"""Names the model of a HEAD that asks for a price: it has no body that would."""
_NAMED_MAX: Final = 20
"""Models that a refusal names."""
_OFFERED_MAX: Final = 8
"""Challenges for a request that names no model."""


class ModelPrices:
    """The current table, as the prices of the gate's routes."""

    def __init__(
        self, table: PriceTable, payment: Payment, *, now: Callable[[], float] = time.time
    ) -> None:
        self.table = table
        self.now = now
        self._payment = payment

    def name_of(self, model: str) -> str | None:
        """Return the name or pattern under which the current table has a model."""
        return self.table.name_of(model)

    def price(self, endpoint: str) -> Price | PriceOf:
        """Return the price of an endpoint, for its route."""
        only = self.table.only(endpoint)
        if only is not None:
            return self.price_of(only, "")
        table = self.table
        if endpoint in table.paths():
            return lambda _: self._price_now(table, endpoint)

        def price(scope: Mapping[str, Any]) -> Price | Sequence[Price]:
            return self._find(table, endpoint, scope)

        return price

    def _price_now(self, table: PriceTable, path: str) -> Price:
        """Return the price of a path whose rows count from different times on.

        Raises:
            ModelNotSoldError: None counts yet.
        """
        found = table.find(path, "", self.now())
        if found is None:
            raise ModelNotSoldError(f"{path} is not sold yet.")
        return self.price_of(found, path)

    def price_of(self, listing: Listing, model: str) -> Price:
        """Return a listing as the price of a model; empty if it prices every model."""
        payment = self._payment
        return Price(
            tariff=listing.tariff,
            variant=model,
            min_voucher_delta=payment.min_voucher_delta,
            suggested_deposit=payment.suggested_deposit,
            description=listing.row.description
            or listing.row.sold_path
            or "Tokens of a language model",
        )

    def require(self, endpoint: str, model: str) -> Listing:
        """Return the listing of a model.

        Raises:
            ModelNotSoldError: It has none. The error names the models that have one.
        """
        found = self.table.find(endpoint, model, self.now())
        if found is None:
            raise self._not_sold(endpoint, model)
        return found

    def _find(
        self, table: PriceTable, endpoint: str, scope: Mapping[str, Any]
    ) -> Price | Sequence[Price]:
        state = scope.get("state", {})
        if MODEL not in state:
            raise BadRequestError(
                "The model of this request was not read. Ask again, at the path as it is published."
            )
        model, at = scope.get(VARIANT, state[MODEL]), self.now()
        if model is not None:
            found = table.find(endpoint, model, at)
            if found is not None:
                return self.price_of(found, model)
            if VARIANT not in scope:
                raise self._not_sold(endpoint, model)
        # A stream of a model that is not sold any more still pays, and its channel can be closed.
        offered = [
            self.price_of(found, name)
            for name in table.models(endpoint, at)[:_OFFERED_MAX]
            if (found := table.find(endpoint, name, at)) is not None
        ]
        if not offered and VARIANT not in scope:
            raise self._not_sold(endpoint, "")
        return offered or [self.price_of(table.listings[0], model or "")]

    def _not_sold(self, endpoint: str, model: str) -> ModelNotSoldError:
        sold = self.table.models(endpoint, self.now())
        names = ", ".join(sold[:_NAMED_MAX]) or "none"
        more = f" and {len(sold) - _NAMED_MAX} more" if len(sold) > _NAMED_MAX else ""
        asked = f"The model {model[:100]!r} is not sold here." if model else "`model` is missing."
        return ModelNotSoldError(f"{asked} Models sold under this path: {names}{more}.")


class ModelReader:
    """ASGI middleware outside the gate: it reads which model a request is for."""

    def __init__(
        self,
        app: ASGIApp,
        prices: ModelPrices,
        endpoints: Mapping[str, str],
        *,
        bytes_max: int,
        timeout_s: float,
    ) -> None:
        """Wrap the gate. `endpoints` are the names of the priced paths."""
        self._app = app
        self._prices = prices
        self._endpoints = endpoints
        self._bytes_max = bytes_max
        self._timeout_s = timeout_s
        self._bodies = BodyBounds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the model of one request and pass it on, or refuse it."""
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None or self._prices.table.only(endpoint) is not None:
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":
            named = Headers(scope=scope).get(_MODEL_FIELD)
            await self._app(_with_model(scope, named or None), receive, send)
            return
        room = self._bodies.room(None, read_client(scope))
        try:
            body = await self._read(scope, receive, room)
            if body is None:
                return
            model = None
            if body:
                for _ in scan_request(body):
                    await asyncio.sleep(0)
                model = read_model(body)
                self._prices.require(endpoint, model)
        except ProblemError as error:
            room.release()
            await problem_response(error)(scope, receive, send)
            return
        try:
            await self._app(_with_model(scope, model), _replay(body, receive, room), send)
        finally:
            room.release()

    async def _read(self, scope: Scope, receive: Receive, room: BodyRoom) -> bytes | None:
        """Return the body of a request; None if the client left.

        Raises:
            PeerError: It is encoded, too large or too slow, or too many bodies are held.
        """
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnsupportedCodingError("Send the body as it is, without a Content-Encoding.")
        too_large = RequestTooLargeError(f"The body has more than {self._bytes_max} bytes.")
        length = headers.get("content-length", "")
        if len(length) > LENGTH_DIGITS_MAX or (
            length.isdecimal() and int(length) > self._bytes_max
        ):
            raise too_large  # unread
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    room.take(len(piece))
                    body += piece
                    if len(body) > self._bytes_max:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise BodyTimeoutError(
                f"The request's body must arrive within {self._timeout_s:g} s."
            ) from None


def _with_model(scope: Scope, model: str | None) -> Scope:
    return {**scope, "state": {**scope.get("state", {}), MODEL: model}}


def _replay(body: bytes, receive: Receive, room: BodyRoom) -> Receive:
    """Return a `receive` that begins with the body, which the gate counts from then on."""
    is_replayed = False

    async def replay() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        room.release()
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
