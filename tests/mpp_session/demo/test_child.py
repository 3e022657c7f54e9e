"""A program beside the demo is waited for, ended, and quoted when it fails."""

import sys
from pathlib import Path

import pytest

from mpp_session.demo.child import run_child
from mpp_session.errors import ChildError

READY = r"listening on (\S+)"


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_it_is_ready_when_it_says_so_and_ends_with_the_block(tmp_path: Path) -> None:
    code = "import sys; print('listening on here', flush=True); sys.stdin.read()"
    async with run_child("it", program(code), log=tmp_path / "it.log", ready=READY) as child:
        assert child.found[1] == "here"
        assert child.process.returncode is None
    assert child.process.returncode is not None


async def test_one_that_ends_is_quoted(tmp_path: Path) -> None:
    code = "import sys; print('no such model'); sys.exit(3)"
    with pytest.raises(ChildError, match="it ended with code 3") as caught:
        async with run_child("it", program(code), log=tmp_path / "it.log", ready=READY):
            pytest.fail("it never was ready")
    assert caught.value.log_tail == "no such model"


async def test_one_that_is_silent_is_given_up(tmp_path: Path) -> None:
    command = program("import sys; sys.stdin.read()")
    with pytest.raises(ChildError, match="not ready"):
        async with run_child("it", command, log=tmp_path / "it.log", ready=READY, timeout_s=0.3):
            pytest.fail("it never was ready")


async def test_a_torrent_of_output_does_not_stop_it(tmp_path: Path) -> None:
    code = "print('x' * 1_000_000); print('listening on here', flush=True); input()"
    async with run_child("it", program(code), log=tmp_path / "it.log", ready=READY) as child:
        assert child.found[1] == "here"


async def test_an_announcement_is_read_when_its_line_is_whole(tmp_path: Path) -> None:
    """What is still being written is not an address yet, and what is logged never is."""
    code = """if True:
        import sys, time
        print("listening on elsewhere", file=sys.stderr, flush=True)
        print("listening on he", end="", flush=True)
        time.sleep(0.3)
        print("I log", file=sys.stderr, flush=True)
        print("re", flush=True)
        sys.stdin.read()
    """
    async with run_child("it", program(code), log=tmp_path / "it.log", ready=READY) as child:
        assert child.found[1] == "here"
        assert "I log" in await child.tail()
