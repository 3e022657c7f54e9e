"""An order to settle is carried out by the running settler, which no one has to stop (O-68)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.ledger.url import open_ledger
from channel.types import ChannelId
from mpp_session.testing.chain import TestChain
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.tx.journal.interface import OrderName
from settlement.tx.journal.url import open_journal
from tests.e2e.warm import Forge
from tests.mpp_session.settlers import Settlers, settler_variables
from tests.settlement.books import Books
from tests.settlement.channels import Channels
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def opened(devnet: TestChain, tmp_path: Path) -> AsyncIterator[ChannelId]:
    """A channel with 40 delivered, which `settlement.settle_value` would let wait."""
    async with devnet.connect() as chain:
        ledger = await open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", exclusive=True)
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        books = Books(reader, ledger, Channels(chain, PayerAccount(chain.sender("payer"))))
        yield await books.open(accepted=40, spent=40)
        await ledger.close()


async def test_it_settles_what_is_due_and_says_so(
    opened: ChannelId, devnet: TestChain, tmp_path: Path, forge: Forge
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    payee = devnet.values.accounts["payee"].address
    journal = await open_journal(url, chain_id=devnet.values.chain_id, account=payee)
    settlers = Settlers(forge, tmp_path, settler_variables(devnet, url))
    _, said = settlers.start()
    try:
        await said.until("settling")
        await journal.place_order(OrderName.SETTLE, at=1)

        async def is_done() -> bool:
            order = await journal.order(OrderName.SETTLE)
            return order is not None and not order.stands

        await until(is_done, every_s=0.1)
        order = await journal.order(OrderName.SETTLE)
    finally:
        settlers.end()
        await journal.close()
    assert order is not None
    assert order.outcome == "channels: 1 settled"
    async with devnet.connect() as chain:
        fact = await EscrowReader(chain.rpc, chain.values.escrow).read_channel(opened)
    assert fact is not None
    assert fact.settled == 40
