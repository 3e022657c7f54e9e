"""Programs of others that a test runs: npm packages beside this file, each in one node process.

A new client is a function in `clients.mjs` and its package in `package.json`; `scripts/lock`
locks it and `scripts/test` installs it. A Python client goes into the group `test` of
`pyproject.toml`, or, where it does not fit there, into an environment of its own.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec

from tests.waiting import PATIENCE_S

__all__ = ["Said", "ask_clients"]

_PROGRAM = Path(__file__).with_name("clients.mjs")


class Said(msgspec.Struct):
    """What one client made of what it was answered."""

    client: str
    seconds: float
    text: str | None = None
    """What it returned to its caller."""
    error: dict[str, Any] | None = None
    """Or what it raised: `name`, `message`, and `status` or `statusCode` where it has one."""


async def ask_clients(url: str, *names: str) -> dict[str, Said]:
    """Let the named clients of `clients.mjs` ask `url`, one after the other; without names all."""
    node = shutil.which("node")
    assert node is not None, "scripts/test installs node"
    process = await asyncio.create_subprocess_exec(
        node, str(_PROGRAM), url, *names, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    said = [msgspec.json.decode(line, type=Said) for line in out.splitlines()]
    assert process.returncode == 0
    return {one.client: one for one in said}
