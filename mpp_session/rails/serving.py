"""Serves requests that are paid by a charge or by x402, once for each authorization.

The order, which docs/decisions/0015-rails.md explains:

    verify      the credential pays this request, and its signature is good
    claim       the token would accept the transfer; durable, so that one request runs for it
    run         the application answers; unless it succeeds, nothing is paid
    order       durable, with the answer: the settler must send the transfer now
    mined       the answer is sent, with its receipts
    served      durable: the authorization buys nothing more
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.requests import ClientDisconnect

from channel.errors import BadRequestError, MethodUnsupportedError, ProblemError, WireError
from channel.http.asgi import Headers, Scope
from channel.http.pricing import Priced
from channel.http.rails import Charged, RailOffer, RailPrice, RailRequest
from channel.http.request import ClientGoneError
from channel.state.requests import StoredResponse
from channel.wire.encoding import decode_base64url
from mpp_session.rails.answering import ChargedAnswer
from mpp_session.rails.verifier import PAYMENT_SIGNATURE, ChargeVerifier, Verified
from settlement.charge.orders.interface import ChargeOrder
from settlement.charge.worker import ChargeWorker
from settlement.tx.orders import OrderStatus

__all__ = ["ChargeRails"]

_METHOD: Final = "evm"
_INTENT: Final = "charge"
_MARK: Final = b'"charge"'
_SIGNATURE_FIELD: Final = PAYMENT_SIGNATURE.encode()


class _Challenge(msgspec.Struct):
    method: str
    intent: str


class _Envelope(msgspec.Struct):
    challenge: _Challenge


_decoder: Final = msgspec.json.Decoder(_Envelope)


class ChargeRails:
    """The rails of a gate: `channel.http.rails.Rails`."""

    def __init__(
        self,
        verifier: ChargeVerifier,
        worker: ChargeWorker,
        *,
        amount_min: int,
        url: str | None = None,
    ) -> None:
        """Take charges of at least `amount_min` base units: a smaller one costs more gas.

        `url` is the public address of the service; None: that of each request.
        """
        self._verifier = verifier
        self._worker = worker
        self._amount_min = amount_min
        self._url = url

    def takes(self, scope: Scope, credential: str | None) -> bool:
        """See `channel.http.rails.Rails.takes`."""
        is_signed = self._verifier.terms.x402 and _read_signature(scope) is not None
        if credential is not None and is_signed:
            raise BadRequestError("Send one payment: a Payment credential or PAYMENT-SIGNATURE.")
        return is_signed or (credential is not None and _is_charge(credential))

    def prices(self, priced: Priced) -> Sequence[RailPrice]:
        """See `channel.http.rails.Rails.prices`."""
        amount = self._amount_of(priced)
        return () if amount is None else (RailPrice(_METHOD, _INTENT, amount),)

    async def offers(self, scope: Scope, priced: Priced) -> Sequence[RailOffer]:
        """See `channel.http.rails.Rails.offers`."""
        amount = self._amount_of(priced)
        if amount is None:
            return ()
        lines = await self._verifier.offer(scope["method"], self._address(scope), amount)
        return (RailOffer(_METHOD, _INTENT, lines),)

    async def serve(self, request: RailRequest) -> None:
        """See `channel.http.rails.Rails.serve`."""
        amount = self._amount_of(request.priced)
        if amount is None:
            raise MethodUnsupportedError(
                "This route takes no single payments: its price is not known in advance, or less "
                "than their gas. Pay it by a session."
            )
        verified = await self._verifier.verify(
            request.scope["method"],
            self._address(request.scope),
            amount,
            credential=request.credential,
            signature=None if request.credential else _read_signature(request.scope),
        )
        digest = await request.body.digest(request.scope, what="A single payment")
        order = await self._worker.claim(
            verified.transfer,
            request_digest=digest,
            owner=request.request_id,
            is_private=verified.is_private,
        )
        await _Sale(self._worker, request, verified, order, digest).run()

    def _amount_of(self, priced: Priced) -> int | None:
        """Return the price of one request in base units; None if it takes no charge."""
        if priced.route.metered:
            return None
        pricing = priced.offer.request.pricing
        amount = pricing.cost({pricing.main.kind: priced.offer.units})
        return amount if amount >= self._amount_min else None

    def _address(self, scope: Scope) -> str:
        """Return the absolute URL of a request."""
        path = scope.get("raw_path") or quote(scope["path"]).encode()
        query: bytes = scope.get("query_string", b"")
        target = (path + (b"?" + query if query else b"")).decode("latin-1")
        return (self._url or _origin(scope)) + target


class _Sale:
    """One request that owns an authorization."""

    def __init__(
        self,
        worker: ChargeWorker,
        request: RailRequest,
        verified: Verified,
        order: ChargeOrder,
        digest: bytes,
    ) -> None:
        self._worker = worker
        self._request = request
        self._verified = verified
        self._order = order
        self._digest = digest
        self._charged = 0
        self._answer = ChargedAnswer(send=request.send, body=request.body, settle=self._settle)

    async def run(self) -> None:
        """Answer the request; until the whole answer is sent, the authorization stays valid.

        Raises:
            ProblemError: Nothing was sent.
        """
        answer = self._answer
        is_served = False
        try:
            await self._run_handler()
            is_served = answer.is_settled and (answer.is_complete or answer.is_client_gone)
        finally:
            if is_served and answer.status is not None:
                await self._worker.serve(self._order)
            else:
                await self._worker.release(self._order)
            if answer.is_settled and answer.status is not None:
                self._request.charged(
                    Charged(
                        payer=self._verified.transfer.payer,
                        amount=self._charged,
                        challenge_id=self._verified.challenge_id,
                        status=answer.status,
                        is_complete=answer.is_complete,
                    )
                )
        if answer.refusal is not None:
            raise answer.refusal

    async def _run_handler(self) -> None:
        answer, order = self._answer, self._order
        is_same = order.request_digest == self._digest
        try:
            if order.status is OrderStatus.MADE and order.response is not None and is_same:
                answer.is_settled = True
                await answer.send_stored(order.response, self._receipts())
            else:
                self._request.body.begin_handling()
                await self._request.app(
                    self._request.scope, self._request.body.receive, answer.send
                )
        except ProblemError as error:
            answer.refusal = answer.refusal or error
        except (ClientDisconnect, ClientGoneError):
            answer.is_client_gone = True
        except Exception:
            # Ignore what the handler's framework makes of the gate's own refusal.
            if answer.refusal is None and not answer.is_client_gone:
                raise

    async def _settle(self, response: StoredResponse | None) -> Headers:
        """Make the payment, unless an earlier request made it; return the receipts."""
        if self._order.status is not OrderStatus.MADE:
            self._order = await self._worker.settle(self._order, response)
            self._charged = self._order.amount
        return self._receipts()

    def _receipts(self) -> Headers:
        if self._order.tx_hash is None:  # pragma: no cover - a mined order has one
            return ()
        return self._verified.receipt_headers(self._order.tx_hash)


def _read_signature(scope: Mapping[str, Any]) -> str | None:
    for name, value in scope["headers"]:
        if name == _SIGNATURE_FIELD:
            return str(value, "latin-1")
    return None


def _is_charge(credential: str) -> bool:
    """Whether a Payment credential answers the challenge of a charge."""
    try:
        text = decode_base64url(credential.partition(" ")[2].strip())
        if _MARK not in text:  # nearly every request of a session ends here
            return False
        challenge = _decoder.decode(text).challenge
    except (WireError, msgspec.DecodeError):
        return False
    return (challenge.method, challenge.intent) == (_METHOD, _INTENT)


def _origin(scope: Mapping[str, Any]) -> str:
    """Return scheme and host of a request, as its client wrote them."""
    for name, value in scope["headers"]:
        if name == b"host":
            return f"{scope.get('scheme', 'http')}://{value.decode('latin-1')}"
    host, port = scope.get("server") or ("localhost", None)
    return f"{scope.get('scheme', 'http')}://{host}" + (f":{port}" if port else "")
