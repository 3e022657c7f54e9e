"""Time on paper: each step takes a drawn time, and no test waits.

A loop of its own keeps the clock. Each write of a client's store, each message and each step of a
server ends at a drawn moment, so that one seed is one order of all steps, and the next seed
another one. A run in which nothing can ever happen again is an error, not a hang.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["DrawnLoop", "run_drawn"]


class _Clock(selectors.DefaultSelector):
    """Lets the time pass that the loop would wait for."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is under way, and nothing will ever happen")
        self.now += max(0.0, timeout)
        return super().select(0)


class DrawnLoop(asyncio.SelectorEventLoop):
    """Runs the work of threads at drawn times, in the order in which it was given."""

    def __init__(self, seed: int) -> None:
        self.clock = _Clock()
        self.chance = random.Random(seed)  # noqa: S311 -- no secret
        self._worked_at = 0.0
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now

    def draw_s(self) -> float:
        """How long something takes: mostly little, sometimes as long as a slow machine makes it."""
        return self.chance.choice((0.0, 0.0005, 0.002, 0.01, 0.05)) * self.chance.random()

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002 -- there is one
        func: Callable[..., Any],
        *args: Any,
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        self._worked_at = max(self._worked_at, self.time() + self.draw_s()) + 1e-6
        self.call_at(self._worked_at, self._work, future, func, args)
        return future

    def _work(self, future: asyncio.Future[Any], func: Callable[..., Any], args: Any) -> None:
        asyncio._set_running_loop(None)  # noqa: SLF001 -- as in a thread
        try:
            result, failure = func(*args), None
        except Exception as error:  # noqa: BLE001 -- the caller's to judge
            result, failure = None, error
        finally:
            asyncio._set_running_loop(self)  # noqa: SLF001
        self.call_later(self.draw_s(), _deliver, future, result, failure)


def _deliver(future: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


def run_drawn(seed: int, work: Callable[[DrawnLoop], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine to its end in the order that a seed draws."""
    loop = DrawnLoop(seed)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work(loop))
