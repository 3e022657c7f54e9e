"""Amounts as people read them. Everywhere else they are base units."""

import msgspec

__all__ = ["TokenUnit"]


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
