"""O-54: the thread on which a synchronous client pays, and what may go wrong around it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from channel.client.http.blocking import LoopThread, SyncPayingTransport
from tests.waiting import PATIENCE_S


class Endless(httpx.AsyncByteStream):
    """A body that goes on until it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b"piece"

    async def aclose(self) -> None:
        self.closed.set()


class Server(httpx.AsyncBaseTransport):
    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self.body = body

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, stream=self.body, request=request, extensions={"network_stream": object()}
        )


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    with LoopThread() as loop:
        yield loop


def test_what_a_coroutine_returns_or_raises_reaches_the_caller(loop: LoopThread) -> None:
    async def returns() -> int:
        return threading.get_ident()

    async def raises() -> None:
        raise LookupError("none")

    assert loop.run(returns()) != threading.get_ident()
    with pytest.raises(LookupError, match="none"):
        loop.run(raises())


def test_a_body_that_the_collector_closes_on_the_thread_itself_is_closed(loop: LoopThread) -> None:
    """It runs in whichever thread makes garbage; one that waited for itself would hang."""
    body = Endless()
    client = httpx.Client(transport=SyncPayingTransport(loop, Server(body)))
    answer = client.send(client.build_request("GET", "http://a.example"), stream=True)
    assert next(answer.iter_raw()) == b"piece"

    async def collect() -> None:
        answer.close()

    loop.run(collect())
    assert body.closed.wait(PATIENCE_S)
    client.close()


def test_a_client_closes_the_bodies_that_are_still_open(loop: LoopThread) -> None:
    body = Endless()
    with httpx.Client(transport=SyncPayingTransport(loop, Server(body))) as client:
        answer = client.send(client.build_request("GET", "http://a.example"), stream=True)
        assert "network_stream" not in answer.extensions  # of another kind than is expected
    assert body.closed.is_set()


def test_its_own_thread_may_not_wait_for_it(loop: LoopThread) -> None:
    async def inner() -> None:
        pytest.fail("ran")

    async def outer() -> None:
        loop.run(inner())

    with pytest.raises(RuntimeError, match="own thread"):
        loop.run(outer())


def test_closing_cancels_what_runs_and_takes_nothing_more() -> None:
    cancelled = threading.Event()

    async def wait(begun: threading.Event) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with LoopThread() as loop:
        begun = threading.Event()
        loop.post(wait(begun))
        assert begun.wait(PATIENCE_S)
    assert cancelled.is_set()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run(wait(begun))
    loop.post(wait(begun))
    loop.close()
