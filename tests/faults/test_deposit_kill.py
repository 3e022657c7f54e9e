"""Worker and settler killed with -9 at every step of a sponsored deposit: pulled and credited once.

The payer does what any payer does: it sends the same credential until it is answered with 200.
`KILLS=20` kills each process twenty times at each step, of openings, top-ups and vouchers that
carry one, on both databases; else PostgreSQL gets the last of them alone, to save time.
"""

import asyncio
import contextlib
import enum
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from aiohttp import web

from channel.ledger.sqlite_connection import connect
from channel.ledger.url import open_ledger, sqlite_path
from channel.wire.challenge import Challenge, parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    Payload,
)
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.node.values import parse_quantity
from settlement.sponsor.capabilities import probe
from settlement.tx.orders import OrderStatus
from tests.e2e.gateways import GatewayProcess, free_port, gateway_command, gateway_variables
from tests.e2e.selling import DEPOSIT
from tests.e2e.sponsored import GaslessPayer, fund_payer
from tests.e2e.warm import Forge, Forked
from tests.faults.proxy import LyingNode
from tests.mpp_session.model_server import model_server
from tests.waiting import PATIENCE_S, until

KILLS = int(os.environ.get("KILLS", "1"))
PATH = "/v1/chat/completions"
FIRST_VOUCHER = 100
LOOK_S = 0.05
"""Between looks at the database: each is a connection of its own, as a crash leaves none."""
DEPOSITS = [
    "0x" + function.selector.hex()
    for function in (
        abi.open_with_authorization,
        abi.open_with_permit2,
        abi.top_up_with_authorization,
        abi.top_up_with_permit2,
    )
]


class Step(enum.Enum):
    """Where a process is when it is killed."""

    CHECKING = "the worker simulates; nothing is on disk"
    PLACED = "the worker waits; the deposit is on disk, and no settler runs"
    WAITING = "the worker waits; the transaction is in the pool"
    UNRECORDED = "the worker knows that it is mined; the books do not"
    WANTED = "the settler simulates; the deposit is on disk"
    SIGNED = "the settler's bytes are on disk, and never left"
    LEFT = "the bytes are with the node, and the settler has not heard"
    SENT = "the transaction is in the pool, and the settler waits for it"
    MINED = "it is mined, and the settler has not heard"


WORKERS = (Step.CHECKING, Step.PLACED, Step.WAITING, Step.UNRECORDED)


class Gate(LyingNode):
    """A node that stops answering at one step."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.step: Step | None = None
        self.reached = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        calls = json.loads(await request.read())
        calls = calls if isinstance(calls, list) else [calls]
        methods = {call["method"] for call in calls}
        if self._stops_before(calls, methods):
            await self._stop()
        said = await super().handle(request)
        is_mined = "eth_getTransactionReceipt" in methods and "logsBloom" in (said.text or "")
        if (self.step is Step.LEFT and "eth_sendRawTransaction" in methods) or (
            self.step is Step.MINED and is_mined
        ):
            await self._stop()
        return said

    def _stops_before(self, calls: list[dict[str, Any]], methods: set[str]) -> bool:
        match self.step:
            case Step.CHECKING | Step.WANTED:
                return any(
                    call["method"] == "eth_estimateGas"
                    and call["params"][0]["data"].startswith(tuple(DEPOSITS))
                    for call in calls
                )
            case Step.SIGNED:
                return "eth_sendRawTransaction" in methods
            case Step.UNRECORDED:
                return "eth_getTransactionReceipt" in methods
        return False

    async def _stop(self) -> None:
        self.reached.set()
        await asyncio.sleep(3600)


class Provider:
    """A gateway and its settler, each with a node of its own, on books that outlive both."""

    def __init__(
        self,
        chain: Devnet,
        nodes: tuple[Gate, Gate],
        books: str,
        folder: Path,
        forge: Forge,
        *,
        upstream: str,
    ) -> None:
        self.chain = chain
        self.to_worker, self.to_settler = nodes
        self.books = books
        self._forge = forge
        self._log = folder / "settler.log"
        self._variables = gateway_variables(
            chain.values, upstream, folder, free_port(), step_units=8, settles=False
        )
        self._variables["MPP_SESSION_LEDGER_URL"] = books
        sponsoring = {"FEE_PAYER": "true", "DEPOSIT_MIN": "100", "DEPOSITS_PER_PAYER": "100000"}
        sponsoring |= {"DEPOSITS_PER_ADDRESS": "100000", "GAS_BUDGET_WEI": str(10**18)}
        self._variables |= {f"MPP_SESSION_SPONSORING_{k}": v for k, v in sponsoring.items()}
        self._variables |= {"MPP_SESSION_CHAIN_RPC_URL": self.to_worker.url}
        self.gateway = GatewayProcess(
            gateway_command(), self._variables, folder / "gateway.log", forge=forge
        )
        self._settler: Forked | None = None

    async def settle(self) -> None:
        """Start a settler, if none runs."""
        if self._settler is None:
            node = {"MPP_SESSION_CHAIN_RPC_URL": self.to_settler.url}
            self._settler = self._forge.start(["settle"], self._variables | node, self._log)

    async def kill_settler(self) -> None:
        if self._settler is not None:
            self._settler.send_signal(signal.SIGKILL)
            assert await self._settler.wait() == -signal.SIGKILL
            self._settler = None
            if self.books.startswith("postgresql"):  # or every kill would take its 6 s
                await self.rows("UPDATE settler_lease SET expires_at = 0 RETURNING 1")

    async def kill_gateway(self) -> None:
        assert await self.gateway.end(signal.SIGKILL) == -signal.SIGKILL

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        if self.books.startswith("sqlite"):
            file = await connect(sqlite_path(self.books))
            try:
                return await file.run(lambda db: db.execute(query).fetchall())
            finally:
                await file.close()
        server = await asyncpg.connect(self.books)
        try:
            return [tuple(row) for row in await server.fetch(query)]
        finally:
            await server.close()

    async def has_order(self, status: OrderStatus) -> bool:
        query = f"SELECT 1 FROM deposit_order WHERE status = {int(status)}"  # noqa: S608
        return bool(await self.rows(query))

    async def is_in_pool(self) -> bool:
        return bool(await self.rows("SELECT 1 FROM chain_transaction WHERE status = 3"))


@contextlib.asynccontextmanager
async def provider_on(
    chain: Devnet, books: str, folder: Path, forge: Forge
) -> AsyncIterator[Provider]:
    url = chain.values.rpc_url
    async with (
        Gate(url).serve() as to_worker,
        Gate(url).serve() as to_settler,
        model_server() as model,  # without one no deposit is taken (O-27)
    ):
        assert isinstance(to_worker, Gate)
        assert isinstance(to_settler, Gate)
        nodes = to_worker, to_settler
        provider = Provider(chain, nodes, books, folder, forge, upstream=model.url)
        async with provider.gateway.running():
            try:
                yield provider
            finally:
                await provider.kill_settler()


class Customer:
    """Sends one credential until it is taken."""

    def __init__(self, provider: Provider, client: httpx.AsyncClient) -> None:
        self._url = provider.gateway.url + PATH
        self._client = client
        self._source: tuple[int, Any]
        self.challenge: Challenge

    async def ask(self, payer: GaslessPayer) -> None:
        answer = await self._client.post(self._url, json={})
        self.challenge = parse_challenges(answer.headers.get_list("www-authenticate"))[0]
        self._source = (payer.key.chain_id, payer.address)

    async def insist(self, payload: Payload) -> None:
        credential = Credential(self.challenge, payload, self._source)
        headers = {"authorization": format_credential(credential)}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await self._client.head(self._url, headers=headers)
                    if answer.status_code == 200:
                        return
                    assert answer.status_code == 503, (answer.status_code, answer.headers)
                await asyncio.sleep(0.05)


async def kill_at(provider: Provider, step: Step) -> None:
    """Bring a process to a step, while the payer insists, and kill it there."""
    chain = provider.chain
    if step is Step.PLACED:
        await until(lambda: provider.has_order(OrderStatus.WANTED), every_s=LOOK_S)
        await provider.kill_gateway()
    elif step in (Step.WAITING, Step.SENT):
        async with chain.mining_paused():
            await provider.settle()
            await until(provider.is_in_pool, every_s=LOOK_S)
            await (provider.kill_gateway() if step is Step.WAITING else provider.kill_settler())
    else:
        node = provider.to_worker if step in WORKERS else provider.to_settler
        node.reached.clear()
        node.step = step
        await provider.settle()
        async with asyncio.timeout(PATIENCE_S):
            await node.reached.wait()
        await (provider.kill_gateway() if step in WORKERS else provider.kill_settler())
        node.step = None


async def survive(provider: Provider, customer: Customer, payload: Payload, step: Step) -> None:
    """Present a deposit, kill at a step, go on, and wait for the 200."""
    if step is not Step.CHECKING:
        await provider.kill_settler()
    if step is Step.CHECKING:
        provider.to_worker.step = step  # before the payer asks
    insisting = asyncio.create_task(customer.insist(payload))
    try:
        await kill_at(provider, step)
        if step in WORKERS:
            await provider.gateway.start()
        await provider.settle()
        await insisting
    finally:
        insisting.cancel()


CASES = [(books, what) for books in ("sqlite", "postgres") for what in ("open", "topUp", "merged")]


@pytest.fixture
def books(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.mark.timeout(120 + 60 * KILLS)
@pytest.mark.parametrize(
    ("books", "what"), CASES if KILLS > 1 else [*CASES[:3], CASES[-1]], indirect=["books"]
)
async def test_killed_at_every_step_a_deposit_is_pulled_once_and_credited_once(
    chain: Devnet, books: str, tmp_path: Path, forge: Forge, what: str
) -> None:
    """OPEN-10, TOPUP-04, VCH-06, VCH-07, F-25, F-29, F-80: and none of its transactions reverts."""
    capabilities = await probe(EscrowReader(chain.rpc, chain.values.escrow), chain.values.token)
    payer = GaslessPayer(chain, capabilities.token_domain)
    await fund_payer(chain)
    async with (
        provider_on(chain, books, tmp_path, forge) as provider,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        customer = Customer(provider, client)
        await customer.ask(payer)
        before = await chain.token_balance(payer.address)
        keys, deposits, accepted = [payer.key], 0, FIRST_VOUCHER
        if what != "open":
            await provider.settle()
            await customer.insist(await payer.opening(FIRST_VOUCHER))
            deposits = 1
        for number, step in enumerate([*Step] * KILLS):
            if what == "open":
                payer.next_channel()
                keys.append(payer.key)
                payload: Payload = await payer.opening(FIRST_VOUCHER)
            elif what == "topUp":
                payload = await payer.top_up(amount=DEPOSIT, salt=(number + 1).to_bytes(32))
            else:
                salt, accepted = (number + 1).to_bytes(32), accepted + DEPOSIT
                signed = await payer.top_up_deposit(amount=DEPOSIT, salt=salt)
                payload = payer.voucher(accepted, signed)
            await survive(provider, customer, payload, step)
            deposits += 1
        pulled = before - await chain.token_balance(payer.address)
        assert pulled == deposits * DEPOSIT
        opened = keys[1:] if what == "open" else keys
        await require_credited(provider, opened, deposits, accepted)
        await require_one_transaction_each(provider, deposits)


async def require_credited(
    provider: Provider, keys: list[Any], deposits: int, accepted: int
) -> None:
    books = await open_ledger(provider.books, exclusive=False)
    try:
        states = [await books.load(key) for key in keys]
    finally:
        await books.close()
    each = deposits // len(keys) * DEPOSIT
    for state in states:
        assert state is not None
        assert (state.deposit, state.accepted, state.spent) == (each, accepted, 0)


async def require_one_transaction_each(provider: Provider, deposits: int) -> None:
    rows = await provider.rows("SELECT is_success FROM chain_transaction WHERE nonce IS NOT NULL")
    assert rows == [(1,)] * deposits
    sender = "0x" + provider.chain.account("payee").address.hex()
    count = await provider.chain.rpc.read("eth_getTransactionCount", sender, "latest")
    assert parse_quantity(count) == deposits
    made = await provider.rows("SELECT status FROM deposit_order")
    assert made == [(int(OrderStatus.MADE),)] * deposits
