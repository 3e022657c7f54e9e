"""Amounts of statistics as people read them (pure). They are no exact amounts: two digits do."""

import math
from typing import Final

from channel.types import TokenUnit
from mpp_session.wallet.watch.judge import Money

__all__ = ["money_in"]

CENTS: Final = 2
"""Decimals that are always written, where the token has them."""


def money_in(unit: TokenUnit) -> Money:
    """Return what writes base units of a token: cents, or two digits of what is less."""

    def write(value: float) -> str:
        amount = value / 10**unit.decimals
        small = 1 - math.floor(math.log10(amount)) if amount > 0 else 0
        text = f"{amount:,.{min(unit.decimals, max(CENTS, small))}f}"
        spare = len(text.partition(".")[2]) - CENTS
        zeros = len(text) - len(text.rstrip("0"))
        return f"{text[: len(text) - min(zeros, max(0, spare))]} {unit.symbol}"

    return write
