"""O-91: an answer whose head trickles in is given up in time, though bytes come all the while."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.datastructures import Headers

from channel.errors import ChainUnavailableError
from mpp_session.gateway.errors import UpstreamTimeoutError
from mpp_session.gateway.upstream import Upstream
from mpp_session.settings import Upstream as UpstreamSettings
from settlement.node.rpc import Rpc, RpcLimits
from tests.waiting import PATIENCE_S


@asynccontextmanager
async def trickling(head: bytes, *, every_s: float = 0.05) -> AsyncIterator[str]:
    """Serve this head and then a byte now and then, for ever."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            writer.write(head)
            while True:
                await writer.drain()
                await asyncio.sleep(every_s)
                writer.write(b"x")
        except (ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX-Long: "],
    ids=["half a status", "a status", "a field without end"],
)
async def test_the_model_servers_head_has_a_deadline(head: bytes) -> None:
    """O-91: 58 seconds under a timeout of 6."""
    async with trickling(head) as url:
        settings = UpstreamSettings(url=url, read_timeout_s=0.3, connect_timeout_s=0.2)
        async with Upstream.connect(settings) as upstream, asyncio.timeout(PATIENCE_S):
            with pytest.raises(UpstreamTimeoutError):
                async with upstream.request("POST", "/v1/chat/completions", Headers({}), b"{}"):
                    raise AssertionError("there is no answer")


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n["],
    ids=["its head", "its body"],
)
async def test_a_nodes_answer_has_a_deadline(head: bytes) -> None:
    """O-91: for the head and the body."""
    async with trickling(head) as url, asyncio.timeout(PATIENCE_S):
        with pytest.raises(ChainUnavailableError, match=r"within 0\.3 s"):
            await Rpc.connect(url, limits=RpcLimits(timeout_s=0.3, read_attempts_max=1))
