"""The paying proxy as an ASGI application.

It sends each request to its upstream through a client that pays, and passes the answer on as it
comes. A client that disconnects ends the upstream's request. What the proxy itself refuses is an
error in OpenAI's form with a status that no SDK retries, unless a retry can help.
"""

import asyncio
from collections.abc import Collection
from typing import Any, Final, Self

import httpx
import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from channel.client.http.bodies import KEPT_BODY_BYTES_MAX
from channel.client.http.transport import IDEMPOTENCY_KEY, ORIGIN, origin_of
from channel.client.payment.retry import LostKeys, answer_refusal
from channel.errors import MppSessionError
from channel.tasks import first_of
from channel.wire.sse import CONTENT_TYPE
from mpp_session.wallet.proxy.clients import Clients, OpenClient, TooManyClientsError
from mpp_session.wallet.proxy.guarding import StrangerError, own_host, require_no_page
from mpp_session.wallet.proxy.tokens import TokenError, take_token
from mpp_session.wallet.proxy.upstreams import Target, UnknownTargetError, Upstreams

__all__ = ["Proxy", "build_proxy"]

_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("proxy-connection", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Of one connection, not of the message (RFC 9110, 7.6.1)."""
_REQUEST_KEPT: Final = _HOP_BY_HOP | {
    *("host", "content-length", "expect", "accept-encoding"),  # written anew
    *("origin", "referer", "sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site"),
}
_ANSWER_KEPT: Final = _HOP_BY_HOP | {
    *("content-encoding", "date", "server"),
    # of the upstream's own address: they would speak for 127.0.0.1
    *("alt-svc", "strict-transport-security"),
}
_CORS: Final = "access-control-"
_GATEWAY_TIMEOUT: Final = 504
"""The answer may have been made, and was lost behind the upstream."""
_STATUS: Final[tuple[tuple[type[MppSessionError], int], ...]] = (
    (StrangerError, 403),
    (TokenError, 401),
    (UnknownTargetError, 404),
    (TooManyClientsError, 503),
)
_RETRIED: Final = 500
"""The least status that SDKs retry."""


class _ClosedError(Exception):
    """The client has disconnected."""


class _TooLongError(MppSessionError):
    """The request's body is longer than what can be sent again after a 402."""


def build_proxy(
    open_client: OpenClient,
    upstreams: Upstreams,
    *,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
) -> "Proxy":
    """Return the application; enter it before it is served.

    Args:
        open_client: Opens the client that pays for the agent with a token.
        upstreams: The servers behind the proxy.
        hosts: Names of this proxy beside loopback's.
        origins: Web pages that may use it.
    """
    return Proxy(Clients(open_client), upstreams, hosts=hosts, origins=origins)


class Proxy:
    """Pays for the requests that pass through it."""

    def __init__(
        self,
        clients: Clients,
        upstreams: Upstreams,
        *,
        hosts: Collection[str],
        origins: Collection[str],
    ) -> None:
        self._clients = clients
        self._upstreams = upstreams
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    async def __aenter__(self) -> Self:
        await self._clients.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._clients.__aexit__(*error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        answer = _Answer(scope, send)
        try:
            await self._answer(scope, receive, answer)
        except _ClosedError:
            return
        except MppSessionError as error:
            if answer.is_begun:
                raise
            await answer.refuse(error)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        headers = Headers(scope=scope)
        path, query = scope["raw_path"], scope["query_string"]
        host = "" if not path.startswith(b"/") else own_host(headers, self._hosts)
        answer.page = require_no_page(headers, self._origins)
        if answer.page is not None and scope["method"] == "OPTIONS":
            await answer.allow_page(headers)
            return
        target = self._upstreams.find(path, query, host)
        token, kept = take_token(headers)
        if token is None:
            raise TokenError(
                "expected a token as the API key (`Authorization: Bearer mpp_...`), found none "
                "that begins with mpp_: give the program the token that the proxy printed, or with "
                "--wallet its agent's token, as its API key"
            )
        content = await _read_body(receive)
        async with self._clients.use(token) as (client, lost_keys):
            request = _build_request(scope["method"], target, headers, kept, content, client)
            exchange = _Exchange(client, lost_keys, request, content, target)
            await first_of(exchange.run(answer), _until_disconnected(receive))


class _Exchange:
    """One request to an upstream, and its answer."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        lost_keys: LostKeys,
        request: httpx.Request,
        content: bytes,
        target: Target,
    ) -> None:
        self._client = client
        self._lost_keys = lost_keys
        self._request = request
        self._content = content
        self._target = target

    async def run(self, answer: "_Answer") -> None:
        """Send the request, and pass its answer on.

        The client keeps the keys of requests that it sent and got no answer to. Here are those of
        answers that did not reach this proxy's client.
        """
        self._reuse_key()
        try:
            response = await self._client.send(self._request, stream=True)
        except MppSessionError as error:
            await answer.refuse(error)
            return
        except (httpx.TransportError, httpx.InvalidURL) as error:
            await answer.fail(502, f"{self._target.upstream.url}: {error or type(error).__name__}")
            return
        is_stream = response.headers.get("content-type", "").lower().startswith(CONTENT_TYPE)
        if response.status_code == _GATEWAY_TIMEOUT:
            self._note_lost()
        try:
            await answer.begin(response, self._target)
            async for piece in response.aiter_bytes():
                await answer.send(piece)
            await answer.end()
        except asyncio.CancelledError:
            if not is_stream:  # who asks again wants this answer; a stream was left on purpose
                self._note_lost()
            raise
        except (MppSessionError, httpx.HTTPError) as error:
            if not is_stream:
                self._note_lost()
                raise
            await answer.end(_error_event(error))
        finally:
            await response.aclose()

    def _reuse_key(self) -> None:
        """Ask with the key of an identical request whose answer was lost: it is paid once."""
        now = asyncio.get_running_loop().time()
        key = self._lost_keys.take(self._request, self._content, now)
        if key is not None and "idempotency-key" not in self._request.headers:
            held = self._request.extensions
            held[ORIGIN], held[IDEMPOTENCY_KEY] = origin_of(self._request.url), key

    def _note_lost(self) -> None:
        key = self._request.extensions.get(IDEMPOTENCY_KEY)
        if isinstance(key, str) and key:
            now = asyncio.get_running_loop().time()
            self._lost_keys.note(self._request, self._content, key, now)


class _Answer:
    """The answer to the client."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._method = scope["method"]
        self._send = send
        self.page: str | None = None
        """The web page that may read the answer."""
        self.is_begun = False

    async def begin(self, response: httpx.Response, target: Target) -> None:
        """Send the head of an upstream's answer."""
        headers = [
            (name, target.localize(value) if name == "location" else value)
            for name, value in (
                (name.lower(), value) for name, value in response.headers.multi_items()
            )
            if name not in _ANSWER_KEPT and not name.startswith(_CORS)
        ]
        if "content-encoding" in response.headers:  # it is decoded here
            headers = [(name, value) for name, value in headers if name != "content-length"]
        await self._begin(response.status_code, headers)

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body without a delay."""
        if self._method != "HEAD":
            message = {"type": "http.response.body", "body": piece, "more_body": True}
            await self._send(message)

    async def end(self, piece: bytes = b"") -> None:
        """Send the end of the body."""
        await self._send({"type": "http.response.body", "body": piece})

    async def refuse(self, error: MppSessionError) -> None:
        """Send a refusal of the proxy itself."""
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
        if isinstance(error, _TooLongError):
            status = 413
        if status is None:
            await self._whole(answer_refusal(error))
        else:
            await self.fail(status, str(error), kind="invalid_request_error")

    async def fail(self, status: int, message: str, *, kind: str = "proxy_error") -> None:
        """Send an error in OpenAI's form."""
        body = {"error": {"message": message, "type": kind, "code": _code(status), "param": None}}
        should_retry = "true" if status >= _RETRIED else "false"
        headers = {"Content-Type": "application/json", "X-Should-Retry": should_retry}
        await self._whole(
            httpx.Response(status, headers=headers, content=msgspec.json.encode(body))
        )

    async def allow_page(self, asked: Headers) -> None:
        """Answer the question of a browser whether a page may send its request."""
        headers = [("access-control-max-age", "600")]
        for name in ("method", "headers"):
            wanted = asked.get(f"access-control-request-{name}")
            if wanted:
                headers.append((f"access-control-allow-{name}{'s' * (name == 'method')}", wanted))
        await self._begin(204, headers)
        await self.end()

    async def _whole(self, response: httpx.Response) -> None:
        await self._begin(response.status_code, [*response.headers.multi_items()])
        await self.end(b"" if self._method == "HEAD" else response.content)

    async def _begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        if self.page is not None:
            headers = [
                *headers,
                ("access-control-allow-origin", self.page),
                ("access-control-expose-headers", "*"),
                ("vary", "origin"),
            ]
        raw = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in headers]
        self.is_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def _code(status: int) -> str:
    return {401: "wallet_token", 403: "stranger", 404: "unknown_upstream", 413: "too_long"}.get(
        status,
        "upstream_unreachable" if status < 503 else "busy",  # noqa: PLR2004
    )


def _error_event(error: Exception) -> bytes:
    """Return the last event of a stream that ends early, as clients of model servers read it."""
    if isinstance(error, MppSessionError):
        return b"\n\ndata: " + answer_refusal(error).content + b"\n\n"
    body: dict[str, Any] = {
        "error": {
            "message": f"the stream broke off: {error or type(error).__name__}",
            "type": "proxy_error",
            "code": "upstream_unreachable",
        }
    }
    return b"\n\ndata: " + msgspec.json.encode(body) + b"\n\n"


def _build_request(  # noqa: PLR0917 -- the parts of a request
    method: str,
    target: Target,
    headers: Headers,
    kept: Collection[str],
    content: bytes,
    client: httpx.AsyncClient,
) -> httpx.Request:
    named = {
        word.strip().lower() for value in headers.getlist("connection") for word in value.split(",")
    }
    passed = [
        (name, value)
        for name, value in headers.items()
        if name not in _REQUEST_KEPT and name not in kept and name not in named
    ]
    key = target.upstream.key
    if key is not None:
        passed = [(name, value) for name, value in passed if name != "authorization"]
        passed.append(("authorization", f"Bearer {key.reveal()}"))
    request = httpx.Request(
        method,
        target.url,
        headers=passed,
        content=content or None,
        extensions={"timeout": client.timeout.as_dict()},
    )
    if not content and method in ("POST", "PUT", "PATCH"):
        request.headers["Content-Length"] = "0"
    return request


async def _read_body(receive: Receive) -> bytes:
    """Return the whole body: it may have to be sent twice.

    Raises:
        _ClosedError: The client went away before its end.
        _TooLongError: It is longer than what is kept.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _ClosedError
        body += message.get("body", b"")
        if len(body) > KEPT_BODY_BYTES_MAX:
            raise _TooLongError(
                f"expected a body of at most {KEPT_BODY_BYTES_MAX} bytes: a longer one cannot be "
                "sent again after a 402"
            )
        if not message.get("more_body", False):
            return bytes(body)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
