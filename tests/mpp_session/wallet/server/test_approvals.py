"""A wallet that runs asks its owner and its supervising agents."""

import asyncio
import json
import secrets
from hashlib import sha256

import httpx
import pytest
from typer.testing import CliRunner

from channel.errors import AgentError, ApprovalPendingError, PolicyRefusedError
from mpp_session.agent.client import open_client
from mpp_session.agent.wallet_socket import WalletPayments
from mpp_session.agent.wallet_wire import ApprovalAnswer
from mpp_session.cli.app import APP
from mpp_session.wallet.server.owner_client import ask_owner_door
from tests.mpp_session.wallet.server.process import WalletProcess

LEAD = f"mpp_{secrets.token_urlsafe(32)}"


def command(wallet: WalletProcess, *arguments: str) -> str:
    """Run one of the owner's commands, and return what it prints."""
    words = ["wallet", *arguments, "--home", str(wallet.home)]
    return CliRunner().invoke(APP, words, catch_exceptions=False).stdout


@pytest.fixture(scope="module")
def asking(wallet: WalletProcess) -> WalletProcess:
    """The wallet asks for what belongs to the task `big`, and an agent `lead` may answer miser."""
    wallet.write_policy()
    with wallet.policy.open("a") as file:
        file.write(
            f"""
[agent.lead]
token = "sha256:{sha256(LEAD.encode()).hexdigest()}"
envelopes = ["all"]
expires = 2099-01-01T00:00:00Z
may_approve = ["miser"]
approve_max = "5.00 usd"

[[rule]]
name = "costly"
action = "ask"
[rule.match]
task = ["big"]
"""
        )
    ask_owner_door(wallet.home, "POST", "/reload")
    return wallet


async def test_the_owner_approves_by_a_command_and_the_agent_goes_on(
    asking: WalletProcess, shop_url: str
) -> None:
    async with open_client(
        wallet=asking.address("scout"), token=asking.tokens["scout"], task="big"
    ) as client:
        with pytest.raises(ApprovalPendingError) as held:
            await client.post(f"{shop_url}/echo", json={})
        name = held.value.approval_id
        (shown,) = json.loads(await asyncio.to_thread(command, asking, "approvals", "--json"))
        assert (shown["id"], shown["agent"], shown["state"]) == (name, "scout", "pending")
        assert ["Task", "big"] in shown["untrusted"]
        text = await asyncio.to_thread(command, asking, "approvals")
        assert f"{name}  scout asks to pay" in text
        payments = client.payments
        assert isinstance(payments, WalletPayments)
        waiting = asyncio.create_task(payments.wait_for(name, timeout_s=60))
        half = shown["amount"] // 2
        money = f"{half // 10**6}.{half % 10**6:06d}"
        done = await asyncio.to_thread(command, asking, "approve", name, "--amount", money)
        assert done.rstrip().endswith("approved")
        assert (await waiting).state == "approved"
        answer = await client.post(f"{shop_url}/echo", json={})
        assert answer.status_code == 200
        assert (await payments.approval(name)).state == "used"
        assert [one.deposit for one in await payments.channels() if one.state == "open"][-1:] == [
            half
        ]
        with pytest.raises(AgentError, match="used already"):
            await asyncio.to_thread(command, asking, "deny", name)


async def test_a_supervisor_answers_for_another_agent_and_not_for_itself(
    asking: WalletProcess, shop_url: str
) -> None:
    """nexus#1358: a supervising agent answers before a person is asked."""
    address = asking.address("scout")
    async with (
        open_client(wallet=address, token=asking.tokens["miser"], task="big") as miser,
        open_client(wallet=address, token=LEAD, task="big") as lead,
    ):
        above, below = lead.payments, miser.payments
        assert isinstance(above, WalletPayments)
        assert isinstance(below, WalletPayments)
        held = []
        for client in (miser, lead):
            with pytest.raises(ApprovalPendingError) as error:
                await client.post(f"{shop_url}/echo", json={})
            held.append(error.value.approval_id)
        assert [each.id for each in await above.supervised()] == held[:1]
        assert await below.supervised() == []
        yes = ApprovalAnswer(verdict="approve")
        for payments, name in ((above, held[1]), (below, held[0]), (below, held[1])):
            with pytest.raises(AgentError, match=r"may not answer|its own question"):
                await payments.answer(name, yes)
        assert (await above.answer(held[0], yes)).state == "approved"
        assert (await miser.post(f"{shop_url}/echo", json={})).status_code == 200
        taken_back = await above.answer(held[1], ApprovalAnswer(verdict="withdraw"))
        assert taken_back.state == "withdrawn"
        with pytest.raises(PolicyRefusedError) as refused:
            await lead.post(f"{shop_url}/echo", json={})
        assert refused.value.code == "approval_expired"
        with pytest.raises(AgentError, match="raised no question"):
            await below.approval(held[1])


async def test_the_pages_are_served_to_the_owner_and_not_to_agents(
    asking: WalletProcess,
) -> None:
    url = asking.announced["approvals"]
    token = (asking.home / "owner.token").read_text().strip()
    async with httpx.AsyncClient(base_url=url) as browser:
        assert (await browser.get("/")).headers["location"] == "/login"
        assert (await browser.post("/login", data={"token": token})).status_code == 303
        assert "Approvals" in (await browser.get("/")).text
    async with open_client(wallet=asking.address("scout"), token=asking.tokens["scout"]) as client:
        with pytest.raises(PolicyRefusedError, match="the wallet's own"):
            await client.get(f"{url}/login")
