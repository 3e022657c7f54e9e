"""The worker's side of a sponsored deposit: what its client hears when it is not made."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channel.chain import AuthorizedPull, SponsoredDeposit
from channel.errors import ConfigError
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenPermit2,
)
from mpp_session.testing.chain import TestChain
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.sponsor.worker import CLOSE_PENDING, WaitingSponsor
from settlement.tx.orders import FEE_TOO_HIGH, NONCE_TAKEN, NOT_SENT, OrderStatus
from tests.e2e.selling import DEPOSIT, PRICE
from tests.e2e.sponsored import LIMITS, Sponsored, sponsor_deposits
from tests.faults.proxy import lying_node
from tests.settlement.sponsor.test_sender import send
from tests.settlement.tx.journal.test_interface import run_sql
from tests.waiting import until


@pytest.fixture
async def unsent(devnet: TestChain, tmp_path: Path) -> AsyncIterator[Sponsored]:
    """Deposits are taken and waited for, and no settler sends them unless a test does."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path, sends=False) as one:
        yield one


async def is_wanted(one: Sponsored) -> bool:
    return len(await one.orders.list_open()) == 1


async def made(one: Sponsored, payload: OpenAuthorization | OpenPermit2) -> None:
    """Have its payer ask again, and a settler send it: it is paid for once."""
    asking = asyncio.create_task(one.provider.send(payload))
    await until(lambda: is_wanted(one))
    await send(one)
    assert (await asking).status_code == 200
    assert await one.sent() == 1
    assert await one.chain.token_balance(one.chain.values.escrow) == DEPOSIT


@pytest.mark.parametrize(
    ("reason", "status", "problem"),
    [
        (FEE_TOO_HIGH, 503, "sponsoring-paused"),
        (CLOSE_PENDING, 410, "session/channel-finalized"),
        (NONCE_TAKEN, 503, "payment-unavailable"),
        (NOT_SENT, 503, "payment-unavailable"),
    ],
)
async def test_who_waits_hears_why_a_deposit_was_not_sent(
    unsent: Sponsored, reason: str, status: int, problem: str
) -> None:
    """O-98, F-98: as soon as the settler says so; it cost nothing, and may be wanted again."""
    one = unsent
    payload = await one.payer.opening(PRICE)
    asking = asyncio.create_task(one.provider.send(payload))
    await until(lambda: is_wanted(one))
    (order,) = await one.orders.list_open()
    await one.orders.update(order.order_id, OrderStatus.REFUSED, reason=reason, gas_gwei=0)
    answer = await asking
    assert answer.status_code == status, answer.text
    assert answer.json()["type"].endswith(problem), answer.text
    assert await one.sent() == 0
    assert await one.orders.gas_gwei_since(0) == 0
    await made(one, payload)


async def test_an_order_that_is_gone_is_asked_for_again(unsent: Sponsored, tmp_path: Path) -> None:
    """O-98, F-80: an old copy of the database was put back while its client waited."""
    payload = await unsent.payer.opening(PRICE)
    asking = asyncio.create_task(unsent.provider.send(payload))
    await until(lambda: is_wanted(unsent))
    await run_sql(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "DELETE FROM deposit_order")
    answer = await asking
    assert answer.status_code == 503, answer.text
    assert "no longer knows this deposit: retry" in answer.json()["detail"]
    await made(unsent, payload)


async def test_a_chain_without_a_base_fee_takes_no_deposit(unsent: Sponsored) -> None:
    """O-98, F-98: what it would cost cannot be bounded; nothing is written down or sent."""
    payload = await unsent.payer.opening(PRICE)
    assert isinstance(payload, OpenAuthorization)
    signed, payer, chain = payload.authorization, unsent.payer, unsent.chain
    deposit = SponsoredDeposit(
        key=payer.key,
        opens=payer.terms,
        salt=payer.salt,
        funder=payer.address,
        amount=signed.value,
        pull=AuthorizedPull(signed.valid_after, signed.valid_before, signed.nonce),
        signature=payload.signature,
    )
    async with lying_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        reader = EscrowReader(rpc, chain.values.escrow)
        payee = chain.account("payee").address
        sponsor = WaitingSponsor(unsent.orders, reader, sender=payee, limits=LIMITS)
        node.lies["eth_getBlockByNumber"] = lambda _, block: {
            name: value for name, value in block.items() if name != "baseFeePerGas"
        }
        with pytest.raises(ConfigError, match="no base fee"):
            await sponsor.take(deposit, by_wallet=False, first=None)
        assert not await sponsor.is_taken(deposit)
        node.heal()
        await sponsor.take(deposit, by_wallet=False, first=None)
        assert await sponsor.is_taken(deposit)
    await made(unsent, payload)
