"""Reads a token's symbol and decimals, for display only: no decision depends on them."""

import asyncio

from channel.types import Address, TokenUnit
from settlement import abi
from settlement.errors import ContractRevertedError
from settlement.node.rpc import Rpc

__all__ = ["read_token_unit"]

_SYMBOL_CHARS_MAX = 16
_DECIMALS_MAX = 36


async def read_token_unit(rpc: Rpc, token: Address) -> TokenUnit | None:
    """Return symbol and decimals of a token; None if it has none or returns invalid ones.

    Raises:
        ChainUnavailableError: No node answers.
    """
    try:
        answers = await asyncio.gather(
            rpc.call(token, abi.symbol.encode()), rpc.call(token, abi.decimals.encode())
        )
    except ContractRevertedError:
        return None
    symbol, decimals = (
        abi.symbol.decode_or_none(answers[0]),
        abi.decimals.decode_or_none(answers[1]),
    )
    if symbol is None or decimals is None:
        return None
    text, places = str(symbol[0]), int(str(decimals[0]))
    is_plain = 0 < len(text) <= _SYMBOL_CHARS_MAX and text.isprintable() and text.isascii()
    return TokenUnit(text, places) if is_plain and places <= _DECIMALS_MAX else None
