"""The payment methods of this package. A new one is a package beside `evm`, and a line here."""

from typing import Final

from channel.errors import ConfigError
from channel.methods.evm.method import EVM
from channel.methods.interface import SessionMethod
from channel.methods.tempo.method import TEMPO

__all__ = ["DEFAULT", "METHODS", "find_method"]

DEFAULT: Final[SessionMethod] = EVM
"""The method of an engine, a client or a command that names none."""

METHODS: Final[tuple[SessionMethod, ...]] = (EVM, TEMPO)


def find_method(name: str) -> SessionMethod:
    """Return the method of this name, as challenges state it.

    Raises:
        ConfigError: There is none.
    """
    for method in METHODS:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in METHODS)
    raise ConfigError(f"expected a payment method among {known}, found {name}")
