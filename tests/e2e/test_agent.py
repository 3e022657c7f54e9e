"""An agent pays a real provider on a real chain, from the first 402 to the refund."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import openai
import pytest

from channel.client.policy import Policy, TokenLimits
from service.client import PayingClient, open_client
from service.testing import TestChain
from settlement.devnet import DevnetValues
from tests.e2e.provider import JOKE_PRICE, TOKEN_PRICE, open_shop

pytestmark = pytest.mark.timeout(120)


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
        store=folder / "purse.db",
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
    """CLIENT-07, SSE-01 to SSE-04: it never sees an event of ours."""
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
        (account,) = await client.payments.close()
        assert account.spent == account.settled == 300 * TOKEN_PRICE
        assert account.units == 300
        assert account.vouchers > 3
