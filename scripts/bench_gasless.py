"""Payers without ether: time to the first paid byte, and the gas of their deposits."""

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from bench_samples import Row, Run
from channel.client.policy.policy import Policy, TokenLimits
from mpp_session.agent.client import PayingClient, open_client
from settlement import abi
from settlement.dev.devnet import GASLESS, Devnet, DevnetValues, TokenChoice
from tests.e2e.provider import TOKEN_PRICE, Shop, open_shop, sponsored

__all__ = ["gasless_rows"]

CHAT: Final = "/v1/chat/completions"
TOKENS: Final = 250
TOKENS_USED: Final[tuple[TokenChoice, ...]] = ("dusd", "usdc")
KINDS: Final = ("authorization", "permit2")
_STEPS: Final = {
    abi.open_with_authorization.selector: "an open by authorization",
    abi.open_with_permit2.selector: "an open by permit2",
    abi.top_up_with_authorization.selector: "a top-up by authorization",
    abi.top_up_with_permit2.selector: "a top-up by permit2",
}


async def gasless_rows(run: Run) -> AsyncIterator[Row]:
    """Measure sponsored openings, by a client as agents use it."""
    first, again = [], []
    async with _shop(run.folder / "waiting", "authorization", "usdc", block_time_s=1) as (
        chain,
        shop,
    ):
        for number in range(run.repeats):
            store = run.folder / "waiting" / f"store-{number}.db"
            async with _agent(chain.values, shop, store) as client:
                first.append(await _first_byte_s(client))
                again.append(await _first_byte_s(client))
    yield Row(
        name="request to first paid byte, sponsored open",
        unit="s",
        samples=first,
        besides=f"1 s blocks; {statistics.median(again) * 1e3:.0f} ms once the channel is open",
    )
    for token in TOKENS_USED:
        for kind in KINDS:
            async for row in _gas_rows(run, token, kind):
                yield row


async def _gas_rows(run: Run, token: TokenChoice, kind: str) -> AsyncIterator[Row]:
    """Open once and top up within a stream; each Permit2 nonce uses a new storage word."""
    used: dict[str, list[float]] = {}
    folder = run.folder / f"{token}-{kind}"
    async with _shop(folder, kind, token) as (chain, shop):
        await chain.fund(chain.account(GASLESS).address, ether=int(kind == "permit2"))
        for number in range(run.repeats):
            began = await chain.rpc.block_number()
            store = folder / f"store-{number}.db"
            async with _agent(chain.values, shop, store, expected_units=150) as client:
                async with client.stream("POST", CHAT, json={"stream": True}) as answer:
                    await answer.aread()
                await client.payments.close()
            for step, gas in await _deposits(chain, began):
                used.setdefault(step, []).append(gas)
    for step, samples in used.items():
        yield Row(name=f"gas of {step}, {token}", unit="gas", samples=samples)


@asynccontextmanager
async def _shop(
    folder: Path, kind: str, token: TokenChoice, *, block_time_s: int | None = None
) -> AsyncIterator[tuple[Devnet, Shop]]:
    folder.mkdir()  # noqa: ASYNC240 -- before anything is measured
    async with AsyncExitStack() as open_:
        chain = await open_.enter_async_context(
            Devnet.start(token=token, block_time_s=block_time_s)
        )
        sponsoring = await open_.enter_async_context(sponsored(chain, folder, types=[kind]))
        shop = open_shop(chain, folder, tokens=TOKENS, sponsoring=sponsoring)
        yield chain, await open_.enter_async_context(shop)


@asynccontextmanager
async def _agent(
    values: DevnetValues, shop: Shop, store: Path, *, expected_units: int = 1000
) -> AsyncIterator[PayingClient]:
    limits = TokenLimits(
        chain_id=values.chain_id,
        token=values.token,
        unit_price_max={"llm_chunk": TOKEN_PRICE},
        deposit_max=100_000,
        budget=100_000,
    )
    async with open_client(
        rpc_url=values.rpc_url,
        private_key=values.accounts[GASLESS].private_key,
        policy=Policy(limits=(limits,), allow_loopback_http=True, expected_units=expected_units),
        store=store,
        base_url=shop.url,
    ) as client:
        yield client


async def _first_byte_s(client: PayingClient) -> float:
    began = time.monotonic()
    async with client.stream("POST", CHAT, json={"stream": True}) as answer:
        packets = answer.aiter_bytes()
        await anext(packets)
        taken_s = time.monotonic() - began
        async for _ in packets:
            pass
    return taken_s


async def _deposits(chain: Devnet, after_block: int) -> list[tuple[str, float]]:
    """Return the gas of each deposit in the blocks since."""
    found = []
    for number in range(after_block + 1, await chain.rpc.block_number() + 1):
        block = await chain.rpc.read("eth_getBlockByNumber", hex(number), True)  # noqa: FBT003
        for sent in block["transactions"]:
            step = _STEPS.get(bytes.fromhex(sent["input"][2:10]))
            if step is not None:
                receipt = await chain.rpc.read("eth_getTransactionReceipt", sent["hash"])
                found.append((step, float(int(receipt["gasUsed"], 16))))
    return found
