"""Reading how a provider stands: books, journal and chain, while other processes run."""

import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.errors import OpeningsPausedError
from channel.ledger.sqlite import SqliteLedger
from channel.state.commands import Observe
from mpp_session.chain_watch import build_gate, build_watcher
from mpp_session.operator.status import (
    Finding,
    Level,
    to_json,
)
from mpp_session.operator.status_reading import collect_status
from mpp_session.settings import Chain, Ledger, WatchConfig
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.settle.settler import EscrowSettler
from settlement.sponsor.orders.interface import DepositOrder
from settlement.sponsor.orders.url import open_orders
from settlement.tx.journal.interface import Look
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.orders import OrderLimits
from tests.settlement.books import Books as OpenBooks
from tests.settlement.books import request_close
from tests.settlement.channels import Channels


@pytest.fixture
def config(devnet: TestChain, tmp_path: Path) -> WatchConfig:
    values = devnet.values
    return WatchConfig(
        chain=Chain(
            rpc_url=values.rpc_url,
            id=values.chain_id,
            escrow="0x" + values.escrow.hex(),
            token="0x" + values.token.hex(),
            rpc_timeout_s=1.0,
        ),
        ledger=Ledger(url=f"sqlite:///{tmp_path / 'ledger.db'}"),
    )


async def test_books_journal_and_chain_are_read_together(
    devnet: TestChain, config: WatchConfig, tmp_path: Path
) -> None:
    """While others have them open: it holds nothing up."""
    payee = devnet.account("payee").address
    async with devnet.connect() as chain:
        ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
        journal = await SqliteJournal.open(
            tmp_path / "ledger.db", chain_id=config.chain.id, account=payee
        )
        account = PayerAccount(chain.sender("payer"))
        opened = OpenBooks(
            EscrowReader(chain.rpc, chain.values.escrow), ledger, Channels(chain, account)
        )
        try:
            await opened.open(accepted=50, spent=40)
            leaving = await opened.open(accepted=9, spent=9)
            await request_close(chain, account, leaving)
            fact = await EscrowReader(chain.rpc, chain.values.escrow).read_channel(leaving)
            assert fact is not None

            await ledger.apply(fact.key, [Observe(fact)])
            await journal.take_lease("a settler", ttl_s=60)
            await journal.note_look(Look(6, b"h" * 32, 1, 2))
            await journal.note_look(Look(7, b"h" * 32, 1, int(time.time())))
            orders = await open_orders(
                config.ledger.url, chain_id=config.chain.id, escrow=chain.values.escrow
            )
            await orders.place(
                DepositOrder(
                    order_id=b"o" * 32,
                    key=fact.key,
                    funder=fact.terms.payer,
                    calldata=b"call",
                    deadline=2**64,
                    gas_gwei=30,
                    wanted_at=int(time.time()),
                ),
                OrderLimits(period_s=3600, gas_gwei=100, per_funder=1),
            )
            await orders.close()
            status = await collect_status(config, payee)
        finally:
            await journal.close()
            await ledger.close()
        head = await chain.rpc.block()
    assert status.level in (Level.FINE, Level.WARNING)  # the test chain's clock may be off
    assert status.journal.holder == "a settler"
    assert (status.books.open, status.books.at_risk) == (2, 49)
    (leaves,) = status.books.exits
    assert (leaves.channel_id, leaves.at_risk) == (leaving, 9)
    assert leaves.deadline == fact.close_requested_at + 900
    document = to_json(status)
    assert document["head"]["number"] == head.number
    assert document["exits"][0]["at_risk"] == "9"
    assert document["last_seen_block"] == 7
    assert document["sponsored_wei"] == str(30 * 10**9)


async def test_an_exit_is_reported_that_the_books_do_not_know(
    devnet: TestChain, config: WatchConfig, tmp_path: Path
) -> None:
    """F-64: neither gateway nor settler runs, and a payer leaves: that is when it matters."""
    async with devnet.connect() as chain:
        ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
        account = PayerAccount(chain.sender("payer"))
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        opened = OpenBooks(reader, ledger, Channels(chain, account))
        leaving, withdrawn = [await opened.open(accepted=50, spent=40) for _ in range(2)]
        await ledger.close()
        await request_close(chain, account, withdrawn)
        await chain.advance(900)
        await account.withdraw(escrow=chain.values.escrow, channel_id=withdrawn)
        await request_close(chain, account, leaving)
        status = await collect_status(config, devnet.account("payee").address)
    assert [each.channel_id for each in status.books.exits] == [leaving]
    assert (status.books.open, status.books.at_risk) == (1, 40)
    assert Finding(Level.CRITICAL, "no settler runs") in status.findings


async def test_without_a_node_the_books_are_still_reported(
    config: WatchConfig, tmp_path: Path, devnet: TestChain
) -> None:
    """F-64, O-69: the grace runs on; with nothing owed it is for today."""
    ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
    await ledger.close()
    away = replace(config, chain=replace(config.chain, rpc_url="http://127.0.0.1:1"))
    status = await collect_status(away, devnet.account("payee").address)
    assert status.chain is None
    assert status.level is Level.WARNING
    assert to_json(status)["head"] is None


async def test_a_token_that_would_not_pay_is_reported_and_stops_sales(
    devnet: TestChain, config: WatchConfig, tmp_path: Path
) -> None:
    """O-13: by `status`, whether anything runs or not, and by what a gateway is built of."""
    payee = devnet.account("payee").address
    async with devnet.connect() as chain:
        ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
        journal = await SqliteJournal.open(
            tmp_path / "ledger.db", chain_id=config.chain.id, account=payee
        )
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        gate = build_gate(config)
        watcher = build_watcher(
            config, reader, ledger, None, payee=payee, gate=gate, journal=journal
        )
        try:
            await watcher.sweep()
            gate.require_openings()
            function = abi.Function("blacklist(address)")
            await chain.deployer.send(chain.values.token, function.encode(payee))
            status = await collect_status(config, payee)
            assert status.level is Level.WARNING  # nothing is owed (O-69)
            assert "would not pay you out" in status.findings[0].text
            assert to_json(status)["payout_obstacle"]
            await watcher.sweep()
            with pytest.raises(OpeningsPausedError):
                gate.require_openings()
        finally:
            await journal.close()
            await ledger.close()


async def test_a_close_that_is_not_of_these_books_is_reported_and_stops_openings(
    devnet: TestChain, config: WatchConfig, tmp_path: Path
) -> None:
    """O-89: by `status`, whether anything runs or not, and by what a gateway is built of."""
    payee = devnet.account("payee").address
    async with devnet.connect() as chain:
        ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
        journal = await SqliteJournal.open(
            tmp_path / "ledger.db", chain_id=config.chain.id, account=payee
        )
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        opened = OpenBooks(reader, ledger, Channels(chain, PayerAccount(chain.sender("payer"))))
        gate = build_gate(config)
        try:
            channel_id = await opened.open(accepted=50, spent=40)
            thief = EscrowSettler(reader, chain.sender("payee"))
            await thief.close_channel(opened.key(channel_id), 0, b"")
            status = await collect_status(config, payee)
            assert status.level is Level.CRITICAL
            assert to_json(status)["foreign_payouts"] == [channel_id]
            fact = await reader.read_channel(channel_id)
            assert fact is not None
            await ledger.apply(fact.key, [Observe(fact)])  # a gateway saw it before its watcher
            assert to_json(await collect_status(config, payee))["foreign_payouts"] == [channel_id]
            await build_watcher(
                config, reader, ledger, None, payee=payee, gate=gate, journal=journal
            ).sweep()
            with pytest.raises(OpeningsPausedError):
                gate.require_openings()
        finally:
            await journal.close()
            await ledger.close()
