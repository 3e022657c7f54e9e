"""A websocket that pays: vouchers travel beside the messages, within the policy.

The client counts what it sends and what arrives by itself, and signs at most that and one step, as
for a stream of events. A reader task takes the server's frames, so vouchers are answered while the
caller does something else; a caller that reads nothing slows the server down.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self, TypeAlias, cast

import aiohttp
import httpx

from channel.client.http.bodies import build_reply
from channel.client.http.management import ACCEPT_PAYMENT, TIMEOUT_S, HeadManagementClient
from channel.client.http.transport import ROUNDS_MAX, is_safe, origin_of, route_of
from channel.client.payment.management import Header, ManagementClient, Reply
from channel.client.payment.payer import Payer
from channel.client.payment.request import PaidRequest
from channel.client.payment.stream import PaidStream
from channel.client.policy.meter import Expectation
from channel.errors import (
    MppSessionError,
    OfferRefusedError,
    PaymentRefusedError,
    ReceiptViolationError,
    WireError,
)
from channel.limits import (
    FRAME_BYTES_MAX,
    FRAMES_AHEAD_MAX,
    PROBLEM_BYTES_MAX,
    RECEIPT_WAIT_S_MAX,
)
from channel.tariff import Usage
from channel.wire.receipt import format_receipt, parse_receipt_json
from channel.wire.websocket import (
    BYTE_IN,
    BYTE_OUT,
    COUNTED_KINDS,
    MESSAGE_IN,
    MESSAGE_OUT,
    SECOND,
    CloseReadyFrame,
    ErrorFrame,
    MessageFrame,
    NeedVoucherFrame,
    ReceiptFrame,
    UsageFrame,
    format_authorization_frame,
    format_close_request_frame,
    format_message_frame,
    parse_server_frame,
    read_frame_usage,
)

__all__ = ["PayingWebSocket", "open_websocket"]

_METHOD: Final = "WEBSOCKET"
_SWITCHING: Final = 101
_CLOSE_CODE: Final = 3008
"""The close code for a server that broke the protocol: clients may choose those from 3000."""
_ENVELOPE_BYTES: Final = 64 * 1024

Socket: TypeAlias = aiohttp.ClientWebSocketResponse[bool]


@contextlib.asynccontextmanager
async def open_websocket(
    payer: Payer,
    management: httpx.AsyncBaseTransport,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    protocols: Sequence[str] = (),
) -> AsyncIterator["PayingWebSocket"]:
    """Open a websocket and pay for it; at the end of the block the last receipt is checked.

    Args:
        payer: Decides and signs.
        management: Sends the HEAD requests before the connection is open.
        url: With the scheme `wss`, or `ws` to this machine if the policy allows that.
        headers: Further fields of the handshake.
        protocols: Subprotocols to offer to the application.

    Raises:
        AgentError: Paying would violate the policy, or did not help.
        httpx.ConnectError: The connection could not be made.
    """
    target = httpx.URL(url)
    target = target.copy_with(scheme={"ws": "http", "wss": "https"}.get(target.scheme, ""))
    origin = origin_of(target)
    if not is_safe(target, allow_loopback_http=payer.policy.allow_loopback_http):
        raise OfferRefusedError(
            field="payment over", asked="plain ws", allowed="wss", origin=origin
        )
    handshake = _Handshake(target, dict(headers or {}), protocols)
    courier = _Courier(HeadManagementClient(management, target))
    request = PaidRequest(
        method=_METHOD,
        origin=origin,
        url=route_of(target),
        management=courier,
        expectation=Expectation(is_stream=True, units_max=None),
        idempotency_key="",
        is_key_ours=True,
    )
    async with aiohttp.ClientSession(
        raise_for_status=cast("Any", handshake.note), trace_configs=[_no_redirects()]
    ) as session:
        try:
            socket = await _connect(payer, request, handshake, session, courier)
            paying = await _begin(payer, request, socket, courier)
        except BaseException:
            await _give_up(payer, request)
            raise
        try:
            yield paying
        except BaseException:
            await paying.abandon()
            raise
        await paying.close()


async def _give_up(payer: Payer, request: PaidRequest) -> None:
    with contextlib.suppress(MppSessionError):
        await payer.count_unanswered(request)
    payer.release(request)


class _Handshake:
    """Asks for a websocket, and keeps the HTTP answer of a server that refuses."""

    def __init__(self, url: httpx.URL, headers: dict[str, str], protocols: Sequence[str]) -> None:
        self.url = url
        self.reply = Reply(0)
        self._headers = headers
        self._protocols = tuple(protocols)

    async def note(self, response: aiohttp.ClientResponse) -> None:
        """Read the answer before aiohttp closes it; called for each one."""
        if response.status == _SWITCHING:
            return
        body = bytearray()
        async for chunk in response.content.iter_chunked(PROBLEM_BYTES_MAX):
            body += chunk
            if len(body) > PROBLEM_BYTES_MAX:
                break
        fields = list(response.headers.items())
        self.reply = build_reply(httpx.Response(response.status, headers=fields), bytes(body))

    async def ask(self, session: aiohttp.ClientSession, header: Header | None) -> Socket | None:
        """Return the open connection, or None where `reply` says why there is none."""
        headers = {**self._headers, "Accept-Payment": ACCEPT_PAYMENT}
        if header is not None:
            headers[header[0]] = header[1]
        try:
            return await session.ws_connect(
                str(self.url),
                headers=headers,
                protocols=self._protocols,
                max_msg_size=FRAME_BYTES_MAX + _ENVELOPE_BYTES,
            )
        except aiohttp.WSServerHandshakeError:
            return None


def _no_redirects() -> aiohttp.TraceConfig:
    """Return a trace that refuses redirects: a credential is for the origin asked (F-93)."""

    async def refuse(_: Any, __: Any, params: aiohttp.TraceRequestRedirectParams) -> None:
        raise PaymentRefusedError(
            status=params.response.status,
            problem_type="a redirect",
            detail="a websocket follows none, because it may carry a credential",
        )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    return trace


async def _connect(
    payer: Payer,
    request: PaidRequest,
    handshake: _Handshake,
    session: aiohttp.ClientSession,
    courier: "_Courier",
) -> Socket:
    """Ask and pay until the connection is open."""
    header = await payer.prepay(request)
    for _ in range(ROUNDS_MAX):
        try:
            socket = await handshake.ask(session, header)
        except aiohttp.ClientConnectorError as error:
            payer.note_unsent(request)
            raise httpx.ConnectError(str(error)) from error
        except aiohttp.ClientError as error:
            raise httpx.ReadError(str(error)) from error
        if socket is not None:
            return socket
        reply = handshake.reply
        if reply.status == httpx.codes.FORBIDDEN and not reply.challenges and header is None:
            reply = await courier.head(None)  # its server cannot answer a handshake with 402
        header = await payer.answer(request, reply)
        if header is None:
            raise PaymentRefusedError(
                status=reply.status,
                problem_type="a handshake",
                detail="the server opens no websocket here",
            )
    raise PaymentRefusedError(
        status=reply.status,
        problem_type="no end",
        detail=f"the server still refuses after {ROUNDS_MAX} rounds",
    )


async def _begin(
    payer: Payer, request: PaidRequest, socket: Socket, courier: "_Courier"
) -> "PayingWebSocket":
    """Check the first receipt, and start to read."""
    if not request.has_slot:
        return PayingWebSocket(socket, None, courier)
    try:
        async with asyncio.timeout(TIMEOUT_S["read"]):
            first = await socket.receive()
    except TimeoutError:
        raise httpx.ReadTimeout("no receipt came first on the websocket") from None
    frame = _read_frame(first.data) if first.type is aiohttp.WSMsgType.TEXT else None
    if not isinstance(frame, ReceiptFrame):
        await socket.close(code=_CLOSE_CODE)
        raise ReceiptViolationError(
            field="the first frame", said=str(first.type), expected="a receipt"
        )
    paid = await payer.begin_stream(request, Reply(200, receipt=_receipt_text(frame)))
    courier.socket = socket
    return PayingWebSocket(socket, paid, courier)


@contextlib.contextmanager
def _reading(field: str, expected: str) -> Iterator[None]:
    """Report what cannot be read as the server's violation."""
    try:
        yield
    except (WireError, UnicodeDecodeError) as error:
        raise ReceiptViolationError(
            field=field, said=f"unreadable ({error})", expected=expected
        ) from error


def _read_frame(text: str) -> Any:
    with _reading("a frame", "a frame of the protocol"):
        return parse_server_frame(text)


def _receipt_text(frame: ReceiptFrame | CloseReadyFrame) -> str:
    with _reading("a receipt", "a receipt"):
        return format_receipt(parse_receipt_json(bytes(frame.data).decode()))


class _Courier(ManagementClient):
    """Presents credentials: by HEAD before the connection is open, in frames after that."""

    def __init__(self, before: HeadManagementClient) -> None:
        self.socket: Socket | None = None
        self.on_waiting: Callable[[], None] = lambda: None
        """Called when an answer is waited for: the reader must not wait for the caller then."""
        self._before = before
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Reply] | None = None

    async def head(self, credential: Header | None) -> Reply:
        """Present one credential, and return the answer to it."""
        socket = self.socket
        if socket is None or credential is None:
            return await self._before.head(credential)
        async with self._turn:
            self._answer = asyncio.get_running_loop().create_future()
            self.on_waiting()
            try:
                async with asyncio.timeout(TIMEOUT_S["read"]):
                    await socket.send_str(format_authorization_frame(credential[1]))
                    return await self._answer
            except TimeoutError:
                raise httpx.ReadTimeout("no answer to a voucher on the websocket") from None
            except (ConnectionError, aiohttp.ClientError) as error:
                raise httpx.WriteError(str(error)) from error
            finally:
                self._answer = None

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is waited for."""
        return self._answer is not None

    def answer(self, reply: Reply) -> bool:
        """Hand on the answer to the credential that was presented; False if there is none."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_result(reply)
        return True

    def end(self) -> None:
        """Record that no answer comes any more."""
        self.socket = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(httpx.ReadError("the websocket was closed"))


class PayingWebSocket:
    """An open connection; iterate over it for the messages of the server.

    async with client.websocket("wss://api.example/talk") as socket:
        await socket.send("hello")
        async for message in socket:
            print(message)
    """

    def __init__(self, socket: Socket, paid: PaidStream | None, courier: _Courier) -> None:
        self.close_code: int | None = None
        """The server's close code, once it has closed the connection."""
        self._socket = socket
        self._paid = paid
        self._courier = courier
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._has_room = asyncio.Event()
        courier.on_waiting = self._has_room.set
        self._failure: BaseException | None = None
        self._refusal: ErrorFrame | None = None
        self._ahead: Usage | None = None
        """What the next binary frame used, as a frame before it states."""
        self._has_ended = asyncio.Event()
        self._is_last = asyncio.Event()
        """Set with the last receipt, or without one when the connection is closed."""
        self._is_closing = False
        self._opened_at = self._loop.time()
        self._seconds = 0
        self._needs: asyncio.Queue[str] = asyncio.Queue()
        self._tasks = [
            self._loop.create_task(work)
            for work in ([] if paid is None else [self._guard(self._read), self._guard(self._pay)])
        ]

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the application chose."""
        return self._socket.protocol

    async def send(self, message: str | bytes) -> None:
        """Send one message, after a voucher for it if one is due.

        Raises:
            AgentError: Why the connection ended: the policy, or the server's refusal.
            httpx.WriteError: The connection is closed.
        """
        self._require_open()
        paid = self._paid
        if paid is not None:
            size = len(message.encode("utf-8", "replace") if isinstance(message, str) else message)
            self._count(paid, {MESSAGE_IN: 1, BYTE_IN: size})
            await paid.keep_up()
            self._require_open()
        try:
            if isinstance(message, bytes):
                await self._socket.send_bytes(message)
            else:
                await self._socket.send_str(
                    message if paid is None else format_message_frame(message)
                )
        except (ConnectionError, aiohttp.ClientError) as error:
            raise httpx.WriteError(str(error)) from error

    async def receive(self) -> str | bytes | None:
        """Return the server's next message; None after the last one.

        Raises:
            AgentError: As for `send`.
        """
        if self._paid is None:
            message = await self._socket.receive()
            kinds = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
            return cast("str | bytes", message.data) if message.type in kinds else None
        found = await self._inbox.get()
        self._has_room.set()
        if found is None:
            self._inbox.put_nowait(None)
            self._raise_failure()
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def close(self) -> None:
        """Ask for the last receipt, check it, and close; a second call does nothing.

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        paid = self._paid
        if paid is not None and not self._has_ended.is_set():
            self._is_closing = True
            self._has_room.set()
            with contextlib.suppress(TimeoutError, ConnectionError, aiohttp.ClientError):
                await self._socket.send_str(format_close_request_frame())
                async with asyncio.timeout(RECEIPT_WAIT_S_MAX):
                    await self._is_last.wait()
        await self.abandon()
        if isinstance(self._failure, ReceiptViolationError):
            raise self._failure

    async def abandon(self) -> None:
        """Close without waiting for the last receipt."""
        self._has_ended.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._courier.end()
        await self._socket.close()
        if self._paid is not None:
            paid, self._paid = self._paid, None
            self._count_seconds(paid)
            await paid.end(is_broken=not paid.has_receipt and self._failure is None)

    def _require_open(self) -> None:
        if self._has_ended.is_set():
            self._raise_failure()
            raise httpx.WriteError("the websocket is closed")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._refusal is not None and self._refusal.status == httpx.codes.PAYMENT_REQUIRED:
            raise PaymentRefusedError(
                status=self._refusal.status,
                problem_type="a websocket",
                detail=self._refusal.message,
            )

    def _count(self, paid: PaidStream, usage: Usage) -> None:
        self._count_seconds(paid)
        paid.count_measured(usage)

    def _count_seconds(self, paid: PaidStream) -> None:
        begun = int(self._loop.time() - self._opened_at) + 1
        if begun > self._seconds:
            paid.count_measured({SECOND: begun - self._seconds})
            self._seconds = begun

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """End the connection when one of its tasks ends."""
        try:
            await work()
        except (MppSessionError, httpx.TransportError) as error:
            self._failure = self._failure or error
            await self._socket.close(code=_CLOSE_CODE)
        finally:
            self._has_ended.set()
            self._is_last.set()
            self._courier.end()
            self._inbox.put_nowait(None)

    async def _read(self) -> None:
        paid = cast("PaidStream", self._paid)
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                data: bytes = message.data
                self._count(paid, {MESSAGE_OUT: 1, BYTE_OUT: len(data)})
                stated, self._ahead = self._ahead, None
                self._count_stated(paid, "x" * len(data), stated)
                await self._keep(data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                await self._take(paid, _read_frame(message.data))
            else:
                if message.type is aiohttp.WSMsgType.CLOSE:
                    self.close_code = message.data
                return

    async def _keep(self, message: str | bytes) -> None:
        """Keep a message for the caller, and read on once there is room.

        The answer to a voucher comes behind messages: while it is waited for, more are kept.
        """
        if self._is_closing:
            return
        self._inbox.put_nowait(message)
        while self._inbox.qsize() >= FRAMES_AHEAD_MAX and not self._is_closing:
            if self._courier.is_waiting:
                if self._inbox.qsize() < 4 * FRAMES_AHEAD_MAX:
                    return
                raise PaymentRefusedError(
                    status=200,
                    problem_type="a websocket",
                    detail=f"{self._inbox.qsize()} messages wait for their reader",
                )
            self._has_room.clear()
            await self._has_room.wait()

    async def _take(self, paid: PaidStream, frame: Any) -> None:
        match frame:
            case MessageFrame(data=text):
                size = len(text.encode("utf-8", "replace"))
                self._count(paid, {MESSAGE_OUT: 1, BYTE_OUT: size})
                self._count_stated(paid, text, _read_usage(frame.usage))
                await self._keep(text)
            case UsageFrame():
                self._ahead = _read_usage(frame.usage)
            case NeedVoucherFrame():
                self._count_seconds(paid)
                self._needs.put_nowait(bytes(frame.data).decode("utf-8", "replace"))
            case ReceiptFrame():
                self._courier.answer(Reply(200, receipt=_receipt_text(frame)))
            case CloseReadyFrame():
                self._count_seconds(paid)
                await paid.take_receipt(bytes(frame.data).decode("utf-8", "replace"))
                self._is_last.set()
            case ErrorFrame():
                reply = Reply(frame.status, challenges=frame.challenges, body=bytes(frame.problem))
                if not self._courier.answer(reply):
                    self._refusal = frame

    def _count_stated(self, paid: PaidStream, text: str, stated: Usage | None) -> None:
        """Count what the server states of its handler's count, within the bounds of the text."""
        if stated is None:
            if paid.main_kind not in COUNTED_KINDS:
                paid.count(text, 1)
            return
        paid.count(text, {kind: said for kind, said in stated.items() if kind not in COUNTED_KINDS})

    async def _pay(self) -> None:
        """Answer each request for a voucher while frames are read on."""
        paid = cast("PaidStream", self._paid)
        while True:
            await paid.need_voucher(await self._needs.get())
            if paid.settling is not None:
                await asyncio.wait({paid.settling})
            paid.require_settled()


def _read_usage(usage: dict[str, Any] | None) -> Usage | None:
    with _reading("usage", "units by kind"):
        return read_frame_usage(usage)
