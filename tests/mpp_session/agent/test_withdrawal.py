"""A payer's way out without its server: restart-safe, by the chain's time (CLOSE-08)."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from msgspec.structs import replace

from channel.client.policy.budget import LockedBudget
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelUnusableError
from channel.types import ChannelId
from mpp_session.agent.withdrawal import Leaving, Stage, withdraw_channels
from mpp_session.testing.chain import TestChain
from mpp_session.testing.payer import TestPayer
from mpp_session.testing.provider import TestProvider
from settlement.escrow.payer import PayerAccount
from settlement.node.rpc import Rpc
from settlement.tx.manager import TxManager
from settlement.tx.signer import KeySigner
from tests.waiting import PATIENCE_S

GRACE_S = 900


class Payer:
    """An agent that has bought one joke, and wants out."""

    def __init__(
        self, chain: TestChain, store: PaymentStore, rpc: Rpc, account: PayerAccount
    ) -> None:
        self.chain = chain
        self.store = store
        self.rpc = rpc
        self.account = account
        self.stages: list[Stage] = []
        self.is_asked = asyncio.Event()

    async def leave(
        self, which: Sequence[ChannelId] | None = None, *, waits: bool = False
    ) -> list[Leaving]:
        return await withdraw_channels(
            rpc=self.rpc,
            account=self.account,
            store=self.store,
            which=which,
            waits=waits,
            poll_s_max=0.1,
            tell=self._hear,
        )

    def _hear(self, leaving: Leaving) -> None:
        self.stages.append(leaving.stage)
        self.is_asked.set()

    async def channel(self) -> ChannelRecord:
        return (await self.store.records())[-1]


@pytest.fixture
async def agent(
    devnet: TestChain, provider: TestProvider, payer: TestPayer
) -> AsyncIterator[Payer]:
    async with payer.client() as client:
        answer = await client.get(f"{provider.url}/joke")
        assert answer.status_code == 200
    store = await PaymentStore.open(payer.store)
    try:
        async with devnet.connect() as chain:
            yield Payer(devnet, store, chain.rpc, PayerAccount(chain.sender("payer")))
    finally:
        await store.close()


async def test_a_payer_hears_what_may_be_taken_before_it_leaves(agent: Payer) -> None:
    """O-11: delivered and signed side by side; nothing is said where both are the same."""
    channel = await agent.channel()
    await agent.store.update(channel.key, lambda one: replace(one, signed=one.counted + 600))
    await agent.leave()
    assert agent.stages[0] is Stage.LEAVING
    await agent.leave()
    assert agent.stages.count(Stage.LEAVING) == 1


async def test_the_whole_deposit_comes_back_when_the_server_does_nothing(agent: Payer) -> None:
    """CLOSE-08: ask, wait, take; run twice, it is asked once."""
    (asked,) = await agent.leave()
    assert asked.stage is Stage.WAITING
    assert asked.ready_at == (await agent.rpc.block()).timestamp + GRACE_S
    await asyncio.to_thread(agent.chain.advance, GRACE_S - 2)
    (again,) = await agent.leave()
    assert again == asked
    await asyncio.to_thread(agent.chain.advance, 2)
    before = await asyncio.to_thread(agent.chain.token_balance, agent.account.account)
    (out,) = await agent.leave()
    assert (out.stage, out.settled, out.refunded) == (Stage.WITHDRAWN, 0, out.deposit)
    after = await asyncio.to_thread(agent.chain.token_balance, agent.account.account)
    assert after == before + out.deposit
    account = await agent.channel()
    assert (account.state, account.end_tx) == ("closed", out.tx_hash)
    assert await agent.leave() == []


async def test_it_waits_by_the_blocks_and_not_by_this_clock(agent: Payer) -> None:
    """F-111: the chain jumps ahead, and the wait is over."""
    leaving = asyncio.create_task(agent.leave(waits=True))
    async with asyncio.timeout(PATIENCE_S / 2):
        await agent.is_asked.wait()
    await asyncio.to_thread(agent.chain.advance, GRACE_S)
    async with asyncio.timeout(PATIENCE_S):
        (out,) = await leaving
    assert out.stage is Stage.WITHDRAWN
    assert agent.stages == [Stage.WAITING, Stage.WITHDRAWN]


async def test_a_server_that_closes_meanwhile_is_paid_what_it_delivered(
    agent: Payer, provider: TestProvider
) -> None:
    """F-63: and the rest came back with its close."""
    await agent.leave()
    await asyncio.to_thread(provider.sweep)
    (out,) = await agent.leave()
    assert (out.stage, out.settled, out.refunded) == (Stage.ENDED, 250, out.deposit - 250)
    assert (await agent.channel()).end_tx == out.tx_hash is not None


async def test_a_request_that_was_cancelled_or_taken_back_is_made_again(agent: Payer) -> None:
    """CLOSE-08, TOPUP-05: a top-up that was on its way when it was made cancels it; so may a reorg.

    To wait for the end of a grace period that does not run would be to wait for ever.
    """
    leaving = asyncio.create_task(agent.leave(waits=True))
    async with asyncio.timeout(PATIENCE_S / 2):
        await agent.is_asked.wait()
    known = await agent.channel()
    key = known.key
    await agent.account.top_up(
        escrow=key.escrow, token=known.terms.token, channel_id=key.channel_id, amount=7
    )
    async with asyncio.timeout(PATIENCE_S):
        fact = await agent.account.read_channel(key.escrow, key.channel_id)
        while fact is not None and not fact.close_requested_at:
            await asyncio.sleep(0.05)
            fact = await agent.account.read_channel(key.escrow, key.channel_id)
        await asyncio.to_thread(agent.chain.advance, GRACE_S)
        (out,) = await leaving
    assert (out.stage, out.refunded) == (Stage.WITHDRAWN, known.deposit + 7)


async def test_a_run_that_died_after_the_withdrawal_is_gone_on_with(agent: Payer) -> None:
    """CLIENT-06: the chain says what was done; nothing is sent twice."""
    await agent.leave()
    await asyncio.to_thread(agent.chain.advance, GRACE_S)
    key = (await agent.channel()).key
    tx_hash = await agent.account.withdraw(escrow=key.escrow, channel_id=key.channel_id)
    (out,) = await agent.leave()
    assert (out.stage, out.tx_hash) == (Stage.ENDED, tx_hash)
    assert (await agent.channel()).state == "closed"


async def test_a_channel_that_was_never_opened_is_said(agent: Payer) -> None:
    """CLIENT-05: a crash before the opening was broadcast; nothing was deposited."""
    known = await agent.channel()
    lost = replace(
        known, key=replace(known.key, channel_id=ChannelId(b"\x01" * 32)), state="opening"
    )
    await agent.store.add(lost, channels_max=9, locked=LockedBudget(10**30, 10**30))
    (out,) = await agent.leave([lost.key.channel_id])
    assert (out.stage, out.refunded) == (Stage.NEVER_OPENED, 0)


async def test_a_channel_of_another_payer_is_refused(agent: Payer) -> None:
    with pytest.raises(ChannelUnusableError, match="no channel 0x0202"):
        await agent.leave([ChannelId(b"\x02" * 32)])
    key = KeySigner(agent.chain.account("stranger").private_key)
    agent.account = PayerAccount(TxManager(agent.rpc, key))
    owner = (await agent.channel()).terms.payer.hex()
    with pytest.raises(ChannelUnusableError, match=f"belong to 0x{owner} on chain"):
        await agent.leave()
