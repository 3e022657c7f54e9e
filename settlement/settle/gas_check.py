"""Checks at start that the account which sends can keep what the settings promise (decision 15)."""

from typing import Final

from channel.errors import ConfigError
from channel.types import Address
from settlement.node.rpc import Rpc
from settlement.settle.exposure import gas_reserve_wei

__all__ = ["require_gas"]

_GAS_PER_CALL: Final = 200_000
"""More than a deposit or a charge uses."""
_GAS_PER_CLOSE: Final = 80_000


async def require_gas(rpc: Rpc, account: Address, *, closes_min: int, setting: str) -> None:
    """Check that the sending account can pay for closes and one call that `setting` promises.

    Raises:
        ConfigError: Its balance is too low to keep the promise.
    """
    head = await rpc.block()
    base_fee_wei = head.base_fee_wei or 0
    needed = gas_reserve_wei(
        closes_min, gas_per_close=_GAS_PER_CLOSE, base_fee_wei=base_fee_wei
    ) + gas_reserve_wei(1, gas_per_close=_GAS_PER_CALL, base_fee_wei=base_fee_wei)
    balance = await rpc.balance_wei(account)
    if balance < max(1, needed):
        raise ConfigError(
            f"`{setting}` is set, but 0x{account.hex()} has {balance} wei: send it at least "
            f"{needed} wei, for {closes_min} closes and one transaction more"
        )
