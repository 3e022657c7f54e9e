"""The demo's wallet: its policy, its process, and what its owner does."""

import asyncio
import secrets
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from channel.files import write_new
from mpp_session.demo.child import run_child
from mpp_session.demo.report import Trail, TrailStep
from mpp_session.wallet.audit.index import Index
from mpp_session.wallet.audit.notes import PublicKey
from mpp_session.wallet.audit.story import tell
from mpp_session.wallet.audit.verify import verify_files
from mpp_session.wallet.server.opening import BOOKS
from mpp_session.wallet.server.owner_client import ask_owner_door
from settlement.dev.devnet import DevnetValues

__all__ = ["AGENT", "REQUEST_CAP", "Wallet", "read_trail", "run_wallet"]

AGENT: Final = "scout"
REQUEST_CAP: Final = "0.001"
"""The most that one request of the agent may cost, in whole tokens of the demo's dollar."""
APPROVAL_ABOVE: Final = "0.005"
"""Deposits above this wait for the owner."""

_POLICY: Final = """\
version = 1
revision = 1
allow_loopback_http = true  # for a server of this machine

[token.dusd]
chain = {chain_id}
address = "0x{token}"
decimals = {decimals}

[envelope.demo]
amount = "0.10 dusd"
window = "1d"
locked_max = "0.10 dusd"

[agent.{agent}]
token = "sha256:{digest}"
envelopes = ["demo"]
expires = 2099-01-01T00:00:00Z

[[rule]]
name = "model"
action = "allow"
match = {{ origin = ["{origin}"], path = ["/v1/chat/completions"] }}

[rule.cap]
unit_price = {{ input_token = "{input} dusd / 1M", output_token = "{output} dusd / 1M" }}
request = "{request_max} dusd"
deposit = "0.05 dusd"

[approval]
above = "{above} dusd"
"""


class Wallet(msgspec.Struct, frozen=True):
    """A running wallet."""

    home: Path
    address: str
    """Where the agent finds it."""
    token_file: Path
    """The agent's token."""

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """Give an order as the owner, and return the answer."""
        return await asyncio.to_thread(ask_owner_door, self.home, method, path, body)

    async def approve(self, approval_id: str) -> None:
        """Approve what waits, as the owner."""
        body = {"verdict": "approve", "scope": "channel", "comment": "go ahead"}
        await self.ask("POST", f"/approvals/{approval_id}", body)


@asynccontextmanager
async def run_wallet(
    folder: Path, values: DevnetValues, *, origin: str, input_price: str, output_price: str
) -> AsyncIterator[Wallet]:
    """Start a wallet for one agent that may buy from one origin."""
    token = f"mpp_{secrets.token_urlsafe(32)}"
    policy = _POLICY.format(
        chain_id=values.chain_id,
        token=values.token.hex(),
        decimals=values.token_decimals,
        agent=AGENT,
        digest=sha256(token.encode()).hexdigest(),
        origin=origin,
        input=input_price,
        output=output_price,
        request_max=REQUEST_CAP,
        above=APPROVAL_ABOVE,
    )
    home, token_file = folder / "wallet", folder / "agent.token"
    for path, text in ((folder / "policy.toml", policy), (token_file, token)):
        await asyncio.to_thread(write_new, path, text.encode())
    command = [sys.executable, "-m", "mpp_session.cli", "wallet", "run", "--until-eof"]
    command += [f"--policy={folder / 'policy.toml'}", f"--home={home}"]
    command += [f"--devnet={folder / 'devnet.json'}"]
    ready = rf"{AGENT}: (unix:\S+)[\s\S]*^ready$"
    log = folder / "wallet.log"
    async with run_child("the wallet", command, log=log, ready=f"(?m){ready}") as child:
        yield Wallet(home, child.found[1], token_file)


def read_trail(home: Path, channel_id: bytes) -> Trail:
    """Verify the trail of a wallet that has stopped, and read the story of a channel in it."""
    key = PublicKey.parse((home / "trail.pub").read_text())
    with closing(sqlite3.connect(home / BOOKS)) as db:
        db.row_factory = sqlite3.Row
        report = verify_files(db, home / "trail.checkpoints", key)
        with Index.open(db, None) as index:
            steps = tell(index, f"0x{channel_id.hex()}")
    story = tuple(TrailStep(step.seq, step.kind, step.text) for step in steps)
    return Trail(story, str(report), report.is_good)
