"""What the model server sends over a connection, byte by byte, and what the gateway makes of it."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from starlette.datastructures import Headers

from channel.limits import HEAD_LINES_MAX, LOCATION_CHARS_MAX
from mpp_session.gateway.errors import ConnectTimeoutError, UpstreamError, UpstreamTimeoutError
from mpp_session.gateway.events import read_events
from mpp_session.gateway.upstream import Upstream, read_body, returned_headers
from mpp_session.settings import Secret
from mpp_session.settings import Upstream as UpstreamSettings
from tests.waiting import PATIENCE_S

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"
PATH = "/v1/chat/completions"

Speaks = Callable[["Line"], Awaitable[None]]


class Line:
    """One connection to the server that a test plays."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def hear(self) -> bytes:
        """Read one request whole."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        _, found, rest = head.lower().partition(b"content-length: ")
        length = int(rest.partition(b"\r\n")[0]) if found else 0
        return head + await self._reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0.01)

    async def until_closed(self) -> None:
        assert await self._reader.read(1) == b""

    def reset(self) -> None:
        """Close with RST, which TCP sends when the socket does not linger."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._writer.transport.abort()


class Played(msgspec.Struct):
    url: str
    connections: int = 0


@asynccontextmanager
async def played(*scripts: Speaks) -> AsyncIterator[Played]:
    """A server that runs the first script on its first connection, and so on."""
    server_ = Played("")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        script = scripts[server_.connections]
        server_.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await script(Line(reader, writer))
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    server_.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield server_
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answers(*pieces: bytes, then: str = "") -> Speaks:
    """Answer each request on the connection with the next piece; then close, reset, or wait."""

    async def speak(line: Line) -> None:
        for piece in pieces:
            await line.hear()
            await line.say(piece)
        if then == "reset":
            line.reset()
        elif then != "close":
            await line.until_closed()

    return speak


@asynccontextmanager
async def asking(*scripts: Speaks, **more: Any) -> AsyncIterator[tuple[Upstream, Played]]:
    async with (
        played(*scripts) as server,
        Upstream.connect(UpstreamSettings(url=server.url, **more)) as upstream,
    ):
        yield upstream, server


async def ask(
    upstream: Upstream, method: str = "POST", body: bytes | None = b"{}", **headers: str
) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with upstream.request(method, PATH, Headers(named), body) as answer:
        return await read_body(answer)


def sized(body: bytes) -> bytes:
    return OK + b"content-length: %d\r\n\r\n%s" % (len(body), body)


# -- connections


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with asking(answers(sized(b"one"), sized(b"two"))) as (upstream, server):
        assert await ask(upstream) == b"one"
        assert await ask(upstream) == b"two"
    assert server.connections == 1


async def test_requests_in_flight_together_have_a_connection_each() -> None:
    """None waits for another; a kept one is used before a new one is made."""
    many = 70
    scripts = [answers(sized(b"a"), sized(b"b"))] * many
    async with asking(*scripts) as (upstream, server):
        assert await asyncio.gather(*[ask(upstream) for _ in range(many)]) == [b"a"] * many
        assert server.connections == many
        assert await ask(upstream) == b"b"
        assert server.connections == many


async def test_bytes_behind_an_answer_never_answer_the_next_request() -> None:
    """A second answer, unasked, would be another client's: the connection is dropped."""
    stolen = sized(b"stolen")
    for pieces in ([sized(b"one") + stolen], [sized(b"one"), stolen]):

        async def speak(line: Line, pieces: list[bytes] = pieces) -> None:
            await line.hear()
            await line.say(*pieces)
            await line.until_closed()

        async with asking(speak, answers(sized(b"two"))) as (upstream, server):
            assert await ask(upstream) == b"one"
            await asyncio.sleep(0.05)
            assert await ask(upstream) == b"two"
        assert server.connections == 2


async def test_bytes_that_arrive_with_the_next_request_do_not_answer_it() -> None:
    """The event loop has not read them yet; the socket holds them."""
    sent = asyncio.Event()
    writers: list[Line] = []

    async def speak(line: Line) -> None:
        await line.hear()
        await line.say(sized(b"one"))
        writers.append(line)
        sent.set()
        await line.until_closed()

    async with asking(speak, answers(sized(b"two"))) as (upstream, server):
        assert await ask(upstream) == b"one"
        await sent.wait()
        writers[0]._writer.write(sized(b"stolen"))  # noqa: SLF001 -- no turn of the loop between
        assert await ask(upstream) == b"two"
    assert server.connections == 2


async def test_rubbish_behind_an_answer_closes_the_connection() -> None:
    """In one packet with the whole answer, it makes the answer a failure."""

    async def speak(line: Line) -> None:
        await line.hear()
        await line.say(sized(b"one"), b"rubbish")
        await line.until_closed()

    scripts = speak, answers(sized(b"two") + b"rubbish"), answers(sized(b"three"))
    async with asking(*scripts) as (upstream, server):
        assert await ask(upstream) == b"one"
        await asyncio.sleep(0.05)
        with pytest.raises(UpstreamError):
            await ask(upstream)
        assert await ask(upstream) == b"three"
    assert server.connections == 3


async def test_a_request_is_sent_again_when_a_kept_connection_was_closed() -> None:
    """The server closed while the request was on its way: nothing of it was answered."""

    async def speak(line: Line) -> None:
        await line.hear()
        await line.say(sized(b"one"))
        await line.hear()

    async with asking(speak, answers(sized(b"two"))) as (upstream, server):
        assert await ask(upstream) == b"one"
        assert await ask(upstream) == b"two"
    assert server.connections == 2


@pytest.mark.parametrize(("method", "body"), [("POST", b"{}"), ("GET", None)])
async def test_a_request_is_sent_again_once(method: str, body: bytes | None) -> None:
    async def speak(line: Line) -> None:
        await line.hear()

    async with asking(speak, speak, speak) as (upstream, server):
        with pytest.raises(UpstreamError, match="could not be reached"):
            await ask(upstream, method, body)
    assert server.connections == 2


@pytest.mark.parametrize("head", [b"HTTP/1.1 200", OK, OK + b"content-length: 3\r\n"])
async def test_a_request_of_which_the_answer_has_begun_is_not_sent_again(head: bytes) -> None:
    """The model ran: a second request would make it run twice."""
    async with asking(answers(head, then="close"), answers(sized(b"two"))) as (upstream, server):
        with pytest.raises(UpstreamError, match="broke off"):
            await ask(upstream)
    assert server.connections == 1


async def test_a_request_on_a_connection_that_was_reset_is_not_sent_again() -> None:
    async def speak(line: Line) -> None:
        await line.hear()
        line.reset()

    async with asking(speak, answers(sized(b"two"))) as (upstream, server):
        with pytest.raises(UpstreamError, match="broke off"):
            await ask(upstream)
    assert server.connections == 1


async def test_an_answer_that_is_left_closes_its_connection() -> None:
    """The model server stops generating when its client is gone."""
    closed = asyncio.Event()

    async def speak(line: Line) -> None:
        await line.hear()
        await line.say(OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await line.until_closed()
        closed.set()

    async with asking(speak) as (upstream, _):
        async with upstream.request("POST", PATH, Headers({}), b"{}"):
            pass
        await closed.wait()


async def test_a_request_that_is_cancelled_closes_its_connection() -> None:
    heard, closed = asyncio.Event(), asyncio.Event()

    async def speak(line: Line) -> None:
        await line.hear()
        heard.set()
        await line.until_closed()
        closed.set()

    async with asking(speak) as (upstream, _):
        task = asyncio.create_task(ask(upstream))
        await heard.wait()
        task.cancel()
        await closed.wait()


async def test_nothing_that_is_sent_waits_for_an_acknowledgement() -> None:
    """O-36: on the connections to the model server."""
    async with asking(answers(OK + b"content-length: 1\r\n\r\n")) as (upstream, _):
        response = await upstream._send("POST", PATH, {}, b"{}", connect_s=5, read_s=5)  # noqa: SLF001
        assert response.connection is not None
        assert response.connection.transport is not None
        sock = response.connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        response.close()


# -- what is sent


async def test_a_request_holds_what_was_given_and_nothing_of_the_librarys() -> None:
    heard: list[bytes] = []

    async def speak(line: Line) -> None:
        for _ in range(3):
            heard.append(await line.hear())
            await line.say(OK + b"set-cookie: a=b; path=/\r\ncontent-length: 0\r\n\r\n")
        await line.until_closed()

    async with asking(speak, api_key=Secret("key-of-the-gateway")) as (upstream, _):
        await ask(upstream, authorization="Bearer client", cookie="c=d", x_request_id="7")
        await ask(upstream, body=None, method="GET")
        await upstream.post("/tokenize", b"[]", 5.0, bytes_max=10)
    as_json = b"content-type: application/json"
    lines = [sorted(each.lower().partition(b"\r\n\r\n")[0].split(b"\r\n")) for each in heard]
    host = f"host: {upstream.url.removeprefix('http://')}".encode()
    own = [host, b"accept: */*", b"accept-encoding: identity"]
    own.append(b"authorization: bearer key-of-the-gateway")
    assert lines == [
        sorted(
            [b"post %s http/1.1" % PATH.encode(), *own, b"x-request-id: 7", b"content-length: 2"]
        ),
        sorted([b"get %s http/1.1" % PATH.encode(), *own]),
        sorted([b"post /tokenize http/1.1", *own, as_json, b"content-length: 2"]),
    ]


async def test_a_header_outside_ascii_reaches_the_server_as_it_was() -> None:
    """aiohttp encodes text as UTF-8. Other bytes of Latin-1 keep their characters."""
    heard: list[bytes] = []

    async def speak(line: Line) -> None:
        for _ in range(2):
            heard.append(await line.hear())
            await line.say(EMPTY)

    async with asking(speak) as (upstream, _):
        await ask(upstream, user_agent="café".encode().decode("latin-1"))
        await ask(upstream, user_agent="café")
    assert ["user-agent: café".encode() in each.lower() for each in heard] == [True, True]


async def test_a_long_body_is_sent_whole_again() -> None:
    body = bytes(range(256)) * 8192
    heard: list[bytes] = []

    async def speak(line: Line) -> None:
        heard.append(await line.hear())

    async def answer(line: Line) -> None:
        heard.append(await line.hear())
        await line.say(EMPTY)

    async with asking(speak, answer) as (upstream, _):
        await ask(upstream, body=body)
    assert [each.partition(b"\r\n\r\n")[2] == body for each in heard] == [True, True]


@pytest.mark.parametrize("target", ["/a/../b", "/%2e%2e/b", "//x", "/a%2Fb?q=%20a+b&q=;"])
async def test_a_target_is_sent_as_it_came(target: str) -> None:
    """A path that is decoded or normalised on the way could name something that is not free."""
    heard: list[bytes] = []

    async def speak(line: Line) -> None:
        heard.append(await line.hear())
        await line.say(EMPTY)

    async with asking(speak) as (upstream, _), upstream.request("GET", target, Headers({}), None):
        pass
    assert heard[0].startswith(f"GET {target} HTTP/1.1\r\n".encode())


async def test_a_target_cannot_name_another_server() -> None:
    async with asking() as (upstream, server):
        for target in ("@127.0.0.1:9/", ".example/", ""):
            with pytest.raises(ValueError, match="not a path"):
                async with upstream.request("GET", target, Headers({}), None):
                    pass
    assert server.connections == 0


async def test_a_name_and_a_password_in_the_url_are_sent_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[bytes] = []

    async def speak(line: Line) -> None:
        heard.append(await line.hear())
        await line.say(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")

    async with played(speak) as server:
        url = server.url.replace("http://", "http://user:p%20w@")
        async with Upstream.connect(UpstreamSettings(url=url)) as upstream:
            with pytest.raises(UpstreamError, match="refused the gateway"):
                await ask(upstream)
    assert b"authorization: basic dxnlcjpwihc=" in heard[0].lower()
    assert server.url in caplog.text
    assert "user" not in caplog.text


# -- heads


def head_of(lines: int, extra: bytes = b"") -> bytes:
    named = b"".join(b"x-%d: y\r\n" % number for number in range(lines - 1))
    return OK + named + extra + b"content-length: 0\r\n\r\n"


async def test_a_head_has_at_most_so_many_lines() -> None:
    async with asking(answers(head_of(HEAD_LINES_MAX))) as (upstream, _):
        assert await ask(upstream) == b""
    async with asking(answers(head_of(HEAD_LINES_MAX + 1))) as (upstream, _):
        with pytest.raises(UpstreamError):
            await ask(upstream)


async def test_a_line_of_a_head_has_at_most_8190_bytes() -> None:
    async with asking(answers(head_of(2, b"x-long: " + b"y" * 8000 + b"\r\n"))) as (upstream, _):
        assert await ask(upstream) == b""
    async with asking(answers(head_of(2, b"x-long: " + b"y" * 8200 + b"\r\n"))) as (upstream, _):
        with pytest.raises(UpstreamError):
            await ask(upstream)


async def test_a_line_without_end_is_not_collected() -> None:
    async def speak(line: Line) -> None:
        await line.hear()
        while True:
            await line.say(OK + b"x-long: ", b"y" * 8192)

    async with asking(speak) as (upstream, _):
        with pytest.raises(UpstreamError):
            await ask(upstream)


@pytest.mark.parametrize(
    "answer",
    [
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n12",
        OK + b"content-length: +1\r\n\r\n1",
        OK + b"content-length: 1x\r\n\r\n1",
        OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
        OK + b"content-type: a\x01b\r\ncontent-length: 0\r\n\r\n",
        OK + b"content-type: a\x00b\r\ncontent-length: 0\r\n\r\n",
        OK + b"content-type: a\rx-request-id: b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http_is_a_failure(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with asking(answers(answer)) as (upstream, _):
        with pytest.raises(UpstreamError):
            await ask(upstream)
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "\n" not in line.getMessage()
    assert len(line.getMessage()) < LOCATION_CHARS_MAX + 100


async def test_what_is_passed_on_holds_no_control_characters() -> None:
    """aiohttp accepts a folded field, and lines that end in LF alone; a field stays one line."""
    head = b"HTTP/1.1 200 OK\ncontent-type: a\r\n b\r\nx-request-id: c\ncontent-length: 0\r\n\r\n"
    async with asking(answers(head)) as (upstream, _):
        try:
            async with upstream.request("POST", PATH, Headers({}), b"{}") as answer:
                returned = returned_headers(answer)
        except UpstreamError:
            return
    assert all("\n" not in value and "\r" not in value for value in returned.values())


async def test_a_header_is_returned_as_the_bytes_it_came_in() -> None:
    head = OK + b"X-Request-Id: caf\xe9\r\nopenai-a: 1\r\nOpenAI-A: 2\r\ncontent-length: 0\r\n\r\n"
    async with (
        asking(answers(head)) as (upstream, _),
        upstream.request("POST", PATH, Headers({}), b"{}") as answer,
    ):
        assert returned_headers(answer) == {"x-request-id": "café", "openai-a": "1, 2"}


async def test_two_codings_in_two_lines_are_two_codings() -> None:
    head = OK + b"content-encoding: gzip\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n\r\n"
    async with asking(answers(head)) as (upstream, _):
        with pytest.raises(UpstreamError, match="gzip, gzip"):
            await ask(upstream)


async def test_answers_ahead_of_the_answer_are_skipped() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
    async with asking(answers(early + early + sized(b"one"))) as (upstream, _):
        assert await ask(upstream) == b"one"


# -- bodies

CHUNKED = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"data: {}\n\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(
    ("answer", "events"),
    [
        (CHUNKED + CHUNK + CHUNK, 2),
        (CHUNKED + CHUNK + CHUNK + b"5\r\nda", 2),
        (OK + b"content-length: 100\r\n\r\n" + EVENT + EVENT, 2),
    ],
    ids=["between chunks", "in a chunk", "a length"],
)
async def test_what_came_before_a_body_broke_off_is_read(
    answer: bytes, events: int, then: str
) -> None:
    """The client gets and pays what the model made; then it learns of the failure."""
    async with (
        asking(answers(answer, then=then)) as (upstream, _),
        upstream.request("POST", PATH, Headers({}), b"{}") as opened,
    ):
        await asyncio.sleep(0.05)  # the end has arrived, and nothing was read
        found = []
        with pytest.raises(UpstreamError, match="broke off"):  # noqa: PT012
            async for data in read_events(opened):
                found.append(data)  # noqa: PERF401 -- what came before the error
        assert found == ["{}"] * events


@pytest.mark.parametrize(("then", "is_whole"), [("close", True), ("reset", False)])
async def test_a_body_without_length_ends_with_its_connection(then: str, *, is_whole: bool) -> None:
    """A reset is no end: the answer may be cut."""
    async with asking(answers(OK + b"\r\nall of it", then=then)) as (upstream, _):
        if is_whole:
            assert await ask(upstream) == b"all of it"
        else:
            with pytest.raises(UpstreamError, match="broke off"):
                await ask(upstream)


@pytest.mark.parametrize(
    "chunk", [b"x\r\n", b"-1\r\na\r\n", b"1 1\r\na\r\n", b"1\r\nab\r\n", b"f" * 17 + b"\r\n"]
)
async def test_a_chunk_that_is_none_is_a_failure(chunk: bytes) -> None:
    async with asking(answers(CHUNKED + chunk)) as (upstream, _):
        with pytest.raises(UpstreamError):
            await ask(upstream)


async def test_a_body_that_pauses_is_given_up() -> None:
    async with asking(answers(CHUNKED + CHUNK), read_timeout_s=0.2) as (upstream, _):
        with pytest.raises(UpstreamTimeoutError, match="fell silent"):
            await ask(upstream)


async def test_a_body_that_is_not_read_is_not_collected() -> None:
    """What a slow client leaves unread stays with the model server."""
    sent = 0

    async def speak(line: Line) -> None:
        nonlocal sent
        await line.hear()
        piece = bytes(64 * 1024)
        await line.say(OK + b"content-length: 1000000000\r\n\r\n")
        while True:
            line._writer.write(piece)  # noqa: SLF001
            await line._writer.drain()  # noqa: SLF001
            sent += len(piece)

    async with (
        asking(speak) as (upstream, _),
        upstream.request("POST", PATH, Headers({}), b"{}"),
    ):
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.2)
        assert sent < 32 * 1024 * 1024  # the kernel's buffers on both sides


async def test_a_server_that_does_not_accept_was_not_asked() -> None:
    """Nothing can be charged for: the model has not seen the request."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with contextlib.ExitStack() as full:
            for _ in range(4):  # until the queue is full, and the kernel answers no more
                waiting = full.enter_context(socket.socket())
                waiting.setblocking(False)  # noqa: FBT003
                waiting.connect_ex(listener.getsockname())
            settings = UpstreamSettings(url=url, connect_timeout_s=0.2)
            async with Upstream.connect(settings) as upstream, asyncio.timeout(PATIENCE_S):
                with pytest.raises(UpstreamTimeoutError) as caught:
                    await ask(upstream)
    assert isinstance(caught.value.__cause__, ConnectTimeoutError)
