"""A paid websocket: what passes between server and application is counted, and paid for first.

Data and payment share the connection, and `channel.wire.websocket` tells them apart. The
application sends and receives plain messages, as without a gate. A message is spent, durably
covered, before it goes out, and before the application gets it. When the balance is short the
connection asks for a voucher and waits. It ends with the last receipt, unless the client is gone.

The reservation is a stream's: its owner's death costs the payer one step at most (decision 12).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import msgspec

from channel.errors import (
    BadRequestError,
    ConfigError,
    MalformedCredentialError,
    OperatorError,
    PeerError,
    ProblemError,
    StoppingError,
    WireError,
)
from channel.http.asgi import ASGIApp, Message, Receive, Scope, Send
from channel.http.pricing import Route
from channel.http.request import ClientGoneError
from channel.http.websocket_meter import SocketMeter
from channel.limits import (
    AUTHORIZATION_S_MAX,
    CREDENTIALS_AHEAD_MAX,
    CREDENTIALS_REFUSED_MAX,
    FRAME_BYTES_MAX,
    FRAMES_AHEAD_BYTES_MAX,
    FRAMES_AHEAD_MAX,
    PRODUCER_CLOSE_S_MAX,
)
from channel.state.charges import ChargeOutcome
from channel.tariff import Usage
from channel.types import ChannelId
from channel.wire.credential import Credential, select_credential
from channel.wire.payload import ClosePayload
from channel.wire.problem import parse_problem
from channel.wire.receipt import Receipt
from channel.wire.sse import NeedVoucher
from channel.wire.websocket import (
    BYTE_IN,
    BYTE_OUT,
    MESSAGE_IN,
    MESSAGE_OUT,
    SECOND,
    AuthorizationFrame,
    CloseRequestFrame,
    MessageFrame,
    format_close_ready_frame,
    format_error_frame,
    format_message_frame,
    format_need_voucher_frame,
    format_receipt_frame,
    format_usage_frame,
    parse_client_frame,
)

__all__ = [
    "ENDED",
    "FAULT",
    "FOREIGN",
    "IDLE",
    "STOPPING",
    "TOLERATED",
    "TOO_LARGE",
    "UNPAID",
    "PaidWebSocket",
    "framing_send",
    "read_first_frame",
    "select_authorization",
]

_log: Final = logging.getLogger(__name__)

DONE: Final = 1000
FOREIGN: Final = 1008
"""The close code for a frame that breaks the protocol."""
TOO_LARGE: Final = 1009
FAULT: Final = 1011
STOPPING: Final = 1012
UNPAID: Final = 4402
"""The close code for a payment that is missing or was refused."""
IDLE: Final = 4408
"""The close code for a connection without messages and vouchers."""
ENDED: Final = 4409
"""The close code when a newer stream, or a close of the channel, ended the connection."""

TOLERATED: Final = frozenset({402, 409, 429, 503})
"""Refusals of a credential after which the next one may do."""


class _End(msgspec.Struct, frozen=True):
    """Why and how a connection ends."""

    code: int = DONE
    outcome: ChargeOutcome = ChargeOutcome.DONE
    error: ProblemError | None = None
    """What the client reads."""
    failure: BaseException | None = None
    """What the server gets."""
    is_gone: bool = False
    is_asked: bool = False
    """Whether the client asked for the end, and may close its channel now."""


class PaidWebSocket:
    """One paid connection, from the application's call to the last receipt."""

    def __init__(
        self,
        *,
        receive: Receive,
        send: Send,
        meter: SocketMeter,
        route: Route,
        parse: Callable[[str], Credential],
        perform: Callable[[Credential], Awaitable[Receipt]],
        refuse: Callable[[ProblemError], Awaitable[None]],
        is_accepted: bool,
    ) -> None:
        """Join the parts.

        Args:
            receive: The server's, after `websocket.connect`.
            send: The server's.
            meter: Counts and spends.
            route: Says whether the handler must count, and how long an idle connection lasts.
            parse: Parses a credential; the method's.
            perform: Accepts a further credential.
            refuse: Sends the frame that refuses one.
            is_accepted: Whether the connection was accepted, for a credential in its first frame.
        """
        self.refusal: ProblemError | None = None
        """Why it was not accepted; the gate answers with it."""
        self.has_started = is_accepted
        self.is_client_gone = False
        self.is_timed = False
        self.status: int | None = None
        """Of the application's own refusal, for which nothing was sold."""
        self.sent_status: int | None = None
        self.first_sent: float | None = None
        self._receive = receive
        self._send = send
        self._meter = meter
        self._reservation = meter.reservation
        self._parse = parse
        self._perform = perform
        self._refuse = refuse
        self._idle_s = route.idle_s
        self._must_count = route.metered and meter.spends
        self._is_accepted = is_accepted
        self._is_fixed = not (route.metered or meter.counted)
        self._is_open = False
        """Whether the application has accepted it."""
        self._has_connected = False
        self._loop = loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[_End] = loop.create_future()
        self._ended = asyncio.Event()
        """Set once nothing more is spent."""
        self._is_closed = asyncio.Event()
        """Set once the client's close of its channel is answered."""
        self._active_at = loop.time()
        self._sending = asyncio.Lock()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox_bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._waiting = 0
        """How many messages wait for a voucher: then the connection is read on, for it."""
        self._credentials: asyncio.Queue[str | None] = asyncio.Queue(CREDENTIALS_AHEAD_MAX)
        """Credentials that arrived, and None for a request to end."""
        self._refused = 0
        self._tasks: list[asyncio.Task[None]] = []

    # -- the connection's life

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application until the connection ends; nothing is reserved after this.

        Raises:
            ProblemError: It was refused before it was accepted; the gate answers.
            Exception: As the application raised it.
        """
        handler = self._loop.create_task(self._handle(app, scope))
        try:
            await self._either(handler)
            await self._stop(handler)
            end = self._end_of(handler)
        except asyncio.CancelledError:
            handler.cancel()
            self._reservation.outcome = ChargeOutcome.FAILED
            raise
        finally:
            await self._finish()
            if not self._ending.done() or not self._ending.result().is_asked:
                await self._stop_tasks()
        try:
            if self._is_open:
                await self._say_goodbye(end)
            elif self._is_accepted and self.status is None and end.failure is None:
                await self._send({"type": "websocket.close", "code": FAULT})
        finally:
            await self._stop_tasks()
        if end.failure is not None:
            raise end.failure

    async def _handle(self, app: ASGIApp, scope: Scope) -> None:
        await app(scope, self.receive, self.send)

    async def _either(self, task: "asyncio.Future[None]") -> None:
        """Wait for a task, but no longer than the connection lasts."""
        both: set[asyncio.Future[Any]] = {task, self._ending}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)

    async def _stop(self, handler: "asyncio.Task[None]") -> None:
        """Give the application a bounded time to notice the end (F-56)."""
        for _ in range(2):
            if handler.done():
                return
            await asyncio.wait({handler}, timeout=PRODUCER_CLOSE_S_MAX)
            handler.cancel()
        if not handler.done():
            _log.warning("a websocket's application ignores its cancellation")

    def _end_of(self, handler: "asyncio.Task[None]") -> _End:
        """Return how it ends; an application's error counts only before the end."""
        is_over = handler.done() and not handler.cancelled()
        error = handler.exception() if is_over else None
        if not self._ending.done():
            if self.refusal is not None:
                end = _End(FAULT, ChargeOutcome.FAILED, failure=self.refusal)
            elif isinstance(error, ProblemError):
                end = _end_by(error) if self._is_open else _End(FAULT, failure=error)
            elif error is not None:
                end = _End(FAULT, ChargeOutcome.FAILED, failure=error)
            else:
                end = _End()
            self._end(end)
        end = self._ending.result()
        self._reservation.outcome = end.outcome
        return end

    async def _finish(self) -> None:
        """Make what was sent `spent`, and release the rest."""
        if not self._is_open:
            self._reservation.give_back()
        try:
            await self._reservation.finish()
        finally:
            self._ended.set()

    async def _say_goodbye(self, end: _End) -> None:
        """Send the last receipt, and close; a client that asked may close its channel first."""
        if end.is_gone:
            return
        with suppress(OSError):
            if end.error is not None:
                await self._refuse(end.error)
            await self._text(format_close_ready_frame(self._meter.receipt()))
            if end.is_asked:
                with suppress(TimeoutError):
                    async with asyncio.timeout(AUTHORIZATION_S_MAX):
                        await self._is_closed.wait()
            reason = "" if end.error is None else end.error.title
            await self._send({"type": "websocket.close", "code": end.code, "reason": reason})

    async def _stop_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _end(self, end: _End) -> None:
        """Record how it ends; the first reason counts."""
        if self._ending.done():
            return
        self._ending.set_result(end)
        self.is_client_gone = self._meter.is_client_gone = end.is_gone
        self._meter.announce = None
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": end.code, "reason": ""})
        self._has_room.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(self._guard(work)))

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Let no task of the connection fail unseen."""
        try:
            await work
        except ProblemError as error:
            self._end(_end_by(error))
        except OSError:
            self._end(_gone())
        except Exception as error:  # noqa: BLE001 - `run` raises it
            self._end(_End(FAULT, ChargeOutcome.FAILED, failure=error))

    # -- the application's side

    async def receive(self) -> Message:
        """Return the application's next message, once it is paid for; like ASGI's `receive`."""
        if not self._has_connected:
            self._has_connected = True
            return {"type": "websocket.connect"}
        message = await self._inbox.get()
        if message["type"] == "websocket.disconnect":
            self._inbox.put_nowait(message)  # as often as it is asked for
            return message
        size = _size(message)
        self._inbox_bytes -= size
        if not self._is_full(1):
            self._has_room.set()
        end = self._ending.result() if self._ending.done() else None
        if end is not None and not end.is_gone:
            return await self.receive()
        try:
            await self._count({MESSAGE_IN: 1, BYTE_IN: size})
        except ProblemError as error:
            self._end(_end_by(error))
            return await self.receive()
        except ClientGoneError:
            return await self.receive()
        return message

    async def send(self, message: Message) -> None:
        """Take a message of the application; like ASGI's `send`.

        Raises:
            ClientGoneError: The connection has ended.
            ProblemError: It cannot be accepted; the gate answers.
        """
        if self._ending.done():
            raise ClientGoneError("the websocket has ended")
        kind = message["type"]
        if kind == "websocket.send":
            await self._send_data(message)
        elif kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.close":
            await self._close(message)
        else:
            await self._deny(message)

    async def _accept(self, message: Message) -> None:
        try:
            if self._is_fixed:
                self._reservation.take(1)
                await self._reservation.finish()
            else:
                await self._meter.start_stream()
                await self._meter.count({SECOND: 1})
        except ProblemError as error:
            self.refusal = error
            raise
        self._is_open = self.has_started = True
        self.sent_status = 101
        if not self._is_accepted:
            await self._send(message)
        await self._text(format_receipt_frame(self._meter.receipt()))
        if not self._is_fixed:
            self._meter.announce = self._announce
            self._start(self._watch_stop())
        self._start(self._read())
        self._start(self._pay())
        self._start(self._watch_idle())
        if self._meter.has_clock:
            self._start(self._tick())

    async def _deny(self, message: Message) -> None:
        """Pass on the application's own refusal; content would be sold for nothing."""
        status: int | None = message.get("status")
        if self.status is None and status is not None:
            if status < 300:  # noqa: PLR2004
                self.refusal = ConfigError("An answer with content in place of a websocket.")
                raise self.refusal
            await self._reject(status)
        if not self._is_accepted:
            self.has_started = True
            await self._send(message)

    async def _close(self, message: Message) -> None:
        code: int = message.get("code") or DONE
        if self._is_open:
            self._end(_End(code))
            return
        await self._reject(403)
        if not self._is_accepted:
            self.has_started = True
            await self._send(message)

    async def _reject(self, status: int) -> None:
        self.status = status
        self._reservation.give_back()
        await self._reservation.finish()
        if self._is_accepted:
            refusal = BadRequestError("The application refused the connection; nothing was sold.")
            with suppress(OSError):
                await self._refuse(refusal)
                await self._send({"type": "websocket.close", "code": FOREIGN})

    async def _send_data(self, message: Message) -> None:
        text: str | None = message.get("text")
        async with self._sending:
            self._require_counted()
            try:
                await self._count({MESSAGE_OUT: 1, BYTE_OUT: _size(message)})
            except ProblemError as error:
                self._end(_end_by(error))
                raise ClientGoneError("the websocket is not paid for") from error
            usage = self._meter.take_statement()
            if text is not None:
                await self._text(format_message_frame(text, usage))
            else:
                if usage is not None:
                    await self._text(format_usage_frame(usage))
                await self._send(message)
        if self.first_sent is None:
            self.first_sent = self._loop.time()
        self._active_at = self._loop.time()

    def _require_counted(self) -> None:
        if self._must_count and not self._meter.has_counted:
            error = ConfigError(
                "The handler of this metered route counts nothing of what it sends: spend in "
                "metered()."
            )
            self._end(_end_by(error))
            raise error

    async def _count(self, usage: Usage) -> None:
        """Spend what the gate counts, and wait for a voucher no longer than the connection lasts.

        What arrived before the client left is served as far as it is paid for.

        Raises:
            ProblemError: It is not paid for.
            ClientGoneError: The connection has ended; nothing was spent.
        """
        if self._is_fixed:
            return
        is_over = self._ending.done()
        if is_over and not self._ending.result().is_gone:
            raise ClientGoneError("the websocket has ended")
        if is_over or self._meter.covers(usage):
            await self._meter.count(usage)
            return
        self._waiting += 1
        self._has_room.set()
        counting = asyncio.ensure_future(self._meter.count(usage))
        try:
            await self._either(counting)
        finally:
            self._waiting -= 1
            if not counting.done():
                counting.cancel()
                await asyncio.wait({counting})
        if counting.cancelled():
            raise ClientGoneError("the websocket has ended")
        counting.result()

    # -- the client's side

    async def _read(self) -> None:
        """Take the client's frames: vouchers ahead of data that waits for them."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._end(_gone())
                self._is_closed.set()  # it closes no channel here any more
                return
            if self._ending.done() and not self._ending.result().is_asked:
                return
            size = _size(message)
            if size > FRAME_BYTES_MAX:
                self._end(_End(TOO_LARGE, ChargeOutcome.FAILED, error=_too_large(size)))
                return
            try:
                self._take_frame(message)
            except WireError as error:
                refusal = BadRequestError(f"A text frame: {error}.")
                self._end(_End(FOREIGN, ChargeOutcome.FAILED, error=refusal))
                return
            await self._has_room.wait()

    def _take_frame(self, message: Message) -> None:
        text: str | None = message.get("text")
        if text is None:
            self._take_data({"type": "websocket.receive", "bytes": message.get("bytes") or b""})
            return
        match parse_client_frame(text):
            case MessageFrame() as frame:
                self._take_data({"type": "websocket.receive", "text": frame.data})
            case AuthorizationFrame() as frame:
                self._take_credential(frame.authorization)
            case CloseRequestFrame():
                self._take_credential(None)

    def _take_data(self, message: Message) -> None:
        if self._ending.done():
            return
        self._active_at = self._loop.time()
        self._inbox.put_nowait(message)
        self._inbox_bytes += _size(message)
        if not self._is_full(2 if self._waiting else 1):
            return
        if self._waiting:
            refusal = BadRequestError("More messages than are paid for; send vouchers first.")
            self._end(_End(FOREIGN, ChargeOutcome.FAILED, error=refusal))
        else:
            self._has_room.clear()  # the application takes its messages slowly

    def _is_full(self, times: int) -> bool:
        count, size = self._inbox.qsize(), self._inbox_bytes
        return count >= times * FRAMES_AHEAD_MAX or size >= times * FRAMES_AHEAD_BYTES_MAX

    def _take_credential(self, credential: str | None) -> None:
        try:
            self._credentials.put_nowait(credential)
        except asyncio.QueueFull:
            refusal = BadRequestError(
                f"More than {CREDENTIALS_AHEAD_MAX} credentials before an answer."
            )
            self._end(_End(FOREIGN, ChargeOutcome.FAILED, error=refusal))

    async def _pay(self) -> None:
        """Accept the client's credentials, one by one."""
        while not self._is_closed.is_set():
            text = await self._credentials.get()
            if text is None:
                self._end(_End(is_asked=True))
                continue
            try:
                await self._present(text)
            except ProblemError as error:
                await self._refuse(error)
                self._refused += 1
                if error.status not in TOLERATED or self._refused > CREDENTIALS_REFUSED_MAX:
                    self._end(_End(UNPAID, ChargeOutcome.FAILED))
                    self._is_closed.set()

    async def _present(self, text: str) -> None:
        credential = self._parse(select_authorization(text))
        if credential.payload.channel_id != self._channel_id:
            raise BadRequestError("The credential is for another channel than this connection's.")
        is_close = isinstance(credential.payload, ClosePayload)
        if is_close:
            self._end(_End(is_asked=True))
            await self._ended.wait()
        receipt = await self._perform(credential)
        self._refused = 0
        self._active_at = self._loop.time()
        await self._text(format_receipt_frame(receipt))
        if is_close:
            self._is_closed.set()

    @property
    def _channel_id(self) -> ChannelId:
        return self._reservation.key.channel_id

    async def _announce(self, need: NeedVoucher) -> None:
        await self._text(format_need_voucher_frame(need))

    async def _text(self, frame: str) -> None:
        await self._send({"type": "websocket.send", "text": frame})

    # -- what ends it

    async def _tick(self) -> None:
        """Spend each further second before it begins."""
        while True:
            await asyncio.sleep(1)
            await self._count({SECOND: 1})

    async def _watch_stop(self) -> None:
        await self._reservation.stopped.wait()
        if self._reservation.stopped_by is not None:
            raise self._reservation.stopped_by

    async def _watch_idle(self) -> None:
        while True:
            left_s = self._active_at + self._idle_s - self._loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(left_s)
        self._end(_End(IDLE))


def select_authorization(text: str) -> str:
    """Return the credential of an authorization frame, to be parsed.

    Raises:
        MalformedCredentialError: It is none.
    """
    raw = select_credential([text])
    if raw is None:
        raise MalformedCredentialError("authorization: expected a Payment credential.")
    return raw


async def read_first_frame(receive: Receive) -> str | None:
    """Return the credential of an accepted connection's next frame; None if the client left.

    Raises:
        BadRequestError: The frame is another one.
    """
    message = await receive()
    if message["type"] == "websocket.disconnect":
        return None
    text: str | None = message.get("text")
    if text is not None and _size(message) <= FRAME_BYTES_MAX:
        with suppress(WireError):
            frame = parse_client_frame(text)
            if isinstance(frame, AuthorizationFrame):
                return frame.authorization
    raise BadRequestError("Expected a credential in the first frame.")


def framing_send(send: Send) -> Send:
    """Return a `send` that makes one frame of an HTTP answer with a problem."""
    start: Message = {}

    async def send_frame(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        body: bytes = message.get("body", b"")
        problem = parse_problem(body)
        fields = [value for name, value in start["headers"] if name == b"www-authenticate"]
        frame = format_error_frame(
            start["status"],
            "" if problem is None else problem.detail,
            body,
            tuple(field.decode("latin-1") for field in fields),
        )
        await send({"type": "websocket.send", "text": frame})

    return send_frame


def _size(message: Message) -> int:
    """Return the bytes of a message's data."""
    text: str | None = message.get("text")
    if text is not None:
        return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return len(message.get("bytes") or b"")


def _gone() -> _End:
    return _End(outcome=ChargeOutcome.LEFT, is_gone=True)


def _too_large(size: int) -> BadRequestError:
    return BadRequestError(f"A frame of {size} bytes; at most {FRAME_BYTES_MAX}.")


def _end_by(error: ProblemError) -> _End:
    if isinstance(error, StoppingError):
        return _End(STOPPING, ChargeOutcome.FAILED, error=error)
    if isinstance(error, OperatorError):
        return _End(FAULT, ChargeOutcome.FAILED, error=error)
    is_unpaid = isinstance(error, PeerError) and error.status == 402  # noqa: PLR2004
    return _End(UNPAID if is_unpaid else ENDED, ChargeOutcome.FAILED, error=error)
