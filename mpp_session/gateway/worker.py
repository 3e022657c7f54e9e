"""One of several gateway processes: `python -m mpp_session.gateway.worker`, run by `workers`."""

import asyncio
import logging
import socket
import sys
from collections.abc import Coroutine, Mapping
from typing import Any, Final

import msgspec

from channel.errors import ConfigError, MppSessionError
from mpp_session.gateway.app import Gateway
from mpp_session.gateway.serve import serve_on
from mpp_session.gateway.workers import Report, Task, read_rows, read_task
from mpp_session.process.event_loop import run_server
from mpp_session.process.logs import log_to_stderr
from mpp_session.process.os_limits import forbid_core_files
from mpp_session.process.relay import drain
from mpp_session.process.signals import stop_at_eof, stop_on_signals

__all__ = ["main"]

_log: Final = logging.getLogger(__name__)


def main() -> int:
    """Serve the task on standard input; return the exit code."""
    as_json = "--log-json" in sys.argv
    level = sys.argv[sys.argv.index("--log-level") + 1] if "--log-level" in sys.argv else "info"
    log_to_stderr(level, as_json=as_json)
    forbid_core_files()
    task = read_task(sys.stdin.buffer.readline())
    try:
        run_server(_serve(task))
    except MppSessionError as error:
        is_refusal = isinstance(error, ConfigError)
        _report(Report(error=str(error), is_refusal=is_refusal))
        _log.error("worker %d: %s", task.number, error)
        return 2 if is_refusal else 1
    finally:
        drain()
    return 0


async def _serve(task: Task) -> None:
    stopping = asyncio.Event()
    serving: list[Gateway] = []

    def change_prices(line: bytes) -> None:
        try:
            (gateway,) = serving
            gateway.replace_prices(read_rows(line))
            _report(Report(gateway.prices.table.describe()))
        except ConfigError as error:
            _report(Report(error=str(error), is_refusal=True))

    def keep(gateway: Gateway) -> Mapping[str, Coroutine[Any, Any, None]]:
        serving.append(gateway)
        return {}

    stop_on_signals(stopping)
    stop_at_eof(stopping, change_prices)
    # -1: the socket's own protocol. Not every system reports it, and asyncio needs it.
    with socket.socket(-1, -1, socket.IPPROTO_TCP, fileno=task.socket_fd) as listener:
        await serve_on(
            listener,
            task.config,
            announce=lambda _, prices: _report(Report(prices)),
            stopping=stopping,
            number=task.number,
            beside=keep,
        )


def _report(report: Report) -> None:
    """Report to the parent, which reads a line for the start and for each change of prices."""
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
