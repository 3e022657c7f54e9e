"""Agents that wait for an answer, and orders of the owner."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from channel.errors import ConfigError
from channel.limits import FORM_BYTES_MAX
from mpp_session.agent.wallet_wire import ApprovalAnswer
from mpp_session.wallet.approvals.inbox import OWNER, ApprovalInbox
from mpp_session.wallet.approvals.record import ApprovalError, Record
from mpp_session.wallet.approvals.store import Approvals
from tests.mpp_session.wallet.approvals.asks import ask_of, decision_of
from tests.mpp_session.wallet.approvals.served import Clock, open_wallet
from tests.waiting import PATIENCE_S


class Wallet:
    def __init__(self, inbox: ApprovalInbox, approvals: Approvals, clock: Clock) -> None:
        self.inbox, self.approvals, self.clock = inbox, approvals, clock

    async def ask(self) -> Record:
        def change(db: object) -> Record:
            self.approvals.request(db, ask_of(), decision_of(), self.clock.now)  # type: ignore[arg-type]
            return self.approvals.pending(db)[-1]  # type: ignore[arg-type]

        return await self.inbox.transact(change)


@pytest.fixture
async def wallet(tmp_path: Path, approvals: Approvals) -> AsyncIterator[Wallet]:
    clock = Clock()
    async with open_wallet(tmp_path) as store:
        yield Wallet(ApprovalInbox(approvals, store.transact, now=clock), approvals, clock)


async def test_an_agent_that_waits_hears_the_answer_at_once(wallet: Wallet) -> None:
    record = await wallet.ask()
    waiting = asyncio.create_task(wallet.inbox.state("scout", record.id, wait_s=PATIENCE_S))
    assert (await wallet.inbox.state("scout", record.id, wait_s=0)) is not None
    yes = ApprovalAnswer(verdict="approve", amount="2 usdc", comment="this once")
    await wallet.inbox.answer(OWNER, record.id, yes)
    found = await waiting
    assert found is not None
    assert (found.state, found.comment) == ("approved", "this once")


async def test_an_agent_that_waits_hears_that_time_is_over(wallet: Wallet) -> None:
    record = await wallet.ask()
    pending = await wallet.inbox.state("scout", record.id, wait_s=0.01)
    assert pending is not None
    assert pending.state == "pending"
    wallet.clock.now += 900
    found = await wallet.inbox.state("scout", record.id, wait_s=PATIENCE_S)
    assert found is not None
    assert found.state == "expired"


async def test_a_question_is_its_own_agent_s_alone(wallet: Wallet) -> None:
    record = await wallet.ask()
    assert await wallet.inbox.state("other", record.id, wait_s=0) is None
    assert await wallet.inbox.state("scout", "none", wait_s=0) is None
    assert [each.id for each in await wallet.inbox.supervised("lead")] == [record.id]
    assert await wallet.inbox.supervised("scout") == []


async def test_the_owner_s_orders_are_read_strictly(wallet: Wallet) -> None:
    record = await wallet.ask()
    path = f"/approvals/{record.id}"
    transport = httpx.ASGITransport(Starlette(routes=[*wallet.inbox.owner_routes()]))
    async with httpx.AsyncClient(transport=transport, base_url="http://wallet") as owner:
        assert (await owner.get(path)).json()["question"].startswith("scout asks to pay 5.0")
        for body in (
            {"verdict": "yes"},
            {"verdict": "approve", "by": "mia"},
            {"verdict": "approve", "amount": 5},
            {"verdict": "approve", "amount": "5 eurc"},
            {"verdict": "approve", "amount": "0"},
            {"verdict": "approve", "comment": "x" * FORM_BYTES_MAX},
            {},
        ):
            answer = await owner.post(path, json=body)
            assert answer.status_code >= 400, body
        assert (await owner.get("/approvals")).json()[0]["state"] == "pending"
        done = await owner.post(path, json={"verdict": "withdraw"})
        assert done.json()["state"] == "withdrawn"
        assert (await owner.get("/approvals")).json() == []
        assert len((await owner.get("/approvals?all=1")).json()) == 1


async def test_an_amount_of_another_token_is_refused(wallet: Wallet) -> None:
    record = await wallet.ask()
    with pytest.raises(ConfigError, match="USDC"):
        await wallet.inbox.answer(OWNER, record.id, ApprovalAnswer(verdict="deny", amount="1 eurc"))
    with pytest.raises(ApprovalError, match="There is no approval"):
        await wallet.inbox.answer(OWNER, "none", ApprovalAnswer(verdict="deny"))
