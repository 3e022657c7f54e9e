"""The tracer sees what a program does, in the order it does it."""

import subprocess
import sys
from pathlib import Path

from tests.faults.tracer import read_events, trace

PROGRAM = """
import os, socket, threading
out, path = socket.socketpair(), {path!r}
def store():
    with open(path, "wb", buffering=0) as file:
        file.write(b"state")
        os.fdatasync(file.fileno())
thread = threading.Thread(target=store)
thread.start()
thread.join()
out[0].send(b"paid byte")
out[0].sendmsg([b"second ", b"byte"])
"""


def test_a_sync_in_another_thread_stands_before_the_send_that_follows_it(tmp_path: Path) -> None:
    stored, recorded = tmp_path / "state.bin", tmp_path / "events"
    program = PROGRAM.format(path=str(stored))
    with trace([sys.executable, "-c", program], recorded) as process:
        assert process.wait(30) == 0
    events = read_events(recorded)
    ours = [event for event in events if event.target == str(stored)]
    assert [(event.call, event.data) for event in ours] == [("write", b"state"), ("fdatasync", b"")]
    sends = [event.data for event in events if event.target.startswith("socket:")]
    assert sends == [b"paid byte", b"second byte"]
    assert events.index(ours[-1]) < [event.data for event in events].index(b"paid byte")


def test_the_programs_exit_code_and_signals_are_its_own(tmp_path: Path) -> None:
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    waiting = f"import signal, sys; {handler}; print('ready', flush=True); signal.pause()"
    command = [sys.executable, "-c", waiting]
    with trace(command, tmp_path / "events", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(30) == 7
