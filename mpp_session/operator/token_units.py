"""Reads symbols and decimals of the ledger's tokens, for commands that show amounts."""

import asyncio
from collections.abc import Collection
from typing import Final

from channel.errors import ChainUnavailableError, ConfigError
from channel.types import Address
from mpp_session.agent.amounts import TokenUnit
from settlement.escrow.token_name import read_token_unit
from settlement.node.rpc import Rpc

__all__ = ["read_units"]

_PATIENCE_S: Final = 3.0
"""Seconds to wait for a node. The ledger must be readable without one."""


async def read_units(
    rpc_url: str, chain_id: int, tokens: Collection[Address]
) -> dict[Address, TokenUnit]:
    """Return the units of those tokens that a node names in time. Never raises."""
    found: dict[Address, TokenUnit] = {}
    try:
        async with (
            asyncio.timeout(_PATIENCE_S),
            await Rpc.connect(rpc_url, chain_id=chain_id) as rpc,
        ):
            for token in tokens:
                unit = await read_token_unit(rpc, token)
                if unit is not None:
                    found[token] = unit
    except (TimeoutError, ChainUnavailableError, ConfigError):
        pass  # amounts are shown in base units
    return found
