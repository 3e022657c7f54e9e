"""The parts of ASGI that the gate needs: types, headers, complete answers."""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, TypeAlias

from channel.errors import ProblemError
from channel.state.requests import StoredResponse
from channel.wire.challenge import Challenge, format_challenge
from channel.wire.problem import PROBLEM_CONTENT_TYPE, format_problem
from channel.wire.receipt import Receipt, format_receipt

__all__ = [
    "PROBLEM_HEADERS",
    "ASGIApp",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "denying_send",
    "find_header",
    "private_send",
    "send_empty",
    "send_problem",
    "send_refusal",
    "send_stored",
    "with_receipt",
    "with_receipts",
    "without_body",
    "without_receipt",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

PROBLEM_HEADERS: Headers = ((b"content-type", PROBLEM_CONTENT_TYPE.encode("ascii")),)

_RECEIPT = b"payment-receipt"
_RECEIPTS = (_RECEIPT, b"payment-response")
_CACHE = b"cache-control"
_LENGTHS = frozenset(map(len, (*_RECEIPTS, _CACHE)))
_FRAMING = (b"content-length", b"transfer-encoding", _RECEIPT)
_KEPT_PRIVATE = (_CACHE, b"private")
_DIRECTIVE = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+')
_SHARED = ("public", "s-maxage")
_NO_STORE = re.compile(r"(?i)(?:^|,)\s*no-store\s*(?:,|$)")


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the first value of an answer's header, or None; `name` in lower case."""
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None


def without_receipt(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return an application's headers without a receipt: only the gate issues one (CORE-07)."""
    return [pair for pair in headers if pair[0].lower() not in _RECEIPTS]


def without_body(send: Send) -> Send:
    """Return a `send` that passes on an answer's head and none of its content."""
    has_begun = has_ended = False

    async def send_head(message: Message) -> None:
        nonlocal has_begun, has_ended
        if message["type"] == "http.response.start":
            has_begun = True
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in _FRAMING]
            await send(
                {**message, "headers": [*kept, (b"content-length", b"0")], "trailers": False}
            )
        elif has_begun and not has_ended:
            has_ended = True
            await send({"type": "http.response.body", "body": b""})

    return send_head


def with_receipt(headers: Headers, receipt: Receipt) -> list[tuple[bytes, bytes]]:
    """Return the headers with a receipt, and with a private Cache-Control (CORE-06)."""
    return with_receipts(headers, ((_RECEIPT, format_receipt(receipt).encode("ascii")),))


def with_receipts(headers: Headers, receipts: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers with these receipts in place of the application's own."""
    kept, caching = [], []
    for pair in headers:
        name = pair[0]
        if len(name) not in _LENGTHS:
            kept.append(pair)
            continue
        name = name.lower()
        if name == _CACHE:
            caching.append(pair[1].decode("latin-1"))
        elif name not in _RECEIPTS:
            kept.append(pair)
    kept.append((_CACHE, _make_private(caching)) if caching else _KEPT_PRIVATE)
    kept += receipts
    return kept


def private_send(send: Send) -> Send:
    """Return a `send` whose answers no shared cache stores, receipts or not (CORE-06).

    Shared caches treat answers to `Authorization` as private, but know no other such field.
    """

    async def send_private(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ())]
            caching = [value.decode("latin-1") for name, value in headers if name.lower() == _CACHE]
            if not any(_NO_STORE.search(value) for value in caching):
                headers = [pair for pair in headers if pair[0].lower() != _CACHE]
                headers.append((_CACHE, _make_private(caching)))
                message = {**message, "headers": headers}
        await send(message)

    return send_private


def _make_private(values: Iterable[str]) -> bytes:
    directives = [
        directive.strip()
        for value in values
        for directive in _DIRECTIVE.findall(value)
        if directive.strip().partition("=")[0].lower() not in _SHARED
    ]
    if not any(directive.lower() == "private" for directive in directives):
        directives.insert(0, "private")
    return ", ".join(filter(None, directives)).encode("latin-1")


async def _send_whole(
    send: Send, status: int, headers: Headers, body: bytes, *, is_head: bool
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": b"" if is_head else body})


async def send_empty(send: Send, receipt: Receipt) -> None:
    """Answer a management request (RESP-01)."""
    headers = with_receipt([(b"content-length", b"0")], receipt)
    await _send_whole(send, 200, headers, b"", is_head=True)


async def send_stored(
    send: Send, stored: StoredResponse, receipt: Receipt, *, is_head: bool
) -> None:
    """Repeat a stored answer (IDEM-02), with a receipt for the current state."""
    is_success = 200 <= stored.status < 300  # noqa: PLR2004
    headers = with_receipt(stored.headers, receipt) if is_success else stored.headers
    await _send_whole(send, stored.status, headers, stored.body, is_head=is_head)


async def send_problem(
    send: Send, error: ProblemError, challenges: Sequence[Challenge], *, is_head: bool = False
) -> None:
    """Answer with a problem body and, where they help, challenges. No cache may store it."""
    lines = [
        (b"www-authenticate", format_challenge(challenge).encode("latin-1"))
        for challenge in challenges
    ]
    await send_refusal(
        send,
        error,
        lines,
        body=format_problem(error),
        headers=PROBLEM_HEADERS,
        is_head=is_head,
    )


async def send_refusal(
    send: Send,
    error: ProblemError,
    offers: Headers,
    *,
    body: bytes,
    headers: Headers,
    is_head: bool = False,
) -> None:
    """Answer with this body, whose type is in `headers`, and with the header lines of `offers`."""
    sent = [
        *headers,
        (b"content-length", str(len(body)).encode("ascii")),
        (_CACHE, b"no-store"),
    ]
    if error.retry_after_s is not None:
        sent.append((b"retry-after", str(error.retry_after_s).encode("ascii")))
    if error.allow is not None:
        sent.append((b"allow", error.allow.encode("ascii")))
    sent += offers
    await _send_whole(send, error.status, sent, body, is_head=is_head)


def denying_send(scope: Scope, send: Send, code: int) -> Send:
    """Return a `send` that gives an HTTP answer in place of a websocket.

    A server without the extension for that refuses with 403 and no content; `code` is for servers
    that accept first.
    """
    has_extension = "websocket.http.response" in (scope.get("extensions") or {})

    async def send_denial(message: Message) -> None:
        if has_extension:
            await send({**message, "type": "websocket." + message["type"]})
        elif message["type"] == "http.response.start":
            await send({"type": "websocket.close", "code": code})

    return send_denial
