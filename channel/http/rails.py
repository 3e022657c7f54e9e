"""Other ways to pay a route with a price known in advance, beside the session (decision 14).

The gate owns the answer to an unpaid request, and asks its rails what to add to it. A credential
that belongs to one of them is handed over with the request: the rail takes the payment, runs the
same application, and answers. `mpp_session.rails` implements the Protocol.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from channel.http.asgi import ASGIApp, Headers, Scope, Send
from channel.http.pricing import Priced
from channel.http.request import RequestBody
from channel.types import Address

__all__ = ["Charged", "RailOffer", "RailPrice", "RailRequest", "Rails"]


class RailOffer(msgspec.Struct, frozen=True):
    """One more way to pay a request, as the 402 states it."""

    method: str
    intent: str
    headers: Headers
    """Whole header lines: a challenge of its own, and what other protocols read beside it."""


class RailPrice(msgspec.Struct, frozen=True):
    """What one request costs by a rail, as discovery lists it."""

    method: str
    intent: str
    amount: int
    """Base units."""


class Charged(msgspec.Struct, frozen=True, kw_only=True):
    """A request that a rail has charged, for the gate's hooks."""

    payer: Address
    amount: int
    """Base units. 0 when an earlier payment of this payer paid."""
    challenge_id: str
    status: int
    is_complete: bool
    """Whether the whole answer was sent."""


class RailRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is paid by a rail."""

    request_id: bytes
    scope: Scope
    body: RequestBody
    send: Send
    app: ASGIApp
    priced: Priced
    credential: str | None
    """The value of the credential's field; None if the rail reads a field of its own."""
    charged: Callable[[Charged], None]
    """To be called once for each answer that was charged."""


class Rails(Protocol):
    """The rails of one gate."""

    def takes(self, scope: Scope, credential: str | None) -> bool:
        """Whether a request carries a credential of a rail; `credential` is its Payment credential.

        Raises:
            BadRequestError: It carries two.
        """

    def prices(self, priced: Priced) -> Sequence[RailPrice]:
        """Return what a request of a route costs by each rail; none if it takes none."""

    async def offers(self, scope: Scope, priced: Priced) -> Sequence[RailOffer]:
        """Return the other ways to pay this request; none for a route that does not take them."""

    async def serve(self, request: RailRequest) -> None:
        """Take the payment and answer the request, once.

        Raises:
            ProblemError: Nothing was sent, and the gate answers.
        """
