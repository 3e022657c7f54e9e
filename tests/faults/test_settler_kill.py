"""A settler killed with -9 at every step of the journal: settled exactly once, nonces without gap.

Each round a settler process is brought to one step by a node that stops answering there, is
killed, and the next one goes on from what is on disk. `KILLS=100` makes it longer.
"""

import asyncio
import enum
import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from channel.ledger.sqlite import SqliteLedger
from channel.state.channel_state import LadderVoucher, ReservationKind
from channel.state.commands import BeginClose, Command, CommitClose, Release, Reserve, Spend
from channel.types import ChannelId
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from tests.e2e.warm import Forge, Forked
from tests.faults.proxy import LyingNode
from tests.settlement.books import NOW, Books
from tests.settlement.channels import Channels
from tests.waiting import PATIENCE_S, until

Ids = list[ChannelId]

KILLS = int(os.environ.get("KILLS", "20"))
LIVE = 2
CLOSE_AT = 400

ROOT = Path(__file__).parents[2]


class Step(enum.Enum):
    """Where a process is when it is killed."""

    WANTED = "the intent is on disk, nothing is signed"
    SIGNED = "the bytes are on disk, and never left"
    LEFT = "the bytes are with the node, and we have not heard"
    SENT = "it waits in the pool"
    MINED = "it is mined, and the books do not know"


class GatedNode(LyingNode):
    """A node that stops answering at one step."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.step: Step | None = None
        self.reached = asyncio.Event()
        self._has_receipt = False

    def arm(self, step: Step) -> None:
        self.step = step
        self.reached.clear()
        self._has_receipt = False

    async def handle(self, request: web.Request) -> web.Response:
        calls = json.loads(await request.read())
        methods = {call["method"] for call in (calls if isinstance(calls, list) else [calls])}
        if self._stops_before(methods):
            await self._stop()
        said = await super().handle(request)
        if self.step is Step.LEFT and "eth_sendRawTransaction" in methods:
            await self._stop()
        if "eth_getTransactionReceipt" in methods and "blockNumber" in (said.text or ""):
            self._has_receipt = True
        return said

    def _stops_before(self, methods: set[str]) -> bool:
        match self.step:
            case Step.WANTED:
                return "eth_estimateGas" in methods
            case Step.SIGNED:
                return "eth_sendRawTransaction" in methods
            case Step.MINED:
                return self._has_receipt and "eth_call" in methods
        return False

    async def _stop(self) -> None:
        self.reached.set()
        await asyncio.sleep(3600)


class Provider:
    """The books of a gateway, and settlers that are started on them."""

    def __init__(
        self, chain: Devnet, node: GatedNode, ledger: SqliteLedger, path: Path, forge: Forge
    ) -> None:
        self.chain, self.node, self.ledger, self._path = chain, node, ledger, path
        self._forge = forge
        self.channels = Channels(chain, PayerAccount(chain.sender("payer")))
        self.books = Books(EscrowReader(chain.rpc, chain.values.escrow), ledger, self.channels)
        self._newest: Forked | None = None
        self.closed: Ids = []
        self.live: Ids = []

    def start(self) -> Forked:
        values, payee = self.chain.values, self.chain.account("payee")
        settings = {
            "CHAIN_RPC_URL": self.node.url,
            "CHAIN_ID": str(values.chain_id),
            "CHAIN_ESCROW": "0x" + values.escrow.hex(),
            "CHAIN_TOKEN": "0x" + values.token.hex(),
            "PAYEE_ADDRESS": "0x" + payee.address.hex(),
            "PAYEE_KEY": "0x" + payee.private_key.hex(),
            "LEDGER_URL": f"sqlite:///{self._path}",
            "SETTLEMENT_SETTLE_VALUE": "1",
        }
        variables = {f"MPP_SESSION_{name}": value for name, value in settings.items()}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
        log = self._path.with_suffix(".log")
        self._newest = self._forge.start(["settle", "--json"], {**inherited, **variables}, log)
        return self._newest

    def end(self) -> None:
        """Leave nothing running, however the test ended."""
        if self._newest is not None:
            with suppress(ProcessLookupError):
                self._newest.send_signal(signal.SIGKILL)

    async def owe(self, closes: int) -> None:
        """Deliver more on the live channels, and decide to close some others."""
        for channel_id in self.live:
            spent = (await self.books.state(channel_id)).spent + 10
            await self.books.accept(channel_id, spent)
            reserve = Reserve(
                reservation_id=b"r" * 16,
                kind=ReservationKind.REQUEST,
                amount_min=10,
                amount_max=10,
                presented=spent,
                min_voucher_delta=0,
                lease_expires_at=NOW,
            )
            paid: list[Command] = [reserve, Spend(b"r" * 16, 10), Release(b"r" * 16)]
            (await self.ledger.apply(self.books.key(channel_id), paid)).require()
        for _ in range(closes):
            channel_id = await self.books.open(accepted=CLOSE_AT, spent=CLOSE_AT)
            voucher = LadderVoucher(CLOSE_AT, self.books.sign(channel_id, CLOSE_AT))
            decided: list[Command] = [BeginClose(), CommitClose(voucher)]
            (await self.ledger.apply(self.books.key(channel_id), decided)).require()
            self.closed.append(channel_id)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self._path)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    async def require_published(self) -> None:
        """Decision 5: no voucher is in signed bytes that the books do not call public."""
        for (calldata,) in self.rows("SELECT calldata FROM chain_transaction WHERE status > 1"):
            for entry in abi.decode_entries(calldata):
                state = await self.books.state(entry.channel_id)
                assert state.published >= entry.cumulative_amount

    async def is_done(self) -> bool:
        states = [await self.books.state(channel_id) for channel_id in self.live]
        return (
            not await self.ledger.list_pending_closes()
            and all(state.settled == state.spent for state in states)
            and not self.rows("SELECT 1 FROM chain_transaction WHERE status < 6")
        )


@asynccontextmanager
async def provider_on(chain: Devnet, folder: Path, forge: Forge) -> AsyncIterator[Provider]:
    ledger = await SqliteLedger.open(folder / "ledger.db", exclusive=False)
    try:
        async with GatedNode(chain.values.rpc_url).serve() as node:
            assert isinstance(node, GatedNode)
            provider = Provider(chain, node, ledger, folder / "ledger.db", forge)
            try:
                yield provider
            finally:
                provider.end()
    finally:
        await ledger.close()


async def kill_at(provider: Provider, step: Step) -> None:
    """Bring a settler to a step, and kill it there."""
    provider.node.arm(step)
    if step is Step.SENT:
        async with provider.chain.mining_paused():
            settler = provider.start()
            await until(lambda: _is_waiting(provider))
            await _kill(settler)
    else:
        settler = provider.start()
        async with asyncio.timeout(PATIENCE_S):
            await provider.node.reached.wait()
        await _kill(settler)
    provider.node.step = None


async def _kill(settler: Forked) -> None:
    settler.send_signal(signal.SIGKILL)
    assert await settler.wait() == -signal.SIGKILL


async def _is_waiting(provider: Provider) -> bool:
    return bool(provider.rows("SELECT 1 FROM chain_transaction WHERE status = 3"))


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_killed_at_every_step_it_settles_exactly_once(
    chain: Devnet, tmp_path: Path, forge: Forge
) -> None:
    """F-74, F-75, F-80, SETTLE-04: nothing is lost, nothing is paid twice, no nonce is missing."""
    before = await chain.token_balance(chain.account("payee").address)
    async with provider_on(chain, tmp_path, forge) as provider:
        for _ in range(LIVE):
            provider.live.append(await provider.books.open(accepted=0))
        steps = list(Step)
        for number in range(KILLS):
            await provider.owe(closes=1 + number % 2)
            await kill_at(provider, steps[number % len(steps)])
            await provider.require_published()
        last = provider.start()
        await until(provider.is_done)
        last.send_signal(signal.SIGTERM)
        assert await last.wait() == 0
        await require_settled_once(provider, before)


async def require_settled_once(provider: Provider, before: int) -> None:
    chain, books = provider.chain, provider.books
    for channel_id in provider.closed:
        state = await books.state(channel_id)
        assert (state.is_finalized, state.settled) == (True, CLOSE_AT)
        assert state.close_tx
    spent = [(await books.state(channel_id)).spent for channel_id in provider.live]
    assert spent == [10 * KILLS] * LIVE
    gained = await chain.token_balance(chain.account("payee").address) - before
    assert gained == CLOSE_AT * len(provider.closed) + sum(spent)
    rows = provider.rows("SELECT nonce, status, is_success FROM chain_transaction")
    given = [nonce for nonce, _, _ in rows if nonce is not None]
    assert sorted(given) == list(range(len(given)))  # without a gap, none twice
    sender = "0x" + chain.account("payee").address.hex()
    assert await chain.rpc.read("eth_getTransactionCount", sender, "latest") == hex(len(given))
    outcomes = Counter(
        (status, is_success) for nonce, status, is_success in rows if nonce is not None
    )
    assert outcomes == {(6, 1): len(given)}  # final, and not one of them reverted
