"""Parses the members of a JSON object one by one, so that an error can name the field.

An absent member differs from null: null is refused where a string or an object is expected.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from channel.errors import WireError
from channel.limits import DESCRIPTION_CHARS_MAX, WALLET_SIGNATURE_BYTES_MAX
from channel.types import ZERO_ADDRESS, Address, ChannelId, TxHash
from channel.wire.encoding import format_address, parse_address, parse_hex, parse_hex_bytes

__all__ = [
    "format_authorized_signer",
    "optional",
    "parse_authorized_signer",
    "parse_bool",
    "parse_bytes32",
    "parse_channel_id",
    "parse_name",
    "parse_names",
    "parse_object",
    "parse_signature",
    "parse_text",
    "parse_tx_hash",
    "required",
]

T = TypeVar("T")

CREDENTIAL_TYPES_MAX = 8


def required(wire: Mapping[str, Any], name: str, parse: Callable[[object], T]) -> T:
    """Return a mandatory member.

    Raises:
        WireError: It is absent or malformed.
    """
    if name not in wire:
        raise WireError(f"{name}: missing")
    try:
        return parse(wire[name])
    except WireError as error:
        raise WireError(f"{name}: {error}") from error


def optional(wire: Mapping[str, Any], name: str, parse: Callable[[object], T]) -> T | None:
    """Return a member, or None when it is absent.

    Raises:
        WireError: It is present and malformed.
    """
    return required(wire, name, parse) if name in wire else None


def parse_text(value: object) -> str:
    """Return a string of at most `DESCRIPTION_CHARS_MAX` characters, or raise `WireError`."""
    if not isinstance(value, str) or len(value) > DESCRIPTION_CHARS_MAX:
        raise WireError(f"not a string of at most {DESCRIPTION_CHARS_MAX} characters")
    return value


def parse_name(value: object) -> str:
    """Return a string of any length, or raise `WireError`."""
    if not isinstance(value, str):
        raise WireError("not a string")
    return value


def parse_names(value: object) -> tuple[str, ...]:
    """Return a list of 1 to `CREDENTIAL_TYPES_MAX` strings, or raise `WireError`."""
    if not isinstance(value, list) or not 0 < len(value) <= CREDENTIAL_TYPES_MAX:
        raise WireError(f"not a list of 1 to {CREDENTIAL_TYPES_MAX} names")
    return tuple(parse_text(name) for name in value)


def parse_bool(value: object) -> bool:
    """Return `true` or `false`, or raise `WireError`."""
    if not isinstance(value, bool):
        raise WireError("not a boolean")
    return value


def parse_object(value: object) -> dict[str, Any]:
    """Return an object, or raise `WireError`."""
    if not isinstance(value, dict):
        raise WireError("not an object")
    return value


def parse_bytes32(value: object) -> bytes:
    """Return 32 bytes, or raise `WireError`."""
    return parse_hex(value, 32)


def parse_channel_id(value: object) -> ChannelId:
    """Return a channel id, or raise `WireError`."""
    return ChannelId(parse_hex(value, 32))


def parse_tx_hash(value: object) -> TxHash:
    """Return a transaction hash, or raise `WireError`."""
    return TxHash(parse_hex(value, 32))


def parse_signature(value: object) -> bytes:
    """Return 1 to 4096 bytes: 65 from a key, any length from a wallet (ENC-06).

    Raises:
        WireError: Not `0x` and hex digits, empty, or longer.
    """
    return parse_hex_bytes(value, size_max=WALLET_SIGNATURE_BYTES_MAX)


def parse_authorized_signer(wire: Mapping[str, Any]) -> Address:
    """Return `authorizedSigner`, zero when omitted (CLIENT-03), or raise `WireError`."""
    return optional(wire, "authorizedSigner", parse_address) or ZERO_ADDRESS


def format_authorized_signer(signer: Address) -> dict[str, str]:
    """Return the member, or an empty dict when the payer signs its own vouchers."""
    return {} if signer == ZERO_ADDRESS else {"authorizedSigner": format_address(signer)}
