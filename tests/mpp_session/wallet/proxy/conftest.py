"""One gateway before a stand-in of a model, one paying proxy before it: shared by a module."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from channel.client.policy.policy import Policy, TokenLimits
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.gateway.app import Gateway
from mpp_session.gateway.upstream import Upstream as ModelUpstream
from mpp_session.settings import Secret
from mpp_session.testing.chain import TestChain
from mpp_session.wallet.proxy.app import build_proxy
from mpp_session.wallet.proxy.clients import OpenClient
from mpp_session.wallet.proxy.serve import only_for
from mpp_session.wallet.proxy.upstreams import Upstream, Upstreams, parse_upstream
from mpp_session.wiring import Parts, build_parts
from tests.mpp_session.gateway.conftest import KINDS, PRICE, build_config
from tests.mpp_session.model_server import ModelServer, model_server
from tests.mpp_session.serving import serve
from tests.mpp_session.settling import settling

TOKEN = "mpp_scout"  # noqa: S105 -- of a test


class Stack(msgspec.Struct):
    """What a module's tests share."""

    proxy: str
    gateway: str
    model: ModelServer
    parts: Parts
    chain: TestChain
    open_client: OpenClient

    async def spent(self) -> int:
        """What all channels have spent, in base units."""
        return sum(one.spent for one in await self.parts.ledger.list_channels())


@asynccontextmanager
async def proxying(open_: OpenClient, *upstreams: str | Upstream) -> AsyncIterator[str]:
    """Run a proxy, and yield its URL."""
    found = [one if isinstance(one, Upstream) else parse_upstream(one) for one in upstreams]
    async with (
        build_proxy(open_, Upstreams(found), origins=["https://page.example"]) as app,
        serve(app) as url,
    ):
        yield url


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stack(
    _session_chain: TestChain, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    chain, folder = _session_chain, tmp_path_factory.mktemp("proxy")
    snapshot_id = chain.snapshot()
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))  # as each test has its own
    try:
        async with model_server() as model:
            config = build_config(chain, model.url, folder)
            async with (
                settling(config),
                build_parts(config) as parts,
                ModelUpstream.connect(config.upstream) as upstream,
            ):
                gateway = Gateway(
                    config, parts.engine, upstream, stop=lambda: None, unit=parts.unit
                )
                open_ = only_for(Secret(TOKEN), lambda: paying(chain, folder / "agent.db"))
                async with serve(gateway) as url, proxying(open_, url, f"llm={url}/v1") as proxy:
                    yield Stack(proxy, url, model, parts, chain, open_)
    finally:
        patch.undo()
        chain.revert(snapshot_id)


@asynccontextmanager
async def paying(
    chain: TestChain, store: Path, *, most: int = 10**6, **options: Any
) -> AsyncIterator[PayingClient]:
    """Open the client that pays for the proxy, `most` base units for a channel and in all."""
    limits = TokenLimits(
        chain_id=chain.values.chain_id,
        token=chain.values.token,
        unit_price_max={"llm_chunk": PRICE, "llm_token": PRICE} | KINDS,
        deposit_max=most,
        budget=most,
    )
    async with open_client(
        rpc_url=chain.values.rpc_url,
        private_key=chain.values.accounts["payer"].private_key,
        policy=Policy(limits=(limits,), allow_loopback_http=True, **options),
        store=store,
        answers_refusals=False,
    ) as client:
        yield client
