"""Sends the answer to a charged request, once its transfer is mined.

The handler runs first. An answer whose length is known and small is collected and stored with the
order of the transfer, so that its payer gets the same answer after a crash or a lost connection.
Before any other answer the gate waits for the transfer, and then passes on what the handler sends.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from channel.errors import ProblemError
from channel.http.asgi import Headers, Message, Send, find_header, with_receipts, without_receipt
from channel.http.request import ClientGoneError, RequestBody
from channel.limits import STORED_RESPONSE_BYTES_MAX
from channel.state.requests import StoredResponse

__all__ = ["ChargedAnswer"]

_SUCCESS: Final = range(200, 300)


class ChargedAnswer:
    """Wraps `send` for one request. Nothing of a success is sent before `settle` returns."""

    def __init__(
        self,
        *,
        send: Send,
        body: RequestBody,
        settle: Callable[[StoredResponse | None], Awaitable[Headers]],
    ) -> None:
        """`settle` makes the payment, and returns the answer's receipts as header lines."""
        self.refusal: ProblemError | None = None
        """Why nothing was sent; the gate answers with it."""
        self.is_client_gone = False
        self.is_settled = False
        self.status: int | None = None
        """Of the answer, once it has started."""
        self.is_complete = False
        """Whether its last part was handed to the server."""
        self._send = send
        self._body = body
        self._settle = settle
        self._held: Message | None = None
        self._collected = bytearray()

    async def send(self, message: Message) -> None:
        """Take a message of the handler.

        Raises:
            ClientGoneError: The client has left.
            ProblemError: The payment failed, and the answer must not be sent.
        """
        if self.refusal is not None or self.is_client_gone:
            return  # for example a framework's answer to the refusal raised into it
        try:
            await self._take(message)
        except ProblemError as error:
            self.refusal = error
            raise
        except ClientGoneError:
            self.is_client_gone = True
            raise

    async def _take(self, message: Message) -> None:
        if self.status is not None:
            await self._forward(message)
        elif self._held is None:
            await self._begin(message)
        elif message["type"] == "http.response.body":
            await self._collect(self._held, message)
        else:  # for example a file's path: the server makes a body of it
            await self._stream(self._held, message)

    async def _begin(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            await self._send(message)
        elif message["status"] in _SUCCESS:
            self._held = message
        else:
            headers = without_receipt([*message.get("headers", ())])
            await self._start({**message, "headers": headers})

    async def _collect(self, held: Message, message: Message) -> None:
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        self._collected += body
        if len(self._collected) > STORED_RESPONSE_BYTES_MAX:
            await self._stream(held, {**message, "body": bytes(self._collected)})
        elif is_last:
            await self._send_whole(held)
        elif find_header(held.get("headers", ()), b"content-length") is None:  # a stream
            await self._stream(held, {**message, "body": bytes(self._collected)})

    async def _send_whole(self, held: Message) -> None:
        await self._body.require_client()
        headers = without_receipt([*held.get("headers", ())])
        stored = StoredResponse(held["status"], tuple(headers), bytes(self._collected))
        receipts = await self._pay(stored)
        await self.send_stored(stored, receipts)

    async def send_stored(self, stored: StoredResponse, receipts: Headers) -> None:
        """Send an answer that is stored, unless its client has left meanwhile.

        Raises:
            ClientGoneError: It has; the answer stays stored.
        """
        await self._body.require_client()
        await self._start(
            {
                "type": "http.response.start",
                "status": stored.status,
                "headers": with_receipts(stored.headers, receipts),
            }
        )
        await self._forward({"type": "http.response.body", "body": stored.body})

    async def _stream(self, held: Message, message: Message) -> None:
        await self._body.require_client()
        receipts = await self._pay(None)
        await self._start({**held, "headers": with_receipts(held.get("headers", ()), receipts)})
        await self._forward(message)

    async def _pay(self, stored: StoredResponse | None) -> Headers:
        receipts = await self._settle(stored)
        self.is_settled = True
        return receipts

    async def _start(self, message: Message) -> None:
        self.status = message["status"]
        self._body.release()
        await self._send(message)

    async def _forward(self, message: Message) -> None:
        await self._send(message)
        self.is_complete = self.is_complete or not message.get("more_body", False)
