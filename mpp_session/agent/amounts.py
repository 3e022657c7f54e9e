"""Amounts as people read them. Everywhere else they are base units."""

from typing import Final

from channel.types import TokenUnit

__all__ = ["BASE_UNITS", "TokenUnit", "format_ether"]

BASE_UNITS: Final = TokenUnit("base units", 0)
"""For a token whose name is not known."""


def format_ether(wei: int) -> str:
    """Return an amount of gas as people read it: exact, without zeros at its end."""
    text = TokenUnit("", 18).format(wei).strip()
    return f"{text.rstrip('0').rstrip('.')} ether"
