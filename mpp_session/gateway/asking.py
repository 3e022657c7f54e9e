"""Parts of a paid request that all handlers share: its body, its client, its stream."""

import asyncio
from collections.abc import AsyncIterable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from channel.http import Event, Frame, PaidEventStream
from channel.limits import LENGTH_DIGITS_MAX
from mpp_session.gateway.errors import RequestTooLargeError, UnsupportedCodingError

__all__ = ["ClosingStream", "PaidEvents", "read_request", "unless_gone", "wait_until_gone"]

_Answer = TypeVar("_Answer")


class PaidEvents(AsyncIterable[Event | Frame], Protocol):
    """The events of an answer, each with its usage."""

    async def aclose(self) -> None:
        """Stop the server. Repeating it does nothing."""


class ClosingStream(PaidEventStream):
    """A paid stream that stops the server behind it in any case."""

    def __init__(self, events: PaidEvents, *, headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers)
        self._paid_events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream; see `PaidEventStream`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._paid_events.aclose()


async def read_request(request: Request, bytes_max: int) -> bytes:
    """Return the body of a request.

    Raises:
        UnsupportedCodingError: It is compressed.
        RequestTooLargeError: It has more than `bytes_max` bytes.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise UnsupportedCodingError("Send the body as it is, without a Content-Encoding.")
    too_large = RequestTooLargeError(f"The body has more than {bytes_max} bytes.")
    length = request.headers.get("content-length", "")
    if len(length) > LENGTH_DIGITS_MAX or (length.isdecimal() and int(length) > bytes_max):
        raise too_large  # unread
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > bytes_max:
            raise too_large
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Do the work; cancel it when the client leaves.

    Raises:
        ClientDisconnect: The client left, so no answer is sent.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(wait_until_gone(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait({working, gone})


async def wait_until_gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
