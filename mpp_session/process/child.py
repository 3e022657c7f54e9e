"""The settler that a gateway starts: a process of its own, which ends with it and is kept alive.

The gateway does not serve before its settler has said that it settles, or that it stands by for
another one; what keeps it from starting keeps the gateway from starting. Later a settler that
dies is started again, a little later each time: meanwhile closes are pending, and nothing is lost.
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
        """The process that settles now."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process; it is of no use before `ready` has returned."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *["-m", "mpp_session.cli", "settle", "--until-eof", "--json", *log_arguments()],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=child_stderr(),
            env=settler_environment(self._config),
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
        )
        self._is_ready = False

    async def ready(self) -> None:
        """Return once it settles, or stands by for another.

        Raises:
            ConfigError: It refuses its settings.
            CommandError: It ended, or said nothing for `settlement.start_timeout_s`.
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
                f"the settler said nothing for {patience_s:g} s: see settlement.start_timeout_s"
            ) from None
        if report is None or report.error:
            code = await process.wait()
            said = report.error if report else f"it ended with code {code}"
            if code == _CONFIG_CODE:
                raise ConfigError(said)
            raise CommandError(f"the settler does not start: {said}")
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
            _log.error("the settler ended with code %s; started again in %g s", code, pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self.start()
                await self.ready()
            except (ConfigError, CommandError) as error:
                _log.error("%s", error)

    async def stop(self) -> None:
        """End the process: its input ends, and it stops in order."""
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
    """Start a settler as a process that ends with the block, or with ours, kill -9 included."""
    child = SettlerChild(config)
    try:
        await child.start()
        yield child
    finally:
        await child.stop()


async def _read(process: asyncio.subprocess.Process) -> _Report | None:
    """Return the next line it says, or None when it has ended."""
    if process.stdout is None:
        return None
    try:
        line = await process.stdout.readline()
        return msgspec.json.decode(line, type=_Report) if line else None
    except (ValueError, msgspec.MsgspecError):  # or a line without end
        return _Report(error="it said something that is no report")


def _tell(process: asyncio.subprocess.Process, report: _Report) -> None:
    _log.info("settler process %d: %s %s", process.pid, report.state, report.detail)
