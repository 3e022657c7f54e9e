"""Runs several gateway processes on one listening socket (decision 9).

The parent binds the socket, starts the settler, passes each worker the settings without keys
through a pipe, and sells nothing itself. The first worker that is ready opens the socket to
clients; any live worker takes a queued connection. A killed worker is restarted. A worker that ends
by itself has found an error, and ends all. The pipe closes with the parent, kill -9 included, and
then the workers end.
"""

import asyncio
import contextlib
import logging
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from channel.errors import ConfigError
from channel.tasks import first_of
from mpp_session.errors import CommandError
from mpp_session.gateway.reloading import PriceReloads
from mpp_session.gateway.sockets import bind, listening_url
from mpp_session.process.child import start_settler
from mpp_session.process.logs import log_arguments
from mpp_session.process.relay import child_stderr
from mpp_session.settings import Config, Money, PriceRow, Secret
from mpp_session.settings.config import COUNTS_VARIABLE, bare_environment, without_keys
from mpp_session.settings.values import decode_value

__all__ = ["Announce", "Report", "Task", "read_rows", "read_task", "run_workers"]

_log: Final = logging.getLogger(__name__)

Announce: TypeAlias = Callable[[str, str], None]
"""Called with the gateway's URL and its prices."""

_STARTS_MAX: Final = 5
"""How many times in a row a killed worker is restarted before it serves."""
_RESTART_PAUSE_S: Final = 0.2
_KILL_AFTER_S: Final = 10.0
"""Seconds that a worker gets beyond `listen.shutdown_s` to close its ledger."""


class Task(msgspec.Struct, frozen=True):
    """A worker's task: the first line of its standard input."""

    config: Config
    number: int
    """The first worker, 0, does what must be done once."""
    socket_fd: int


class Report(msgspec.Struct, frozen=True):
    """A worker's report: the only line of its standard output."""

    prices: str = ""
    """What it sells at, for people."""
    error: str | None = None
    """Why the worker does not serve; None if it serves."""
    is_refusal: bool = False
    """Whether the settings are the cause."""


async def run_workers(
    config: Config,
    *,
    announce: Announce,
    stopping: asyncio.Event,
    reloads: PriceReloads | None = None,
) -> None:
    """Serve with `listen.workers` processes until `stopping` is set.

    `announce` is called with the gateway's URL and prices once every worker answers. `reloads`
    change the prices of all workers, and of those that are restarted later.

    Raises:
        ConfigError: A worker refused the settings; nothing was served.
        CommandError: The port is in use, or a worker ended by itself.
    """
    async with contextlib.AsyncExitStack() as open_:
        listener = open_.enter_context(bind(config.listen))
        settler = None
        if config.settlement.start:
            settler = await open_.enter_async_context(start_settler(config))
        settings = without_keys(config)
        # Where the workers count together, those that were killed included.
        counts = await asyncio.to_thread(tempfile.mkdtemp, prefix="mpp-session-counts-")
        open_.push_async_callback(asyncio.to_thread, shutil.rmtree, counts, ignore_errors=True)
        workers = [
            await open_.enter_async_context(_Worker(settings, number, listener, counts).running())
            for number in range(config.listen.workers)
        ]
        await asyncio.gather(
            *[worker.until_serving() for worker in workers],
            *([] if settler is None else [settler.ready()]),
        )
        announce(listening_url(listener), workers[0].prices)
        kept = [worker.keep() for worker in workers]
        settling = [] if settler is None else [settler.run()]

        async def change(changed: Config) -> str:
            return await _change_prices(workers, without_keys(changed))

        reloading = [] if reloads is None else [reloads.run(change)]
        await first_of(*kept, *settling, *reloading, stopping.wait())


async def _change_prices(workers: Sequence["_Worker"], config: Config) -> str:
    """Sell at other prices on every worker, and return them for people.

    Raises:
        ConfigError: A worker refused them; all keep their own.
        CommandError: No worker serves.
    """
    before = workers[0].config
    try:
        prices = [await worker.change_prices(config) for worker in workers]
    except ConfigError:
        for worker in workers:
            with contextlib.suppress(ConfigError):
                await worker.change_prices(before)
        raise
    taken = [text for text in prices if text is not None]
    if not taken:
        raise CommandError("no worker serves at the moment: reload again")
    return taken[0]


class _Worker:
    """One worker, across the processes that run it."""

    def __init__(self, config: Config, number: int, listener: socket.socket, counts: str) -> None:
        self.config = config
        self._started_with = config
        self._counts = counts
        self._number = number
        self._listener = listener
        self._process: asyncio.subprocess.Process | None = None
        self._is_serving = False
        self._changing = asyncio.Lock()
        self.prices = ""
        """What it sells at, once it serves."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["_Worker"]:
        """Start the worker, and end it with the context."""
        try:
            await self._start()
            yield self
        finally:
            await self._end()

    async def until_serving(self) -> None:
        """Wait for the worker's report.

        Raises:
            ConfigError: It refused the settings.
            CommandError: It cannot serve, or ended without a report.
        """
        process = self._process
        if process is None or process.stdout is None:  # pragma: no cover - always started
            raise CommandError("the worker was not started")
        patience_s = self.config.listen.start_timeout_s
        try:
            line = await asyncio.wait_for(process.stdout.readline(), patience_s)
        except TimeoutError:
            raise CommandError(
                f"worker {self._number} did not serve within {patience_s:g} s: raise "
                "listen.start_timeout_s"
            ) from None
        if not line:
            code = await process.wait()
            raise CommandError(f"worker {self._number} ended with {code} before it served")
        report = msgspec.json.decode(line, type=Report)
        if report.error is not None:
            raise (ConfigError if report.is_refusal else CommandError)(report.error)
        self.prices = report.prices
        self._is_serving = True
        _log.info("worker %d serves as process %d", self._number, process.pid)
        if self.config is not self._started_with:  # prices have changed while it started
            with contextlib.suppress(ConfigError):  # it then keeps those that it began with
                await self.change_prices(self.config)

    async def change_prices(self, config: Config) -> str | None:
        """Sell at other prices from now on, and return them for people.

        None if it does not serve now: it will sell at them once it does.

        Raises:
            ConfigError: It refused them and keeps its own.
        """
        self.config = config
        async with self._changing:
            process = self._process
            if not self._is_serving or process is None or process.stdin is None:
                return None
            rows = msgspec.json.encode(config.price_rows, enc_hook=_reveal)
            try:
                process.stdin.write(rows + b"\n")
                await process.stdin.drain()
                line = b"" if process.stdout is None else await process.stdout.readline()
            except ConnectionError:
                return None
            if not line:
                return None
            report = msgspec.json.decode(line, type=Report)
            if report.error is not None:
                raise ConfigError(report.error)
            self.prices = report.prices
            return report.prices

    async def keep(self) -> None:
        """Restart the worker whenever it is killed.

        Raises:
            CommandError: It ended by itself, or was killed repeatedly before it served.
        """
        while self._process is not None:
            code = await self._process.wait()
            if code >= 0:
                raise CommandError(f"the gateway stopped because worker {self._number} did: {code}")
            self._is_serving = False
            _log.warning("worker %d was killed by signal %d", self._number, -code)
            await self._start_again()

    async def _start_again(self) -> None:
        """Restart the worker until it serves; a database that is away may need a moment.

        Raises:
            ConfigError: It refuses the settings now.
            CommandError: It did not serve, several times in a row.
        """
        for tries_left in range(_STARTS_MAX - 1, -1, -1):
            await self._start()
            try:
                await self.until_serving()
            except CommandError as error:
                if not tries_left:
                    raise
                _log.warning("worker %d did not start, will retry: %s", self._number, error)
                await self._end()
                await asyncio.sleep(_RESTART_PAUSE_S)
            else:
                return

    async def _start(self) -> None:
        fd = self._listener.fileno()
        self._started_with = self.config
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mpp_session.gateway.worker",
            *log_arguments(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=child_stderr(),
            pass_fds=(fd,),
            env={**bare_environment(), COUNTS_VARIABLE: self._counts},
            process_group=0,  # Ctrl-C reaches only the parent, which ends the workers in order
        )
        if process.stdin is not None:
            process.stdin.write(_write_task(Task(self.config, self._number, fd)))
            with contextlib.suppress(ConnectionError):  # it has ended: its report gives the reason
                await process.stdin.drain()

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self.config.listen.shutdown_s + _KILL_AFTER_S)
        except TimeoutError:
            _log.error("worker %d does not end; killing it", self._number)
            process.kill()
            await process.wait()


def _write_task(task: Task) -> bytes:
    """Encode a task as a line. It holds secrets: only for a pipe, never a file or an argument."""
    return msgspec.json.encode(task, enc_hook=_reveal) + b"\n"


def read_task(line: bytes) -> Task:
    """Decode the output of `_write_task`."""
    return msgspec.json.decode(line, type=Task, dec_hook=decode_value)


def read_rows(line: bytes) -> tuple[PriceRow, ...]:
    """Decode the prices that a running worker is sent."""
    return msgspec.json.decode(line, type=tuple[PriceRow, ...], dec_hook=decode_value)


def _reveal(value: Any) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Money):
        return str(value)
    raise NotImplementedError(type(value).__name__)
