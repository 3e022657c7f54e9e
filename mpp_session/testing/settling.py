"""The settler of a test's provider: it carries out closes as a settler process does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from channel.ledger.interface import Ledger
from channel.tasks import Tasks
from channel.types import Address
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.settle.executor import Settler
from settlement.settle.pending_closes import PendingCloses
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal
from settlement.tx.manager import TxManager
from settlement.tx.signer import Signer
from settlement.watch.watcher import ChannelWatcher

__all__ = ["ledger_url", "open_sender", "settle_closes"]

_LEASE_S: Final = 24 * 3600.0


def ledger_url(folder: Path) -> str:
    """Return the URL of the ledger, with the journal and the orders beside it, in `folder`."""
    return f"sqlite:///{folder / 'ledger.db'}"


@asynccontextmanager
async def open_sender(
    rpc: Rpc, signer: Signer, folder: Path
) -> AsyncIterator[tuple[TxManager, SettlerJournal]]:
    """Send transactions of `signer` by a journal in `folder`, until the context ends."""
    url = ledger_url(folder)
    journal = await open_journal(url, account=signer.address, chain_id=rpc.chain_id)
    await journal.take_lease("mpp_session.testing", ttl_s=_LEASE_S)
    sender = TxManager(rpc, signer, journal=journal)
    try:
        async with Tasks() as tasks:
            tasks.start(sender.run())
            yield sender, journal
    finally:
        await journal.close()


@asynccontextmanager
async def settle_closes(
    reader: EscrowReader, ledger: Ledger, settler: Settler, payee: Address
) -> AsyncIterator[ChannelWatcher]:
    """Send and record each close that an engine on `ledger` decides, until the context ends.

    The watcher looks at the chain when its `sweep` is called, and not by itself.
    """
    watcher = ChannelWatcher(reader, ledger, settler, payee=payee)
    await watcher.look()
    pending = PendingCloses(
        ledger,
        watcher.begin_pending,
        chain_id=reader.chain_id,
        escrow=reader.escrow,
        payee=payee,
    )
    try:
        async with Tasks() as tasks:
            tasks.start(pending.run())
            yield watcher
            tasks.require_sound()
    finally:
        await watcher.aclose()
