"""A paid event stream: the caller gets the content, the payer the control events (SSE-01 to 04).

Events reach the caller unchanged, as soon as each is complete. The protocol's two control events
are removed: a request for a voucher is answered on another connection before the stream is read
further, and the receipt at the end is checked.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

import httpx

from channel.client.payment.stream import PaidStream
from channel.errors import PaymentRefusedError, WireError
from channel.limits import RECEIPT_WAIT_S_MAX
from channel.wire.sse import (
    DONE,
    NEED_VOUCHER_EVENT,
    RECEIPT_EVENT,
    EventSplitter,
    parse_event,
    parse_event_usage,
)

__all__ = ["PaidEvents"]


class PaidEvents(httpx.AsyncByteStream):
    """The body of a paid `text/event-stream` answer, decoded."""

    def __init__(self, paid: PaidStream, response: httpx.Response) -> None:
        self._paid = paid
        self._response = response
        self._chunks = response.aiter_raw()
        self._splitter = EventSplitter()
        self._blocks: deque[bytes] = deque()
        """Events from the last packet that are not yet processed."""
        self._is_broken = False
        """Whether it ended while this client waited for the server: see `PaidStream.end`."""
        self._is_done = False
        self._is_ended = False
        self._rest: asyncio.Task[None] | None = None
        """Reads what follows `[DONE]`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the content events; after `[DONE]` there are none.

        Raises:
            AgentError: The stream demands what is not allowed, or its receipt is wrong.
            httpx.TransportError: The connection broke.
        """
        if self._is_done:
            await self._drain()
            return
        self._is_broken = True  # every way out counts as broken, except the caller's own
        while (chunk := await self._read()) is not None:
            self._blocks.extend(self._split(chunk))
            while self._blocks:
                block = self._blocks.popleft()
                if not await self._take(block):
                    self._is_broken = False
                    yield block
                    self._is_broken = True
        self._paid.require_settled()
        rest = self._splitter.flush()
        if rest and not _is_control(rest):
            yield rest

    async def aclose(self) -> None:
        """Close the connection and count what arrived; a second call does nothing.

        A caller that stops at `[DONE]` leaves the receipt behind it unread, so it is read here.
        """
        if self._is_ended:
            return
        self._is_ended = True
        try:
            if self._is_done and not self._paid.has_receipt:
                await self._read_rest()
        finally:
            try:
                if self._rest is not None:
                    self._rest.cancel()
                    await asyncio.wait({self._rest})
                await self._response.aclose()
            finally:
                # After `[DONE]` there is no content that a caller could have left unread.
                await self._paid.end(is_broken=self._is_broken or self._is_done)

    async def _read(self) -> bytes | None:
        """Return the next bytes, or None at the end.

        Raises:
            MppSessionError: The stream waits for a voucher that cannot be signed.
        """
        settling = self._paid.settling
        if settling is None:
            return await anext(self._chunks, None)
        reading = asyncio.ensure_future(anext(self._chunks, None))
        try:
            await asyncio.wait({reading, settling}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._paid.require_settled()
            return await reading
        finally:
            reading.cancel()

    async def _drain(self) -> None:
        """Read to the end for a caller that wants to reuse the connection.

        If the caller gives up, the receipt must not be lost with it: a cancelled read breaks the
        connection.
        """
        await asyncio.shield(self._read_rest())
        async for _ in self._chunks:
            pass

    def _read_rest(self) -> asyncio.Task[None]:
        if self._rest is None:
            self._rest = asyncio.create_task(self._read_receipt())
        return self._rest

    async def _read_receipt(self) -> None:
        with contextlib.suppress(TimeoutError, httpx.TransportError):
            async with asyncio.timeout(RECEIPT_WAIT_S_MAX):
                await self._take_blocks()
                while not self._paid.has_receipt:
                    chunk = await anext(self._chunks, None)
                    if chunk is None:
                        return
                    self._blocks.extend(self._split(chunk))
                    await self._take_blocks()

    async def _take_blocks(self) -> None:
        while self._blocks:
            await self._take(self._blocks.popleft())

    def _split(self, chunk: bytes) -> list[bytes]:
        try:
            return self._splitter.feed(chunk)
        except WireError as error:
            raise PaymentRefusedError(
                status=self._response.status_code,
                problem_type="an event stream that cannot be metered",
                detail=str(error),
            ) from error

    async def _take(self, block: bytes) -> bool:
        """Handle a control event and return True, or return False for any other block."""
        event = parse_event(block)
        if event is None:
            return False
        name, text = event
        if name == NEED_VOUCHER_EVENT:
            await self._paid.need_voucher(text)
        elif name == RECEIPT_EVENT:
            await self._paid.take_receipt(text)
        else:
            self._is_done = text == DONE
            self._paid.count(text, parse_event_usage(block))
            return False
        return True


def _is_control(block: bytes) -> bool:
    event = parse_event(block)
    return event is not None and event[0] in (NEED_VOUCHER_EVENT, RECEIPT_EVENT)
