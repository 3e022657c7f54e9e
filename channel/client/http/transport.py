"""An httpx transport that pays: use it under any `httpx.AsyncClient`.

A request is sent unchanged. If a 402 comes back and the policy allows what it asks, the request is
sent again with a credential. From then on requests to that route carry one from the start.

Redirects: httpx follows them above the transport, with one request per hop, and copies the
extensions from hop to hop. The transport stores the caller's origin there. On a hop to any other
origin it signs and sends nothing (CLIENT-10, F-93).
"""

import asyncio
import contextlib
import ipaddress
import secrets

import httpx

from channel.client.http.bodies import (
    KEPT_BODY_BYTES_MAX,
    RequestBody,
    bound_coding,
    read_reply,
    read_request_body,
)
from channel.client.http.events import PaidEvents
from channel.client.http.management import HeadManagementClient
from channel.client.payment.charges import purchase_of
from channel.client.payment.management import Header, Reply
from channel.client.payment.payer import Payer
from channel.client.payment.request import PaidRequest, Purchase
from channel.client.payment.retry import LostKeys, answer_refusal, is_from_sdk
from channel.client.policy.choice import accept_payment
from channel.client.policy.context import PURPOSE
from channel.client.policy.meter import Expectation, read_expectation
from channel.client.policy.policy import HEADERS
from channel.errors import (
    MppSessionError,
    OfferRefusedError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    StoreError,
)
from channel.limits import IDEMPOTENT_REQUEST_BYTES_MAX
from channel.wire.challenge import SCHEME
from channel.wire.coding import ACCEPT_ENCODING
from channel.wire.sse import CONTENT_TYPE
from channel.wire.x402 import PAYMENT_REQUIRED, PAYMENT_SIGNATURE

__all__ = [
    "CHARGED",
    "IDEMPOTENCY_KEY",
    "ORIGIN",
    "PayingTransport",
    "expect",
    "is_safe",
    "origin_of",
    "route_of",
]

ROUNDS_MAX = 40
KEY_BYTES = 18

ORIGIN = "channel.origin"
"""The extension in which a request keeps its caller's origin over redirects."""
IDEMPOTENCY_KEY = "channel.idempotency_key"
"""Where it keeps its key."""
CHARGED = "channel.charged"
"""Where it keeps the digest of the request that a charge paid for, if one did."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class PayingTransport(httpx.AsyncBaseTransport):
    """Pays for the requests that pass through it, within a policy."""

    def __init__(
        self,
        payer: Payer,
        inner: httpx.AsyncBaseTransport,
        *,
        management: httpx.AsyncBaseTransport | None = None,
        answers_refusals: bool | None = None,
    ) -> None:
        """Pay for what `inner` sends.

        Args:
            payer: Decides and signs.
            inner: Sends the requests.
            management: Sends vouchers during streams; `inner` if None, which then needs one more
                connection than there are streams, or HTTP/2. Closed with this.
            answers_refusals: How a refusal to pay appears. True: as an answer with status 402 that
                explains it and that no SDK retries. False: as an exception. None: as an answer to
                SDKs that identify themselves (`x-stainless-lang`), else as an exception.
        """
        self._payer = payer
        self._inner = inner
        self._management = management or inner
        self._answers_refusals = answers_refusals
        self._lost_keys = LostKeys()
        self._accept_payment = accept_payment(payer.policy)

    def over(self, inner: httpx.AsyncBaseTransport) -> "PayingTransport":
        """Return a transport with the same payer for what `inner` sends; refusals are raised."""
        return PayingTransport(self._payer, inner, answers_refusals=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and pay for it if that is demanded and allowed.

        Raises:
            AgentError: As for `_handle`, unless refusals are answers here.
            httpx.TransportError: The connection failed; nothing was paid for this request.
        """
        answers = self._answers_refusals
        try:
            return await self._handle(request)
        except MppSessionError as error:
            if is_from_sdk(request) if answers is None else answers:
                return answer_refusal(error)
            raise

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and pay for it if that is demanded and allowed.

        Raises:
            AgentError: Paying would violate the policy, or did not help.
            httpx.TransportError: The connection failed; nothing was paid for this request.
        """
        origin = origin_of(request.url)
        asked_origin = request.extensions.setdefault(ORIGIN, origin)
        if _has_credential(request.headers):
            request.headers["Accept-Encoding"] = ACCEPT_ENCODING
            return bound_coding(await self._inner.handle_async_request(request))
        body = await read_request_body(request)
        paid_request = self._paid_request(request, origin, body)
        if asked_origin != origin or not self._is_safe(request.url):
            response = bound_coding(await self._send_once(request, body, None, paid_request))
            await _require_free(response, origin, asked_origin)
            return response
        try:
            return await self._pay_through(request, body, paid_request)
        except BaseException:
            self._payer.release(paid_request)
            raise

    async def aclose(self) -> None:
        """Close the underlying transports."""
        await self._inner.aclose()
        if self._management is not self._inner:
            await self._management.aclose()

    async def _pay_through(
        self, request: httpx.Request, body: RequestBody, paid_request: PaidRequest
    ) -> httpx.Response:
        """Send and pay until there is an answer for the caller."""
        header = await self._payer.prepay(paid_request)
        for _ in range(ROUNDS_MAX):
            if paid_request.charge is not None:
                request.extensions[CHARGED] = paid_request.charge.purchase
            response = await self._send(request, body, header, paid_request)
            try:
                response, reply = await read_reply(response)
                if response.is_success:
                    return await self._deliver(paid_request, response, reply)
                header = await self._payer.answer(paid_request, reply)
            except BaseException:
                await response.aclose()
                raise
            if header is None:
                self._payer.release(paid_request)
                if paid_request.header is not None and reply.status == httpx.codes.CONFLICT:
                    self._note_lost(request, body, paid_request)  # it may be in progress
                return response
            await response.aclose()
        raise PaymentRefusedError(
            status=reply.status,
            problem_type="no end",
            detail=f"the server still refuses after {ROUNDS_MAX} rounds",
        )

    async def _deliver(
        self, paid_request: PaidRequest, response: httpx.Response, reply: Reply
    ) -> httpx.Response:
        """Check the receipt of a paid answer, and return the answer."""
        content_type = response.headers.get("Content-Type", "").lower()
        if not content_type.startswith(CONTENT_TYPE):
            await self._payer.accept(paid_request, reply)
            return response
        paid = await self._payer.begin_stream(paid_request, reply)
        if paid is None:
            return response
        headers = response.headers.copy()
        headers.pop("Content-Length", None)
        return httpx.Response(
            response.status_code,
            headers=headers,
            stream=PaidEvents(paid, response),
            extensions=response.extensions,
        )

    async def _send(
        self,
        request: httpx.Request,
        body: RequestBody,
        header: Header | None,
        paid_request: PaidRequest,
    ) -> httpx.Response:
        """Send, and count the possible cost of a credential that got no answer.

        The server may have served a caller that stopped waiting.
        """
        try:
            return await self._send_safely(request, body, header, paid_request)
        except _NEVER_SENT:
            self._payer.note_unsent(paid_request)
            raise
        except (asyncio.CancelledError, PaymentOutcomeUnknownError) as error:
            if isinstance(error, PaymentOutcomeUnknownError):
                self._note_lost(request, body, paid_request)
            if header is not None:
                with contextlib.suppress(StoreError):  # the cancellation must reach the caller
                    await self._payer.count_unanswered(paid_request)
            raise

    def _note_lost(
        self, request: httpx.Request, body: RequestBody, paid_request: PaidRequest
    ) -> None:
        """Make an identical request reuse the key."""
        key, now = paid_request.idempotency_key, self._payer.now()
        self._lost_keys.note(request, body.content, key, now)

    async def _send_safely(
        self,
        request: httpx.Request,
        body: RequestBody,
        header: Header | None,
        paid_request: PaidRequest,
    ) -> httpx.Response:
        """Send once; if the connection breaks after a credential was sent, send once more.

        With the same credential and key: a server that got the first request repeats its answer and
        charges nothing (CLIENT-08, F-26). A body too long for a key is not sent again, because the
        server would treat it as another request.
        """
        try:
            return await self._send_once(request, body, header, paid_request)
        except _NEVER_SENT:
            raise
        except httpx.TransportError as error:
            if header is None:
                raise
            first = error
        reason = f"{first!r}, and the body is too long to repeat it under the same key"
        if body.fits(IDEMPOTENT_REQUEST_BYTES_MAX):
            try:
                return await self._send_once(request, body, header, paid_request)
            except httpx.TransportError as error:
                reason = f"{first!r}, then {error!r}"
        raise PaymentOutcomeUnknownError(
            idempotency_key=paid_request.idempotency_key, reason=reason
        ) from first

    async def _send_once(
        self,
        request: httpx.Request,
        body: RequestBody,
        header: Header | None,
        paid_request: PaidRequest,
    ) -> httpx.Response:
        headers = request.headers.copy()
        if self._accept_payment:  # x402 has no name there
            headers["Accept-Payment"] = self._accept_payment
        headers["Accept-Encoding"] = ACCEPT_ENCODING
        if header is not None:
            name, value = header
            headers[name] = value
            if body.fits(IDEMPOTENT_REQUEST_BYTES_MAX):
                headers["Idempotency-Key"] = paid_request.idempotency_key
        return await self._inner.handle_async_request(
            httpx.Request(
                request.method,
                request.url,
                headers=headers,
                stream=body.stream(),
                extensions=request.extensions,
            )
        )

    def _is_safe(self, url: httpx.URL) -> bool:
        return is_safe(url, allow_loopback_http=self._payer.policy.allow_loopback_http)

    def _paid_request(self, request: httpx.Request, origin: str, body: RequestBody) -> PaidRequest:
        named = request.headers.get("Idempotency-Key")
        given = (
            named
            or request.extensions.get(IDEMPOTENCY_KEY)
            or self._lost_keys.take(request, body.content, self._payer.now())
        )
        key = given or secrets.token_urlsafe(KEY_BYTES)
        request.extensions[IDEMPOTENCY_KEY] = key
        purchase = None
        if body.content is not None:
            digest = purchase_of(request.method, str(request.url), body.content, named)
            is_first = request.extensions.get(CHARGED) in (None, digest)
            purchase = Purchase(digest, named is not None, is_first)
        return PaidRequest(
            method=request.method,
            origin=origin,
            url=route_of(request.url),
            management=HeadManagementClient(
                self._management,
                request.url,
                headers=request.headers,
                extensions=request.extensions,
            ),
            expectation=expect(request, body.content),
            idempotency_key=key,
            is_key_ours=given is None,
            purchase=purchase,
            purpose=request.extensions.get(PURPOSE),
        )


def route_of(url: httpx.URL) -> str:
    """Return the address by which a challenge is remembered: without what may hold secrets."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def expect(request: httpx.Request, content: bytes | None) -> Expectation:
    """Return what to expect of the answer to a request; `content` is None where it is too long."""
    accept = request.headers.get("Accept", "")
    return read_expectation(content, accept, long_bytes=KEPT_BODY_BYTES_MAX)


def origin_of(url: httpx.URL) -> str:
    """Return scheme, host and port: the recipient of a channel's vouchers."""
    port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}:{port}"


def is_safe(url: httpx.URL, *, allow_loopback_http: bool) -> bool:
    """Return whether a credential may be sent to this URL (CORE-13)."""
    return url.scheme == "https" or (allow_loopback_http and _is_loopback(url.host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_credential(headers: httpx.Headers) -> bool:
    """Return whether the caller pays by itself."""
    prefix = f"{SCHEME} ".lower()
    return PAYMENT_SIGNATURE in headers or any(
        value.lower().startswith(prefix) for name in HEADERS for value in headers.get_list(name)
    )


async def _require_free(response: httpx.Response, origin: str, asked_origin: str) -> None:
    """Return for an unpaid answer, unless it demands payment where paying is not allowed.

    Raises:
        OfferRefusedError: It does.
    """
    challenges = response.headers.get_list("WWW-Authenticate")
    prefix = f"{SCHEME} ".lower()
    if response.status_code != httpx.codes.PAYMENT_REQUIRED or not (
        PAYMENT_REQUIRED in response.headers or any(prefix in line.lower() for line in challenges)
    ):
        return
    await response.aclose()
    if origin != asked_origin:
        raise OfferRefusedError(
            field="payment after a redirect from", asked=asked_origin, allowed="none", origin=origin
        )
    raise OfferRefusedError(
        field="payment over", asked="plain http", allowed="https", origin=origin
    )
