"""A provider's watch on a real chain, with a node that lies in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from channel.ledger.sqlite import SqliteLedger
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.commands import Restore
from channel.types import Address, ChannelId
from settlement import abi
from settlement.alarms import AlarmKind, Alarms
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader, ReaderLimits
from settlement.node.rpc import Rpc, RpcLimits
from settlement.presigned.export import TowerExport
from settlement.settle.exposure import ExposureGate
from settlement.settle.schedule import SettlePolicy
from settlement.settle.settler import EscrowSettler
from settlement.tx.manager import TxLimits, TxManager
from settlement.watch.follower import FollowLimits
from settlement.watch.health import HealthChecks
from settlement.watch.watcher import ChannelWatcher, WatchLimits
from tests.faults.proxy import LyingNode, lying_node
from tests.settlement.books import NOW, Books, request_close
from tests.settlement.channels import Channels
from tests.waiting import PATIENCE_S

__all__ = ["WATCH", "World", "chain_world", "fill_books"]

RPC = RpcLimits(timeout_s=2.0, read_attempts_max=2, retry_delay_s=0.01)
READER = ReaderLimits(lag_s_max=0.2, lag_poll_s=0.02)
TX = TxLimits(mined_within_s=5.0, poll_max_s=0.05, resend_after_s=0.3, overtaken_after_s=0.5)
WATCH = WatchLimits(
    interval_s=0.5,
    poll_interval_s=0.02,
    away_s_max=0.3,
    retry_s=0.02,
    follow=FollowLimits(tail_blocks_max=64, walk_blocks_max=32),
)


class World:
    """Payers open and leave on the honest chain; the provider sees it through `node`."""

    def __init__(
        self, chain: Devnet, node: LyingNode, rpc: Rpc, ledger: SqliteLedger, *, seen: EscrowReader
    ) -> None:
        self.chain = chain
        self.node = node
        self.rpc = rpc
        self.ledger = ledger
        self.reader = seen
        self.alarms = Alarms()
        self.gate = ExposureGate()
        self.account = PayerAccount(chain.sender("payer"))
        self.channels = Channels(chain, self.account)
        self.books = Books(EscrowReader(chain.rpc, chain.values.escrow), ledger, self.channels)
        self.settler = self.settler_for(rpc)

    def settler_for(self, rpc: Rpc) -> EscrowSettler:
        """Return who settles and closes with the payee's key, through these nodes."""
        return EscrowSettler(self.reader, TxManager(rpc, self.chain.signer("payee"), limits=TX))

    @asynccontextmanager
    async def beside(self, nodes: int) -> AsyncIterator[list[LyingNode]]:
        """Ask so many further nodes of the same chain, too, and settle through all of them."""
        async with AsyncExitStack() as open_:
            more = [
                await open_.enter_async_context(lying_node(self.chain.values.rpc_url))
                for _ in range(nodes)
            ]
            urls = [self.node.url, *[node.url for node in more]]
            self.reader.rpc = await open_.enter_async_context(await Rpc.connect(urls, limits=RPC))
            self.settler = self.settler_for(self.reader.rpc)
            yield more

    def settle_call(self, channel_id: ChannelId, amount: int, signature: bytes) -> bytes:
        return abi.settle.encode(channel_id, amount, signature)

    def watcher(
        self,
        *,
        limits: WatchLimits = WATCH,
        policy: SettlePolicy | None = None,
        settles: bool = True,
        export: TowerExport | None = None,
    ) -> ChannelWatcher:
        """Return a new watcher, as a process that has just started has it."""
        return ChannelWatcher(
            self.reader,
            self.ledger,
            self.settler if settles else None,
            payee=self.channels.terms.payee,
            limits=limits,
            policy=policy,
            health=HealthChecks(
                self.reader,
                self.alarms,
                self.gate,
                gas_account=None,
                ledger=self.ledger,
                export=export,
            ),
        )

    @asynccontextmanager
    async def watching(
        self,
        *,
        limits: WatchLimits = WATCH,
        policy: SettlePolicy | None = None,
        settles: bool = True,
    ) -> AsyncIterator[ChannelWatcher]:
        """Run a watcher beside the block, and wait until it has looked once."""
        watcher = self.watcher(limits=limits, policy=policy, settles=settles)
        task = asyncio.create_task(watcher.run())
        try:
            yield watcher
        finally:
            task.cancel()
            results = await asyncio.gather(task, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def until(
        self,
        channel_id: ChannelId,
        *,
        settled: int | None = None,
        is_finalized: bool | None = None,
        deposit: int | None = None,
        asked: bool | None = None,
        within_s: float = PATIENCE_S,
    ) -> ChannelState:
        """Return the books of a channel once they say all this.

        Raises:
            TimeoutError: They do not in time.
        """
        async with asyncio.timeout(within_s):
            while True:
                state = await self.books.state(channel_id)
                if (
                    (settled is None or state.settled == settled)
                    and (is_finalized is None or state.is_finalized is is_finalized)
                    and (deposit is None or state.deposit == deposit)
                    and (asked is None or (state.close_requested_at != 0) is asked)
                ):
                    return state
                await asyncio.sleep(0.02)

    async def leave(self, channel_id: ChannelId) -> None:
        """The payer asks for its deposit back."""
        await request_close(self.chain, self.account, channel_id)

    async def paid(self) -> int:
        """What the payee has of the token."""
        return await self.chain.token_balance(self.channels.terms.payee)

    async def until_rings(
        self,
        kind: AlarmKind,
        *,
        is_ringing: bool = True,
        level: int = 0,
        within_s: float = PATIENCE_S,
    ) -> None:
        """Wait until an alarm rings at this level or a worse one, or is over."""
        async with asyncio.timeout(within_s):
            while True:
                found = [a for a in self.alarms.ringing if a.kind is kind and a.level >= level]
                if bool(found) is is_ringing:
                    return
                await asyncio.sleep(0.02)

    def rings(self, kind: AlarmKind) -> bool:
        return any(alarm.kind is kind for alarm in self.alarms.ringing)


async def fill_books(world: World, count: int) -> None:
    """Put so many open channels into the books, with nothing in them, as the chain has them."""
    nothing = LadderVoucher(0, b"")
    terms = replace(world.channels.terms, payer=Address(b"a" * 20))
    states = [
        ChannelState(
            key=world.reader.key(ChannelId(number.to_bytes(32, "big"))),
            terms=terms,
            deposit=0,
            settled=0,
            accepted=0,
            spent=0,
            published=0,
            close_requested_at=0,
            is_finalized=False,
            fact_block=0,
            highest=nothing,
            at_or_below_spent=nothing,
            above_spent=None,
            active_at=NOW,
        )
        for number in range(count)
    ]
    for start in range(0, count, 500):
        page = states[start : start + 500]
        await asyncio.gather(*[world.ledger.apply(each.key, [Restore(each)]) for each in page])


@asynccontextmanager
async def chain_world(chain: Devnet, directory: Path, *, seed: int = 1) -> AsyncIterator[World]:
    """Build a world; closed in order."""
    async with AsyncExitStack() as open_:
        ledger = await SqliteLedger.open(directory / "ledger.db", exclusive=True)
        open_.push_async_callback(ledger.close)
        node = await open_.enter_async_context(lying_node(chain.values.rpc_url, seed=seed))
        rpc = await open_.enter_async_context(await Rpc.connect(node.url, limits=RPC))
        reader = EscrowReader(rpc, chain.values.escrow, limits=READER)
        yield World(chain, node, rpc, ledger, seen=reader)
