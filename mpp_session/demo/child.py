"""A program that runs beside the demo: started, waited for, and always ended."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from mpp_session.errors import ChildError

__all__ = ["Child", "run_child"]

_POLL_S: Final = 0.02
_STOP_TIMEOUT_S: Final = 10.0
_TAIL_LINES: Final = 15


class Child:
    """A running program, its output and its log."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, log: Path, found: re.Match[str]
    ) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.found = found
        """The match of its announcement."""

    async def search(self, pattern: str) -> re.Match[str] | None:
        """Search its log so far."""
        return re.search(pattern, await asyncio.to_thread(_read, self.log))

    async def tail(self) -> str:
        """Return the last lines of its output and its log."""
        return await _tail(self.log)


@contextlib.asynccontextmanager
async def run_child(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    ready: str,
    timeout_s: float = 30.0,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Child]:
    """Start a program, wait until it prints a line that matches `ready`, end it with the context.

    Its output and its log go to two files. A pipe that is not read would block it after 64 KiB, and
    in one file a log line could interrupt the announcement, or look like one. Its standard input is
    a pipe from this process, which closes when this process ends, kill -9 included; the programs
    started here stop then. Its environment is this process's unless `env` is given.

    Raises:
        ChildError: It ended or printed nothing in time. The error has the end of its output and
            log.
    """
    with (
        await asyncio.to_thread(_output_of(log).open, "wb") as output,
        await asyncio.to_thread(log.open, "wb") as errors,
    ):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=errors, env=env
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
        found = re.search(ready, await _printed(log))
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


async def _printed(log: Path) -> str:
    """Return the complete lines of its output."""
    text = await asyncio.to_thread(_read, _output_of(log))
    return text[: text.rfind("\n") + 1]


async def _tail(log: Path) -> str:
    """Return the last lines of its output and its log."""
    output, errors = await asyncio.gather(
        asyncio.to_thread(_read, _output_of(log)), asyncio.to_thread(_read, log)
    )
    return "\n".join([*output.splitlines(), *errors.splitlines()][-_TAIL_LINES:])


def _output_of(log: Path) -> Path:
    return log.with_suffix(".out")


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""
