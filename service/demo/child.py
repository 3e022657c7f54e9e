"""A program that runs beside the demo: started, waited for, and never left behind."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from service.errors import ChildError

__all__ = ["Child", "run_child"]

_POLL_S: Final = 0.02
_STOP_TIMEOUT_S: Final = 10.0
_TAIL_LINES: Final = 15


class Child:
    """A running program and what it has printed."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, log: Path, found: re.Match[str]
    ) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.found = found
        """What its announcement matched."""

    async def search(self, pattern: str) -> re.Match[str] | None:
        """Find something in what it has printed so far."""
        return re.search(pattern, await asyncio.to_thread(_read, self.log))

    async def tail(self) -> str:
        """Return the last lines it has printed."""
        return await _tail(self.log)


@contextlib.asynccontextmanager
async def run_child(
    name: str, command: Sequence[str], *, log: Path, ready: str, timeout_s: float = 30.0
) -> AsyncIterator[Child]:
    """Start a program, wait until a line of its output matches `ready`, end it with the block.

    Its output goes to a file: a pipe nobody reads would stop it after 64 KiB. Its standard input
    is a pipe of ours, which ends when we do, kill -9 included; the programs started here stop
    when it does.

    Raises:
        ChildError: It ended or stayed silent; the error carries the end of its log.
    """
    with await asyncio.to_thread(log.open, "wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        yield Child(name, process, log, await _until_ready(name, process, log, ready, timeout_s))
    finally:
        await _stop(process)


async def _until_ready(
    name: str, process: asyncio.subprocess.Process, log: Path, ready: str, timeout_s: float
) -> re.Match[str]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        has_ended = process.returncode is not None
        found = re.search(ready, await asyncio.to_thread(_read, log))
        if found is not None:
            return found
        if has_ended:
            raise ChildError(f"{name} ended with code {process.returncode}", await _tail(log))
        await asyncio.sleep(_POLL_S)
    raise ChildError(f"{name} was not ready within {timeout_s:.0f} s", await _tail(log))


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _tail(log: Path) -> str:
    """Return the last lines of a log."""
    text = await asyncio.to_thread(_read, log)
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _read(log: Path) -> str:
    return log.read_text("utf-8", "replace") if log.exists() else ""
