"""A program that cannot keep what `[rails]` promises does not start."""

import pytest
from msgspec.structs import replace

from channel.errors import ConfigError
from mpp_session.charging import open_rails
from mpp_session.devnet_file import devnet_settings
from mpp_session.gateway.serve import run_gateway
from mpp_session.settings import Config
from mpp_session.settings.config import load_config
from mpp_session.testing.chain import TestChain
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from tests.e2e.selling import SECRET


def charging(devnet: TestChain) -> Config:
    defaults = {
        **devnet_settings(devnet.values),
        "upstream.url": "http://127.0.0.1:9",
        "payment.realm": "jokes.example",
        "price.per_unit": 1,
        "payment.secrets": [SECRET.decode()],
        "ledger.url": "sqlite:////nowhere/gateway.db",
    }
    config = load_config(None, environment={}, defaults=defaults)
    return replace(config, rails=replace(config.rails, charge=True))


async def test_without_gas_an_application_does_not_start(devnet: TestChain) -> None:
    """Decision 15, F-65."""
    config = charging(devnet)
    async with devnet.connect() as chain:
        account = "0x" + config.gas_account.hex()
        await chain.rpc.command("anvil_setBalance", account, "0x1")
        unit = await read_token_unit(chain.rpc, chain.values.token)
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        with pytest.raises(ConfigError, match=r"`rails\.charge` is set, but 0x"):
            async with open_rails(config, reader, unit, lambda: 0.0):
                pass


async def test_a_gateway_whose_routes_are_metered_refuses_it(devnet: TestChain) -> None:
    """O-57: a setting is used, or refused."""
    with pytest.raises(ConfigError, match="every route of a gateway is metered"):
        await run_gateway(charging(devnet), announce=lambda *_: None)
