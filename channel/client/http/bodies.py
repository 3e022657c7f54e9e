"""Bodies that are looked at on their way: requests that may be sent twice, answers that explain.

Both are held in memory up to a bound and no further.
"""

from collections.abc import AsyncIterator

import httpx

from channel.client.payment.presenting import Reply
from channel.errors import BodyNotReplayableError, WireError
from channel.limits import PROBLEM_BYTES_MAX
from channel.wire.coding import decode_pieces
from channel.wire.problem import PROBLEM_CONTENT_TYPE

__all__ = [
    "REQUEST_BYTES_MAX",
    "RequestBody",
    "bound_coding",
    "build_reply",
    "read_reply",
    "read_request_body",
]

REQUEST_BYTES_MAX = 16 * 1024 * 1024


class _JoinedStream(httpx.AsyncByteStream):
    """A stream whose beginning was read already."""

    def __init__(self, prefix: bytes, rest: AsyncIterator[bytes], whole: object) -> None:
        self._prefix = prefix
        self._rest = rest
        self._whole = whole

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield everything, once."""
        if self._prefix:
            yield self._prefix
        async for chunk in self._rest:
            yield chunk

    async def aclose(self) -> None:
        """Close what was read from."""
        if isinstance(self._whole, httpx.AsyncByteStream):
            await self._whole.aclose()


class RequestBody:
    """A request's body: in memory, or too long for that and to be sent once."""

    def __init__(self, content: bytes | None, once: _JoinedStream | None = None) -> None:
        self.content = content
        """None when it cannot be sent twice."""
        self._once = once

    def fits(self, bytes_max: int) -> bool:
        """Say whether it is known to be no longer than that."""
        return self.content is not None and len(self.content) <= bytes_max

    def stream(self) -> httpx.AsyncByteStream:
        """Return the body to send.

        Raises:
            BodyNotReplayableError: It was sent once and cannot be sent again.
        """
        if self.content is not None:
            return httpx.ByteStream(self.content)
        if self._once is None:
            raise BodyNotReplayableError(
                f"A 402 came after a body of more than {REQUEST_BYTES_MAX} bytes, which is gone. "
                "Pay for this route with a small request first, then send this one."
            )
        once, self._once = self._once, None
        return once


async def read_request_body(request: httpx.Request) -> RequestBody:
    """Read a body into memory up to a bound, so that it can be sent again after a 402."""
    stream = request.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError("an asynchronous client sends asynchronous bodies")
    chunks = aiter(stream)
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) > REQUEST_BYTES_MAX and not isinstance(stream, httpx.ByteStream):
            return RequestBody(None, _JoinedStream(bytes(held), chunks, stream))
    return RequestBody(bytes(held))


def build_reply(response: httpx.Response, body: bytes = b"") -> Reply:
    """Return what the payer needs of an answer."""
    return Reply(
        status=response.status_code,
        challenges=tuple(response.headers.get_list("WWW-Authenticate")),
        others=("x402",) if "PAYMENT-REQUIRED" in response.headers else (),
        receipt=response.headers.get("Payment-Receipt"),
        retry_after_s=_read_seconds(response.headers.get("Retry-After")),
        body=body,
    )


async def read_reply(response: httpx.Response) -> Reply:
    """Return what the payer needs; a problem's body is read, bounded, and can be read again."""
    is_problem = PROBLEM_CONTENT_TYPE in response.headers.get("Content-Type", "")
    whole = response.stream
    if response.is_success or not is_problem or not isinstance(whole, httpx.AsyncByteStream):
        return build_reply(response)
    chunks = aiter(whole)
    held = bytearray()
    try:
        async for chunk in chunks:
            held += chunk
            if len(held) > PROBLEM_BYTES_MAX:
                break
    except httpx.DecodingError as error:
        response.stream = _JoinedStream(bytes(held), _fail(error), whole)
        return build_reply(response)
    response.stream = _JoinedStream(bytes(held), chunks, whole)
    return build_reply(response, b"" if len(held) > PROBLEM_BYTES_MAX else bytes(held))


async def _fail(error: httpx.DecodingError) -> AsyncIterator[bytes]:
    """Say to who reads on what was found already."""
    raise error
    yield b""


def bound_coding(response: httpx.Response) -> httpx.Response:
    """Return an answer whose content coding is undone as it is read, within a bound (O-23).

    Reading it raises `httpx.DecodingError` where the coding is none that was asked for, is laid in
    another one, or stands for more than `ContentDecoder` allows.
    """
    stream = response.stream
    coding = ", ".join(response.headers.get_list("Content-Encoding"))
    if not coding or not isinstance(stream, httpx.AsyncByteStream):
        return response
    headers = response.headers.copy()
    for name in ("Content-Encoding", "Content-Length"):
        headers.pop(name, None)
    return httpx.Response(
        response.status_code,
        headers=headers,
        stream=_DecodedStream(stream, coding),
        extensions=response.extensions,
    )


class _DecodedStream(httpx.AsyncByteStream):
    """A body with its coding undone."""

    def __init__(self, coded: httpx.AsyncByteStream, coding: str) -> None:
        self._coded = coded
        self._coding = coding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it in pieces of a bounded size, once."""
        try:
            async for piece in decode_pieces(self._coded, self._coding):
                yield piece
        except WireError as error:
            raise httpx.DecodingError(str(error)) from error

    async def aclose(self) -> None:
        """Close what is read from."""
        await self._coded.aclose()


def _read_seconds(text: str | None) -> float | None:
    """Return `Retry-After` in seconds; a date asks for the default wait, whatever it says."""
    if text is None:
        return None
    digits = text.strip()
    return float(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else 1.0  # noqa: PLR2004
