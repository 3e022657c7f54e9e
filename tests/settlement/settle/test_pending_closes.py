"""The settler finds a worker's close immediately, and retries it no more often than useful."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from channel.ledger.sqlite import SqliteLedger
from channel.state.commands import BeginClose, CommitClose
from channel.state.ladder import closing_voucher
from channel.types import ChannelId
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.settle.pending_closes import PendingCloses
from settlement.settle.settler import EscrowSettler
from settlement.tx.fees import GasBudget
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxManager
from settlement.watch.watcher import ChannelWatcher
from tests.settlement.books import Books
from tests.settlement.channels import Channels
from tests.settlement.flaky_node import FlakyNode, flaky_node
from tests.waiting import until


class Owing:
    """A ledger with its journal in one file, as a provider has them, and a node in between."""

    def __init__(
        self, ledger: SqliteLedger, journal: SqliteJournal, node: FlakyNode, books: Books
    ) -> None:
        self.ledger, self.journal, self.node, self.books = ledger, journal, node, books

    async def decide(self) -> ChannelId:
        """Decide a close, as a web worker does, and wake the process that carries it out."""
        channel_id = await self.books.open(accepted=9, spent=9)
        state = await self.books.state(channel_id)
        commit = CommitClose(closing_voucher(state, None))
        (await self.ledger.apply(state.key, [BeginClose(), commit])).require()
        return channel_id

    async def is_closed(self, channel_id: ChannelId) -> bool:
        return (await self.books.state(channel_id)).is_finalized


@asynccontextmanager
async def owing(
    chain: Devnet, channels: Channels, path: Path, budget: GasBudget
) -> AsyncIterator[Owing]:
    payee = chain.account("payee").address
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        ledger = await SqliteLedger.open(path, exclusive=True)
        journal = await SqliteJournal.open(path, chain_id=rpc.chain_id, account=payee)
        await journal.take_lease("this test", ttl_s=600)
        reader = EscrowReader(rpc, chain.values.escrow)
        sender = TxManager(rpc, chain.signer("payee"), journal=journal)
        settler = EscrowSettler(reader, sender, budget=budget)
        watcher = ChannelWatcher(reader, ledger, settler)
        owed = PendingCloses(
            ledger,
            watcher.begin_pending,
            chain_id=rpc.chain_id,
            escrow=reader.escrow,
            payee=payee,
        )
        works = [asyncio.create_task(work) for work in (watcher.run(), owed.run())]
        try:
            yield Owing(ledger, journal, node, Books(reader, ledger, channels))
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            await settler.aclose()
            await journal.close()
            await ledger.close()


async def test_a_close_that_a_worker_decides_is_carried_out_immediately(
    chain: Devnet, channels: Channels, tmp_path: Path
) -> None:
    """F-40: it need not wait for a sweep."""
    async with owing(chain, channels, tmp_path / "ledger.db", GasBudget()) as owed:
        channel_id = await owed.decide()
        await until(lambda: owed.is_closed(channel_id))


async def test_what_is_not_worth_its_gas_is_not_tried_all_the_time(
    chain: Devnet, channels: Channels, tmp_path: Path
) -> None:
    """F-78: each try writes to the books' own file, which must not be what wakes the next one."""
    async with owing(chain, channels, tmp_path / "ledger.db", GasBudget(floor_wei=1)) as owed:
        await owed.decide()
        await until(lambda: "eth_estimateGas" in owed.node.seen)
        await asyncio.sleep(1.5)
        assert owed.node.seen.count("eth_estimateGas") <= 3
        assert await owed.journal.open_transactions() == []
