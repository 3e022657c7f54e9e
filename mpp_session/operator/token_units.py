"""What the tokens in the books call themselves, for commands that show amounts to people."""

import asyncio
from collections.abc import Collection
from typing import Final

from channel.errors import ChainUnavailableError, ConfigError
from channel.types import Address
from mpp_session.agent.amounts import TokenUnit
from settlement.escrow.token_name import read_token_name
from settlement.node.rpc import Rpc

__all__ = ["read_units"]

_PATIENCE_S: Final = 3.0
"""A node that does not answer must not keep the books from being read."""


async def read_units(
    rpc_url: str, chain_id: int, tokens: Collection[Address]
) -> dict[Address, TokenUnit]:
    """Return the units of those tokens that a node can name in time. It never fails."""
    found: dict[Address, TokenUnit] = {}
    try:
        async with (
            asyncio.timeout(_PATIENCE_S),
            await Rpc.connect(rpc_url, chain_id=chain_id) as rpc,
        ):
            for token in tokens:
                name = await read_token_name(rpc, token)
                if name is not None:
                    found[token] = TokenUnit(*name)
    except (TimeoutError, ChainUnavailableError, ConfigError):
        pass  # amounts are shown in base units
    return found
