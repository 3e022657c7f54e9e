"""Runs the settler as a child process of a gateway: it ends with the gateway, and is restarted.

The gateway serves only after its settler has reported that it settles, or that it stands by for
another. An error that keeps the settler from starting also keeps the gateway from starting. A
settler that dies later is restarted after a growing pause; meanwhile closes stay pending and
nothing is lost.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from channel.errors import ConfigError
from mpp_session.errors import CommandError
from mpp_session.process.logs import log_arguments
from mpp_session.process.relay import child_stderr
from mpp_session.settings import SettlerConfig
from mpp_session.settings.config import settler_environment

__all__ = ["SettlerChild", "start_settler"]

_log: Final = logging.getLogger(__name__)

_STOP_S: Final = 10.0
_PAUSES_S: Final = (0.1, 0.5, 2.0, 5.0)
_CONFIG_CODE: Final = 2


class _Report(msgspec.Struct):
    """One line of the child's standard output."""

    state: str = ""
    detail: str = ""
    error: str = ""


class SettlerChild:
    """A running settler. Make one with `start_settler`."""

    def __init__(self, config: SettlerConfig) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """The id of the current settler process."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process; use it only after `ready` has returned."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *["-m", "mpp_session.cli", "settle", "--until-eof", "--json", *log_arguments()],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=child_stderr(),
            env=settler_environment(self._config),
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops the child
        )
        self._is_ready = False

    async def ready(self) -> None:
        """Return once the settler settles or stands by for another.

        Raises:
            ConfigError: It refused its settings.
            CommandError: It ended, or reported nothing for `settlement.start_timeout_s`.
        """
        process = self._process
        if process is None:
            raise CommandError("the settler was not started")
        patience_s = self._config.settlement.start_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                report = await _read(process)
        except TimeoutError:
            raise CommandError(
                f"no report of the settler in {patience_s:g} s: raise settlement.start_timeout_s"
            ) from None
        if report is None or report.error:
            code = await process.wait()
            said = report.error if report else f"it ended with code {code}"
            if code == _CONFIG_CODE:
                raise ConfigError(said)
            raise CommandError(f"the settler did not start: {said}")
        self._is_ready = True
        _tell(process, report)

    async def run(self) -> None:
        """Keep the settler running, for ever."""
        deaths = 0
        while True:
            process = self._process
            while process is not None and (report := await _read(process)) is not None:
                _tell(process, report)
                deaths = 0
            code = None if process is None else await process.wait()
            pause_s = _PAUSES_S[min(deaths, len(_PAUSES_S) - 1)]
            deaths += 1
            _log.error("the settler ended with code %s; restarting it in %g s", code, pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self.start()
                await self.ready()
            except (ConfigError, CommandError) as error:
                _log.error("%s", error)

    async def stop(self) -> None:
        """End the process: closing its input makes it stop in order."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        if not self._is_ready:
            process.terminate()
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def start_settler(config: SettlerConfig) -> AsyncIterator[SettlerChild]:
    """Start a settler as a process that ends with the context, or with us, kill -9 included."""
    child = SettlerChild(config)
    try:
        await child.start()
        yield child
    finally:
        await child.stop()


async def _read(process: asyncio.subprocess.Process) -> _Report | None:
    """Return the child's next report, or None once it has ended."""
    if process.stdout is None:
        return None
    try:
        line = await process.stdout.readline()
        return msgspec.json.decode(line, type=_Report) if line else None
    except (ValueError, msgspec.MsgspecError):  # or a line without end
        return _Report(error="it printed a line that is not a report")


def _tell(process: asyncio.subprocess.Process, report: _Report) -> None:
    _log.info("settler process %d: %s %s", process.pid, report.state, report.detail)
