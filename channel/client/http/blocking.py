"""The paying transport under a synchronous `httpx.Client` (O-54).

What pays runs on an event loop in a thread of its own, exactly as it does under an asynchronous
client; here is only the bridge to callers that block. A stream's vouchers are signed there while
the caller does something else.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import httpx

__all__ = ["LoopThread", "SyncPayingTransport"]

_Answer = TypeVar("_Answer")

_CLOSED: Final = "the paying client is closed"


class LoopThread:
    """An event loop in a thread of its own, for code that blocks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="paying client", daemon=True
        )
        # Reentrant: the collector may close a stream while its thread holds this.
        self._lock = threading.RLock()
        self._is_closed = False

    def __enter__(self) -> Self:
        self._thread.start()
        # A stream that the collector closes later must not wait for a thread that is gone.
        atexit.register(self._abandon)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether nothing runs here any more."""
        return self._is_closed

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's own thread, which must not wait for itself."""
        return threading.get_ident() == self._thread.ident

    def run(self, coroutine: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Run a coroutine on the loop and return what it returns.

        What interrupts the caller, such as Ctrl-C, cancels the coroutine, and is raised once the
        coroutine has ended: an interrupted payment is counted first.

        Raises:
            RuntimeError: The loop has ended, or ends meanwhile; or this is its own thread.
        """
        if self.is_here:
            coroutine.close()
            raise RuntimeError("a synchronous paying client cannot be used from its own thread")
        job = self._begin(coroutine)
        try:
            return job.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError(_CLOSED) from None
        except BaseException:
            if not job.is_over:
                job.cancel()
            raise

    def post(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop without waiting for it."""
        with contextlib.suppress(RuntimeError):
            self._begin(coroutine)

    def close(self) -> None:
        """Cancel what still runs and end the thread; a second time does nothing."""
        with self._lock:
            if self._is_closed:
                return
            # What began before this is cancelled by `_cancel_all`; nothing begins after it.
            ending = self._begin(_cancel_all())
            self._is_closed = True
        atexit.unregister(self._abandon)
        ending.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _abandon(self) -> None:
        """Stop with a program that never closed its client, as if it had been killed.

        What was signed is in the store; nothing can be written there any more.
        """
        with self._lock:
            self._is_closed = True
        self._loop.set_exception_handler(lambda *_: None)  # of tasks that are left unfinished
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _begin(self, coroutine: Coroutine[Any, Any, _Answer]) -> "_Job[_Answer]":
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise RuntimeError(_CLOSED)
            return _Job(self._loop, coroutine)


class _Job(Generic[_Answer]):
    """A coroutine on a loop, waited for from another thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, _Answer]
    ) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[_Answer] | None = None
        # Unlike that of `run_coroutine_threadsafe` this is done when the task is, also when
        # the task is cancelled.
        self._done: concurrent.futures.Future[_Answer] = concurrent.futures.Future()
        loop.call_soon_threadsafe(self._start)

    @property
    def is_over(self) -> bool:
        """Whether the coroutine has ended."""
        return self._done.done()

    def result(self) -> _Answer:
        """Wait, and return or raise what the coroutine does."""
        return self._done.result()

    def cancel(self) -> None:
        """Cancel the coroutine and wait until it has ended."""
        self._loop.call_soon_threadsafe(self._cancel)
        concurrent.futures.wait([self._done])

    def _start(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._finish)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: "asyncio.Task[_Answer]") -> None:
        if task.cancelled():
            self._done.set_exception(concurrent.futures.CancelledError())
        elif error := task.exception():
            self._done.set_exception(error)
        else:
            self._done.set_result(task.result())


async def _cancel_all() -> None:
    """Cancel everything else on this loop and wait for its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class SyncPayingTransport(httpx.BaseTransport):
    """Pays for what passes through it, for clients that block."""

    def __init__(self, loop: LoopThread, paying: httpx.AsyncBaseTransport) -> None:
        """Bridge to a transport that pays on `loop`: a `PayingTransport`, as a rule."""
        self._loop = loop
        self._paying = paying
        self._open: set[_Body] = set()
        """Answers that are not closed yet."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and pay for it if that is asked and allowed.

        Raises:
            AgentError: As `PayingTransport`.
            httpx.TransportError: The connection failed; nothing had been paid for this request.
            RuntimeError: The client is closed.
        """
        sent = httpx.Request(
            request.method, request.url, headers=request.headers, stream=_as_async(request.stream)
        )
        sent.extensions = request.extensions  # the same: what is noted there outlives a redirect
        return self._loop.run(self._send(sent))

    def close(self) -> None:
        """Close every answer that is still open, which counts what came of it, and what sends."""
        if self._loop.is_closed:
            return
        for body in list(self._open):
            body.close()
        self._loop.run(self._paying.aclose())

    async def _send(self, request: httpx.Request) -> httpx.Response:
        response = await self._paying.handle_async_request(request)
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError("an asynchronous transport answers with asynchronous bodies")
        body = _Body(self._loop, stream, self._open)
        self._open.add(body)
        extensions = {k: v for k, v in response.extensions.items() if k != "network_stream"}
        return httpx.Response(
            response.status_code, headers=response.headers, stream=body, extensions=extensions
        )


class _Body(httpx.SyncByteStream):
    """An answer's body, read on the loop piece by piece as the caller asks for it."""

    def __init__(
        self, loop: LoopThread, stream: httpx.AsyncByteStream, opened: "set[_Body]"
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._opened = opened

    def __iter__(self) -> Iterator[bytes]:
        """Yield it, once; raise what the asynchronous body raises."""
        pieces = aiter(self._stream)
        while (piece := self._loop.run(_next(pieces))) is not None:
            yield piece

    def close(self) -> None:
        """Close the connection and count what came; a second time does nothing."""
        if self not in self._opened or self._loop.is_closed:
            return
        self._opened.discard(self)
        if self._loop.is_here:  # the collector found it there
            self._loop.post(self._stream.aclose())
        else:
            self._loop.run(self._stream.aclose())


class _AsyncBody(httpx.AsyncByteStream):
    """A request's body whose pieces come from a caller that blocks."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it, each piece made in another thread than the loop's."""
        pieces = iter(self._stream)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece


def _as_async(stream: object) -> httpx.AsyncByteStream:
    if isinstance(stream, httpx.ByteStream):  # in memory: it is both
        return stream
    if not isinstance(stream, httpx.SyncByteStream):
        raise TypeError("a synchronous client sends synchronous bodies")
    return _AsyncBody(stream)


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
