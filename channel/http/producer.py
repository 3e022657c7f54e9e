"""What an application produces, taken item by item, and seen to wait."""

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
    """An async iterable whose consumer hears of every wait before it begins.

    `before_waiting` is called when the next item is not there at once, and what it returns, if
    anything, is awaited: what the consumer has gathered can leave while the producer works. It
    delays nothing, for the producer has begun.
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
            Exception: What the producer or `before_waiting` raises.
        """
        step = anext(self._source).__await__()
        try:
            waits_for = step.send(None)
        except StopIteration as done:  # at once
            item: T = done.value
            return item
        gathered = self._before_waiting()
        if gathered is not None:
            try:
                await gathered
            except BaseException as error:
                # The producer stands in the middle of a step: it must hear of the end, or it could
                # not be closed. If it had the error made (a timeout of its own), it says so. What
                # it waits for is cancelled as by a task: it may be one that asks a model server.
                if asyncio.isfuture(waits_for):
                    waits_for.cancel()
                await _go_on(step, waits_for, error)
                raise
        return await _go_on(step, waits_for)

    async def close(self) -> None:
        """Free the producer, bounded in time (F-56)."""
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
    """Await what has been begun by hand; with `error`, raise that into it first."""
    try:
        while True:
            if error is None:
                try:
                    sent = yield waits_for
                except BaseException as thrown:  # noqa: BLE001 - whatever it is, it is the step's
                    error = thrown
                    continue
                waits_for = step.send(sent)
            else:
                thrown_in, error = error, None
                waits_for = step.throw(thrown_in)
    except StopIteration as done:
        item: T = done.value
        return item
