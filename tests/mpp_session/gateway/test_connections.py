"""What a stranger's connection may leave undone, for how long, and how many there may be."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from channel.limits import (
    CHUNK_BYTES_MEAN_MIN,
    CHUNKS_SMALL_MAX,
    HEAD_LINES_MAX,
    HEAD_WORDS_MAX,
    READ_BYTES_MAX,
    TARGET_BYTES_MAX,
)
from mpp_session.gateway.connections import JoinedWrites, connections_max
from mpp_session.gateway.serve import _build_server
from mpp_session.gateway.sockets import bind, listen, listening_url
from mpp_session.settings import Listen
from tests.waiting import PATIENCE_S, until

HEAD = b"POST /x HTTP/1.1\r\nhost: x\r\n"
GET = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"
LONG = 16 * 1024 * 1024


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and answer with its length, or with very much where that is asked for."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = b"x" * LONG if scope["path"] == "/long" else b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for start in range(0, len(body), 65536):
        piece = body[start : start + 65536]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Served:
    def __init__(self, server: Any, listener: socket.socket) -> None:
        self.server = server
        self.url = listening_url(listener)
        self.port: int = listener.getsockname()[1]
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(
        self, *, sent: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        writer.write(sent)
        return reader, writer

    async def answer(self, sent: bytes) -> bytes:
        """Send bytes, and return all that comes until the server hangs up."""
        reader, _ = await self.connect(sent=sent)
        try:
            return await asyncio.wait_for(reader.read(), PATIENCE_S)
        except ConnectionError:
            return b""

    async def is_served(self) -> bool:
        closing = GET[:-2] + b"connection: close\r\n\r\n"
        return (await self.answer(closing)).startswith(b"HTTP/1.1 200")

    @property
    def connections(self) -> set[Any]:
        connections: set[Any] = self.server.server_state.connections
        return connections

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Served]:
    listening = Listen(port=0, **settings)
    server = _build_server(app, listening)
    with bind(listening) as listener:
        listen(listener, listening)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        served = Served(server, listener)
        try:
            yield served
        finally:
            served.close()
            server.should_exit = True
            await task


UNDONE = {
    "nothing": b"",
    "half a head": HEAD,
    "a word": b"GET",
    "half a second head": GET + HEAD,
    "half a body": HEAD + b"content-length: 5\r\n\r\n1234",
    "half the chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\n1234\r\n",
    "a promise of a body": HEAD + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


async def test_what_is_left_undone_ends_with_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-24, O-26: idle connections, half heads, half bodies; others are served meanwhile."""
    monkeypatch.setattr("mpp_session.gateway.connections._BODY_GRACE_S", 0.0)
    async with serving(head_timeout_s=0.3, body_timeout_s=0.3) as served:
        ending = [asyncio.create_task(served.answer(sent)) for sent in UNDONE.values()]
        assert await served.is_served()
        await asyncio.gather(*ending)
        await until(lambda: not served.connections)


async def test_a_trickle_is_no_progress() -> None:
    """O-26: slow loris, a byte of its head at a time."""
    async with serving(head_timeout_s=0.5) as served:
        _, writer = await served.connect()
        await until(lambda: bool(served.connections))
        async with asyncio.timeout(PATIENCE_S):
            while served.connections:
                writer.write(b"a")
                await asyncio.sleep(0.05)


async def test_who_does_not_read_is_let_go_and_who_reads_slowly_is_not() -> None:
    """O-26: an answer that no client reads holds memory, a worker's time and a descriptor."""
    asked = GET.replace(b"/x", b"/long")
    async with serving(read_timeout_s=1.5) as served:
        _, lazy = await served.connect(sent=asked)
        lazy.transport.pause_reading()  # type: ignore[attr-defined]
        reader, _ = await served.connect(
            sent=asked.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        )
        size = 0
        while piece := await reader.read(1024 * 1024):
            size += len(piece)
            await asyncio.sleep(0.05)
        assert size > LONG
        await until(lambda: not served.connections)


async def test_a_request_in_progress_has_no_deadline() -> None:
    async with serving(head_timeout_s=0.2, body_timeout_s=30) as served:
        reader, writer = await served.connect(sent=HEAD + b"content-length: 2\r\n\r\n1")
        await until(lambda: time.monotonic() - min(c.made_at for c in served.connections) > 1.5)
        writer.write(b"2")
        assert b"200 OK" in await asyncio.wait_for(reader.readline(), PATIENCE_S)


async def test_as_many_connect_as_may_and_the_idle_ones_make_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-26: a client that holds idle connections keeps no other client out."""
    async with serving(connections_max=8) as served:
        busy, _ = await served.connect(sent=HEAD + b"content-length: 1\r\n\r\n")
        await until(lambda: any(not each.is_idle() for each in served.connections))
        for _ in range(40):
            await served.connect(sent=HEAD)
            assert await served.is_served()
            assert len(served.connections) <= 9
        assert any(not each.is_idle() for each in served.connections)
        assert not busy.at_eof()
    assert "8 clients are connected" in caplog.text


async def test_when_all_are_busy_the_next_one_is_refused_immediately() -> None:
    """O-26: one connection above the bound."""
    async with serving(connections_max=2) as served:
        for _ in range(2):
            await served.connect(sent=HEAD + b"content-length: 1\r\n\r\n")
        await until(lambda: sum(not each.is_idle() for each in served.connections) == 2)
        assert (await served.answer(b"")).startswith(b"HTTP/1.1 503")


def test_fewer_connect_where_fewer_files_may_be_open(caplog: pytest.LogCaptureFixture) -> None:
    """O-26: each client may need a connection to the model server besides its own."""
    assert connections_max(Listen(connections_max=100), 65_536) == 100
    assert not caplog.records
    assert connections_max(Listen(connections_max=100), 128) == 32
    assert "ulimit -n" in caplog.text


# -- heads and bodies that are cheap to send and dear to read


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        (b"a:b\r\n" * (HEAD_LINES_MAX - 3), b"a:b\r\n" * (HEAD_LINES_MAX - 1)),
        (
            b"a:" + b" x" * (HEAD_WORDS_MAX - 4) + b"\r\n",
            b"a:" + b" x" * (HEAD_WORDS_MAX - 2) + b"\r\n",
        ),
        (b"a:" + b"\tx" * 100 + b"\r\n", b"a:" + b"\tx" * 40_000 + b"\r\n"),
        (
            b"transfer-encoding: chunked\r\n\r\n0\r\na: x\r\n",
            b"transfer-encoding: chunked\r\n\r\n0\r\na:" + b" x" * 40_000 + b"\r\n",
        ),
        (
            b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * CHUNKS_SMALL_MAX + b"0\r\n",
            b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 40_000 + b"0\r\n",
        ),
        (
            b"transfer-encoding: chunked\r\n\r\n"
            + (b"%x\r\n" % CHUNK_BYTES_MEAN_MIN + b"a" * CHUNK_BYTES_MEAN_MIN + b"\r\n") * 2000
            + b"0\r\n",
            b"transfer-encoding: chunked\r\n\r\n" + b"2;x=y\r\nab\r\n" * 20_000 + b"0\r\n",
        ),
    ],
    ids=["lines", "words", "tabs", "words in trailers", "chunks", "chunks with extensions"],
)
async def test_a_request_that_is_dear_to_read_is_refused(within: bytes, beyond: bytes) -> None:
    """O-22: 80 KB of `a: x x x` held h11, and with it every client, for 1.3 s."""
    async with serving() as served:
        closing = HEAD + b"connection: close\r\n"
        assert (await served.answer(closing + within + b"\r\n")).startswith(b"HTTP/1.1 200")
        began = time.thread_time()
        answer = await served.answer(HEAD + beyond + b"\r\n")
        assert not answer or answer.startswith(b"HTTP/1.1 400")
        assert time.thread_time() - began < 0.4
        assert await served.is_served()


async def test_a_request_line_has_a_length() -> None:
    """O-22: percent-decoding it is not free."""
    async with serving() as served:
        for extra, status in ((0, b"200"), (1, b"400")):
            rest = b" HTTP/1.1"
            path = b"/" + b"a" * (TARGET_BYTES_MAX - len(b"GET /" + rest) + extra)
            head = b"GET " + path + rest + b"\r\nhost: x\r\nconnection: close\r\n\r\n"
            assert (await served.answer(head)).startswith(b"HTTP/1.1 " + status)


async def test_a_body_that_breaks_while_it_is_answered_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-26: no traceback, neither ours nor asyncio's."""
    async with serving() as served:
        reader, writer = await served.connect(
            sent=GET.replace(b"/x", b"/long").replace(b"GET", b"POST")[:-2]
            + b"transfer-encoding: chunked\r\n\r\n"
        )
        writer.write(b"zz\r\n")
        await asyncio.wait_for(reader.read(), PATIENCE_S)
        await until(lambda: not served.connections)
    assert not [record for record in caplog.records if record.exc_info]


# -- Nagle's algorithm


def no_delay(connection: Any) -> bool:
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def hosts() -> list[str]:
    """This machine, by each kind of address that it has."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return ["127.0.0.1", "::1"]
    except OSError:
        return ["127.0.0.1"]


@pytest.mark.parametrize("host", hosts())
async def test_nothing_that_is_written_waits_for_an_acknowledgement(host: str) -> None:
    """O-36: on the socket that was accepted, and on that of an httpx client, which ours are."""
    async with (
        serving(host=host) as served,
        httpx.AsyncClient() as client,
        client.stream("GET", served.url) as answer,
    ):
        (connection,) = served.connections
        assert no_delay(connection.transport.get_extra_info("socket"))
        assert no_delay(answer.extensions["network_stream"].get_extra_info("socket"))


async def test_a_workers_copy_of_the_socket_says_that_it_is_tcp() -> None:
    """O-36: it comes by descriptor, and not every system says what it is."""
    with bind(Listen(port=0)) as listener:
        copy = socket.socket(-1, -1, socket.IPPROTO_TCP, fileno=socket.dup(listener.fileno()))
        with copy:
            assert copy.proto == socket.IPPROTO_TCP
            assert copy.family == listener.family


class Wire:
    """What a transport is asked to send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


async def test_head_body_and_end_of_one_turn_leave_in_one_write() -> None:
    wire = Wire()
    transport = JoinedWrites(wire, asyncio.get_running_loop())
    for piece in (b"head", b"", b"body"):
        transport.write(piece)
    assert wire.sent == []
    await asyncio.sleep(0)
    transport.write(b"next")
    await asyncio.sleep(0)
    assert wire.sent == [b"headbody", b"next"]


async def test_much_leaves_in_the_same_turn_so_that_the_transport_can_bound_it() -> None:
    wire = Wire()
    transport = JoinedWrites(wire, asyncio.get_running_loop())
    piece = b"x" * (READ_BYTES_MAX // 2)
    transport.write(piece)
    transport.write(piece)
    assert wire.sent == [piece + piece]
    await asyncio.sleep(0)
    assert len(wire.sent) == 1


async def test_what_is_written_before_a_close_is_sent_and_what_comes_later_is_not() -> None:
    wire = Wire()
    transport = JoinedWrites(wire, asyncio.get_running_loop())
    transport.write(b"end")
    transport.close()
    transport.write(b"late")
    await asyncio.sleep(0)
    assert (wire.sent, wire.is_closed) == ([b"end"], True)
