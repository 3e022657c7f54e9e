"""An agent pays a real provider on a real chain, from the first 402 to the refund."""

import asyncio
import random
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from channel.client.funding.signer import LocalSigner
from channel.client.http.events import PaidEvents
from channel.client.http.management import HeadManagementClient
from channel.client.http.transport import PayingTransport
from channel.client.policy.policy import Policy, TokenLimits
from channel.client.store.sqlite import PaymentStore
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.testing import TestChain
from settlement.dev.devnet import DevnetValues
from tests.e2e.provider import JOKE_PRICE, TOKEN_PRICE, open_shop, sponsored

pytestmark = pytest.mark.timeout(120)

CHAT = "/v1/chat/completions"
MANUAL = Path(__file__).parents[2] / "docs" / "guide" / "paying.md"


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
    values: DevnetValues, folder: Path, url: str, **changes: Any
) -> AsyncIterator[PayingClient]:
    async with open_client(
        rpc_url=values.rpc_url,
        private_key=values.accounts["payer"].private_key,
        policy=policy_of(values, **changes),
        store=folder / "store.db",
        base_url=url,
    ) as client:
        yield client


async def test_twenty_parallel_requests_one_channel_one_refund(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-41, CLOSE-06, CLIENT-05: and a restart goes on with the same channel."""
    payer = devnet.values.accounts["payer"].address
    payee = devnet.values.accounts["payee"].address
    async with devnet.connect() as chain, open_shop(chain, tmp_path) as shop:
        before = await chain.token_balance(payer), await chain.token_balance(payee)
        async with agent_of(devnet.values, tmp_path, shop.url) as client:
            answers = await asyncio.gather(*(client.get("/joke") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
        async with agent_of(devnet.values, tmp_path, shop.url) as client:
            assert (await client.get("/joke")).status_code == 200
            (account,) = await client.payments.close(shop.url)
            assert account.state == "closed"
            assert account.settled == account.spent == 21 * JOKE_PRICE
        after = await chain.token_balance(payer), await chain.token_balance(payee)
        assert before[0] - after[0] == 21 * JOKE_PRICE
        assert after[1] - before[1] == 21 * JOKE_PRICE
        assert len(shop.served) == 21


async def test_the_openai_client_streams_over_it(devnet: TestChain, tmp_path: Path) -> None:
    """CLIENT-07, SSE-01 to SSE-04: it never sees a payment event."""
    async with (
        devnet.connect() as chain,
        open_shop(chain, tmp_path, tokens=300) as shop,
        agent_of(devnet.values, tmp_path, shop.url) as client,
    ):
        model = openai.AsyncOpenAI(
            base_url=f"{shop.url}/v1", api_key="unused", http_client=cast("Any", client)
        )
        stream = await model.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Go on."}], stream=True
        )
        words = [chunk.choices[0].delta.content async for chunk in stream]
        assert words == [f"t{index} " for index in range(300)]
        (account,) = await client.payments.channels()
        assert account.spent == 300 * TOKEN_PRICE  # by the receipt behind its [DONE]
        (account,) = await client.payments.close()
        assert account.spent == account.settled == 300 * TOKEN_PRICE
        assert account.units == 300
        assert account.vouchers > 3


async def test_a_long_stream_is_topped_up_on_chain(devnet: TestChain, tmp_path: Path) -> None:
    """CLIENT-07: the deposit first, then the voucher above the old one."""
    async with (
        devnet.connect() as chain,
        open_shop(chain, tmp_path, tokens=250) as shop,
        agent_of(devnet.values, tmp_path, shop.url, expected_units=100) as client,
    ):
        assert (await stream(client)).count('"content"') == 250
        (account,) = await client.payments.channels()
        assert account.deposit >= 250 * TOKEN_PRICE > 100 * TOKEN_PRICE
        (account,) = await client.payments.close()
        assert account.settled == 250 * TOKEN_PRICE


@pytest.mark.parametrize("is_gasless", [True, False])
async def test_requests_are_paid_for_beside_a_stream(
    devnet: TestChain, tmp_path: Path, *, is_gasless: bool
) -> None:
    """F-41, ACC-06: on one channel, from its opening on, beside any reservation of the stream."""
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(devnet.connect())
        sponsoring = None
        if is_gasless:
            sponsoring = await stack.enter_async_context(sponsored(chain, tmp_path))
        shop = await stack.enter_async_context(
            open_shop(chain, tmp_path, tokens=60, sponsoring=sponsoring)
        )
        client = await stack.enter_async_context(
            agent_of(devnet.values, tmp_path, shop.url, expected_units=15)
        )
        for _ in range(6):
            streaming = asyncio.create_task(stream(client))
            answers = await asyncio.gather(*(client.get("/joke") for _ in range(4)))
            assert {answer.status_code for answer in answers} == {200}
            assert (await streaming).count('"content"') == 60
        (account,) = await client.payments.close()
        assert account.settled == account.spent == 6 * (60 * TOKEN_PRICE + 4 * JOKE_PRICE)


def slowed(step: Any, chance: random.Random) -> Any:
    async def slowly(*args: Any) -> Any:
        await asyncio.sleep(0.02 * max(0.0, chance.random() - 0.5))
        result = await step(*args)
        await asyncio.sleep(0.02 * max(0.0, chance.random() - 0.5))
        return result

    return slowly


def slow_every_step(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """Delay each step that the client waits for: as on a slow machine, in any order."""
    for owner, name in (
        (PaymentStore, "_run"),
        (PayingTransport, "_send_once"),
        (HeadManagementClient, "_head_once"),
        (PaidEvents, "_read"),
    ):
        monkeypatch.setattr(owner, name, slowed(getattr(owner, name), chance))


@pytest.mark.parametrize("is_slow", [False, True])
async def test_impatient_callers_leave_channels_that_work(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_slow: bool
) -> None:
    """F-41, F-75, CLIENT-06, O-14: a cancelled request causes no refusal of another."""
    chance = random.Random(1)  # noqa: S311 -- no secret
    if is_slow:
        slow_every_step(monkeypatch, chance)

    async def ask(client: PayingClient) -> None:
        patience_s = chance.choice([0.01, 0.03, 0.1]) if chance.random() < 0.3 else 60
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                if chance.random() < 0.4:
                    assert (await stream(client)).count('"content"') == 150
                else:
                    assert (await client.get("/joke")).status_code == 200

    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path) as sponsoring,
        open_shop(chain, tmp_path, tokens=150, sponsoring=sponsoring) as shop,
        agent_of(
            devnet.values, tmp_path, shop.url, expected_units=30, parallel_streams_max=2
        ) as client,
    ):
        for _ in range(4 if is_slow else 10):
            await asyncio.gather(*(ask(client) for _ in range(8)))
        closed = await client.payments.close()
        for account in closed:
            books = await shop.ledger.load(account.key)
            assert books is not None
            assert account.settled == account.spent == books.spent <= account.signed


async def test_a_stream_that_is_left_costs_what_was_sent(devnet: TestChain, tmp_path: Path) -> None:
    """SSE-07, F-56: and the channel serves the next one immediately."""
    async with (
        devnet.connect() as chain,
        open_shop(chain, tmp_path, tokens=2_000) as shop,
        agent_of(devnet.values, tmp_path, shop.url) as client,
    ):
        for _ in range(5):
            async with client.stream("POST", CHAT, json={"stream": True}) as response:
                async for _line in response.aiter_lines():
                    break
        (account,) = await client.payments.close()
        (books,) = [await shop.ledger.load(account.key)]
        assert books is not None
        assert account.settled == account.spent == books.spent
        assert 0 < account.settled <= 5 * 65 * TOKEN_PRICE


async def test_a_payer_leaves_without_its_server(devnet: TestChain, tmp_path: Path) -> None:
    """CLOSE-08, CLIENT-12: from the payment store and the chain alone."""
    payer = devnet.values.accounts["payer"].address
    async with devnet.connect() as chain:
        before = await chain.token_balance(payer)
        async with (
            open_shop(chain, tmp_path) as shop,
            agent_of(devnet.values, tmp_path, shop.url) as client,
        ):
            await client.get("/joke")
        async with agent_of(devnet.values, tmp_path, "http://127.0.0.1:9") as client:
            (account,) = await client.payments.channels()
            with pytest.raises(httpx.ConnectError):
                await client.payments.close()
            account = await client.payments.request_close(account.key.channel_id)
            assert account.state == "closing"
            await chain.advance(16 * 60)
            account = await client.payments.withdraw(account.key.channel_id)
            assert (account.state, account.refund) == ("closed", account.deposit)
        assert await chain.token_balance(payer) == before


async def test_an_agent_killed_while_it_opens_deposits_once(
    devnet: TestChain, tmp_path: Path
) -> None:
    """CLIENT-05, CLIENT-12: kill -9 after the deposit was mined, before the server knows."""
    program = f"""
        import asyncio, os, signal
        from pathlib import Path
        from mpp_session.agent.client import open_client
        from mpp_session.devnet_file import read_devnet
        from settlement.escrow.payer import PayerAccount
        from tests.e2e.test_agent import policy_of

        real = PayerAccount.open_channel

        async def open_and_die(self, **terms):
            await real(self, **terms)
            os.kill(os.getpid(), signal.SIGKILL)

        PayerAccount.open_channel = open_and_die

        async def main():
            values = read_devnet(Path({str(tmp_path / "devnet.json")!r}))
            async with open_client(
                rpc_url=values.rpc_url,
                private_key=values.accounts["payer"].private_key,
                policy=policy_of(values),
                store={str(tmp_path / "store.db")!r},
            ) as client:
                await client.get(URL)

        asyncio.run(main())
    """
    await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
    payer = devnet.values.accounts["payer"].address
    async with devnet.connect() as chain, open_shop(chain, tmp_path) as shop:
        before = await chain.token_balance(payer)
        script = textwrap.dedent(program).replace("URL", repr(f"{shop.url}/joke"))
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        assert await process.wait() == -signal.SIGKILL
        deposited = before - await chain.token_balance(payer)
        assert deposited > 0
        async with agent_of(devnet.values, tmp_path, shop.url) as client:
            (account,) = await client.payments.channels()
            assert account.state == "opening"
            assert (await client.get("/joke")).status_code == 200
            (account,) = await client.payments.channels()
            assert (account.state, account.deposit) == ("open", deposited)
        assert before - await chain.token_balance(payer) == deposited


async def test_a_voucher_key_of_its_own_can_move_no_deposit(
    devnet: TestChain, tmp_path: Path
) -> None:
    """CLIENT-11: the authorized signer is another key than the account's."""
    key = LocalSigner(b"\x11" * 32)
    async with (
        devnet.connect() as chain,
        open_shop(chain, tmp_path) as shop,
        open_client(
            rpc_url=devnet.values.rpc_url,
            private_key="0x" + devnet.values.accounts["payer"].private_key.hex(),
            policy=policy_of(devnet.values),
            store=tmp_path / "store.db",
            signer=key,
            base_url=shop.url,
        ) as client,
    ):
        assert (await client.get("/joke")).status_code == 200
        (account,) = await client.payments.close()
        assert account.terms.authorized_signer == key.address
        assert account.settled == JOKE_PRICE


async def test_a_burst_beyond_the_providers_rate_is_served_late_not_refused(
    devnet: TestChain, tmp_path: Path
) -> None:
    """VCH-09."""
    async with (
        devnet.connect() as chain,
        open_shop(chain, tmp_path, vouchers_per_second=10) as shop,
        agent_of(devnet.values, tmp_path, shop.url) as client,
    ):
        answers = await asyncio.gather(*(client.get("/joke") for _ in range(30)))
        assert {answer.status_code for answer in answers} == {200}
        (account,) = await client.payments.close()
        assert account.settled == 30 * JOKE_PRICE


async def stream(client: PayingClient) -> str:
    async with client.stream("POST", CHAT, json={"stream": True}) as response:
        return (await response.aread()).decode()


async def test_the_manuals_example_runs(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/guide/paying.md, its first block, word for word."""
    monkeypatch.chdir(tmp_path)
    code = MANUAL.read_text().partition("```python\n")[2].partition("```")[0]
    async with devnet.connect() as chain, open_shop(chain, tmp_path) as shop:
        names: dict[str, Any] = {
            "CHAIN_ID": devnet.values.chain_id,
            "TOKEN": devnet.values.token,
            "RPC_URL": devnet.values.rpc_url,
            "KEY": devnet.values.accounts["payer"].private_key,
            "URL": shop.url,
            "print": lambda _: None,
        }
        exec(code, names)  # noqa: S102 -- our own manual
        answer, (summary,) = await names["main"]()
    assert answer.status_code == 200
    assert summary.spent == summary.settled == JOKE_PRICE + 100 * TOKEN_PRICE
    assert summary.channels == summary.channels_closed == 1
