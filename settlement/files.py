"""Reads files that another program wrote: within a time limit and a size limit.

A file system may hang. A read must take a bounded time and amount, and must not keep the process
from ending.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from channel.files import open_regular
from channel.limits import FILE_S_MAX

__all__ = ["FileThread", "read_regular"]

_T = TypeVar("_T")


def read_regular(path: Path, bytes_max: int) -> bytes:
    """Return the content of a small file; follows links.

    Raises:
        OSError: It cannot be read, is not a regular file, or is longer than `bytes_max`.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY, follows=True), "rb") as file:
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise OSError(errno.EFBIG, f"it is longer than {bytes_max} bytes", str(path))
    return content


class FileThread:
    """Runs work on one file in a thread that may hang, one piece at a time."""

    def __init__(self, *, within_s: float = FILE_S_MAX) -> None:
        self._within_s = within_s
        self._last: asyncio.Future[None] | None = None

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return the result of `work`.

        Raises:
            TimeoutError: `work` did not end in time and may still be running; or the previous work
                is still running, and nothing was done.
        """
        loop = asyncio.get_running_loop()
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last], timeout=self._within_s)
            if not self._last.done():
                raise TimeoutError(errno.ETIMEDOUT, "the file system does not answer")
        answer: asyncio.Future[_T] = loop.create_future()
        ended = self._last = loop.create_future()

        def tell(set_answer: Callable[[], None]) -> None:
            ended.set_result(None)
            if not answer.done():
                set_answer()

        def carry_out() -> None:
            set_answer: Callable[[], None]
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 -- raised by who waits
                failure = error
                set_answer = lambda: answer.set_exception(failure)  # noqa: E731
            else:
                set_answer = lambda: answer.set_result(result)  # noqa: E731
            with suppress(RuntimeError):  # the loop has closed: no caller waits any more
                loop.call_soon_threadsafe(tell, set_answer)

        threading.Thread(target=carry_out, name="file", daemon=True).start()
        await asyncio.wait([answer], timeout=self._within_s)
        if not answer.done():
            answer.cancel()
            raise TimeoutError(errno.ETIMEDOUT, "the file system does not answer")
        return answer.result()
