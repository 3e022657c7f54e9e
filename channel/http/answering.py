"""Sends the handler's answer, after it is paid for (F-48, ACC-03)."""

from collections.abc import Awaitable
from time import monotonic
from typing import Final

from channel.errors import ConfigError, OutcomeUnknownError, ProblemError
from channel.http.asgi import (
    Headers,
    Message,
    Send,
    find_header,
    with_receipt,
    without_receipt,
)
from channel.http.metering import Meter
from channel.http.request import ClientGoneError, RequestBody
from channel.limits import STORED_RESPONSE_BYTES_MAX
from channel.state.requests import StoredResponse
from channel.wire.problem import PROBLEM_CONTENT_TYPE, format_problem
from channel.wire.sse import NeedVoucher, format_need_voucher

__all__ = ["Answer"]

_NOT_REPEATABLE: Final = OutcomeUnknownError(
    "This request was answered and paid for; its answer was a stream, or too large to repeat."
)


class Answer:
    """Wraps `send`: spends before the first byte, or gives back when nothing is sold.

    Once `refusal` is set, nothing more of the handler's answer is sent: the gate answers instead.
    """

    def __init__(
        self, *, send: Send, body: RequestBody, meter: Meter, units: int, is_metered: bool
    ) -> None:
        self.refusal: ProblemError | None = None
        self.has_started = False
        self.is_client_gone = False
        self.status: int | None = None
        """Of a handler's refusal, for which nothing was sold."""
        self.sent_status: int | None = None
        """Of the answer, once it has started."""
        self.is_timed = False
        """Whether to note when the first content is sent."""
        self.first_sent: float | None = None
        """When that was, of `time.monotonic`."""
        self._is_direct = False
        """Whether messages pass as they are: the hot path of a stream."""
        self._send = send
        self._body = body
        self._meter = meter
        self._reservation = meter.reservation
        self._units = units
        self._is_metered = is_metered
        self._recording: _Recording | None = None
        self._held: Message | None = None
        """The start of a metered answer before anything is counted; sent with its first content."""

    def send(self, message: Message) -> Awaitable[None]:
        """Take a message of the handler. The caller must await it directly, like ASGI's `send`.

        Raises:
            ClientGoneError: The client has left; nothing was spent.
            ProblemError: The answer must not be sent.
        """
        # The hot path of a stream adds no frame of its own.
        return self._send(message) if self._is_direct else self._begin(message)

    async def _begin(self, message: Message) -> None:
        if self.has_started:
            self._note_content(message)
            await self._send(message)
            return
        if self.refusal is not None or self.is_client_gone:
            return  # for example a framework's answer to the refusal raised into it
        if message["type"] == "http.response.start":
            if self._is_metered and _is_success(message) and not self._meter.has_counted:
                self._held = message
            else:
                await self._start(message)
        elif self._held is not None:
            await self._release(self._held, message)
        elif self._recording is None:
            await self._send(message)
        elif message["type"] == "http.response.body":
            await self._record(self._recording, message)
        else:  # for example a file's path: the server makes a body of it that cannot be repeated
            await self._forgo(self._recording)
            await self._send(message)

    async def _release(self, held: Message, message: Message) -> None:
        """Begin an answer with its first content, if that was counted and can be paid for.

        Raises:
            ConfigError: It was not counted, or the stream cannot ask for the rest (O-49, O-50).
        """
        is_body = message["type"] == "http.response.body"
        has_content = not is_body or bool(message.get("body"))
        if not has_content and message.get("more_body", False):
            return
        if has_content:
            self._require_counted(held)
        self._held = None
        await self._start(held, is_begun=True)
        await self.send(message)

    def _require_counted(self, held: Message) -> None:
        meter = self._meter
        if not meter.has_counted:
            problem = "counts nothing of what it sends: spend in metered(), or use PaidEventStream"
        elif not (meter.has_held or _is_events([*held.get("headers", ())])):
            problem = (
                "sends a stream that cannot ask for vouchers: hold() its greatest cost in "
                "metered(), or send server-sent events"
            )
        else:
            return
        self.refusal = ConfigError(f"The handler of this metered route {problem}.")
        raise self.refusal

    async def _start(self, message: Message, *, is_begun: bool = False) -> None:
        status: int = message["status"]
        headers: Headers = [*message.get("headers", ())]
        if not _is_success(message):
            # A framework turns the error raised into it into an answer: a 400 for an unread body.
            refusal = self._body.refusal or (self._meter.refusal if status >= 500 else None)  # noqa: PLR2004
            if refusal is not None:
                self.refusal = refusal
                return
            self.status = status
            self._reservation.give_back()
            await self._reservation.finish()
            await self._forward(message, without_receipt(headers))
            return
        length = find_header(headers, b"content-length")
        try:
            if not self._is_metered:
                self._reservation.take(self._units)
            await self._body.require_client()
            if self._reservation.has_claim and length is not None and _is_small(length):
                self._recording = _Recording(message, without_receipt(headers), int(length))
                return
            # Once begun, a metered answer may be counted further.
            is_whole = not self._is_metered or (length is not None and not is_begun)
            await self._spend(is_whole=is_whole)
        except ProblemError as error:
            self.refusal = error
            raise
        except ClientGoneError:
            self.is_client_gone = True
            self._reservation.give_back()
            raise
        if self._is_metered and length is None and _is_events(headers):
            self._meter.announce = self._announce
        await self._forward(message, with_receipt(headers, self._meter.receipt()))

    async def _announce(self, need: NeedVoucher) -> None:
        body = format_need_voucher(need)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _spend(self, *, is_whole: bool) -> None:
        """Make what was counted `spent` and durable. A metered stream continues."""
        if is_whole:
            await self._reservation.finish(self.unrepeatable())
        else:
            await self._reservation.flush()

    async def _forward(self, message: Message, headers: Headers) -> None:
        self.has_started = True
        self._is_direct = not self.is_timed
        self.sent_status = message["status"]
        self._body.release()
        await self._send({**message, "headers": headers})

    def _note_content(self, message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("body"):
            self._is_direct = True
            self.first_sent = monotonic()

    async def _record(self, recording: "_Recording", message: Message) -> None:
        """Collect the answer until it is complete; then store it with the charge, and send it."""
        recording.body += message.get("body", b"")
        if len(recording.body) > recording.length:  # longer than its Content-Length
            await self._forgo(recording)
            await self.send({**message, "body": bytes(recording.body)})
            return
        if message.get("more_body", False):
            return
        stored = StoredResponse(
            recording.start["status"], tuple(recording.headers), bytes(recording.body)
        )
        try:
            # Durable after this: the charge, and the answer for every repeat of the key.
            await self._reservation.finish(stored)
        except ProblemError as error:
            self.refusal = error
            raise
        self._recording = None
        await self._forward(recording.start, with_receipt(recording.headers, self._meter.receipt()))
        await self.send({"type": "http.response.body", "body": stored.body})

    async def _forgo(self, recording: "_Recording") -> None:
        """Charge for an answer that cannot be stored, and begin it."""
        try:
            await self._spend(is_whole=True)
        except ProblemError as error:
            self.refusal = error
            raise
        self._recording = None
        await self._forward(recording.start, with_receipt(recording.headers, self._meter.receipt()))

    def unrepeatable(self) -> StoredResponse | None:
        """Return the stored answer for repeats of the key when the real one cannot be stored."""
        if not self._reservation.has_claim or not self._reservation.usage:
            return None
        body = format_problem(_NOT_REPEATABLE)
        headers = (
            (b"content-type", PROBLEM_CONTENT_TYPE.encode("ascii")),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"cache-control", b"no-store"),
        )
        return StoredResponse(_NOT_REPEATABLE.status, headers, body)


class _Recording:
    def __init__(self, start: Message, headers: Headers, length: int) -> None:
        self.start = start
        self.headers = headers
        self.length = length
        self.body = bytearray()


def _is_success(start: Message) -> bool:
    status: int = start["status"]
    return 200 <= status < 300  # noqa: PLR2004


def _is_events(headers: Headers) -> bool:
    return (find_header(headers, b"content-type") or "").lower().startswith("text/event-stream")


def _is_small(length: str) -> bool:
    return length.isascii() and length.isdigit() and int(length) <= STORED_RESPONSE_BYTES_MAX
