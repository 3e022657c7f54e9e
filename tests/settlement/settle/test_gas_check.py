"""What the settings promise needs gas, which is checked before anything is sold."""

import pytest

from channel.errors import ConfigError
from settlement.dev.devnet import Devnet
from settlement.settle.gas_check import require_gas


async def test_gas_must_be_at_hand(chain: Devnet) -> None:
    """F-65, decision 15: for the closes that are reserved and one deposit or charge."""
    account = chain.account("payee").address
    await require_gas(chain.rpc, account, closes_min=20, setting="rails.charge")
    await chain.rpc.command("anvil_setBalance", "0x" + account.hex(), "0x1")
    with pytest.raises(ConfigError, match=r"`rails.charge` .* at least \d+ wei, for 20 closes"):
        await require_gas(chain.rpc, account, closes_min=20, setting="rails.charge")
