"""O-82: no write of a program, by Python or a library, waits for the reader of its output."""

import fcntl
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.gateways import ROOT
from tests.waiting import PATIENCE_S

PIPE_BYTES = 4096
START = "from mpp_session.process.relay import relay_output; relay_output()\n"
WRITERS = {
    "log": "import logging; logging.basicConfig(); say = logging.error",
    "print": "say = lambda text: print(text, flush=True)",
    "descriptor": "import os; say = lambda text: (os.write(1, text.encode()), os.write(2, b'.'))",
    "warning": "import warnings; warnings.simplefilter('always'); say = warnings.warn",
    "console": "from rich.console import Console; OUT, REPORT = Console(), Console(stderr=True)\n"
    "def say(text): OUT.print(text); REPORT.print(text)",
    "traceback": "import traceback\n"
    "def say(text):\n"
    "    try: raise ValueError(text)\n"
    "    except ValueError: traceback.print_exc()",
}
MANY = "\nfor number in range(300): say(f'{number} ' + 99 * 'x')\nsay('the last one')\n"


def start(script: str, *, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", START + script], stdout=stdout, stderr=stderr, cwd=ROOT
    )


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_pipe_blocks_no_writer(writer: str) -> None:
    """O-82: 30 kB into a pipe of 4 KiB that is not read; the program ends all the same."""
    reader, pipe = os.pipe()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with start(WRITERS[writer] + MANY, stdout=pipe, stderr=pipe) as process:
        assert process.wait(PATIENCE_S) == 0
    os.close(pipe)
    os.close(reader)


def test_what_found_no_room_is_counted_when_it_is_read_again() -> None:
    """O-82: a reader that stalls for a while, then goes on."""
    lines = 30_000
    script = (
        "import sys, time; from mpp_session.process import relay\n"
        f"for number in range({lines}): print(f'{{number:<99}}', file=sys.stderr)\n"
        "while relay._relays[2]._unread(): time.sleep(0.01)\n"
        "with relay._relays[2]._changed: print('written', flush=True)\n"
        "sys.stdin.readline()\n"
        "print('afterwards', file=sys.stderr)"
    )
    reader, pipe = os.pipe()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", START + script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=pipe,
        cwd=ROOT,
    )
    os.close(pipe)
    with process, os.fdopen(reader, "rb") as stderr:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"written\n"
        said = []
        while not (line := stderr.readline()).startswith(b"mpp-session: "):
            said.append(line)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert stderr.readline() == b"afterwards\n"
        assert process.wait(PATIENCE_S) == 0
    assert said == [b"%-99d\n" % number for number in range(len(said))], "the first, in order"
    assert len(said) + int(line.split()[1]) == lines, "and what is missing is counted"


@pytest.mark.parametrize("device", ["/dev/full", "a closed reader", "closed"])
def test_a_full_device_ends_nothing(device: str, tmp_path: Path) -> None:
    """O-82: nor a reader that is gone, nor a descriptor that was never open."""
    done = tmp_path / "done"
    script = WRITERS["print"] + MANY + f"open({str(done)!r}, 'w').write('done')"
    if device == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" 1>&- 2>&-', "sh", sys.executable, "-c"]
        subprocess.run([*command, START + script], check=True, cwd=ROOT)  # noqa: S603
    else:
        reader, pipe = os.pipe()
        os.close(reader)
        target = os.open(device, os.O_WRONLY) if device.startswith("/") else pipe
        with start(script, stdout=target, stderr=target) as process:
            assert process.wait(PATIENCE_S) == 0
        os.close(pipe)
    assert done.read_text() == "done"


def test_last_words_arrive(tmp_path: Path) -> None:
    """O-82: the traceback of what ended the program, too, and lines without an end.

    One file for each descriptor: which of the two is handed on first is not promised.
    """
    with (tmp_path / "stdout").open("wb") as stdout, (tmp_path / "stderr").open("wb") as stderr:
        script = "print('begin', end='')\n1 / 0"
        with start(script, stdout=stdout.fileno(), stderr=stderr.fileno()) as process:
            assert process.wait(PATIENCE_S) == 1
    assert (tmp_path / "stdout").read_text() == "begin"
    said = (tmp_path / "stderr").read_text()
    assert said.endswith("ZeroDivisionError: division by zero\n")


LEADER = """
import os, sys, termios
with open('/dev/tty', 'r+b', buffering=0) as terminal:
    modes = termios.tcgetattr(terminal)
    modes[3] |= termios.TOSTOP
    termios.tcsetattr(terminal, termios.TCSANOW, modes)
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])
_, status = os.waitpid(job, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(job, 9)
    os.waitpid(job, 0)
os._exit(3 if os.WIFSTOPPED(status) else 0)
"""
"""A shell with a job in the background, on a terminal that stops those that write (`tostop`)."""


def test_a_terminal_stops_no_job_in_the_background() -> None:
    """O-82: the kernel would stop the whole process, not only the thread that writes."""
    leader, terminal = pty.openpty()
    script = START + "import os; os.write(1, b'one'); os.write(2, b'two')"
    with subprocess.Popen(  # noqa: S603
        [
            sys.executable,
            "-c",
            "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)" + LEADER,
            script,
        ],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        cwd=ROOT,
    ) as process:
        assert process.wait(PATIENCE_S) == 0
    os.close(terminal)
    os.close(leader)
