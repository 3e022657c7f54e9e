"""The model server over HTTP: what is sent, what comes back, and what is never passed on.

Between a client and a model server, headers are passed on by name; every other one is dropped. For
any other server all pass but some. No credential, cookie or authorisation of a client reaches a
server in either case, and no header of a server can pass for a payment header. aiohttp speaks HTTP,
because its parser is in C; only this module and `connector` know of it.
"""

import asyncio
import base64
import io
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
import httpx
import msgspec
from starlette.datastructures import Headers
from yarl import URL

from channel.errors import WireError
from channel.limits import (
    ANSWER_BYTES_MAX,
    HEAD_LINES_MAX,
    LOCATION_CHARS_MAX,
    PROBE_BYTES_MAX,
    READ_BYTES_MAX,
)
from channel.wire.coding import ContentDecoder, decode_pieces
from mpp_session.gateway.connector import Connector
from mpp_session.gateway.errors import ConnectTimeoutError, UpstreamError, UpstreamTimeoutError
from mpp_session.settings import Upstream as UpstreamSettings

__all__ = [
    "Upstream",
    "UpstreamAnswer",
    "all_headers",
    "forwarded_headers",
    "read_body",
    "read_pieces",
    "returned_headers",
]

_log: Final = logging.getLogger(__name__)

_IDLE_S_MAX: Final = 3.0
"""Below most servers' five seconds, so that no request meets a closing connection."""
_SENT_WHOLE_BYTES: Final = 1024 * 1024
"""aiohttp writes a longer body in pieces, so that other requests get their turn."""

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
_CONTROL: Final = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
"""What no field value holds (RFC 9110, 5.5). aiohttp reads answers leniently."""
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Of one connection, not of the message (RFC 9110, 7.6.1)."""
_REQUEST_KEPT: Final = _HOP_BY_HOP | {
    *("accept-encoding", "content-length", "expect", "host"),  # written anew
    *("authorization", "cookie", "forwarded", "x-real-ip"),
    # The answer would be a part of what is sold, or say for free that a copy is still right.
    *("if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "range"),
}
_ANSWER_KEPT: Final = _HOP_BY_HOP | {
    *("accept-ranges", "content-encoding", "content-length", "date", "server"),
    *("alt-svc", "set-cookie", "strict-transport-security", "www-authenticate"),
}
_KEPT_PREFIXES: Final = ("payment-", "x-forwarded-")
"""What is not passed on between a client and any other HTTP server: credentials and cookies, claims
about the client's address, payment headers, and what the gateway writes itself."""

_BROKEN_BETWEEN_US: Final = frozenset({401, 402, 403, 407})
"""Refusals of the gateway itself: passed on, they would mislead the client."""
_RESENT_BY_AIOHTTP: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_LOG_INTERVAL_S: Final = 10.0


class UpstreamAnswer(msgspec.Struct):
    """An answer of the model server. Its head was read; its body is still to come."""

    status_code: int
    headers: dict[str, str]
    """By lower-case name, as Latin-1 like ASGI's; several lines of one name joined by commas."""
    read_raw: Callable[[], AsyncIterator[bytes]]
    """Yields the body as it was sent: TimeoutError and ConnectionError when it breaks off."""

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status_code < 300  # noqa: PLR2004


class Upstream:
    """Connections to the model server.

    An answer's head has at most `HEAD_LINES_MAX` lines, of 8,190 bytes each. Connections are as
    many as requests were in flight together; each is kept for three seconds after an answer.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: UpstreamSettings) -> None:
        url = URL(settings.url.rstrip("/"), encoded=True)
        self.url = str(url.with_user(None))
        self.answered_at = -math.inf
        """When the server last sent an answer's head, by the monotonic clock."""
        self.failed_at = -math.inf
        """When it last could not be reached, or broke off."""
        self._session = session
        self._connect_s = settings.connect_timeout_s
        self._read_s = settings.read_timeout_s
        self._own_headers = {"accept-encoding": "identity"}  # compressed, events would come late
        if url.user is not None:
            pair = f"{url.user}:{url.password or ''}".encode()
            self._own_headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        elif settings.api_key is not None:
            self._own_headers["authorization"] = f"Bearer {settings.api_key.reveal()}"
        self._logged_at = -math.inf
        self._unlogged = 0

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: UpstreamSettings) -> AsyncIterator[Self]:
        """Keep connections to the configured server until the context ends."""
        is_secure = settings.url.startswith("https:")
        async with aiohttp.ClientSession(
            connector=Connector(
                limit=0,  # as many as the gateway has clients
                keepalive_timeout=_IDLE_S_MAX,
                use_dns_cache=False,
                ssl=httpx.create_ssl_context(trust_env=False) if is_secure else True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Content-Type"),
            trust_env=False,  # no proxy or .netrc of the machine between gateway and model
            auto_decompress=False,  # `ContentDecoder` does, with a bound
            read_bufsize=READ_BYTES_MAX,
            max_headers=HEAD_LINES_MAX,
        ) as session:
            yield cls(session, settings)

    @asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Headers, body: bytes | None
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send a request; the answer's body is not read yet. Leaving the context cancels it.

        Raises:
            UpstreamTimeoutError: No connection, or no answer, in time. Its cause is a
                `ConnectTimeoutError` if the server has not seen the request.
            UpstreamError: The server cannot be reached, breaks off, refuses the gateway, redirects
                it, or encodes its answer in an unsupported way.
        """
        sent = {name: headers[name] for name in _REQUEST_HEADERS if name in headers}
        async with self.send(method, target, sent, body) as answer:
            yield answer

    @asynccontextmanager
    async def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send a request with all of these headers; otherwise like `request`."""
        sent = {name: _as_utf8(value) for name, value in headers.items()}
        try:
            response = await self._send(
                method, target, sent, body, connect_s=self._connect_s, read_s=self._read_s
            )
        except TimeoutError as error:
            self._note_failure(error)
            raise UpstreamTimeoutError("The model server did not answer in time.") from error
        except ConnectionError as error:
            self._note_failure(error)
            raise UpstreamError("The model server could not be reached or broke off.") from error
        try:
            self.answered_at = time.monotonic()
            answer = _read_head(response)
            self._require_answer(answer)
            yield answer
        finally:
            response.close()

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Return status and body of the gateway's own request, at most 1 MiB.

        Raises:
            ConnectTimeoutError: The server took no connection in time.
            TimeoutError: The server did not answer in time.
            ConnectionError: There is no answer.
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
        headers = {} if body is None else {"content-type": "application/json"}
        response = await self._send(
            method, path, headers, body, connect_s=timeout_s, read_s=timeout_s
        )
        try:
            answer = _read_head(response)
            return answer.status_code, await read_body(answer, bytes_max=bytes_max)
        finally:
            response.close()

    async def _send(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes | None,
        *,
        connect_s: float,
        read_s: float,
    ) -> aiohttp.ClientResponse:
        """Send a request, and return its answer's head.

        Raises:
            ConnectTimeoutError: The server took no connection in time.
            TimeoutError: There is no head in time.
            ConnectionError: The server cannot be reached, breaks off, or does not speak HTTP.
        """
        if not target.startswith("/"):  # appended to the URL, it would change the host
            raise ValueError(f"{target!r} is not a path")
        url = URL(self.url + target, encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=read_s)
        try:
            async with asyncio.timeout(connect_s + read_s):  # a slowly sent head is never silent
                return await self._send_again(
                    method, url, headers | self._own_headers, body, timeout
                )
        except aiohttp.ConnectionTimeoutError as error:
            raise ConnectTimeoutError(f"no connection within {connect_s:g} s") from error
        except TimeoutError as error:
            raise TimeoutError("the head of the answer took too long") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(_describe(error)) from error

    async def _send_again(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: bytes | None,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- aiohttp's
    ) -> aiohttp.ClientResponse:
        """Send a request, and once more if a kept connection turns out to be closed.

        The server may close a connection at the moment it is reused; then no part of the request
        was answered. aiohttp repeats only requests without effect.
        """
        tries = 1 if method in _RESENT_BY_AIOHTTP else 2
        while True:
            tries -= 1
            is_long = body is not None and len(body) > _SENT_WHOLE_BYTES
            try:
                return await self._session.request(
                    method,
                    url,
                    headers=headers,
                    data=io.BytesIO(body) if body is not None and is_long else body,
                    allow_redirects=False,
                    timeout=timeout,
                )
            except aiohttp.ServerDisconnectedError as error:
                if not tries or not isinstance(error.message, str):  # else a part of a head
                    raise

    def _require_answer(self, answer: UpstreamAnswer) -> None:
        status = answer.status_code
        if status < 200:  # noqa: PLR2004
            self._note(f"it changes the protocol with {status}")
            raise UpstreamError(f"The model server answered with {status}.")
        if status in _BROKEN_BETWEEN_US:
            self._note(f"it refused the gateway with {status}: check upstream.api_key")
            raise UpstreamError(f"The model server refused the gateway with {status}.")
        if 300 <= status < 400:  # noqa: PLR2004
            where = answer.headers.get("location", "")[:LOCATION_CHARS_MAX]
            self._note(f"it redirects with {status} to {where!r}: check upstream.url")
            raise UpstreamError(
                f"The model server redirects with {status}; the gateway does not follow."
            )
        for name, value in returned_headers(answer).items():
            if _CONTROL.search(value):
                self._note(f"its header {name!r} holds control characters")
                raise UpstreamError("The model server's answer cannot be read: not a header.")
        try:
            ContentDecoder(answer.headers.get("content-encoding"))
        except WireError as error:
            self._note(str(error))
            raise UpstreamError(f"The model server's answer cannot be read: {error}.") from error

    def _note_failure(self, error: Exception) -> None:
        self.failed_at = time.monotonic()
        self._note(str(error))

    def _note(self, cause: str) -> None:
        """Log a failure with the URL, which clients must not see; limited in rate."""
        now = time.monotonic()
        if now - self._logged_at < _LOG_INTERVAL_S:
            self._unlogged += 1
            return
        unlogged, self._unlogged, self._logged_at = self._unlogged, 0, now
        more = f" (and {unlogged} more failures since the last line)" if unlogged else ""
        _log.warning("the model server at %s failed: %s%s", self.url, cause, more)


def _describe(error: Exception) -> str:
    """Return an error of aiohttp's as one line; it may quote the server at length."""
    text = " ".join(str(error)[:LOCATION_CHARS_MAX].split())
    return f"{type(error).__name__}: {text}"


def _as_utf8(value: str) -> str:
    """Return a Latin-1 field value as aiohttp must get it to send the same bytes.

    It encodes text as UTF-8. A value that is not UTF-8 keeps its characters, in other bytes.
    """
    try:
        return value if value.isascii() else value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _read_head(response: aiohttp.ClientResponse) -> UpstreamAnswer:
    headers = _joined(
        (name.decode("latin-1").lower(), value.decode("latin-1"))
        for name, value in response.raw_headers
    )
    connection = response.connection
    protocol = None if connection is None else connection.protocol

    async def read_raw() -> AsyncIterator[bytes]:
        content = response.content
        try:
            while piece := await content.readany():
                yield piece
            if protocol is not None and not {"content-length", "transfer-encoding"} & {*headers}:
                # Only the end of the connection ends this body; aiohttp takes a reset for an end.
                error = protocol.exception()
                if isinstance(error, OSError):
                    raise error
        except (aiohttp.ClientError, OSError) as error:
            # aiohttp reports the failure first, though these bytes came before it.
            if piece := content._read_nowait(-1):  # noqa: SLF001 -- no public way
                yield piece
            if isinstance(error, TimeoutError):
                raise TimeoutError("the body of the answer took too long") from error
            raise ConnectionError(_describe(error)) from error

    return UpstreamAnswer(response.status, headers, read_raw)


def returned_headers(answer: UpstreamAnswer) -> dict[str, str]:
    """Return the headers of an upstream answer to pass on."""
    return {
        name: value
        for name, value in answer.headers.items()
        if name in _RESPONSE_HEADERS or name.startswith(_RESPONSE_PREFIXES)
    }


def forwarded_headers(headers: Headers) -> dict[str, str]:
    """Return the headers of a request for any HTTP server: all but those that stay here."""
    return _without(_joined(headers.items()), _REQUEST_KEPT)


def all_headers(answer: UpstreamAnswer) -> dict[str, str]:
    """Return the headers of any HTTP server's answer to pass on: all but those that stay here.

    Raises:
        UpstreamError: One holds control characters.
    """
    found = _without(answer.headers, _ANSWER_KEPT)
    if any(_CONTROL.search(value) for value in found.values()):
        raise UpstreamError("The server's answer cannot be read: not a header.")
    return found


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _without(headers: Mapping[str, str], kept: Collection[str]) -> dict[str, str]:
    named = {one.strip().lower() for one in headers.get("connection", "").split(",")}
    return {
        name: value
        for name, value in headers.items()
        if name not in kept and name not in named and not name.startswith(_KEPT_PREFIXES)
    }


async def read_pieces(
    answer: UpstreamAnswer, *, bytes_max: int | None = None
) -> AsyncIterator[bytes]:
    """Yield an answer's body, decoded, within a bound (O-23).

    Raises:
        UpstreamTimeoutError: It pauses for too long.
        UpstreamError: It breaks off, cannot be decoded, or exceeds `bytes_max` bytes.
    """
    coding = answer.headers.get("content-encoding")
    try:
        async for piece in decode_pieces(answer.read_raw(), coding, bytes_max=bytes_max):
            yield piece
    except TimeoutError as error:
        raise UpstreamTimeoutError("The model server fell silent.") from error
    except ConnectionError as error:
        raise UpstreamError("The model server broke off its answer.") from error
    except WireError as error:
        raise UpstreamError(f"The model server's answer cannot be read: {error}.") from error


async def read_body(answer: UpstreamAnswer, *, bytes_max: int = ANSWER_BYTES_MAX) -> bytes:
    """Return an unstreamed answer.

    Raises:
        UpstreamError: It is longer than allowed, or broke off.
    """
    return b"".join([piece async for piece in read_pieces(answer, bytes_max=bytes_max)])
