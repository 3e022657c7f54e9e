"""Many agents, one provider, one chain, and everything that goes wrong, until the books must fit.

Agents open channels, buy answers and streams, hang up in the middle, top up, close with the
provider or leave without it. Meanwhile chance cuts, delays, doubles and reorders what the provider
hears of the chain, lets its node fall behind or lose its events, takes blocks back, makes gas dear
and kills the provider's settler. At the end the faults stop, every channel is ended, and what the
books say is held against the chain to the base unit.
"""

import asyncio
import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from eth_account import Account

from channel.client.policy.policy import Policy, TokenLimits
from channel.client.store.sqlite import PaymentStore
from channel.engine import Engine, EngineSettings
from channel.errors import ChainUnavailableError, MppSessionError
from channel.http import PaymentGate
from channel.ledger.sqlite import SqliteLedger
from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelId
from channel.verify.challenge_id import ChallengeBinder
from channel.verify.typed_data import keccak
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.agent.withdrawal import Stage, withdraw_channels
from mpp_session.testing.provider import ROUTES, build_application
from settlement import abi
from settlement.alarms import Alarms
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader, ReaderLimits
from settlement.node.rpc import Rpc, RpcLimits
from settlement.settle.exposure import ExposureGate
from settlement.settle.pending_closes import PendingCloses
from settlement.settle.quarantine import Quarantine
from settlement.settle.schedule import SettlePolicy
from settlement.settle.settler import EscrowSettler, SettlerLimits
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.signer import KeySigner
from settlement.watch.health import HealthChecks
from settlement.watch.watcher import ChannelWatcher, WatchLimits
from tests.faults.proxy import LyingNode, lying_node
from tests.waiting import PATIENCE_S

__all__ = ["BLOCK_TIME_S", "Balance", "SoakLimits", "soak"]

_log = logging.getLogger("soak")

CONFIRMATIONS = 3
REORG_DEPTH_MAX = 2
BLOCK_TIME_S = 1
TELL_S = 15.0
PRICES = {"request": 250, "llm_token": 10}


class SoakLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything."""

    agents: int = 200
    """Each has a key and a payment store, and opens channel after channel."""
    seconds: float = 60.0
    seed: int = 1
    deposit: int = 2_000
    """Small, so that channels are topped up and replaced."""
    pause_s: float = 0.3
    """Between two faults, on average."""
    rest_s: float = 0.5
    """Between two things that one agent does, on average: how much of a core it takes."""


class Balance(msgspec.Struct, kw_only=True):
    """The balance sheet, in base units."""

    channels: int = 0
    deposited: int = 0
    delivered: int = 0
    """`spent` in the provider's books."""
    settled: int = 0
    """In the provider's books."""
    settled_on_chain: int = 0
    received: int = 0
    """What the payee's account grew by."""
    paid: int = 0
    """What the payers' accounts shrank by."""
    left_in_escrow: int = 0
    above_delivered: int = 0
    """Settled beyond what was delivered: the ladder's steps of payers that left."""
    lost: int = 0
    """Delivered and not settled."""
    open_channels: int = 0
    differing: list[str] = msgspec.field(default_factory=list)
    """Channels on which books and chain disagree."""
    nonce_gaps: int = 0
    done: dict[str, int] = msgspec.field(default_factory=dict)
    faults: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def is_even(self) -> bool:
        """Whether everything fits."""
        return (
            self.settled == self.settled_on_chain == self.received == self.paid
            and self.settled == self.delivered + self.above_delivered
            and not (self.left_in_escrow or self.lost or self.open_channels or self.nonce_gaps)
            and not self.differing
        )


@asynccontextmanager
async def _serving(app: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(
        app,
        port=0,
        http="h11",
        log_level="error",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task


class Provider:
    """Sells, watches and settles; its settler may be killed and started again."""

    def __init__(self, chain: Devnet, rpc: Rpc, ledger: SqliteLedger, directory: Path) -> None:
        self._chain = chain
        self._rpc = rpc
        self.ledger = ledger
        self._directory = directory
        self.alarms = Alarms()
        self.reader = EscrowReader(
            rpc, chain.values.escrow, limits=ReaderLimits(lag_s_max=1.0, lag_poll_s=0.05)
        )
        self._open: AsyncExitStack | None = None
        self._running: list[asyncio.Task[None]] = []
        self.policy = SettlePolicy(settle_value=600, settle_age_s=20, patience_s=3)

    def engine(self) -> Engine:
        return Engine(
            ledger=self.ledger,
            chain=self.reader,
            binder=ChallengeBinder([secrets.token_bytes(32)]),
            settings=EngineSettings(
                realm="soak",
                payee=self._chain.account("payee").address,
                token=self._chain.values.token,
                confirmations=CONFIRMATIONS,
                transaction_wait_s=4.0,
                close_timeout_s=20,
                reservation_lease_s=5,
            ),
        )

    async def start(self) -> None:
        """Go on from the books and the journal."""
        self._open = AsyncExitStack()
        payee = KeySigner(self._chain.account("payee").private_key)
        journal = await SqliteJournal.open(
            self._directory / "ledger.db", chain_id=self._rpc.chain_id, account=payee.address
        )
        self._open.push_async_callback(journal.close)
        if await journal.take_lease("soak", ttl_s=3600) is None:
            raise RuntimeError("the settler before this one has kept its lease")
        self._open.push_async_callback(journal.release_lease)
        limits = TxLimits(
            mined_within_s=20,
            poll_max_s=0.3,
            resend_after_s=1.0,
            bump_after_s=5.0,
            confirmations=CONFIRMATIONS,
        )
        sender = TxManager(self._rpc, payee, journal=journal, limits=limits)
        settler = EscrowSettler(
            self.reader, sender, quarantine=Quarantine(journal), limits=SettlerLimits()
        )
        await settler.recover()
        watcher = ChannelWatcher(
            self.reader,
            self.ledger,
            settler,
            payee=payee.address,
            limits=WatchLimits(
                interval_s=2.0, poll_interval_s=0.3, confirmations=CONFIRMATIONS, retry_s=0.5
            ),
            policy=self.policy,
            health=HealthChecks(self.reader, self.alarms, ExposureGate(), gas_account=None),
        )
        pending = PendingCloses(
            self.ledger,
            watcher.begin_pending,
            chain_id=self._rpc.chain_id,
            escrow=self.reader.escrow,
            payee=payee.address,
        )
        self._open.push_async_callback(settler.aclose)
        self._running = [
            asyncio.create_task(watcher.run()),
            asyncio.create_task(sender.run()),
            asyncio.create_task(pending.run()),
        ]

    async def kill(self) -> None:
        """Stop the settler wherever it is."""
        for task in self._running:
            task.cancel()
        results = await asyncio.gather(*self._running, return_exceptions=True)
        if self._open is not None:
            await self._open.aclose()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def require_alive(self) -> None:
        """Raise what ended a task that guards the money."""
        for task in self._running:
            if task.done() and not task.cancelled():
                task.result()


class Agent:
    """Buys, hangs up, closes and leaves, by chance."""

    def __init__(self, number: int, chain: Devnet, url: str, directory: Path, rng: Any) -> None:
        self.key = bytes(keccak(f"soak agent {number}".encode()))
        self.address = Address(bytes.fromhex(Account.from_key(self.key).address[2:]))
        self.store = directory / f"agent-{number}.db"
        self._chain = chain
        self._url = url
        self._rng = rng
        self.done: Counter[str] = Counter()

    def _policy(self, deposit: int) -> Policy:
        values = self._chain.values
        limits = TokenLimits(
            chain_id=values.chain_id,
            token=values.token,
            unit_price_max=PRICES,
            deposit_max=3 * deposit,
            budget=10**9,
        )
        return Policy(
            limits=(limits,),
            allow_loopback_http=True,
            expected_units=5,
            channels_per_origin_max=1000,
        )

    async def run(self, until: Callable[[], bool], deposit: int, rest_s: float) -> None:
        await asyncio.sleep(self._rng.random() * 6 * rest_s)
        async with self.client(deposit) as client:
            while not until():
                name, act = self._rng.choices(
                    [
                        ("joke", self._joke),
                        ("words", self._words),
                        ("hang up", self._hang_up),
                        ("close", self._close),
                        ("leave", self._leave),
                    ],
                    weights=[8, 6, 2, 2, 1],
                )[0]
                try:
                    async with asyncio.timeout(30):
                        await act(client)
                    self.done[name] += 1
                except (MppSessionError, httpx.HTTPError, TimeoutError) as error:
                    self.done[f"failed: {type(error).__name__}"] += 1
                await asyncio.sleep(self._rng.random() * 2 * rest_s)

    @asynccontextmanager
    async def client(self, deposit: int) -> AsyncIterator[PayingClient]:
        """Open its payment store and its node, which may be too busy to answer for a while."""
        async with AsyncExitStack() as open_:
            client: PayingClient | None = None
            while client is None:
                opening = open_client(
                    rpc_url=self._chain.values.rpc_url,
                    private_key=self.key,
                    policy=self._policy(deposit),
                    store=self.store,
                    timeout_s=20,
                )
                try:
                    client = await open_.enter_async_context(opening)
                except ChainUnavailableError:
                    self.done["failed: no node"] += 1
            yield client

    async def _joke(self, client: PayingClient) -> None:
        (await client.get(f"{self._url}/joke")).raise_for_status()

    async def _words(self, client: PayingClient) -> None:
        (await client.get(f"{self._url}/words")).raise_for_status()

    async def _hang_up(self, client: PayingClient) -> None:
        async with client.stream("GET", f"{self._url}/words") as response:
            async for _ in response.aiter_bytes():
                return

    async def _close(self, client: PayingClient) -> None:
        await client.payments.close(self._url)

    async def _leave(self, client: PayingClient) -> None:
        for account in await client.payments.channels():
            if account.state == "open":
                await client.payments.request_close(account.key.channel_id)
                return

    async def finish(self, client: PayingClient) -> None:
        """Close what can be closed with the provider."""
        for account in await client.payments.channels():
            if account.state in ("open", "closing"):
                with suppress(MppSessionError, httpx.HTTPError, TimeoutError):
                    async with asyncio.timeout(30):
                        await client.payments.close(account.key.channel_id)


class Chaos:
    """Chance, with a seed."""

    def __init__(
        self, chain: Devnet, node: LyingNode, provider: Provider, rng: random.Random, pause_s: float
    ) -> None:
        self._chain = chain
        self._node = node
        self._provider = provider
        self._rng = rng
        self._pause_s = pause_s
        self.done: Counter[str] = Counter()
        self._is_over = False

    def end(self) -> None:
        """Let `run` return behind the fault it is at: half of one is no fault of a machine's."""
        self._is_over = True

    async def run(self) -> None:
        faults = [
            ("lossy node", self._lossy, 4),
            ("node down", self._down, 3),
            ("slow node", self._slow, 3),
            ("node behind", self._behind, 2),
            ("no events", self._no_events, 2),
            ("reorg", self._reorg, 5),
            ("dear gas", self._dear, 1),
            ("settler killed", self._kill, 2),
        ]
        while not self._is_over:
            await asyncio.sleep(self._rng.random() * 2 * self._pause_s)
            name, fault, _ = self._rng.choices(faults, weights=[each[2] for each in faults])[0]
            try:
                await fault()
                self.done[name] += 1
            except ChainUnavailableError:  # Anvil itself: the machine has no time for it
                self.done["chain too busy"] += 1
            self._node.heal()
            self._provider.require_alive()

    async def _lossy(self) -> None:
        self._node.loss, self._node.swallow, self._node.twice = 0.1, 0.1, 0.2
        await asyncio.sleep(1 + self._rng.random())

    async def _down(self) -> None:
        self._node.is_down = True
        await asyncio.sleep(0.5 + 1.5 * self._rng.random())

    async def _slow(self) -> None:
        self._node.delay_s = (0.0, 0.2)
        await asyncio.sleep(1 + self._rng.random())

    async def _behind(self) -> None:
        self._node.stale_at = await self._chain.rpc.block_number()
        await asyncio.sleep(1 + self._rng.random())

    async def _no_events(self) -> None:
        self._node.has_no_logs = True
        await asyncio.sleep(1 + self._rng.random())

    async def _reorg(self) -> None:
        """Take the last blocks back and mine their transactions again, in one block."""
        rpc = self._chain.rpc
        await rpc.command("evm_setIntervalMining", 0)  # else a block may come in between
        try:
            depth = self._rng.randint(1, REORG_DEPTH_MAX)
            head = await rpc.block_number()
            pairs: list[list[object]] = []
            for number in range(head - depth + 1, head + 1):
                block = await rpc.read("eth_getBlockByNumber", hex(number), False)  # noqa: FBT003
                hashes = block["transactions"]
                raws = [await rpc.read("eth_getRawTransactionByHash", each) for each in hashes]
                pairs += [[raw, 0] for raw in raws]
            await rpc.command("anvil_reorg", depth, pairs)
        finally:
            await rpc.command("evm_setIntervalMining", BLOCK_TIME_S)

    async def _dear(self) -> None:
        head = await self._chain.rpc.block()
        fee = max(10**9, 20 * (head.base_fee_wei or 0))
        await self._chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(min(fee, 10**11)))

    async def _kill(self) -> None:
        await self._provider.kill()
        await asyncio.sleep(self._rng.random())
        await self._provider.start()


async def soak(
    chain: Devnet, directory: Path, limits: SoakLimits, *, tell: Callable[[str], None]
) -> Balance:
    """Run it all, end it all, and return the balance sheet."""
    rng = random.Random(limits.seed)  # noqa: S311 -- to be repeated, not to be secret
    async with AsyncExitStack() as open_:
        ledger = await SqliteLedger.open(directory / "ledger.db", exclusive=True)
        open_.push_async_callback(ledger.close)
        node = await open_.enter_async_context(lying_node(chain.values.rpc_url, seed=limits.seed))
        rpc_limits = RpcLimits(timeout_s=3.0, read_attempts_max=3, retry_delay_s=0.05)
        rpc = await open_.enter_async_context(await Rpc.connect(node.url, limits=rpc_limits))
        provider = Provider(chain, rpc, ledger, directory)
        open_.push_async_callback(provider.kill)  # however it ends: a journal left open holds it up
        engine = provider.engine()
        open_.push_async_callback(engine.aclose)
        gate = PaymentGate(build_application(), engine=engine, routes=ROUTES)
        url = await open_.enter_async_context(_serving(gate))
        await provider.start()
        agents = [
            Agent(number, chain, url, directory, random.Random(rng.random()))  # noqa: S311
            for number in range(limits.agents)
        ]
        await _fund(chain, agents)
        tell(f"{limits.agents} agents, seed {limits.seed}, {limits.seconds:.0f} s")
        payee = chain.account("payee").address
        before = [await chain.token_balance(payee), await _held(chain, agents)]
        chaos = Chaos(chain, node, provider, rng, limits.pause_s)
        await _live(agents, chaos, limits, tell)
        node.heal()
        await _end(chain, provider, agents, tell)
        await provider.kill()
        balance = await _add_up(chain, ledger, directory, agents)
        balance.received = await chain.token_balance(payee) - before[0]
        balance.paid = before[1] - await _held(chain, agents)
        for agent in agents:
            for name, count in agent.done.items():
                balance.done[name] = balance.done.get(name, 0) + count
        balance.faults = dict(chaos.done)
        return balance


async def _fund(chain: Devnet, agents: Sequence[Agent]) -> None:
    for agent in agents:
        where = "0x" + agent.address.hex()
        await chain.rpc.command("anvil_setBalance", where, hex(100 * 10**18))
    senders = [
        chain.deployer.broadcast(
            chain.values.token, abi.Function("mint(address,uint256)").encode(each.address, 10**9)
        )
        for each in agents
    ]
    hashes = await asyncio.gather(*senders)
    await asyncio.gather(*[chain.deployer.resume(tx_hash) for tx_hash in hashes])
    await chain.mine(REORG_DEPTH_MAX + 1)  # ether that Anvil was asked to give is in no block yet


async def _held(chain: Devnet, agents: Sequence[Agent]) -> int:
    return sum([await chain.token_balance(agent.address) for agent in agents])


async def _live(
    agents: Sequence[Agent], chaos: Chaos, limits: SoakLimits, tell: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + limits.seconds

    def is_over() -> bool:
        """After the time, and once each agent has bought: on a busy machine that takes longer."""
        over_s = loop.time() - ends_at
        has_each = all(agent.done["joke"] + agent.done["words"] for agent in agents)
        return over_s >= (0 if has_each else PATIENCE_S)

    going_wrong = asyncio.create_task(chaos.run())
    living = [
        asyncio.create_task(agent.run(is_over, limits.deposit, limits.rest_s)) for agent in agents
    ]
    try:
        reported_at = loop.time()
        while not all(task.done() for task in living):
            pending = [task for task in living if not task.done()]
            await asyncio.wait(pending, timeout=0.5)
            for task in (going_wrong, *living):
                if task.done():
                    task.result()
            if loop.time() - reported_at >= TELL_S:
                reported_at = loop.time()
                bought = sum(agent.done["joke"] + agent.done["words"] for agent in agents)
                tell(f"{max(0, ends_at - reported_at):.0f} s left, {bought} answers bought")
    finally:
        for task in living:
            task.cancel()
        chaos.end()  # a settler that is started must not be left half started
        await asyncio.gather(*living, going_wrong, return_exceptions=True)
    going_wrong.result()


async def _end(
    chain: Devnet, provider: Provider, agents: Sequence[Agent], tell: Callable[[str], None]
) -> None:
    """No faults any more: close with the provider, then leave without it."""
    if not provider._running or all(task.done() for task in provider._running):  # noqa: SLF001
        await provider.start()
    room = asyncio.Semaphore(16)

    async def finish(agent: Agent) -> None:
        async with room, agent.client(1) as client:
            await agent.finish(client)

    await asyncio.gather(*[finish(agent) for agent in agents])
    tell("closed what could be closed")
    await _leave_all(chain, agents, room)
    await _until_defended(provider)
    head = await chain.rpc.block()
    await chain.rpc.command("evm_setNextBlockTimestamp", head.timestamp + 1000)
    await chain.mine()
    await _leave_all(chain, agents, room)
    await asyncio.sleep(3)  # the watch hears of the last ones
    await _until_defended(provider)
    tell("left what could not")


async def _leave_all(chain: Devnet, agents: Sequence[Agent], room: asyncio.Semaphore) -> None:
    async def leave(agent: Agent) -> None:
        async with room:
            store = await PaymentStore.open(agent.store)
            try:
                leaving = await withdraw_channels(
                    rpc=chain.rpc,
                    account=PayerAccount(TxManager(chain.rpc, KeySigner(agent.key))),
                    store=store,
                    which=None,
                    waits=False,
                )
            finally:
                await store.close()
            agent.done["left at the end"] += sum(
                each.stage is not Stage.NEVER_OPENED for each in leaving
            )

    await asyncio.gather(*[leave(agent) for agent in agents])


async def _until_defended(provider: Provider) -> None:
    """Wait until nothing that was delivered is unsettled on a channel that is being left."""
    async with asyncio.timeout(120):
        while True:
            provider.require_alive()
            owed = [
                state
                for state in await _channels(provider.ledger)
                if not state.is_finalized
                and (state.close_requested_at or state.closing_with)
                and (state.closing_with is not None or state.spent > state.settled)
            ]
            if not owed:
                return
            await asyncio.sleep(0.5)


async def _channels(ledger: SqliteLedger) -> list[ChannelState]:
    found: list[ChannelState] = []
    while page := await ledger.list_channels(after=found[-1].key if found else None):
        found += page
    return found


async def _add_up(
    chain: Devnet, ledger: SqliteLedger, directory: Path, agents: Sequence[Agent]
) -> Balance:
    del agents
    reader = EscrowReader(chain.rpc, chain.values.escrow)
    balance = Balance()
    states = await _channels(ledger)
    ids = [ChannelId(state.key.channel_id) for state in states]
    facts = await reader.read_channels(ids)
    for state, fact in zip(states, facts, strict=True):
        name = "0x" + state.key.channel_id.hex()
        balance.channels += 1
        balance.delivered += state.spent
        balance.settled += state.settled
        balance.above_delivered += max(0, state.settled - state.spent)
        balance.lost += max(0, state.spent - state.settled)
        balance.open_channels += not state.is_finalized
        if fact is None:
            balance.differing.append(f"{name}: not on chain")
            continue
        balance.deposited += fact.deposit
        balance.settled_on_chain += fact.settled
        seen = (fact.deposit, fact.settled, fact.is_finalized)
        if seen != (state.deposit, state.settled, state.is_finalized):
            balance.differing.append(f"{name}: chain {seen}, books {state}")
        if not state.spent <= state.settled <= max(state.accepted, state.spent):
            balance.differing.append(f"{name}: settled {state.settled}, books {state}")
    balance.left_in_escrow = await chain.token_balance(chain.values.escrow)
    balance.nonce_gaps = await _nonce_gaps(chain, directory)
    return balance


async def _nonce_gaps(chain: Devnet, directory: Path) -> int:
    """How many nonces the journal gave that the chain did not use, or the other way round."""
    payee = chain.account("payee").address
    used = int(await chain.rpc.read("eth_getTransactionCount", "0x" + payee.hex(), "latest"), 16)
    journal = await SqliteJournal.open(
        directory / "ledger.db", chain_id=chain.rpc.chain_id, account=payee
    )
    try:
        given = {tx.nonce for tx in await journal.transactions_from(0)}
    finally:
        await journal.close()
    return len(given.symmetric_difference(range(used)))
