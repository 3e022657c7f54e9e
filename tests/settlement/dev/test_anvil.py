"""Anvil as a child process: found, started, stopped, and ended with its parent."""

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from settlement.dev.anvil import Anvil, find_anvil
from settlement.errors import AnvilError
from settlement.node.rpc import Rpc, RpcLimits
from tests.waiting import PATIENCE_S, until

_ONE_TRY = RpcLimits(timeout_s=1, read_attempts_max=1)


async def test_it_listens_on_a_free_port_of_its_own() -> None:
    program = await find_anvil()
    async with await Anvil.start(program) as first, await Anvil.start(program) as second:
        assert first.url != second.url
        async with await Rpc.connect(first.url) as rpc:
            assert await rpc.block_number() == 0


async def test_stop_ends_the_chain_and_may_be_repeated() -> None:
    anvil = await Anvil.start(await find_anvil())
    await anvil.stop()
    await anvil.stop()
    assert await _is_gone(anvil.url)


async def test_a_program_that_exits_immediately_is_reported_with_its_output(tmp_path: Path) -> None:
    program = _script(tmp_path / "anvil", "echo no such luck; exit 3")
    with pytest.raises(AnvilError, match="no such luck"):
        await Anvil.start(program)


async def test_a_taken_port_is_reported() -> None:
    program = await find_anvil()
    async with await Anvil.start(program) as first:
        port = int(first.url.rsplit(":", 1)[1])
        with pytest.raises(AnvilError, match=f"did not start on port {port}: .*in use"):
            await Anvil.start(program, port=port)


async def test_the_chain_goes_down_with_a_parent_that_is_killed() -> None:
    """kill -9 leaves no time for cleanup, but the chain still ends."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    url = (await parent.stdout.readline()).decode().strip()
    async with await Rpc.connect(url) as rpc:
        assert await rpc.block_number() == 0
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await until(lambda: _is_gone(url))


async def test_a_real_program_on_the_path_is_used_and_npms_script_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = await find_anvil()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "anvil").symlink_to(packaged)
    assert await find_anvil() == tmp_path / "anvil"
    (tmp_path / "anvil").unlink()
    _script(tmp_path / "anvil", "exec node")
    assert await find_anvil() == packaged


async def test_the_error_says_what_to_do_where_npm_has_no_anvil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "PDP-11")
    with pytest.raises(AnvilError, match=r"linux-pdp-11.*put anvil on PATH"):
        await find_anvil()


async def test_a_chain_that_does_not_end_when_asked_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("settlement.dev.anvil._STOP_TIMEOUT_S", 0.1)
    body = 'trap "" TERM; echo Listening on 127.0.0.1:1; while :; do sleep 0.1; done'
    anvil = await Anvil.start(_script(tmp_path / "anvil", body))
    async with asyncio.timeout(PATIENCE_S):
        await anvil.stop()


_PARENT = """
import asyncio
from settlement.dev.anvil import Anvil, find_anvil

async def main():
    anvil = await Anvil.start(await find_anvil())
    print(anvil.url, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def _is_gone(url: str) -> bool:
    try:
        rpc = await Rpc.connect(url, limits=_ONE_TRY)
    except Exception:  # noqa: BLE001 -- any failure shows that no node answers
        return True
    await rpc.close()
    return False
