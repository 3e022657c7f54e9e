"""O-08: the sum of deposits is bounded, for each server and for all of them."""

from typing import Any

import httpx
import pytest

from channel.client.policy.policy import locked_budget_of
from channel.errors import AgentError, BudgetExceededError
from tests.channel.client.conftest import Agent, OpenAgent, limits_of, policy_of
from tests.channel.client.exchanges import read_stream, sell_stream
from tests.channel.client.provider import PaperChain, Provider, Seen

PRICE = 10
SPONSORED = {"fee_payer": True, "credential_types": ("authorization",)}


def greedy_policy(**limits: Any) -> Any:
    """Great deposits, small budgets: the deposits are what a hostile server is after."""
    return policy_of(
        {"deposit_max": 1_000_000, "budget": 1_000_000} | limits, expected_units=1_000_000
    )


async def visit(agent: Agent, count: int) -> list[str]:
    """Buy from so many servers, and return the limits that were in the way."""
    refused = []
    for index in range(count):
        try:
            await agent.client.get(f"https://server-{index}.example/joke")
        except BudgetExceededError as error:
            refused.append(error.limit)
    return refused


async def locked(agent: Agent) -> int:
    return sum(account.locked for account in await agent.payments.channels())


def suggest(provider: Provider, **offer: Any) -> None:
    provider.offer = {"suggested_deposit": 1_000_000} | offer


@pytest.mark.parametrize("offer", [{}, SPONSORED])
async def test_servers_lock_no_more_than_may_be_signed_for_all_of_them(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, offer: dict[str, Any]
) -> None:
    """O-08: three servers that suggest a million each, `budget_total` 5,000."""
    suggest(provider, **offer)
    agent = await open_agent(greedy_policy(budget_total=5_000))
    assert await visit(agent, 3) == []
    assert chain.deposited == [2_500, 1_250, 625]  # half of what is left, for there may be others
    refused = await visit(agent, 300)
    assert sum(chain.deposited) <= 5_000
    assert "locked_total_max" in refused[-1]


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({}, 4_000_000),
        ({"budget": 7_000}, 28_000),
        ({"locked_max": 3_000}, 12_000),
        ({"locked_max": 3_000, "locked_total_max": 4_000}, 4_000),
        ({"locked_max": 3_000, "budget_total": 3_500}, 3_500),
    ],
)
async def test_bounds_that_are_not_given_follow_from_those_that_are(
    open_agent: OpenAgent,
    provider: Provider,
    chain: PaperChain,
    limits: dict[str, int],
    most: int,
) -> None:
    """O-08: who sets nothing has a bound as well."""
    suggest(provider)
    chain.means = {"balance": 10**9}
    agent = await open_agent(greedy_policy(**limits))
    await visit(agent, 60)
    assert 0.9 * most < sum(chain.deposited) == await locked(agent) <= most
    assert locked_budget_of(limits_of(**limits)).total_max in (most, 80_000)


async def test_processes_that_share_a_store_share_the_bound(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """O-08: beside each other, and one behind the other."""
    suggest(provider)
    first = await open_agent(greedy_policy(locked_max=1_500, locked_total_max=2_500))
    assert (await first.client.get("/joke")).status_code == 200
    second = await open_agent(greedy_policy(locked_max=1_500, locked_total_max=2_500), beside=True)
    assert await visit(second, 100)
    assert 2_400 < sum(chain.deposited) <= 2_500


@pytest.mark.parametrize("offer", [{}, SPONSORED])
async def test_a_top_up_counts_as_well(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, offer: dict[str, Any]
) -> None:
    """O-08: and what arrived for a deposit is locked no more, so that a channel may go on."""
    sell_stream(provider, 300)
    provider.offer |= {"suggested_deposit": 1_000} | offer
    agent = await open_agent(
        policy_of({"deposit_max": 100_000, "locked_max": 1_500}, expected_units=100)
    )
    assert (await read_stream(agent)).count("content") == 300
    (account,) = await agent.payments.channels()
    assert account.deposit >= 3_000
    assert account.locked - account.received <= 1_500 + 64 * PRICE
    assert len(chain.deposited) > 1


async def test_a_deposit_that_was_never_seen_counts_until_it_expires(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain
) -> None:
    """O-08: servers keep a signed deposit and answer nothing."""
    suggest(provider, **SPONSORED)
    chain.means = {"can_pay_gas": False}

    def keep(seen: Seen) -> httpx.Response | None:
        return None if seen.credential is None else httpx.Response(500)

    provider.override = keep
    agent = await open_agent(greedy_policy(locked_total_max=2_500, locked_max=2_000))
    assert await visit(agent, 100)
    assert 2_400 < await locked(agent) <= 2_500


async def test_a_transaction_of_unknown_end_counts_until_the_chain_shows_it(
    open_agent: OpenAgent, provider: Provider, chain: PaperChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-08: a node that takes top-ups and says that it failed."""
    provider.offer = {"suggested_deposit": 20}
    agent = await open_agent(policy_of({"locked_max": 60, "deposit_max": 1_000}))
    assert (await agent.client.get("/joke")).status_code == 200
    assert (await agent.client.get("/joke")).status_code == 200

    async def vanish(**_: Any) -> None:
        raise httpx.ReadTimeout("the node is gone")

    monkeypatch.setattr(chain, "top_up", vanish)
    for _ in range(5):
        with pytest.raises((httpx.ReadTimeout, AgentError)):
            await agent.client.get("/joke")
    (account,) = await agent.payments.channels()
    assert account.deposit == 20
    assert account.locked - account.received == 60


async def test_what_has_ended_on_chain_is_locked_no_more(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """O-08: a withdrawal that is asked for still counts; one that is made does not."""
    suggest(provider)
    agent = await open_agent(greedy_policy(locked_max=1_500, locked_total_max=1_500))
    assert (await agent.client.get("/joke")).status_code == 200
    (account,) = await agent.payments.channels()
    account = await agent.payments.request_close(account.key.channel_id)
    assert await visit(agent, 100)
    await agent.payments.withdraw(account.key.channel_id)
    (ended, *_) = await agent.payments.channels()
    assert (ended.state, ended.locked) == ("closed", 0)
    assert not await visit(agent, 1)
