"""What runs for one agent is bounded, and ends in order."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from channel.client.funding.keys import ChannelKeys
from channel.client.policy.policy import Policy
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelBusyError, StoppingError, StoreError
from channel.limits import WALLET_FAILURES_MAX, WALLET_REQUESTS_MAX, WALLET_WAIT_S_MAX
from mpp_session.agent.client import PayingClient, build_client
from mpp_session.agent.wallet_wire import ApprovalState
from mpp_session.wallet.server.forwarding import Ended, Forwarder
from mpp_session.wallet.server.questions import Questions
from mpp_session.wallet.server.running_agent import RunningAgent


def make(_: str, store: PaymentStore) -> PayingClient:
    return build_client(
        policy=Policy(limits=()), keys=ChannelKeys(bytes(range(32))), store=store, chains=()
    )


async def test_an_agent_is_bounded_in_what_runs_and_what_it_remembers(tmp_path: Path) -> None:
    store = await PaymentStore.open(tmp_path / "w.db")
    agent = RunningAgent("scout", store.for_agent("scout"), make)
    gate = asyncio.Event()
    clients: list[PayingClient] = []

    async def wait(client: PayingClient) -> str:
        clients.append(client)
        await gate.wait()
        return "done"

    tasks = [asyncio.create_task(agent.run(wait)) for _ in range(WALLET_REQUESTS_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(ChannelBusyError, match=str(WALLET_REQUESTS_MAX)):
        await agent.run(wait)
    agent.renew()  # not while something runs
    tasks.pop().cancel()
    await asyncio.sleep(0.01)
    more = asyncio.create_task(agent.run(wait))
    await asyncio.sleep(0)
    assert len(set(map(id, clients))) == 1
    gate.set()
    assert await asyncio.gather(*tasks, more) == ["done"] * WALLET_REQUESTS_MAX
    await agent.run(wait)
    assert len(set(map(id, clients))) == 2

    for number in range(WALLET_FAILURES_MAX + 1):
        agent.remember(str(number), StoreError(str(number)))
    assert agent.failure("0") is None
    assert str(agent.failure("1")) == "1"

    gate.clear()
    last = asyncio.create_task(agent.run(wait))
    await asyncio.sleep(0)
    await agent.end()
    with pytest.raises(StoppingError):
        await last
    with pytest.raises(StoppingError):
        await agent.run(wait)
    await store.close()


class _Asked:
    """Answers without a wait, and keeps how long it might have waited."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def state(self, agent: str, approval_id: str, *, wait_s: float) -> ApprovalState:
        self.waits.append(wait_s)
        return ApprovalState(id=f"{agent} {approval_id}", state="pending")


async def test_a_wait_for_an_approval_is_bounded(tmp_path: Path) -> None:
    async def no_end(_: Ended) -> None: ...

    async def any_request(_: str, __: httpx.Request) -> None: ...

    async def no_budgets(_: str) -> list[object]:
        return []

    store = await PaymentStore.open(tmp_path / "w.db")
    agent = RunningAgent("scout", store.for_agent("scout"), make)
    asked = _Asked()
    forwarder = Forwarder(
        allows_loopback=lambda: False, own_ports=(), admit=any_request, note_end=no_end
    )
    questions = Questions(forwarder, no_budgets, asked)  # type: ignore[arg-type]
    for wait in (str(WALLET_WAIT_S_MAX), str(WALLET_WAIT_S_MAX + 1), "-1", "many", "9" * 99, ""):
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/approvals/a1",
            "headers": [],
            "query_string": f"wait={wait}".encode(),
            "server": ("wallet", 80),
        }
        answer = await questions.answer(agent, Request(scope))
        assert answer is not None
        assert b"scout a1" in answer.body
    assert asked.waits == [WALLET_WAIT_S_MAX, WALLET_WAIT_S_MAX, 0, 0, 0, 0]
    await agent.end()
    await store.close()
