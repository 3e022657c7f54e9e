"""News of blocks: a websocket wakes, polling is enough."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from channel.limits import NODE_EVENT_BYTES_MAX
from settlement.dev.devnet import Devnet
from settlement.node.block_notifier import BlockNotifier
from tests.waiting import PATIENCE_S, until


@asynccontextmanager
async def listening(signal: BlockNotifier) -> AsyncIterator[None]:
    task = asyncio.create_task(signal.listen())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_without_a_websocket_it_is_time_again_after_a_while() -> None:
    signal = BlockNotifier(poll_interval_s=0.05)
    async with listening(signal):
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            await signal.wait()
        assert time.monotonic() - began > 0.04
    assert signal.subscriptions == 0


async def test_a_new_block_wakes_the_waiter_immediately(chain: Devnet) -> None:
    signal = BlockNotifier(
        poll_interval_s=3600, ws_url=chain.values.rpc_url.replace("http://", "ws://")
    )
    async with listening(signal), asyncio.timeout(PATIENCE_S):
        await signal.wait()  # the answer to the subscription: look once, nothing is missed
        assert signal.subscriptions == 1
        waiting = asyncio.create_task(signal.wait())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await chain.mine()
        await waiting


async def test_a_websocket_that_breaks_or_lies_costs_a_poll(chain: Devnet) -> None:
    """It is subscribed to again; meanwhile polling goes on (F-73)."""
    del chain
    served = 0

    async def serve(request: web.Request) -> web.WebSocketResponse:
        nonlocal served
        served += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        if served == 1:
            await socket.send_str("no JSON at all")
        elif served == 2:
            await socket.send_json({"jsonrpc": "2.0", "id": 1, "error": {"message": "no"}})
        else:
            await socket.send_json({"jsonrpc": "2.0", "id": 1, "result": "0x1"})
        await asyncio.sleep(0.05)
        return socket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    signal = BlockNotifier(poll_interval_s=0.01, ws_url=f"ws://{host}:{port}/", reconnect_s=0.01)
    try:
        async with listening(signal), asyncio.timeout(PATIENCE_S):
            await signal.wait()
            while signal.subscriptions < 2:
                await signal.wait()
    finally:
        await runner.cleanup()
    assert served >= 4


async def test_a_websocket_that_is_not_there_costs_nothing_but_a_warning() -> None:
    signal = BlockNotifier(poll_interval_s=0.01, ws_url="ws://127.0.0.1:1/", reconnect_s=0.01)
    async with listening(signal):
        for _ in range(5):
            await signal.wait()
    assert signal.subscriptions == 0


@pytest.mark.parametrize(
    "says",
    ['{"jsonrpc":"2.0","method":"eth_subscription","params":{}}', "[" * 10_000 + "]" * 10_000],
    ids=["of blocks", "a nest"],
)
async def test_a_websocket_that_talks_without_end_costs_a_look_now_and_then(says: str) -> None:
    """O-91: it woke 93 times a second. The interval holds, and what it says waits where it is."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        with suppress(ConnectionError):
            while request.transport is not None and not request.transport.is_closing():
                await socket.send_str(says)
        return socket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    signal = BlockNotifier(
        poll_interval_s=0.3, ws_url=f"ws://{host}:{port}/", reconnect_s=0.01, least_s=0.1
    )
    try:
        async with listening(signal), asyncio.timeout(PATIENCE_S):
            began, looks = time.monotonic(), 0
            while looks < 6:
                await signal.wait()
                looks += 1
            assert time.monotonic() - began > 5 * 0.1
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_message_of_a_websocket_has_at_most_so_many_bytes(beyond: int) -> None:
    """O-91, issue 10 B: at the bound it is news; a longer one ends the connection, and no more."""
    connections = 0
    news = '{"jsonrpc":"2.0","method":"eth_subscription","params":"%s"}'
    long = news % ("x" * (NODE_EVENT_BYTES_MAX - len(news % "") + beyond))
    assert len(long) == NODE_EVENT_BYTES_MAX + beyond

    async def serve(request: web.Request) -> web.WebSocketResponse:
        nonlocal connections
        connections += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        await socket.send_json({"jsonrpc": "2.0", "id": 1, "result": "0x1"})
        if connections == 1:
            await until(lambda: looks == 1)
            await socket.send_str(long)
        await socket.receive()
        return socket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    signal = BlockNotifier(
        poll_interval_s=3600, ws_url=f"ws://{host}:{port}/", reconnect_s=0.01, least_s=0.01
    )
    looks = 0
    try:
        async with listening(signal), asyncio.timeout(PATIENCE_S):
            while looks < 2:
                await signal.wait()
                looks += 1
            assert connections == signal.subscriptions == 1 + beyond
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("least_s", "poll_s"), [(0.1, 0.05), (0.05, 0.1)])
async def test_polling_is_never_slower_for_it(least_s: float, poll_s: float) -> None:
    """O-91: the least interval is a bound on news, not on polling."""
    signal = BlockNotifier(poll_interval_s=poll_s, least_s=least_s)
    await signal.wait()
    began = time.monotonic()
    await signal.wait()
    assert time.monotonic() - began >= poll_s * 0.9
