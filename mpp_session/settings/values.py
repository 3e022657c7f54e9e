"""Types of settings: a section, a secret, an address, a URL."""

import re
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from channel.errors import ConfigError
from channel.types import Address, address

__all__ = [
    "INT64_MAX",
    "TOKENS_MAX",
    "HexAddress",
    "Money",
    "Positive",
    "Secret",
    "Section",
    "decode_value",
    "is_loopback",
    "parse_address",
    "require_bearer",
    "require_http_url",
]

INT64_MAX: Final = 2**63 - 1
TOKENS_MAX: Final = 10**9
_MONEY: Final = re.compile(r"[0-9]{1,30}(\.[0-9]{1,30})?( [A-Za-z][A-Za-z0-9.+-]{0,15})?")
_VISIBLE: Final = re.compile("[!-~]+")

HexAddress = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}$")]
Positive = Annotated[int, Meta(ge=1, le=INT64_MAX)]


class Secret:
    """A text that is never printed: not by `repr`, `str`, a log or a traceback (F-103)."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one place that needs it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"


class Money(str):
    """An amount of the token as people write it: `"0.40"`, `"0.40 USDC"`.

    The token's decimals make it a number, and are known once the chain answers.
    """

    __slots__ = ()

    def __new__(cls, text: object) -> Self:
        """Check the form.

        Raises:
            ValueError: It is no text, or no decimal of the token.
        """
        if not isinstance(text, str) or not _MONEY.fullmatch(text):
            raise ValueError(
                f'expected an amount of the token in quotes, such as "0.40", found {text!r:.80}'
            )
        return super().__new__(cls, text)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""


def decode_value(kind: type, value: Any) -> Any:
    """Return a setting of a type that msgspec does not know: its `dec_hook`.

    Raises:
        ValueError: The value has not its form.
    """
    if kind is Money:
        return Money(value)
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise ValueError("Expected `str`")


def parse_address(text: str) -> Address:
    """Parse an address in hexadecimal.

    Raises:
        ConfigError: The text is not an address.
    """
    try:
        return address(bytes.fromhex(text.removeprefix("0x")))
    except ValueError as error:
        raise ConfigError(
            f"{text} is not an address: write 0x and 40 hexadecimal digits"
        ) from error


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


def require_http_url(name: str, url: str) -> None:
    """Refuse a URL that is not plain http or https; `name` is the setting."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not _VISIBLE.fullmatch(url):
        raise ValueError(f"`{name}` must be an http or https URL")
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"`{name}` must be an http or https URL: {error}") from None
    if parts.query or parts.fragment:
        raise ValueError(f"`{name}` must have neither query nor fragment")


def require_bearer(name: str, token: Secret | None) -> None:
    """Refuse a token that an `Authorization` field cannot carry; `name` is the setting."""
    if token is not None and not _VISIBLE.fullmatch(token.reveal()):
        raise ValueError(f"`{name}` must be printable ASCII without spaces")
