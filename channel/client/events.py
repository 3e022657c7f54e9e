"""A paid event stream: the caller gets the content, the payer what is between (SSE-01 to SSE-04).

Events reach the caller byte for byte as they came, as soon as each is complete. The two control
events of the protocol are taken out: a need for a voucher is answered on another connection
before the stream is read any further, and the receipt at the end is checked.
"""

from collections.abc import AsyncIterator

import httpx

from channel.client.payer import Payer
from channel.client.purchase import Purchase
from channel.errors import PaymentRefusedError, WireError
from channel.wire.sse import NEED_VOUCHER_EVENT, RECEIPT_EVENT, EventSplitter, parse_event

__all__ = ["PaidEvents"]


class PaidEvents(httpx.AsyncByteStream):
    """The body of a paid `text/event-stream` answer, content codings undone."""

    def __init__(self, payer: Payer, purchase: Purchase, response: httpx.Response) -> None:
        self._payer = payer
        self._purchase = purchase
        self._response = response
        self._is_broken = False
        self._is_ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the content events.

        Raises:
            AgentError: The stream asks for what is not allowed, or its receipt is a lie.
            httpx.TransportError: The connection broke.
        """
        splitter = EventSplitter()
        try:
            async for chunk in self._response.aiter_bytes():
                for block in self._split(splitter, chunk):
                    if not await self._take(block):
                        yield block
        except httpx.TransportError:
            self._is_broken = True
            raise
        self._is_broken = not self._purchase.has_end_receipt
        rest = splitter.flush()
        if rest and _name(rest) not in (NEED_VOUCHER_EVENT, RECEIPT_EVENT):
            yield rest

    async def aclose(self) -> None:
        """Close the connection and count what came; a second time does nothing."""
        if self._is_ended:
            return
        self._is_ended = True
        try:
            await self._response.aclose()
        finally:
            await self._payer.end_stream(self._purchase, is_broken=self._is_broken)

    def _split(self, splitter: EventSplitter, chunk: bytes) -> list[bytes]:
        try:
            return splitter.feed(chunk)
        except WireError as error:
            raise PaymentRefusedError(
                status=self._response.status_code,
                problem_type="an event stream that cannot be metered",
                detail=str(error),
            ) from error

    async def _take(self, block: bytes) -> bool:
        """Say whether a block was the protocol's own, and if so do what it asks."""
        event = parse_event(block)
        if event is None:
            return False
        name, text = event
        if name == NEED_VOUCHER_EVENT:
            await self._payer.need_voucher(self._purchase, text)
        elif name == RECEIPT_EVENT:
            await self._payer.end_receipt(self._purchase, text)
        else:
            self._payer.count(self._purchase, text)
            return False
        return True


def _name(block: bytes) -> str:
    event = parse_event(block)
    return "" if event is None else event[0]
