"""`mpp-session settle --now`: everything, however little, and then it ends (O-68)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.ledger.url import open_ledger
from channel.types import ChannelId
from mpp_session.testing.chain import TestChain
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from tests.e2e.warm import Forge
from tests.mpp_session.settlers import Settlers, settler_variables
from tests.settlement.books import Books
from tests.settlement.channels import Channels

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def opened(devnet: TestChain, tmp_path: Path) -> AsyncIterator[list[ChannelId]]:
    """Two channels with 40 delivered on each, and one with nothing."""
    async with devnet.connect() as chain:
        ledger = await open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", exclusive=True)
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        books = Books(reader, ledger, Channels(chain, PayerAccount(chain.sender("payer"))))
        yield [await books.open(accepted=spent, spent=spent) for spent in (40, 40, 0)]
        await ledger.close()


async def test_all_that_is_unsettled_is_settled_and_it_ends(
    opened: list[ChannelId], devnet: TestChain, tmp_path: Path, forge: Forge
) -> None:
    """O-68: `settlement.settle_value` would have waited for a million."""
    variables = settler_variables(devnet, f"sqlite:///{tmp_path / 'ledger.db'}")
    settlers = Settlers(forge, tmp_path, variables)
    process, said = settlers.start("--now")
    assert await process.wait() == 0, said.text()
    assert said.reports() == [{"settled": 2, "closed": 0, "waiting": 0, "amount": "80"}]
    async with devnet.connect() as chain:
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        facts = [await reader.read_channel(channel_id) for channel_id in opened]
    assert [fact and fact.settled for fact in facts] == [40, 40, 0]
    again = forge.run(["settle", "--now"], variables, tmp_path)
    assert again.stdout == f"settled 0 channels: 0.000000 {devnet.values.token_symbol}\n"


async def test_beside_another_settler_it_refuses_and_names_it(
    opened: list[ChannelId], devnet: TestChain, tmp_path: Path, forge: Forge
) -> None:
    """O-68: one key has one settler (F-110); nothing is settled."""
    variables = settler_variables(devnet, f"sqlite:///{tmp_path / 'ledger.db'}")
    settlers = Settlers(forge, tmp_path, variables)
    _, said = settlers.start()
    try:
        await said.until("settling")
        process, refused = settlers.start("--now")
        assert await process.wait() == 1
        (report,) = [json.loads(line) for line in refused.text().splitlines() if line[0] == "{"]
        assert "settles for this payee" in report["error"]
    finally:
        settlers.end()
    async with devnet.connect() as chain:
        fact = await EscrowReader(chain.rpc, chain.values.escrow).read_channel(opened[0])
    assert fact is not None
    assert fact.settled == 0
