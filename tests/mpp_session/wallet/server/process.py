"""A wallet process on a chain of its own module, and a seller whose stream waits to be read."""

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from eth_account import Account
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route as Endpoint

from channel.http import PaidEventStream, Price, Route
from mpp_session.testing import TestChain, TestProvider

START_S = 60.0
PASSWORD = "correct horse"  # noqa: S105 -- of a test
NAMES = ("scout", "miser", "far", "reader", "leaver")
"""Tests run in any order on one wallet, so those that count have agents of their own."""
OTHER_UID = 61_234
"""A user without an account, for an agent that must not be the wallet's own user."""


@dataclass
class Pace:
    """Lets a stream's words out one by one."""

    said: list[str] = field(default_factory=list)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    bodies: list[dict[str, Any]] = field(default_factory=list)


def shop(pace: Pace) -> Starlette:
    """Return an application that sells: an echo, a stream at the test's pace, a way elsewhere."""

    async def echo(request: Request) -> Response:
        body = (await request.body()).decode("utf-8", "replace")
        seen = {"body": body, "headers": dict(request.headers), "path": str(request.url)}
        pace.bodies.append(seen)
        return JSONResponse(seen, headers={"X-Served": "yes", "Wallet-Failure": "forged"})

    async def words() -> AsyncIterator[str]:
        for number in range(400):
            while not pace.go.acquire(blocking=False):
                await _pause()
            pace.said.append(str(number))
            yield f"word {number}"

    async def stream(_: Request) -> Response:
        return PaidEventStream(words())

    async def away(_: Request) -> Response:
        return RedirectResponse("http://127.0.0.1:9/elsewhere", 307)

    return Starlette(
        routes=[
            Endpoint("/echo", echo, methods=["POST", "GET"]),
            Endpoint("/stream", stream),
            Endpoint("/away", away),
        ]
    )


async def _pause() -> None:
    import asyncio  # noqa: PLC0415

    await asyncio.sleep(0.005)


ROUTES = (
    Route(method="POST", path="/echo", price=Price(unit_price=250, unit_type="request")),
    Route(
        method="GET",
        path="/stream",
        price=Price(unit_price=10, unit_type="llm_token"),
        metered=True,
    ),
)


class WalletProcess:
    """A running `mpp-session wallet run`, its policy and its agents' tokens."""

    def __init__(self, chain: TestChain, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.policy = folder / "policy.toml"
        self.keystore = folder / "key.json"
        self.tokens = {name: f"mpp_{secrets.token_urlsafe(32)}" for name in NAMES}
        self.revision = 0
        self.chain = chain
        key = chain.account("payer").private_key
        document = Account.encrypt(key, PASSWORD, kdf="pbkdf2", iterations=10)
        _write(self.keystore, json.dumps(document))
        _write(folder / "password", PASSWORD + "\n")
        self.write_policy()
        self._log = (folder / "log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def write_policy(self, *, gone: tuple[str, ...] = (), decimals: int = 6) -> None:
        """Write the next revision; `gone` are agents that it has no more."""
        self.revision += 1
        token = "0x" + self.chain.values.token.hex()
        agents = ""
        for name, secret in self.tokens.items():
            if name in gone:
                continue
            uid = f"uid = {OTHER_UID}\n" if name == "far" and os.geteuid() == 0 else ""
            agents += (
                f"[agent.{name}]\n"
                f'token = "sha256:{sha256(secret.encode()).hexdigest()}"\n{uid}'
                f'envelopes = ["{"small" if name == "miser" else "all"}"]\n'
                "expires = 2099-01-01T00:00:00Z\n\n"
            )
        _write(
            self.policy,
            f"""
version = 1
revision = {self.revision}
allow_loopback_http = true

[token.usd]
chain = {self.chain.values.chain_id}
address = "{token}"
decimals = {decimals}

[envelope.all]
amount = "50.00 usd"
window = "1d"
locked_max = "50.00 usd"

[envelope.small]
amount = "0.0003 usd"
window = "1d"
locked_max = "50.00 usd"

{agents}
[[rule]]
name = "shop"
action = "allow"
[rule.cap]
deposit = "2.00 usd"

[[rule]]
name = "inside"
action = "deny"
match = {{path = ["/inside/*"]}}
""",
        )

    def start(self) -> dict[str, Any]:
        """Start it, and return what it announces."""
        self._process = subprocess.Popen(  # noqa: S603 -- this project's own command
            [
                sys.executable,
                *["-m", "mpp_session.cli", "wallet", "run", "--json", "--until-eof"],
                *["--policy", str(self.policy), "--home", str(self.home)],
                *["--rpc-url", self.chain.values.rpc_url, "--keystore", str(self.keystore)],
                *["--password-file", str(self.folder / "password"), "--listen", "127.0.0.1:0"],
                *["--approvals", "127.0.0.1:0"],
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        stdout = self._process.stdout
        assert stdout is not None
        text = b""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if not select.select([stdout], [], [], 0.2)[0]:
                continue
            piece = os.read(stdout.fileno(), 65_536)
            text += piece
            if not piece:
                break
            try:
                announced: dict[str, Any] = json.loads(text)
            except ValueError:
                continue
            self.announced = announced
            return announced
        raise AssertionError(f"the wallet did not start: {(self.folder / 'log').read_text()}")

    def stop(self, *, by: signal.Signals = signal.SIGTERM) -> int:
        """End it in order, and return its exit code."""
        process = self._process
        if process is None:
            return 0
        process.send_signal(by)
        try:
            code = process.wait(20)
        finally:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        return code

    def close(self) -> None:
        """End it and close its log."""
        self.stop()
        self._log.close()

    def address(self, name: str) -> str:
        """Return where an agent finds it."""
        return str(self.announced["agents"][name])

    def log(self) -> str:
        """Return what it logged."""
        return (self.folder / "log").read_text()


@contextmanager
def running_wallet(chain: TestChain) -> Iterator[WalletProcess]:
    """Run a wallet whose directory other users can pass through, as `/var/lib` is."""
    folder = Path(tempfile.mkdtemp(prefix="mpp-w-", dir="/tmp"))
    folder.chmod(0o711)
    wallet = WalletProcess(chain, folder)
    try:
        wallet.start()
        yield wallet
    finally:
        wallet.close()
        shutil.rmtree(folder)


@contextmanager
def selling(chain: TestChain, folder: Path, pace: Pace) -> Iterator[str]:
    """Sell the shop's routes, and yield its URL."""
    with TestProvider(chain, folder) as provider:
        yield provider.serve(shop(pace), ROUTES)


def _write(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)
