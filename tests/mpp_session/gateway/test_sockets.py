"""The listening socket, and one that systemd passes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mpp_session.errors import CommandError
from mpp_session.gateway.sockets import bind, listening_url
from mpp_session.settings import Listen

ROOT = Path(__file__).parents[3]
SETTINGS = Listen(port=0)

PROGRAM = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from mpp_session.errors import CommandError
from mpp_session.gateway.sockets import bind, listening_url
from mpp_session.settings import Listen
try:
    listener = bind(Listen(port=0))
except CommandError as error:
    sys.exit(str(error))
print(listening_url(listener), listener.get_inheritable(), sorted({"LISTEN_FDS"} & set(os.environ)))
"""


def passed(passing: socket.socket, *, count: str = "1") -> subprocess.CompletedProcess[str]:
    """Start a process as systemd does: the socket is its descriptor 3."""

    def move() -> None:
        os.dup2(passing.fileno(), 3, inheritable=True)

    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "LISTEN_FDS": count, "PYTHONPATH": str(ROOT)},
        close_fds=False,
        preexec_fn=move,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_socket_that_systemd_passes_is_served_and_no_child_gets_it() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        done = passed(held)
        assert done.stdout.split() == [listening_url(held), "False", "[]"], done.stderr


def test_a_socket_of_another_kind_is_refused_by_name() -> None:
    with socket.socket(socket.AF_UNIX) as held:
        assert "no TCP socket" in passed(held).stderr


def test_more_than_one_socket_is_refused() -> None:
    with socket.socket() as held:
        assert "passes 2 sockets" in passed(held, count="2").stderr


def test_variables_that_were_meant_for_another_process_pass_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shell that systemd started passes its environment on to every program."""
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with bind(SETTINGS) as listener:
        assert listener.fileno() != 3
    assert "LISTEN_FDS" not in os.environ


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CommandError, match=r"cannot listen on 203\.0\.113\.1:0"):
        bind(Listen(host="203.0.113.1", port=0))
