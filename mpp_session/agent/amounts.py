"""Amounts as people read them. Everywhere else they are base units."""

from typing import Final

import msgspec

__all__ = ["BASE_UNITS", "TokenUnit", "format_ether"]


class TokenUnit(msgspec.Struct, frozen=True):
    """How amounts of a token are written for people."""

    symbol: str
    decimals: int

    def format(self, amount: int, *, signed: bool = False) -> str:
        """Return base units as a decimal of the whole token, exactly: no rounding, ever."""
        sign = "-" if amount < 0 else "+" if signed else ""
        whole, part = divmod(abs(amount), 10**self.decimals)
        decimals = f".{part:0{self.decimals}d}" if self.decimals else ""
        return f"{sign}{whole:,}{decimals} {self.symbol}"


BASE_UNITS: Final = TokenUnit("base units", 0)
"""For a token whose name is not known."""


def format_ether(wei: int) -> str:
    """Return an amount of gas as people read it: exact, without zeros at its end."""
    text = TokenUnit("", 18).format(wei).strip()
    return f"{text.rstrip('0').rstrip('.')} ether"
