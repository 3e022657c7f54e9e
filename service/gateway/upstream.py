"""The model server, over httpx: what is sent to it, what comes back, and what never crosses.

Headers are passed on by name, in both directions; everything that is not named stays here. So
no credential, cookie or authorisation of a client can reach the model server, and nothing of
the model server's can pass for a payment header of ours.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Self

import httpx
from starlette.datastructures import Headers

from service.gateway.errors import UpstreamError, UpstreamTimeoutError
from service.settings import Upstream as UpstreamSettings

__all__ = ["Upstream", "read_body", "returned_headers"]

_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024

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
"""A refusal of the gateway by the model server: to a client it would say something untrue."""


class Upstream:
    """Connections to the model server."""

    def __init__(self, client: httpx.AsyncClient, api_key: str | None) -> None:
        self._client = client
        self._api_key = api_key

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: UpstreamSettings) -> AsyncIterator[Self]:
        """Keep connections to the configured server until the block ends."""
        timeout = httpx.Timeout(
            settings.read_timeout_s, connect=settings.connect_timeout_s, pool=None
        )
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(
            base_url=settings.url.rstrip("/"),
            timeout=timeout,
            limits=limits,
            trust_env=False,  # no proxy or .netrc of the machine between us and the model
        ) as client:
            key = settings.api_key
            yield cls(client, None if key is None else key.reveal())

    @asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Headers, body: bytes | None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; the answer's body is not read yet. Leaving the block cancels it.

        Raises:
            UpstreamTimeoutError: No connection, or no answer, in time.
            UpstreamError: The server cannot be reached, breaks off, or refuses the gateway.
        """
        sent = {  # as bytes: httpx would take text for ASCII, which a stranger's need not be
            name.encode("ascii"): headers[name].encode("latin-1")
            for name in _REQUEST_HEADERS
            if name in headers
        }
        sent[b"accept-encoding"] = b"identity"  # compressed events would arrive in lumps
        if self._api_key is not None:
            sent[b"authorization"] = f"Bearer {self._api_key}".encode("ascii")
        with _translated():
            async with self._client.stream(method, target, headers=sent, content=body) as response:
                if response.status_code in _BROKEN_BETWEEN_US:
                    raise UpstreamError(
                        f"The model server refused the gateway with {response.status_code}."
                    )
                yield response


@contextmanager
def _translated() -> Iterator[None]:
    """Turn httpx's errors into ours, also those raised while the body is read."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise UpstreamTimeoutError("The model server did not answer in time.") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise UpstreamError("The model server could not be reached or broke off.") from error


def returned_headers(response: httpx.Response) -> dict[str, str]:
    """Return the headers of an upstream answer that go to the client, as Latin-1 like ASGI's."""
    response.headers.encoding = "latin-1"
    return {
        name: value
        for name, value in response.headers.items()
        if name in _RESPONSE_HEADERS or name.startswith(_RESPONSE_PREFIXES)
    }


async def read_body(response: httpx.Response) -> bytes:
    """Return an answer in one piece.

    Raises:
        UpstreamError: It is longer than any answer should be, or broke off.
    """
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _ANSWER_BYTES_MAX:
            raise UpstreamError("The model server's answer is too long.")
    return bytes(body)
