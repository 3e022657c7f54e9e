"""The gateway as a process of its own, for tests that kill it or watch what it does."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from channel.client.policy.policy import Policy, TokenLimits
from settlement.dev.devnet import DevnetValues
from tests.e2e.warm import Forge, Forked
from tests.waiting import PATIENCE_S

__all__ = [
    "ROOT",
    "GatewayProcess",
    "free_port",
    "gateway_command",
    "gateway_variables",
    "policy_for",
]

ROOT = Path(__file__).parents[2]
PRICE = 25

_RESERVED: list[socket.socket] = []


def free_port() -> int:
    """Return a port that no other process gets while this one lives, nor after a `kill -9`.

    It stays bound, and is not listened on. Linux lets a gateway bind it all the same, since both
    say that it may be used again, and gives it neither to a server that asks for any port nor to
    a client's end of a connection, not even of one to this very port.
    """
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    port: int = server.getsockname()[1]
    if sys.platform == "linux":
        _RESERVED.append(server)
    else:
        server.close()
    return port


def gateway_command() -> list[str]:
    return [sys.executable, "-m", "mpp_session.cli", "gateway"]


def gateway_variables(
    values: DevnetValues,
    upstream: str,
    ledger: Path,
    port: int,
    *,
    step_units: int,
    settles: bool = True,
) -> dict[str, str]:
    """The environment of a gateway whose books and address outlive its process.

    Unless it `settles`, its settler is started elsewhere, or not at all.
    """
    payee = values.accounts["payee"]
    settings = {
        "UPSTREAM_URL": upstream,
        "PRICE_PER_UNIT": str(PRICE),
        "PAYMENT_REALM": "tests",
        "PAYMENT_SECRETS": "a secret of thirty-two bytes or more",
        "PAYMENT_RESERVATION_STEP_UNITS": str(step_units),
        "PAYMENT_VOUCHERS_PER_SECOND": "1000",
        "CHAIN_RPC_URL": values.rpc_url,
        "CHAIN_ID": str(values.chain_id),
        "CHAIN_ESCROW": "0x" + values.escrow.hex(),
        "CHAIN_TOKEN": "0x" + values.token.hex(),
        "PAYEE_ADDRESS": "0x" + payee.address.hex(),
        "PAYEE_KEY": "0x" + payee.private_key.hex(),
        "LEDGER_URL": f"sqlite:///{ledger}",
        "LISTEN_PORT": str(port),
        "SETTLEMENT_START": str(settles).lower(),
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
    ours = {f"MPP_SESSION_{name}": value for name, value in settings.items()}
    return {**inherited, **ours, "PYTHONPATH": str(ROOT)}


class GatewayProcess:
    """A gateway that can be killed and started again on the same books and port."""

    def __init__(
        self,
        command: Sequence[str],
        variables: dict[str, str],
        log: Path,
        *,
        forge: Forge | None = None,
    ) -> None:
        """With a `forge` the gateway alone is started, from there, and `command` not looked at."""
        self.url = f"http://127.0.0.1:{variables['MPP_SESSION_LISTEN_PORT']}"
        self._command = command
        self._variables = variables
        self._log = log
        self._forge = forge
        self._process: asyncio.subprocess.Process | Forked | None = None

    async def start(self) -> None:
        if self._forge is not None:
            self._process = self._forge.start(["gateway"], self._variables, self._log)
        else:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, env=self._variables, stdout=log, stderr=log
                )
        deadline = time.monotonic() + PATIENCE_S
        port = int(self._variables["MPP_SESSION_LISTEN_PORT"])
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            assert self._process.returncode is None, self._log.read_text()
            await asyncio.sleep(0.02)
        raise TimeoutError(self._log.read_text())

    @property
    def variables(self) -> dict[str, str]:
        """The environment that it runs in."""
        return self._variables

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def said(self) -> str:
        """Return what it has written to its log so far."""
        return self._log.read_text()

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), PATIENCE_S)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start it, and never leave it behind."""
        await self.start()
        try:
            yield
        finally:
            if self._process is not None and self._process.returncode is None:
                await self.end(signal.SIGKILL)


def policy_for(values: DevnetValues, *, voucher_step: int = 64, **changes: Any) -> Policy:
    """What the tests' agent may agree to."""
    limits = TokenLimits(
        chain_id=values.chain_id,
        token=values.token,
        unit_price_max={"llm_chunk": PRICE, "llm_token": PRICE},
        deposit_max=10**6,
        budget=10**6,
    )
    return Policy(
        limits=(limits,),
        voucher_step=voucher_step,
        expected_units=4000,
        lost_units_max=4000,
        allow_loopback_http=True,
        **changes,
    )
