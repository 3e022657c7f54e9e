"""Encodes bytes, numbers, addresses and times for the wire; strict in both directions.

Python's own parsers are lenient where money is at stake: `int("1_000")`, `bytes.fromhex("ab cd")`,
`urlsafe_b64decode("a!b")` and `json.loads('{"a":1,"a":2}')` all succeed (F-01 to F-05). Every
parser here raises `WireError` and nothing else, and accepts everything that its formatter writes.
"""

import json
import math
import re
from binascii import b2a_base64
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NoReturn

import msgspec
import rfc8785
from sha3 import keccak_256  # type: ignore[import-untyped]

from channel.errors import WireError
from channel.limits import AMOUNT_MAX, AUTHORIZATION_BYTES_MAX, JSON_DEPTH_MAX, SAFE_INTEGER_MAX
from channel.types import Address
from channel.wire.depth import is_shallow

__all__ = [
    "canonical_json",
    "decode_base64url",
    "encode_base64url",
    "format_address",
    "format_amount",
    "format_checksum_address",
    "format_hex",
    "format_source",
    "format_timestamp",
    "parse_address",
    "parse_amount",
    "parse_hex",
    "parse_hex_bytes",
    "parse_json",
    "parse_json_object",
    "parse_safe_integer",
    "parse_source",
    "parse_timestamp",
    "parse_uint256",
]

_DECIMAL = re.compile("0|[1-9][0-9]{0,77}").fullmatch
_SOURCE = re.compile("did:pkh:eip155:([1-9][0-9]{0,15}):(0x[0-9a-fA-F]{40})").fullmatch
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt](?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-9]{2})"
).fullmatch
_decode_base64 = msgspec.json.Decoder(bytes).decode
# Indexed by the characters beyond whole groups of four; a single one cannot occur.
_PADDING = ("", "", "==", "=")
_LAST_CHARACTERS = ("", "", "AQgw", "AEIMQUYcgkosw048")
_UINT256_MAX = 2**256 - 1
_INTEGER_CHARS_MAX = 17


def encode_base64url(value: bytes) -> str:
    """Return base64url without padding (RFC 4648 section 5)."""
    text = b2a_base64(value, newline=False).rstrip(b"=").decode("ascii")
    return text.replace("+", "-").replace("/", "_")


def decode_base64url(text: str) -> bytes:
    """Return the bytes behind base64url text; only a trailing `=` is tolerated.

    One value has one spelling (F-04): no character outside the alphabet, and no unused bits in the
    last one. msgspec decodes because it takes half the time of `binascii`; the length shows that
    it read no character as an escape and dropped none.

    Raises:
        WireError: The text is not base64url.
    """
    token = text.rstrip("=")
    standard = token
    if "-" in token or "_" in token:
        standard = token.replace("-", "+").replace("_", "/")
    beyond = len(token) % 4
    try:
        value = _decode_base64(f'"{standard}{_PADDING[beyond]}"')
    except (msgspec.DecodeError, UnicodeError) as error:
        raise WireError("not base64url") from error
    if (
        len(value) != len(token) * 3 // 4
        or (beyond and token[-1] not in _LAST_CHARACTERS[beyond])
        or "+" in token
        or "/" in token
    ):
        raise WireError("not base64url")
    return value


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Return the RFC 8785 form: keys by UTF-16 code units, no spaces, nothing escaped twice (F-07).

    Raises:
        WireError: A float, an integer beyond 2**53 - 1, a lone surrogate, or a type JSON lacks.
    """
    _require_exact(value, depth=0)
    return rfc8785.dumps(value)


def _require_exact(value: object, *, depth: int) -> None:
    """Refuse values that two implementations might write differently."""
    if depth > JSON_DEPTH_MAX:
        raise WireError("nested too deeply")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _require_unicode(value)
    elif isinstance(value, int):
        parse_safe_integer(abs(value))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise WireError("an object has a key that is not a string")
            _require_unicode(key)
            _require_exact(inner, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_exact(inner, depth=depth + 1)
    else:
        raise WireError(f"a {type(value).__name__} has no canonical JSON form")


def _require_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise WireError("a lone surrogate is not text") from error


def parse_json(text: bytes | str, *, bytes_max: int = AUTHORIZATION_BYTES_MAX) -> Any:
    """Return a JSON value, parsed strictly; size and depth are checked before parsing.

    Refuses more than RFC 8259 does: duplicate keys, NaN and Infinity, integers beyond 2**53 - 1,
    numbers too great for a float, lone surrogates, encodings other than UTF-8 (F-02, F-03, F-11).

    Raises:
        WireError: Malformed, larger than `bytes_max`, or nested too deeply.
    """
    if len(text) > bytes_max:
        raise WireError(f"more than {bytes_max} bytes of JSON")
    try:
        raw, decoded = (
            (text.encode("utf-8"), text) if isinstance(text, str) else (text, text.decode("utf-8"))
        )
    except UnicodeError as error:
        raise WireError("not UTF-8") from error
    if len(raw) > bytes_max:
        raise WireError(f"more than {bytes_max} bytes of JSON")
    if not is_shallow(raw, JSON_DEPTH_MAX):
        raise WireError("not JSON, or nested too deeply")
    try:
        value = _DECODER.decode(decoded)
    except json.JSONDecodeError as error:
        raise WireError("not JSON") from error
    if b"\\u" in raw:
        _require_exact_text(value)
    return value


def parse_json_object(
    text: bytes | str, *, bytes_max: int = AUTHORIZATION_BYTES_MAX
) -> dict[str, Any]:
    """Return a JSON object as `parse_json` reads it, or raise `WireError`."""
    value = parse_json(text, bytes_max=bytes_max)
    if not isinstance(value, dict):
        raise WireError("not a JSON object")
    return value


def _require_exact_text(value: object) -> None:
    r"""Refuse `\ud800` escapes, which become strings that cannot be written out again (F-11)."""
    if isinstance(value, str):
        _require_unicode(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _require_unicode(key)
            _require_exact_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _require_exact_text(inner)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise WireError("an object names a key twice")
    return value


def _bounded_integer(digits: str) -> int:
    if len(digits) > _INTEGER_CHARS_MAX or abs(int(digits)) > SAFE_INTEGER_MAX:
        raise WireError("an integer beyond 2**53 - 1")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise WireError("a number too great for a float")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise WireError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_pairs,
    parse_int=_bounded_integer,
    parse_float=_finite_float,
    parse_constant=_refuse_constant,
)


def parse_amount(value: object) -> int:
    """Return base units from a canonical decimal string of at most `uint128` (ENC-02, F-01).

    Raises:
        WireError: Not a string, not canonical, or above 2**128 - 1.
    """
    amount = parse_uint256(value)
    if amount > AMOUNT_MAX:
        raise WireError("an amount above 2**128 - 1")
    return amount


def parse_uint256(value: object) -> int:
    """Return a canonical decimal string of at most `uint256`: nonces and deadlines.

    Raises:
        WireError: Not a string, not canonical, or above 2**256 - 1.
    """
    if not isinstance(value, str) or _DECIMAL(value) is None:
        raise WireError("not a canonical decimal string")
    number = int(value)
    if number > _UINT256_MAX:
        raise WireError("a number above 2**256 - 1")
    return number


def format_amount(amount: int) -> str:
    """Return an amount in base units as the wire writes it.

    Raises:
        WireError: Negative or above 2**128 - 1.
    """
    if not 0 <= amount <= AMOUNT_MAX:
        raise WireError("an amount outside 0 .. 2**128 - 1")
    return str(amount)


def parse_safe_integer(value: object) -> int:
    """Return a JSON number that is an integer from 0 to 2**53 - 1: `chainId`, `units` (ENC-03).

    Raises:
        WireError: A bool, a float, a string, negative, or too great.
    """
    if type(value) is not int or not 0 <= value <= SAFE_INTEGER_MAX:
        raise WireError("not an integer from 0 to 2**53 - 1")
    return value


def parse_hex(value: object, size: int) -> bytes:
    """Return exactly `size` bytes from `0x` and twice as many hex digits of either case (F-05).

    Raises:
        WireError: Not a string of that form.
    """
    raw = _read_hex(value)
    if len(raw) != size:
        raise WireError(f"not 0x and {2 * size} hex digits")
    return raw


def parse_hex_bytes(value: object, *, size_max: int) -> bytes:
    """Return 1 to `size_max` bytes from `0x` and hex digits of either case: a wallet's signature.

    Raises:
        WireError: Not a string of that form, empty, or longer.
    """
    raw = _read_hex(value)
    if not 0 < len(raw) <= size_max:
        raise WireError(f"not 0x and the hex digits of 1 to {size_max} bytes")
    return raw


def _read_hex(value: object) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise WireError("not a string of 0x and hex digits")
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError as error:
        raise WireError("not hex digits") from error
    if 2 + 2 * len(raw) != len(value):  # `fromhex` skips spaces, so bytes are missing
        raise WireError("not hex digits alone")
    return raw


def format_hex(value: bytes) -> str:
    """Return `0x` and lowercase hex digits (ENC-01)."""
    return "0x" + value.hex()


def parse_address(value: object) -> Address:
    """Return 20 bytes; any case is taken and no checksum is enforced (ENC-01).

    Raises:
        WireError: Not `0x` and 40 hex digits.
    """
    return Address(parse_hex(value, 20))


def format_address(address: Address) -> str:
    """Return `0x` and 40 lowercase hex digits."""
    return "0x" + address.hex()


@lru_cache(maxsize=1024)
def format_checksum_address(address: Address) -> str:
    """Return the EIP-55 spelling: a letter is a capital where the hash's nibble is 8 or more."""
    digits = address.hex()
    nibbles = keccak_256(digits.encode("ascii")).hexdigest()
    return "0x" + "".join(
        digit.upper() if nibble >= "8" else digit
        for digit, nibble in zip(digits, nibbles, strict=False)
    )


def parse_timestamp(text: object) -> float:
    """Return POSIX seconds from an RFC 3339 date and time; the offset is required (CHAL-07).

    Raises:
        WireError: No offset, another format, or no such instant (a leap second included).
    """
    if not isinstance(text, str):
        raise WireError("not a string")
    return _parse_time(text)


@lru_cache(maxsize=256)
def _parse_time(text: str) -> float:
    if _TIMESTAMP(text) is None:
        raise WireError("not an RFC 3339 time with an offset")
    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError) as error:
        raise WireError("no such time") from error


def format_timestamp(seconds: float) -> str:
    """Return `YYYY-MM-DDTHH:MM:SSZ`, without the fraction of a second.

    Raises:
        WireError: Before year 1 or after year 9999.
    """
    return _format_second(math.floor(seconds))


@lru_cache(maxsize=64)
def _format_second(second: int) -> str:
    try:
        moment = datetime.fromtimestamp(second, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise WireError("no such time") from error
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def format_source(chain_id: int, address: Address) -> str:
    """Return the payer's `did:pkh` (CRED-02)."""
    return f"did:pkh:eip155:{chain_id}:{format_address(address)}"


def parse_source(value: object) -> tuple[int, Address]:
    """Return chain id and address from `did:pkh:eip155:<chain id>:<0x address>` (CRED-02).

    Raises:
        WireError: Another DID method, leading zeros, or anything after the address.
    """
    match = _SOURCE(value) if isinstance(value, str) else None
    if match is None:
        raise WireError("not did:pkh:eip155:<chain id>:<address>")
    return parse_safe_integer(int(match[1])), parse_address(match[2])
