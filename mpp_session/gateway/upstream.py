"""The model server over httpx: what is sent, what comes back, and what is never passed on.

Headers are passed on by name in both directions; every other header is dropped. No credential,
cookie or authorisation of a client reaches the model server, and no header of the model server can
pass for a payment header.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Self

import httpx
from starlette.datastructures import Headers

from channel.errors import WireError
from channel.limits import ANSWER_BYTES_MAX, LOCATION_CHARS_MAX, PROBE_BYTES_MAX
from channel.wire.coding import ContentDecoder, decode_pieces
from mpp_session.gateway.errors import UpstreamError, UpstreamTimeoutError
from mpp_session.settings import Upstream as UpstreamSettings

__all__ = ["Upstream", "read_body", "read_pieces", "returned_headers"]

_log: Final = logging.getLogger(__name__)

_IDLE_S_MAX: Final = 3.0
"""Below most servers' five seconds, so that no request meets a closing connection."""

_REQUEST_HEADERS: Final = (
    "accept",
    "accept-language",
    "content-type",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-request-id",
)
_RESPONSE_HEADERS: Final = (
    "content-language",
    "content-type",
    "retry-after",
    "x-request-id",
)
_RESPONSE_PREFIXES: Final = ("openai-", "x-ratelimit-")

_BROKEN_BETWEEN_US: Final = frozenset({401, 402, 403, 407})
"""Refusals of the gateway itself: passed on, they would mislead the client."""
_LOG_INTERVAL_S: Final = 10.0


class Upstream:
    """Connections to the model server."""

    def __init__(self, client: httpx.AsyncClient, api_key: str | None, head_s: float) -> None:
        self.url = str(client.base_url)
        self.answered_at = -math.inf
        """When the server last sent an answer's head, by the monotonic clock."""
        self.failed_at = -math.inf
        """When it last could not be reached, or broke off."""
        self._client = client
        self._api_key = api_key
        self._head_s = head_s
        self._logged_at = -math.inf
        self._unlogged = 0

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: UpstreamSettings) -> AsyncIterator[Self]:
        """Keep connections to the configured server until the context ends."""
        timeout = httpx.Timeout(
            settings.read_timeout_s, connect=settings.connect_timeout_s, pool=None
        )
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE_S_MAX
        )
        async with httpx.AsyncClient(
            base_url=settings.url.rstrip("/"),
            timeout=timeout,
            limits=limits,
            trust_env=False,  # no proxy or .netrc of the machine between gateway and model
        ) as client:
            key = settings.api_key
            head_s = settings.connect_timeout_s + settings.read_timeout_s
            yield cls(client, None if key is None else key.reveal(), head_s)

    @asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Headers, body: bytes | None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; the answer's body is not read yet. Leaving the context cancels it.

        Raises:
            UpstreamTimeoutError: No connection, or no answer, in time.
            UpstreamError: The server cannot be reached, breaks off, refuses the gateway, redirects
                it, or encodes its answer in an unsupported way.
        """
        sent = {  # as bytes: httpx would encode text as ASCII, and a client's may be other
            name.encode("ascii"): headers[name].encode("latin-1")
            for name in _REQUEST_HEADERS
            if name in headers
        }
        sent[b"accept-encoding"] = b"identity"  # compressed events would arrive in bursts
        if self._api_key is not None:
            sent[b"authorization"] = f"Bearer {self._api_key}".encode("ascii")
        with self._translated():
            response = await self._send(
                self._client.build_request(method, target, headers=sent, content=body)
            )
            try:
                self.answered_at = time.monotonic()
                self._require_answer(response)
                yield response
            finally:
                await response.aclose()

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Return status and body of the gateway's own request, at most 1 MiB.

        Raises:
            httpx.HTTPError: There is no answer.
            UpstreamError: The answer cannot be read.
        """
        return await self._ask("GET", path, None, timeout_s, PROBE_BYTES_MAX)

    async def post(
        self, path: str, body: bytes, timeout_s: float, *, bytes_max: int
    ) -> tuple[int, bytes]:
        """Return status and body of the gateway's own question with JSON; errors as `get`."""
        return await self._ask("POST", path, body, timeout_s, bytes_max)

    async def _ask(
        self, method: str, path: str, body: bytes | None, timeout_s: float, bytes_max: int
    ) -> tuple[int, bytes]:
        headers = {"accept-encoding": "identity"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        async with self._client.stream(
            method, path, headers=headers, content=body, timeout=timeout_s
        ) as answer:
            return answer.status_code, await read_body(answer, bytes_max=bytes_max)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and once more if a kept connection turns out to be closed.

        The server may close a connection at the moment it is reused; then no part of the request
        was answered.
        """
        try:
            async with asyncio.timeout(self._head_s):  # a slowly sent head is never silent
                return await self._send_again(request)
        except TimeoutError:
            raise httpx.ReadTimeout("the head of the answer took too long") from None

    async def _send_again(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._client.send(request, stream=True)
        except httpx.RemoteProtocolError as error:
            if "without sending a response" not in str(error):
                raise
        return await self._client.send(request, stream=True)

    def _require_answer(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in _BROKEN_BETWEEN_US:
            self._note(f"it refused the gateway with {status}: check upstream.api_key")
            raise UpstreamError(f"The model server refused the gateway with {status}.")
        if 300 <= status < 400:  # noqa: PLR2004
            where = response.headers.get("location", "")[:LOCATION_CHARS_MAX]
            self._note(f"it redirects with {status} to {where!r}: check upstream.url")
            raise UpstreamError(
                f"The model server redirects with {status}; the gateway does not follow."
            )
        try:
            ContentDecoder(response.headers.get("content-encoding"))
        except WireError as error:
            self._note(str(error))
            raise UpstreamError(f"The model server's answer cannot be read: {error}.") from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate httpx's errors into ours."""
        try:
            yield
        except httpx.TimeoutException as error:
            self._note_failure(error)
            raise UpstreamTimeoutError("The model server did not answer in time.") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            self._note_failure(error)
            raise UpstreamError("The model server could not be reached or broke off.") from error

    def _note_failure(self, error: Exception) -> None:
        self.failed_at = time.monotonic()
        self._note(f"{type(error).__name__}: {error}")

    def _note(self, cause: str) -> None:
        """Log a failure with the URL, which clients must not see; limited in rate."""
        now = time.monotonic()
        if now - self._logged_at < _LOG_INTERVAL_S:
            self._unlogged += 1
            return
        unlogged, self._unlogged, self._logged_at = self._unlogged, 0, now
        more = f" (and {unlogged} more failures since the last line)" if unlogged else ""
        _log.warning("the model server at %s failed: %s%s", self.url, cause, more)


def returned_headers(response: httpx.Response) -> dict[str, str]:
    """Return the headers of an upstream answer to pass on, as Latin-1 like ASGI's."""
    response.headers.encoding = "latin-1"
    return {
        name: value
        for name, value in response.headers.items()
        if name in _RESPONSE_HEADERS or name.startswith(_RESPONSE_PREFIXES)
    }


async def read_pieces(
    response: httpx.Response, *, bytes_max: int | None = None
) -> AsyncIterator[bytes]:
    """Yield an answer's body, decoded, within a bound (O-23).

    Raises:
        UpstreamTimeoutError: It pauses for too long.
        UpstreamError: It breaks off, cannot be decoded, or exceeds `bytes_max` bytes.
    """
    coding = response.headers.get("content-encoding")
    try:
        async for piece in decode_pieces(response.aiter_raw(), coding, bytes_max=bytes_max):
            yield piece
    except httpx.TimeoutException as error:
        raise UpstreamTimeoutError("The model server fell silent.") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise UpstreamError("The model server broke off its answer.") from error
    except WireError as error:
        raise UpstreamError(f"The model server's answer cannot be read: {error}.") from error


async def read_body(response: httpx.Response, *, bytes_max: int = ANSWER_BYTES_MAX) -> bytes:
    """Return an unstreamed answer.

    Raises:
        UpstreamError: It is longer than allowed, or broke off.
    """
    return b"".join([piece async for piece in read_pieces(response, bytes_max=bytes_max)])
