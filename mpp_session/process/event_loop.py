"""The event loop of a serving process: uvloop where it is installed, otherwise asyncio's own."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

try:
    import uvloop
except ImportError:  # it has no wheel for Windows, for example
    uvloop = None  # type: ignore[assignment]

__all__ = ["run_server"]

_Result = TypeVar("_Result")


def run_server(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine as `asyncio.run` does, on the fastest loop there is.

    uvloop cannot start a process in a group of its own; a parent of workers uses `asyncio.run`.
    """
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        return runner.run(main)
