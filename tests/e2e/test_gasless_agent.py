"""An agent without ether: it signs, the provider sends, and every base unit is accounted for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from channel.client.funding.keys import ChannelKeys
from channel.client.policy.policy import Policy, TokenLimits
from channel.errors import AgentError, CannotFundError
from channel.types import ZERO_ADDRESS
from channel.wire.funding import (
    TransferAuthorization,
)
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.testing import TestChain
from settlement.addresses import PERMIT2
from settlement.dev.devnet import GASLESS, Devnet, DevnetValues, TokenChoice
from settlement.escrow.reader import EscrowReader
from settlement.node.values import parse_quantity
from tests.e2e.provider import DEPOSIT_MIN, JOKE_PRICE, TOKEN_PRICE, open_shop, sponsored
from tests.settlement.senders import are_pooled
from tests.settlement.wallets import deploy_owned_wallet
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(120)

CHAT = "/v1/chat/completions"


def policy_of(values: DevnetValues, **changes: Any) -> Policy:
    limits = TokenLimits(
        chain_id=values.chain_id,
        token=values.token,
        unit_price_max={"request": 1_000, "llm_chunk": 50},
        deposit_max=100_000,
        budget=1_000_000,
    )
    return Policy(limits=(limits,), allow_loopback_http=True, **changes)


@asynccontextmanager
async def agent_of(
    values: DevnetValues, folder: Path, url: str, *, more: dict[str, Any] | None = None, **of: Any
) -> AsyncIterator[PayingClient]:
    async with open_client(
        rpc_url=values.rpc_url,
        private_key=values.accounts[GASLESS].private_key,
        policy=policy_of(values, **of),
        store=folder / "store.db",
        base_url=url,
        **(more or {}),
    ) as client:
        yield client


async def sent(chain: Devnet, name: str) -> int:
    """How many transactions of an account were mined."""
    account = "0x" + chain.account(name).address.hex()
    count = await chain.rpc.read("eth_getTransactionCount", account, "latest")
    return parse_quantity(count)


async def balances(chain: Devnet) -> tuple[int, int, int]:
    accounts = [chain.account(GASLESS).address, chain.account("payee").address]
    found = [await chain.token_balance(each) for each in (*accounts, chain.values.escrow)]
    return found[0], found[1], found[2]


@asynccontextmanager
async def running(token: TokenChoice, devnet: TestChain) -> AsyncIterator[Devnet]:
    """The session's chain, or one with Circle's own dollar."""
    if token == "dusd":  # noqa: S105 -- a token of value
        async with devnet.connect() as chain:
            yield chain
    else:
        async with Devnet.start(token=token) as chain:
            yield chain


@pytest.mark.parametrize("token", ["dusd", "usdc"])
async def test_an_agent_without_ether_opens_tops_up_in_a_stream_and_gets_its_rest(
    devnet: TestChain, tmp_path: Path, token: TokenChoice
) -> None:
    """CLIENT-02, CLIENT-07, OPEN-05, TOPUP-04, RELAY-06, F-21: with our dollar and Circle's."""
    async with (
        running(token, devnet) as chain,
        sponsored(chain, tmp_path) as sponsoring,
        open_shop(chain, tmp_path, tokens=250, sponsoring=sponsoring) as shop,
        agent_of(chain.values, tmp_path, shop.url, expected_units=150) as client,
    ):
        before, sent_before = await balances(chain), await sent(chain, "payee")
        async with client.stream("POST", CHAT, json={"stream": True}) as response:
            assert (await response.aread()).count(b"content") == 250
        (account,) = await client.payments.channels()
        assert isinstance(account.opening and account.opening.authorization, TransferAuthorization)
        assert account.deposit >= 250 * TOKEN_PRICE > 150 * TOKEN_PRICE
        fact = await EscrowReader(chain.rpc, chain.values.escrow).read_channel(
            account.key.channel_id
        )
        assert fact is not None
        # The stream may have ended while a top-up ahead of it was under way: it is kept, and sent.
        under_way = 0 if account.top_up is None else account.top_up.amount
        assert fact.deposit - account.deposit in (0, under_way)
        top_ups = await sent(chain, "payee") - sent_before - 1
        assert top_ups >= 1
        (closed,) = await client.payments.close()
        assert closed.settled == closed.spent == 250 * TOKEN_PRICE
        after = await balances(chain)
        paid = 250 * TOKEN_PRICE
        assert [b - a for a, b in zip(before, after, strict=True)] == [-paid, paid, 0]
        assert await sent(chain, GASLESS) == 0
        assert await chain.rpc.balance_wei(chain.account(GASLESS).address) == 0


async def test_a_deposit_that_is_too_small_for_the_gas_is_enlarged_within_the_policy(
    devnet: TestChain, tmp_path: Path
) -> None:
    """OPEN-12, F-92: once, to what the server names; one request more than otherwise."""
    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path) as sponsoring,
        open_shop(chain, tmp_path, sponsoring=sponsoring) as shop,
    ):
        async with agent_of(chain.values, tmp_path, shop.url, expected_units=2) as client:
            assert (await client.get("/joke")).status_code == 200
            (account,) = await client.payments.channels()
            assert account.deposit == DEPOSIT_MIN > 2 * JOKE_PRICE
        limits = policy_of(chain.values).limits[0]
        small = Policy(
            limits=(type(limits)(**{**_fields(limits), "deposit_max": DEPOSIT_MIN - 1}),),
            allow_loopback_http=True,
        )
        async with open_client(
            rpc_url=chain.values.rpc_url,
            private_key=chain.account(GASLESS).private_key,
            policy=small,
            store=tmp_path / "small.db",
            base_url=shop.url,
        ) as client:
            with pytest.raises(AgentError, match=f"deposit_max to {DEPOSIT_MIN}"):
                await client.get("/joke")


def _fields(limits: TokenLimits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in limits.__struct_fields__}


async def test_permit2_takes_one_approval_and_then_signatures(
    devnet: TestChain, tmp_path: Path
) -> None:
    """CLIENT-03, OPEN-06, F-90: ether for one transaction, ever."""
    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path, types=["permit2"]) as sponsoring,
        open_shop(chain, tmp_path, tokens=250, sponsoring=sponsoring) as shop,
        agent_of(chain.values, tmp_path, shop.url, expected_units=150) as client,
    ):
        with pytest.raises(CannotFundError, match=r"approval of Permit2.*; hash: ether for gas"):
            await client.get("/joke")
        agent = chain.account(GASLESS).address
        await chain.fund(agent, ether=1)
        assert (await client.get("/joke")).status_code == 200
        await chain.rpc.command("anvil_setBalance", "0x" + agent.hex(), "0x0")
        async with client.stream("POST", CHAT, json={"stream": True}) as response:
            assert (await response.aread()).count(b"content") == 250
        (closed,) = await client.payments.close()
        assert closed.opening is not None
        assert closed.opening.type == "permit2"
        assert closed.settled == 250 * TOKEN_PRICE + JOKE_PRICE
        assert await sent(chain, GASLESS) == 1
        assert (await chain.rpc.code(PERMIT2)) != b""


async def test_an_agent_with_ether_opens_by_itself_while_no_gas_is_paid(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-98: one with dollars alone gets the reason; the provider pays for neither."""
    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path, gas_gwei=1) as sponsoring,
        open_shop(chain, tmp_path, sponsoring=sponsoring) as shop,
        agent_of(chain.values, tmp_path, shop.url) as client,
    ):
        before = await sent(chain, "payee")
        refusal = await client.get("/joke")
        assert (refusal.status_code, refusal.headers["Retry-After"]) == (503, "60")
        assert refusal.json()["type"].endswith("sponsoring-paused")
        await chain.fund(chain.account(GASLESS).address, ether=1)
        assert (await client.get("/joke")).status_code == 200
        (account,) = await client.payments.channels()
        assert (account.state, account.opening) == ("open", None)
        assert (await sent(chain, GASLESS), await sent(chain, "payee")) == (2, before)


async def test_an_agent_that_dies_while_its_deposit_is_mined_deposits_once(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-75: the next process presents the same signature; the books know it."""
    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path, wait_s=PATIENCE_S) as sponsoring,
        open_shop(chain, tmp_path, sponsoring=sponsoring) as shop,
    ):
        before = await balances(chain)
        async with chain.mining_paused():
            async with agent_of(chain.values, tmp_path, shop.url) as client:
                asking = asyncio.create_task(client.get("/joke"))
                await until(lambda: are_pooled(chain, 1))
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                (account,) = await client.payments.channels()
                assert account.state == "opening"
            async with agent_of(chain.values, tmp_path, shop.url) as client:
                asking = asyncio.create_task(client.get("/joke"))
                await asyncio.sleep(0.5)
                await chain.mine()
                assert (await asking).status_code == 200
                (again,) = await client.payments.channels()
                assert (again.state, again.opening) == ("open", account.opening)
        after = await balances(chain)
        assert before[0] - after[0] == after[2] - before[2] == account.deposit


@pytest.mark.parametrize("has_keys", [True, False])
async def test_a_contract_wallet_pays_with_its_owners_signature(
    devnet: TestChain, tmp_path: Path, *, has_keys: bool
) -> None:
    """CLIENT-11, ENC-07: its vouchers too, unless a key for each channel signs them."""
    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path) as sponsoring,
        open_shop(
            chain, tmp_path, sponsoring=sponsoring, takes_contract_signatures=not has_keys
        ) as shop,
    ):
        wallet = await deploy_owned_wallet(chain.deployer, chain.account(GASLESS).address)
        await chain.fund(wallet, amount=100_000)
        more = {"wallet": wallet, "keys": ChannelKeys(b"\x05" * 32) if has_keys else None}
        async with agent_of(chain.values, tmp_path, shop.url, more=more) as client:
            assert (await client.get("/joke")).status_code == 200
            (account,) = await client.payments.close()
        assert account.terms.payer == wallet
        assert (account.terms.authorized_signer != ZERO_ADDRESS) == has_keys
        assert account.settled == JOKE_PRICE
        assert await chain.token_balance(wallet) == 100_000 - JOKE_PRICE


async def test_twenty_concurrent_requests_make_one_deposit(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-41, VCH-06: the others wait for it, whichever way it goes."""
    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path) as sponsoring,
        open_shop(chain, tmp_path, sponsoring=sponsoring) as shop,
        agent_of(chain.values, tmp_path, shop.url) as client,
    ):
        sent_before = await sent(chain, "payee")
        answers = await asyncio.gather(*(client.get("/joke") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {httpx.codes.OK}
        assert await sent(chain, "payee") == sent_before + 1
        (account,) = await client.payments.close()
        assert account.settled == 20 * JOKE_PRICE
