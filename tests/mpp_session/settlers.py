"""Settlers as processes, for tests of how they start, stand by and end."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from channel.ledger.interface import Ledger
from channel.state.channel_state import LadderVoucher
from channel.state.commands import BeginClose, Command, CommitClose
from channel.types import ChannelId
from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from tests.e2e.warm import Forge, Forked
from tests.settlement.books import Books
from tests.settlement.channels import Channels
from tests.waiting import until


def settler_variables(devnet: TestChain, ledger: str, **changes: str | None) -> dict[str, str]:
    """Return the environment of a settler; a change of None leaves a setting out."""
    values = devnet.values
    payee = values.accounts["payee"]
    settings = {
        "CHAIN_RPC_URL": values.rpc_url,
        "CHAIN_ID": str(values.chain_id),
        "CHAIN_ESCROW": "0x" + values.escrow.hex(),
        "CHAIN_TOKEN": "0x" + values.token.hex(),
        "PAYEE_ADDRESS": "0x" + payee.address.hex(),
        "PAYEE_KEY": "0x" + payee.private_key.hex(),
        "LEDGER_URL": ledger,
        "SETTLEMENT_SWEEP_INTERVAL_S": "0.5",
        **changes,
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
    given = {f"MPP_SESSION_{name}": text for name, text in settings.items() if text is not None}
    return {**inherited, **given}


class Settlers:
    """Settler processes on one database, and what each of them says."""

    def __init__(self, forge: Forge, folder: Path, variables: dict[str, str]) -> None:
        self._forge, self._folder, self._variables = forge, folder, variables
        self._started = 0
        self._running: list[Forked] = []

    def start(self, *arguments: str, **changes: str) -> tuple[Forked, "Said"]:
        self._started += 1
        log = self._folder / f"settler-{self._started}.log"
        variables = {**self._variables, **{f"MPP_SESSION_{k}": v for k, v in changes.items()}}
        process = self._forge.start(["settle", "--json", *arguments], variables, log)
        self._running.append(process)
        return process, Said(log)

    def end(self) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)


class Said:
    """What a process has written so far."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def text(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def reports(self) -> list[dict[str, Any]]:
        """Its lines of JSON; one that it is in the middle of writing is none yet."""
        lines = self.text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def has(self, state: str) -> bool:
        return any(report.get("state") == state for report in self.reports())

    async def until(self, state: str) -> None:
        await until(lambda: asyncio.to_thread(self.has, state))


async def owe_close(ledger: Ledger, chain: Devnet, *, salt: int = 0) -> ChannelId:
    """Open a channel, deliver on it, and decide its close: for a settler to carry out."""
    channels = Channels(chain, PayerAccount(chain.sender("payer")))
    channels._opened = salt  # noqa: SLF001 -- each channel has terms of its own
    books = Books(EscrowReader(chain.rpc, chain.values.escrow), ledger, channels)
    channel_id = await books.open(accepted=400, spent=400)
    decided: list[Command] = [
        BeginClose(),
        CommitClose(LadderVoucher(400, books.sign(channel_id, 400))),
    ]
    (await ledger.apply(books.key(channel_id), decided)).require()
    return channel_id


async def until_closed(chain: Devnet, channel_id: ChannelId) -> None:
    """Wait until the escrow has closed a channel."""
    reader = EscrowReader(chain.rpc, chain.values.escrow)

    async def is_closed() -> bool:
        fact = await reader.read_channel(channel_id)
        return fact is not None and fact.is_finalized

    await until(is_closed)
