"""What a request states about itself, read before it is verified or buffered."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_address
from time import monotonic
from typing import TypeAlias

from channel.errors import BadRequestError, BodyTimeoutError, ProblemError, TooManyRequestsError
from channel.http.asgi import Headers, Message, Receive, Scope
from channel.http.bodies import BodyRoom
from channel.limits import IDEMPOTENCY_KEY_BYTES_MAX, IDEMPOTENT_REQUEST_BYTES_MAX
from channel.wire.credential import select_credential
from channel.wire.payload import ClosePayload, Payload, TopUpPayload, VoucherPayload

__all__ = [
    "ClientGoneError",
    "RequestBody",
    "brings_deposit",
    "has_alternate_field",
    "is_management",
    "is_preflight",
    "read_accept",
    "read_client",
    "read_credential",
    "read_fields",
    "read_idempotency_key",
    "read_preference",
    "require_no_override",
]

_AUTHORIZATION = b"authorization"
_PAYMENT_AUTHORIZATION = b"payment-authorization"
_IDEMPOTENCY_KEY = b"idempotency-key"
_CONTENT_LENGTH = b"content-length"
_TRANSFER_ENCODING = b"transfer-encoding"
_ACCEPT_PAYMENT = b"accept-payment"
_ACCEPT = b"accept"
_ORIGIN = b"origin"
_REQUESTED_METHOD = b"access-control-request-method"
_OVERRIDES = frozenset((b"x-http-method-override", b"x-http-method", b"x-method-override"))
_NETWORK_BYTES = 8
_OURS = frozenset(
    (
        _AUTHORIZATION,
        _PAYMENT_AUTHORIZATION,
        _IDEMPOTENCY_KEY,
        _CONTENT_LENGTH,
        _TRANSFER_ENCODING,
        _ACCEPT_PAYMENT,
        _ACCEPT,
        _ORIGIN,
        _REQUESTED_METHOD,
        *_OVERRIDES,
    )
)
# For a handler this quick the gate does not check whether the client is still connected: the client
# might as well leave while the answer is under way. The check costs a turn of the loop and a timer,
# a tenth of the whole cost of a paid request.
_QUICK_S = 0.01

Fields: TypeAlias = Mapping[bytes, Sequence[str]]
"""The header fields that the gate reads, each with its values in order."""


def read_fields(headers: Headers) -> Fields:
    """Return the fields that the gate reads; ASGI requires lower-case names."""
    fields: dict[bytes, list[str]] = {}
    for name, value in headers:
        if name in _OURS:
            if name in fields:
                fields[name].append(value.decode("latin-1"))
            else:
                fields[name] = [value.decode("latin-1")]
    return fields


def read_client(scope: Scope) -> bytes:
    """Return a request's source, as a key for counting; empty if unknown.

    For an IPv6 address the key is its network, because one host may use any address in it. Behind
    a proxy the server takes the address from `X-Forwarded-For` if it is configured to.
    """
    client = scope.get("client")
    return _network_of(client[0]) if client else b""


@lru_cache(maxsize=16_384)
def _network_of(host: str) -> bytes:
    try:
        found = ip_address(host)
    except ValueError:
        return b""  # the path of a socket, or a name in a test
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).packed[:_NETWORK_BYTES]


class ClientGoneError(OSError):
    """The client left before it was answered."""


def has_alternate_field(scope: Scope) -> bool:
    """Whether a request has the field that shared caches do not treat as private (CORE-06)."""
    return scope["type"] == "http" and any(
        name.lower() == _PAYMENT_AUTHORIZATION for name, _ in scope["headers"]
    )


def read_credential(fields: Fields, field: str | None) -> str | None:
    """Return the request's one Payment credential, from the configured field only (CHAL-12).

    Raises:
        BadRequestError: More than one, in any field (CORE-10).
        MalformedCredentialError: Longer than the bound (CORE-14).
    """
    plain = fields.get(_AUTHORIZATION, ())
    extra = fields.get(_PAYMENT_AUTHORIZATION, ())
    if extra:
        select_credential([*plain, *extra])
    return select_credential(plain if field is None else extra)


def is_management(method: str, fields: Fields, query: bytes, payload: Payload) -> bool:
    """Whether a credential manages the channel and buys nothing (RESP-02).

    Decided by method and action: HEAD, top-up and close always do; a POST with a voucher or an
    opening does without body and query. The body is never read for that (F-12): a body that neither
    a length nor a transfer coding announces does not exist.
    """
    if method == "HEAD":
        return True
    if isinstance(payload, ClosePayload | TopUpPayload):
        return True
    if method != "POST" or query:
        return False
    has_body = any(length.strip() != "0" for length in fields.get(_CONTENT_LENGTH, ()))
    return not has_body and _TRANSFER_ENCODING not in fields


def is_preflight(fields: Fields) -> bool:
    """Whether an OPTIONS request is a browser's preflight, which carries no credential."""
    return _ORIGIN in fields and _REQUESTED_METHOD in fields


def require_no_override(fields: Fields, method: str) -> None:
    """Check that no header field asks the application for another method.

    Raises:
        BadRequestError: One does.
    """
    for name in _OVERRIDES & fields.keys():
        if any(value.strip().upper() != method for value in fields[name]):
            raise BadRequestError(
                f"{name.decode()}: send the method itself; this path has a price."
            )


def brings_deposit(payload: Payload) -> bool:
    """Return whether a credential opens a channel or adds to its deposit."""
    if isinstance(payload, VoucherPayload):
        return payload.deposit is not None
    return not isinstance(payload, ClosePayload)


def read_accept(fields: Fields) -> str:
    """Return the client's `Accept`, or an empty string."""
    return ", ".join(fields.get(_ACCEPT, ()))


def read_preference(fields: Fields) -> str | None:
    """Return the client's `Accept-Payment`, or None (CORE-11)."""
    values = fields.get(_ACCEPT_PAYMENT)
    return None if values is None else ", ".join(values)


def read_idempotency_key(fields: Fields) -> str | None:
    """Return the request's idempotency key (IDEM-01).

    Raises:
        BadRequestError: Two of them, an empty one, too long, or not printable ASCII.
    """
    keys = fields.get(_IDEMPOTENCY_KEY)
    if keys is None:
        return None
    key = keys[0]
    if len(keys) > 1 or not key.isascii() or not key.isprintable():
        raise BadRequestError("Idempotency-Key: one value of printable ASCII.")
    if not 0 < len(key) <= IDEMPOTENCY_KEY_BYTES_MAX:
        raise BadRequestError(f"Idempotency-Key: 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes.")
    return key


class RequestBody:
    """The messages of a request: read ahead when needed, and replayed to the handler.

    After `bound`, its bytes count until the answer begins, and it must arrive in time.
    """

    def __init__(self, receive: Receive) -> None:
        self.refusal: ProblemError | None = None
        """Why the rest of the body was refused; the gate answers with it."""
        self.size = 0
        """Bytes received."""
        self._receive = receive
        self._ahead: deque[Message] = deque()
        self._is_gone = False
        self._is_whole = False
        self._handled_since = 0.0
        self._room: BodyRoom | None = None
        self._timeout_s = 0.0
        self._deadline = 0.0

    def bound(self, room: BodyRoom, timeout_s: float) -> None:
        """Set a deadline for the rest of the body, and count its bytes in `room`."""
        self._room = room
        self._timeout_s = timeout_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s

    def begin_handling(self) -> None:
        """Record that the handler runs from now on."""
        self._handled_since = monotonic()

    def release(self) -> None:
        """Record that the body is no longer needed; further bytes are not counted."""
        if self._room is not None:
            self._room.release()
            self._room = None

    async def receive(self) -> Message:
        """Return the next message, like ASGI's `receive`.

        Raises:
            TooManyRequestsError: Bodies hold too many bytes.
            BodyTimeoutError: The body has not arrived in time.
        """
        if self._ahead:
            return self._ahead.popleft()
        return await self._next()

    async def _next(self) -> Message:
        if self._room is None or self._is_whole:
            return self._note(await self._receive())
        if self.refusal is not None:
            raise self.refusal
        try:
            async with asyncio.timeout_at(self._deadline):
                message = self._note(await self._receive())
            self._room.take(len(message.get("body", b"")))
        except TimeoutError:
            self.refusal = BodyTimeoutError(
                f"The request's body must arrive within {self._timeout_s:g} s."
            )
            raise self.refusal from None
        except TooManyRequestsError as error:
            self.refusal = error
            raise
        self._is_whole = not message.get("more_body", False)
        return message

    async def digest(self, scope: Scope, *, what: str = "Idempotency-Key") -> bytes:
        """Return SHA-256 over method, target and body; the handler still gets the body.

        `what` asks for it, in the error for a body that is too large.

        Raises:
            TooManyRequestsError: As for `receive`.
            BodyTimeoutError: As for `receive`.
            BadRequestError: The body is larger than the bound for an idempotent request.
            ClientGoneError: The client left while it was sending.
        """
        target = scope.get("raw_path") or scope["path"].encode("utf-8")
        head = b"\0".join((scope["method"].encode("ascii"), target, scope["query_string"], b""))
        digest, size = sha256(head), 0
        while True:
            message = await self._next()
            if self._is_gone:
                raise ClientGoneError("while it was sending its request")
            body = message.get("body", b"")
            self._ahead.append(message)
            digest.update(body)
            size += len(body)
            if size > IDEMPOTENT_REQUEST_BYTES_MAX:
                raise BadRequestError(
                    f"{what}: for bodies of at most {IDEMPOTENT_REQUEST_BYTES_MAX} bytes."
                )
            if not message.get("more_body", False):
                return digest.digest()

    async def require_client(self) -> None:
        """Check, without waiting, that the client is still there.

        A complete body that the handler never read is skipped; of a longer one, at most one
        message is read ahead.

        Raises:
            ClientGoneError: It has left.
        """
        if monotonic() - self._handled_since < _QUICK_S:
            return
        with suppress(TimeoutError):
            while not self._is_gone and not (self._ahead and self._ahead[-1].get("more_body")):
                async with asyncio.timeout(0):
                    message = self._note(await self._receive())
                self._ahead.append(message)
        if self._is_gone:
            raise ClientGoneError("before it was answered")

    def _note(self, message: Message) -> Message:
        if message["type"] == "http.disconnect":
            self._is_gone = True
        self.size += len(message.get("body", b""))
        return message
