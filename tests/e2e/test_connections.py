"""O-52: a stream that is paid for as it comes needs a connection beside its own, or says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from channel.client.funding.keys import OneKey
from channel.client.funding.signer import AccountSigner
from channel.client.http import management
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelBusyError
from mpp_session.agent.client import PayingClient, build_client
from mpp_session.testing import TestChain
from settlement.escrow.payer import PayerAccount
from tests.e2e.provider import open_shop
from tests.e2e.test_agent import CHAT, policy_of, stream

TOKENS = 150


@asynccontextmanager
async def client_of(
    devnet: TestChain, folder: Path, *, connections: int, has_management: bool = False
) -> AsyncIterator[PayingClient]:
    """An agent with so many connections, at a shop of its own."""
    store = await PaymentStore.open(folder / "store.db")
    async with devnet.connect() as chain, open_shop(chain, folder, tokens=TOKENS) as shop:
        account = PayerAccount(chain.sender("payer"))
        async with build_client(
            policy=policy_of(devnet.values, parallel_streams_max=2),
            keys=OneKey(AccountSigner(account)),
            store=store,
            chains=[account],
            base_url=shop.url,
            transport=httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=connections)),
            management=httpx.AsyncHTTPTransport() if has_management else None,
        ) as client:
            yield client
    await store.close()


@pytest.mark.parametrize("streams", [1, 2])
async def test_a_stream_without_a_connection_for_its_vouchers_says_so(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """O-52: one connection and one stream, or two that use up both."""
    monkeypatch.setitem(management.TIMEOUT_S, "pool", 0.3)
    async with client_of(devnet, tmp_path, connections=streams) as client:
        results = await asyncio.gather(
            *(stream(client) for _ in range(streams)), return_exceptions=True
        )
        busy = [result for result in results if isinstance(result, ChannelBusyError)]
        assert busy
        assert "max_connections" in str(busy[0])


@pytest.mark.parametrize(("connections", "has_management"), [(2, False), (1, True)])
async def test_a_connection_more_or_one_for_vouchers_will_do(
    devnet: TestChain, tmp_path: Path, connections: int, *, has_management: bool
) -> None:
    """O-52."""
    async with (
        client_of(
            devnet, tmp_path, connections=connections, has_management=has_management
        ) as client,
        client.stream("POST", CHAT, json={"stream": True}) as response,
    ):
        assert (await response.aread()).count(b"content") >= TOKENS
