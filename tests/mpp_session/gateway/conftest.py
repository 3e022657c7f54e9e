"""A gateway before a model server that a test controls, a real chain, and an agent that pays."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from channel.client.policy.policy import Policy, TokenLimits
from channel.state.channel_state import ChannelState
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.devnet_file import devnet_settings
from mpp_session.gateway.app import Gateway
from mpp_session.gateway.upstream import Upstream
from mpp_session.settings import Config
from mpp_session.settings.config import load_config
from mpp_session.testing.chain import TestChain
from mpp_session.wiring import Parts, build_parts
from tests.mpp_session.model_server import ModelServer, model_server
from tests.mpp_session.serving import serve
from tests.mpp_session.settling import settling
from tests.waiting import PATIENCE_S

ON_BOTH_LOOPS = {"test_connections.py", "test_connector.py"}
PRICE = 25
KINDS = dict.fromkeys(
    (
        *("input_token", "cached_input_token", "cache_write_token"),
        *("output_token", "reasoning_token", "request", "second", "byte", "row"),
    ),
    1000,
)
"""What the agent pays at most for a unit of these kinds, in base units."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What depends on how a loop reads and writes is tried on the one with uvloop and without."""
    del config
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return loops | ({"uvloop": uvloop.new_event_loop} if item.path.name in ON_BOTH_LOOPS else {})


class Running(msgspec.Struct):
    """A gateway that answers."""

    url: str
    parts: Parts
    gateway: Gateway

    @property
    def completions(self) -> str:
        return f"{self.url}/v1/chat/completions"

    async def channels(self) -> list[ChannelState]:
        return await self.parts.ledger.list_channels()

    async def channel(self) -> ChannelState:
        """The one channel there is."""
        (state,) = await self.channels()
        return state


RunGateway = Callable[..., AbstractAsyncContextManager[Running]]
OpenAgent = Callable[..., AbstractAsyncContextManager[PayingClient]]


@pytest.fixture(autouse=True)
def _a_tokenizer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a tokenizer's answer may take longer than a gateway waits for it."""
    monkeypatch.setattr("mpp_session.gateway.prompt.PROMPT_COUNT_S_MAX", PATIENCE_S)


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with model_server() as server:
        yield server


def build_config(devnet: TestChain, upstream: str, folder: Path, **settings: Any) -> Config:
    """A gateway's settings; `section__name=value` changes one."""
    defaults: dict[str, Any] = {
        **devnet_settings(devnet.values),
        "upstream.url": upstream,
        "price.per_unit": PRICE,
        "payment.realm": "tests",
        "payment.secrets": ["a secret of thirty-two bytes, or more"],
        "ledger.url": f"sqlite:///{folder / 'gateway.db'}",
        "settlement.start": False,
    }
    flags = {name.replace("__", "."): value for name, value in settings.items()}
    if any(name.startswith("prices.") for name in flags):
        del defaults["price.per_unit"]
    return load_config(None, environment={}, defaults=defaults, flags=flags)


@pytest.fixture
def run_gateway(devnet: TestChain, model: ModelServer, tmp_path: Path) -> RunGateway:
    @contextlib.asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[Running]:
        config = build_config(devnet, model.url, tmp_path, **settings)
        async with (
            settling(config),
            build_parts(config) as parts,
            Upstream.connect(config.upstream) as upstream,
        ):
            gateway = Gateway(
                config,
                parts.engine,
                upstream,
                stop=lambda: None,
                unit=parts.unit,
            )
            async with serve(gateway) as url:
                yield Running(url, parts, gateway)

    return run


@pytest.fixture
def open_agent(devnet: TestChain, tmp_path: Path) -> OpenAgent:
    def open_(**policy: Any) -> AbstractAsyncContextManager[PayingClient]:
        values = devnet.values
        limits = TokenLimits(
            chain_id=values.chain_id,
            token=values.token,
            unit_price_max={"llm_chunk": PRICE, "llm_token": PRICE} | KINDS,
            deposit_max=10**6,
            budget=10**6,
        )
        return open_client(
            rpc_url=values.rpc_url,
            private_key=values.accounts["payer"].private_key,
            policy=Policy(limits=(limits,), allow_loopback_http=True, **policy),
            store=tmp_path / "agent.db",
        )

    return open_
