"""Programs that start fast: forked from a process that has imported them already.

Importing takes ten times as long as starting. A test that kills a gateway twenty times is about
the twenty deaths, one of a refused setting about the refusal; what is forked is the whole program,
from its command line on. Tests of the start itself start Python.
"""

import asyncio
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final

from mpp_session.agent.keystore import import_account

ROOT = Path(__file__).parents[2]


class Forge:
    """The process that forks."""

    def __init__(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**inherited, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        self._turn = threading.Lock()

    def start(
        self,
        arguments: list[str],
        variables: Mapping[str, str],
        log: Path,
        *,
        errors: Path | None = None,
        folder: Path | None = None,
    ) -> "Forked":
        """Start it in a folder; what it writes to either output is appended to `log`.

        With `errors` that file gets standard error, and `log` standard output alone.
        """
        where = str(folder or ROOT)
        pid = self._ask("start", arguments, dict(variables), str(log), str(errors or log), where)
        return Forked(self, pid)

    def run(
        self, arguments: list[str], variables: Mapping[str, str], folder: Path
    ) -> "subprocess.CompletedProcess[str]":
        """Run it in a folder to its end, as `subprocess.run` would."""
        with TemporaryDirectory() as outputs:
            shown, said = Path(outputs, "stdout"), Path(outputs, "stderr")
            process = self.start(arguments, variables, shown, errors=said, folder=folder)
            code = self.wait(process.pid)
            return subprocess.CompletedProcess(arguments, code, shown.read_text(), said.read_text())

    def wait(self, pid: int) -> int:
        """Wait for the end of a process and return its exit code, negative for a signal."""
        return self._ask("wait", pid)

    def poll(self, pid: int) -> int | None:
        """Return the exit code if there is one."""
        code = self._ask("poll", pid)
        return None if code == NO_CODE else code

    def close(self) -> None:
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()
        self._process.wait(60)

    def _ask(self, *request: Any) -> int:
        with self._turn:
            stdin, stdout = _pipe(self._process.stdin), _pipe(self._process.stdout)
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return int(stdout.readline())


class Forked:
    """One process it forked, as `asyncio.subprocess.Process` has it."""

    def __init__(self, forge: Forge, pid: int) -> None:
        self.pid = pid
        self._forge = forge
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        if self._code is None:
            self._code = self._forge.poll(self.pid)
        return self._code

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    async def wait(self) -> int:
        while (code := self.returncode) is None:  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(0.005)
        return code


NO_CODE = -1000
IMPORTED: Final = (
    *(
        "mpp_session.cli",
        "mpp_session.gateway.serve",
        "mpp_session.gateway.worker",
        "mpp_session.process.settler",
    ),
    *(
        "mpp_session.agent.pay",
        "mpp_session.agent.client",
        "mpp_session.devnet_file",
        "mpp_session.operator.status_reading",
        "mpp_session.operator.token_units",
        "rich.table",
    ),
    *(
        "mpp_session.agent.voucher_keys",
        "mpp_session.agent.withdrawal",
        "settlement.settle.exposure",
        "settlement.dev.devnet",
    ),
    *(
        "channel.ledger.postgres",
        "settlement.tx.journal.postgres",
        "settlement.sponsor.orders.postgres",
    ),
    *("anyio._backends._asyncio", "httpcore", "uvicorn.lifespan.off"),
)
"""What the commands import once they know which of them is wanted, and their libraries likewise."""


def main() -> None:
    """Fork and wait as standard input asks."""
    for name in IMPORTED:
        importlib.import_module(name)
    import_account()
    gc.freeze()
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        answer = ASKED[what](*arguments)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _fork(
    arguments: list[str], variables: dict[str, str], log: str, errors: str, folder: str
) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    with (
        open(os.devnull, "rb") as nothing,  # noqa: PTH123
        open(log, "ab") as output,  # noqa: PTH123
        open(errors, "ab") as said,  # noqa: PTH123
    ):
        for number, file in enumerate((nothing, output, said)):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["mpp-session", *arguments]
    code: Any = 1
    try:
        importlib.import_module("mpp_session.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does it
        traceback.print_exc()
    finally:
        _write_all()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _write_all() -> None:
    """Write what `os._exit` would drop: the outputs, and which lines were run."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    measured = sys.modules.get("coverage")
    current = None if measured is None else measured.Coverage.current()
    if current is not None:
        current.stop()
        current.save()


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _poll(pid: int) -> int:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else NO_CODE


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


ASKED: Final[dict[str, Callable[..., int]]] = {"start": _fork, "wait": _wait, "poll": _poll}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of pytest's terminal
    main()
