"""Finds or installs Anvil, the local chain, and runs it as a child that cannot outlive us."""

import asyncio
import contextlib
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from settlement.dev.npm import Progress, npm_package
from settlement.errors import AnvilError

__all__ = ["ANVIL_VERSION", "Anvil", "find_anvil"]

ANVIL_VERSION: Final = "1.7.1"

_START_TIMEOUT_S: Final = 20.0
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.005
_LOG_TAIL_CHARS: Final = 400

_SUPERVISOR: Final = """
exec 3<&0
"$@" 3<&- </dev/null &
chain=$!
{ read -r _ <&3; kill "$chain"; } 2>/dev/null &
watch=$!
exec 3<&-
wait "$chain"
status=$?
kill "$watch" 2>/dev/null
exit "$status"
"""
"""Anvil's parent process. Its stdin is a pipe from this process; the pipe closes when this process
ends, kill -9 included. Then it ends Anvil. No signal and no cleanup code is needed."""


async def find_anvil(*, progress: Progress = lambda _: None) -> Path:
    """Return the Anvil program: from PATH, else from npm's package, installed if necessary.

    Raises:
        AnvilError: There is none for this machine, or it cannot be installed.
    """
    on_path = await asyncio.to_thread(_on_path)
    if on_path is not None:
        return on_path
    modules = await npm_package("@foundry-rs/anvil", ANVIL_VERSION, progress=progress)
    program = modules / "@foundry-rs" / f"anvil-{_platform()}" / "bin" / "anvil"
    if not await asyncio.to_thread(program.is_file):
        msg = f"npm has no Anvil for this machine ({_platform()}): put anvil on PATH."
        raise AnvilError(msg)
    return program


def _on_path() -> Path | None:
    """Return the program on PATH. Skips npm's wrapper script, which would take its signals."""
    found = shutil.which("anvil")
    if found is None:
        return None
    with Path(found).open("rb") as file:
        return None if file.read(2) == b"#!" else Path(found)


def _platform() -> str:
    machine = platform.machine().lower()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return f"{sys.platform}-{architecture}"


class Anvil:
    """A running chain: `async with await Anvil.start(program) as anvil: anvil.url`."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process = process
        self._directory = directory
        self.url = ""

    @classmethod
    async def start(cls, program: Path, arguments: Sequence[str] = (), *, port: int = 0) -> Self:
        """Start a chain and return once it listens.

        Its output goes to a file: a pipe that is not read would block it after 64 KiB.

        Raises:
            AnvilError: It ended, or did not listen in time. The message has the end of its output.
        """
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="mpp-session-anvil-"))
        log = directory / "anvil.log"
        anvil = cls(await _spawn([str(program), "--port", str(port), *arguments], log), directory)
        try:
            anvil.url = await anvil._listening(log, port)
        except BaseException:
            await anvil.stop()
            raise
        return anvil

    async def _listening(self, log: Path, port: int) -> str:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            has_ended = self._process.returncode is not None
            said = await asyncio.to_thread(log.read_text, errors="replace")
            if found := re.search(r"Listening on (\S+:\d+)\s", said):
                return f"http://{found[1]}"
            if has_ended or time.monotonic() > deadline:
                where = f"on port {port}" if port else "on a free port"
                why = said.strip()[-_LOG_TAIL_CHARS:] or "no output"
                raise AnvilError(f"Anvil did not start {where}: {why}")
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """End the chain and wait until it has ended. Repeating it changes nothing."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


async def _spawn(command: Sequence[str], log: Path) -> asyncio.subprocess.Process:
    output = await asyncio.to_thread(log.open, "wb")
    try:
        return await asyncio.create_subprocess_exec(
            *["/bin/sh", "-c", _SUPERVISOR, "sh", *command],
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops Anvil
        )
    finally:
        output.close()
