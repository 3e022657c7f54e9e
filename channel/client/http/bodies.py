"""Reads bodies in transit: requests that may be sent twice, and answers with an explanation.

Both are kept in memory up to a bound.
"""

from collections.abc import AsyncIterator
from typing import Final

import httpx

from channel.client.payment.management import Reply
from channel.errors import BodyNotReplayableError, WireError
from channel.limits import PROBLEM_BYTES_MAX
from channel.wire.coding import decode_pieces
from channel.wire.problem import PROBLEM_CONTENT_TYPE
from channel.wire.x402 import PAYMENT_REQUIRED, PAYMENT_RESPONSE

__all__ = [
    "KEPT_BODY_BYTES_MAX",
    "RequestBody",
    "bound_coding",
    "build_reply",
    "read_reply",
    "read_request_body",
]

KEPT_BODY_BYTES_MAX: Final = 16 * 1024 * 1024


class _JoinedStream(httpx.AsyncByteStream):
    """A stream whose beginning was already read."""

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
        """Close the original stream."""
        if isinstance(self._whole, httpx.AsyncByteStream):
            await self._whole.aclose()


class RequestBody:
    """A request's body: in memory, or too long for that, and then sent once."""

    def __init__(self, content: bytes | None, once: _JoinedStream | None = None) -> None:
        self.content = content
        """None when it cannot be sent twice."""
        self._once = once

    def fits(self, bytes_max: int) -> bool:
        """Return whether its length is known and at most `bytes_max`."""
        return self.content is not None and len(self.content) <= bytes_max

    def stream(self) -> httpx.AsyncByteStream:
        """Return the body to send.

        Raises:
            BodyNotReplayableError: It was sent and cannot be sent again.
        """
        if self.content is not None:
            return httpx.ByteStream(self.content)
        if self._once is None:
            raise BodyNotReplayableError(
                f"A 402 came after a body of more than {KEPT_BODY_BYTES_MAX} bytes, which is too "
                "long to keep. Pay for this route with a small request first, then send this one."
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
        if len(held) > KEPT_BODY_BYTES_MAX and not isinstance(stream, httpx.ByteStream):
            return RequestBody(None, _JoinedStream(bytes(held), chunks, stream))
    return RequestBody(bytes(held))


def build_reply(response: httpx.Response, body: bytes = b"") -> Reply:
    """Return the parts of an answer that the payer needs."""
    return Reply(
        status=response.status_code,
        challenges=tuple(response.headers.get_list("WWW-Authenticate")),
        x402=response.headers.get(PAYMENT_REQUIRED),
        receipt=response.headers.get("Payment-Receipt"),
        settlement=response.headers.get(PAYMENT_RESPONSE),
        retry_after_s=_read_seconds(response.headers.get("Retry-After")),
        body=body,
    )


async def read_reply(response: httpx.Response) -> tuple[httpx.Response, Reply]:
    """Return an answer, decoded (see `bound_coding`), and what the payer needs of it.

    A problem's body is read, bounded, and stays readable.
    """
    response = bound_coding(response)
    is_problem = PROBLEM_CONTENT_TYPE in response.headers.get("Content-Type", "")
    whole = response.stream
    if response.is_success or not is_problem or not isinstance(whole, httpx.AsyncByteStream):
        return response, build_reply(response)
    chunks = aiter(whole)
    held = bytearray()
    try:
        async for chunk in chunks:
            held += chunk
            if len(held) > PROBLEM_BYTES_MAX:
                break
    except httpx.DecodingError as error:
        response.stream = _JoinedStream(bytes(held), _fail(error), whole)
        return response, build_reply(response)
    response.stream = _JoinedStream(bytes(held), chunks, whole)
    return response, build_reply(response, b"" if len(held) > PROBLEM_BYTES_MAX else bytes(held))


async def _fail(error: httpx.DecodingError) -> AsyncIterator[bytes]:
    """Raise the error again for a caller that continues to read."""
    raise error
    yield b""


def bound_coding(response: httpx.Response) -> httpx.Response:
    """Return an answer that decodes its content coding while it is read, within a bound (O-23).

    Reading raises `httpx.DecodingError` if the coding was not asked for, is nested in another one,
    or decodes to more than `ContentDecoder` allows.
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
    """A body that is decoded while it is read."""

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
        """Close the encoded stream."""
        await self._coded.aclose()


def _read_seconds(text: str | None) -> float | None:
    """Return `Retry-After` in seconds; for a date, the default wait."""
    if text is None:
        return None
    digits = text.strip()
    return float(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else 1.0  # noqa: PLR2004
