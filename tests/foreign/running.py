"""Programs of others that a test runs: npm packages beside this file, each in one node process.

A new client is a function in `clients.mjs`, or in `mpp_session/demo/payers.mjs` if it pays, and its
package in `package.json`; `scripts/lock` locks it and `scripts/test` installs it. A Python client
goes into the group `test` of `pyproject.toml`, or, where it does not fit there, into an environment
of its own.
"""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from mpp_session.demo.clients import Answer, PayerTerms, pay, prepare
from tests.waiting import PATIENCE_S

__all__ = ["Said", "ask_clients", "check_discovery", "pay_by_npm", "pay_tempo"]

_PROGRAM = Path(__file__).with_name("clients.mjs")
_TEMPO = Path(__file__).with_name("tempo.mjs")
_CHECKERS = Path(__file__).with_name("discovery.mjs")


class Said(msgspec.Struct):
    """What one client made of what it was answered."""

    client: str
    seconds: float
    text: str | None = None
    """What it returned to its caller."""
    error: dict[str, Any] | None = None
    """Or what it raised: `name`, `message`, and `status` or `statusCode` where it has one."""


async def pay_by_npm(folder: Path, name: str, url: str, terms: PayerTerms) -> Answer:
    """Let a client of the demo's `payers.mjs` pay for `url`."""
    commands = await prepare(folder, progress=print)
    return await pay(commands[True], name, url, terms)


async def ask_clients(url: str, *names: str, **variables: str) -> dict[str, Said]:
    """Let the named clients of `clients.mjs` ask `url`, one after the other; without names all.

    The variable `API_KEY` is the key of those that send one.
    """
    lines = await _run(_PROGRAM, url, *names, **variables)
    return {one.client: one for one in (msgspec.json.decode(line, type=Said) for line in lines)}


async def check_discovery(url: str, home: Path) -> dict[str, list[str]]:
    """Return what each checker of `discovery.mjs` found, as `severity: what`.

    `home` is an empty folder: mppx pays with a wallet that it finds at home.
    """
    lines = await _run(_CHECKERS, url, HOME=str(home), XDG_CONFIG_HOME=str(home))
    return {one["name"]: one["found"] for one in map(msgspec.json.decode, lines)}


async def pay_tempo(*arguments: str) -> list[bytes]:
    """Let mppx pay a server of Tempo's session; see `tempo.mjs`."""
    return await _run(_TEMPO, *arguments)


async def _run(program: Path, *arguments: str, **variables: str) -> list[bytes]:
    """Run a program and return the lines that it printed."""
    node = shutil.which("node")
    assert node is not None, "scripts/test installs node"
    process = await asyncio.create_subprocess_exec(
        node,
        str(program),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **variables},
    )
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.splitlines()
