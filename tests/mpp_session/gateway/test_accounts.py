"""The accounts of a gateway add up to its ledger and to the chain, to the base unit."""

import asyncio
from collections.abc import AsyncIterator

from mpp_session.operator.export import Entry, Period, read_chain, read_charges
from mpp_session.testing.chain import TestChain
from settlement.tx.journal.interface import OrderName
from settlement.tx.journal.url import open_journal
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway
from tests.waiting import PATIENCE_S

EVER = Period(0, 2**40)


async def collect(entries: AsyncIterator[Entry]) -> list[Entry]:
    return [entry async for entry in entries]


def total(entries: list[Entry], *kinds: str) -> int:
    return sum(entry.amount for entry in entries if entry.kind in kinds)


async def test_real_payments_settles_a_close_and_a_refund_add_up_to_the_chain(
    run_gateway: RunGateway, open_agent: OpenAgent, devnet: TestChain
) -> None:
    """Charges equal `spent`, payouts the payee's tokens, gas the ether that it spent."""
    payee = devnet.account("payee").address
    async with run_gateway() as gateway, open_agent() as agent:
        reader = gateway.parts.reader
        since = (await reader.rpc.block()).timestamp + 1
        devnet_at = Period(since, EVER.until)
        await asyncio.to_thread(devnet.advance, 1)
        tokens = await asyncio.to_thread(devnet.token_balance, payee)
        ether = await reader.rpc.balance_wei(payee)
        content = {"messages": [], "max_tokens": 8}
        for _ in range(3):
            assert (await agent.post(gateway.completions, json=content)).status_code == 200
        kept = (await gateway.channel()).at_or_below_spent
        assert kept is not None  # what a live channel is settled with
        settled = kept.cumulative_amount
        journal = await open_journal(
            gateway.parts.config.ledger.url, chain_id=reader.chain_id, account=payee
        )
        await journal.place_order(OrderName.SETTLE, at=1)
        async with asyncio.timeout(PATIENCE_S):
            async with gateway.parts.ledger.watch(None) as watch:
                while (await gateway.channel()).settled < settled:
                    await watch.changed(0.1)
        streamed = await agent.post(gateway.completions, json={**content, "stream": True})
        assert streamed.status_code == 200
        (closed,) = await agent.payments.close(gateway.url)
        state = await gateway.channel()
        chain = await collect(
            read_chain(
                reader,
                journal,
                devnet_at,
                payee=payee,
                token=state.terms.token,
                accounts=frozenset({payee}),
            )
        )
        await journal.close()
        charges = await collect(read_charges(gateway.parts.ledger, EVER, payee))
        assert await gateway.parts.ledger.faults() == []
        paid_out = await asyncio.to_thread(devnet.token_balance, payee) - tokens
        gas = ether - await reader.rpc.balance_wei(payee)
    assert total(charges, "charge") == state.spent == state.settled > settled
    assert [entry.requests for entry in charges] == [1] * 4
    assert total(chain, "settlement", "close") == paid_out == state.spent
    assert [entry.amount for entry in chain if entry.kind == "settlement"] == [settled]
    assert total(chain, "refund") == state.deposit - state.spent > 0
    assert total(chain, "gas") == gas > 0
    assert closed.settled == state.settled
    ends = [entry for entry in chain if entry.kind == "close"]
    assert [(entry.tx_hash, entry.channel_id) for entry in ends] == [
        (state.close_tx, state.key.channel_id)
    ]
