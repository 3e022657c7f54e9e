"""Takes an application's items one by one, and notices when it must wait."""

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from types import coroutine
from typing import Any, Generic, TypeVar

from channel.limits import PRODUCER_CLOSE_S_MAX

__all__ = ["Producer"]

T = TypeVar("T")
Step = Generator[Any, Any, T]

_log = logging.getLogger(__name__)


class Producer(Generic[T]):
    """An async iterable that calls its consumer before every wait.

    `before_waiting` is called when the next item is not available immediately, and its result, if
    any, is awaited. So the consumer can send what it has collected while the producer works. That
    delays nothing, because the producer has already started.
    """

    def __init__(
        self, items: AsyncIterable[T], before_waiting: Callable[[], Awaitable[None] | None]
    ) -> None:
        self._source = aiter(items)
        self._before_waiting = before_waiting

    async def next(self) -> T:
        """Return the next item.

        Raises:
            StopAsyncIteration: There is none.
            Exception: As raised by the producer or `before_waiting`.
        """
        step = anext(self._source).__await__()
        try:
            waits_for = step.send(None)
        except StopIteration as done:  # available immediately
            item: T = done.value
            return item
        gathered = self._before_waiting()
        if gathered is not None:
            try:
                await gathered
            except BaseException as error:
                # The producer is in the middle of a step: throw the error into it, or it could not
                # be closed. If it raises an error itself (its own timeout), that one counts. Cancel
                # what it waits for, as a task would: it may be a request to a model server.
                if asyncio.isfuture(waits_for):
                    waits_for.cancel()
                await _go_on(step, waits_for, error)
                raise
        return await _go_on(step, waits_for)

    async def close(self) -> None:
        """Close the producer, bounded in time (F-56)."""
        aclose = getattr(self._source, "aclose", None)
        if aclose is None:
            return
        closing = asyncio.ensure_future(aclose())
        await asyncio.wait({closing}, timeout=PRODUCER_CLOSE_S_MAX)
        if not closing.done():
            closing.cancel()
            _log.warning("a stream's producer does not close")
        elif not closing.cancelled() and closing.exception() is not None:
            _log.warning("a stream's producer failed to close", exc_info=closing.exception())


@coroutine
def _go_on(
    step: Step[T], waits_for: Any, error: BaseException | None = None
) -> Generator[Any, Any, T]:
    """Await a step that was started by hand; with `error`, raise that into it first."""
    try:
        while True:
            if error is None:
                try:
                    sent = yield waits_for
                except BaseException as thrown:  # noqa: BLE001 - every error belongs to the step
                    error = thrown
                    continue
                waits_for = step.send(sent)
            else:
                thrown_in, error = error, None
                waits_for = step.throw(thrown_in)
    except StopIteration as done:
        item: T = done.value
        return item
