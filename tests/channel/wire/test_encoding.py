"""Every reader takes exactly what its writer writes; all else is a `WireError`."""

import base64
import math
import re
from collections.abc import Callable

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from channel.errors import WireError
from channel.limits import AMOUNT_MAX, AUTHORIZATION_BYTES_MAX, JSON_DEPTH_MAX, SAFE_INTEGER_MAX
from channel.types import Address
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    format_address,
    format_amount,
    format_checksum_address,
    format_hex,
    format_source,
    format_timestamp,
    parse_address,
    parse_amount,
    parse_hex,
    parse_hex_bytes,
    parse_json,
    parse_json_object,
    parse_safe_integer,
    parse_source,
    parse_timestamp,
    parse_uint256,
)

ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)
# What a lenient reader of numbers takes and we do not.
NOT_DECIMAL = ["", " 1", "1 ", "1\n", "+1", "-0", "-1", "01", "00", "1_000", "1e3", "1.0", "0x1"]
NOT_ASCII_DECIMAL = ["\u0661", "\u00b2", "\uff11", "1\u0660"]


# -- base64url


@given(st.binary(max_size=200))
def test_base64url_comes_back_and_needs_no_padding(value: bytes) -> None:
    """0.2: RFC 4648 section 5, no `=`; trailing `=` is tolerated."""
    text = encode_base64url(value)
    assert re.fullmatch("[A-Za-z0-9_-]*", text)
    assert decode_base64url(text) == decode_base64url(text + "=") == value


def strict_base64url(text: str) -> bytes | None:
    """Say what base64url is, by its alphabet and by encoding the result again."""
    token = text.rstrip("=")
    if not re.fullmatch("[A-Za-z0-9_-]*", token) or len(token) % 4 == 1:
        return None
    value = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return value if encode_base64url(value) == token else None


@given(st.text('ABCQgwEIM048z-_+/= \t\n"\\u00e9\ud800', max_size=14))
@example("abcd!")
@example("abcde!")
@example('ab"')
@example("\\u0041A")
@example("AB==CD")
@example("=")
def test_base64url_is_taken_in_one_spelling_only(text: str) -> None:
    """F-04: junk, the standard alphabet, escapes and stray bits are refused, never dropped."""
    expected = strict_base64url(text)
    if expected is None:
        with pytest.raises(WireError, match="base64url"):
            decode_base64url(text)
    else:
        assert decode_base64url(text) == expected


def test_stray_bits_in_the_last_character_are_refused() -> None:
    """F-04: `QQ` and `QR` would be the same byte."""
    assert decode_base64url("QQ") == b"A"
    with pytest.raises(WireError):
        decode_base64url("QR")
    assert decode_base64url("QUI") == b"AB"
    with pytest.raises(WireError):
        decode_base64url("QUJ")


# -- JSON


def test_canonical_json_sorts_by_utf16_units() -> None:
    """F-07: U+1F600 sorts before U+FB33 by UTF-16 units, after it by code points."""
    assert canonical_json({"\ufb33": 1, "\U0001f600": 2}) == (
        '{"\U0001f600":2,"\ufb33":1}'.encode()
    )
    assert canonical_json({"a": "<b>&\u20ac"}) == '{"a":"<b>&\u20ac"}'.encode()


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1.0},
        {"a": float("nan")},
        {"a": [1.5]},
        {"a": SAFE_INTEGER_MAX + 1},
        {"a": -SAFE_INTEGER_MAX - 1},
        {"a": "\ud800"},
        {"\udfff": 1},
        {1: 2},
        {"a": b"bytes"},
        {"a": {1, 2}},
    ],
)
def test_canonical_json_refuses_what_two_writers_would_write_differently(value: object) -> None:
    """F-07, F-11: floats, great integers, lone surrogates, foreign types."""
    with pytest.raises(WireError):
        canonical_json(value)  # type: ignore[arg-type]


def test_canonical_json_takes_all_that_is_exact() -> None:
    value = {"b": [True, None, -SAFE_INTEGER_MAX, SAFE_INTEGER_MAX], "a": {}}
    assert canonical_json(value) == b'{"a":{},"b":[true,null,-9007199254740991,9007199254740991]}'


def test_canonical_json_is_bounded_in_depth() -> None:
    value: dict[str, object] = {}
    for _ in range(JSON_DEPTH_MAX):
        value = {"a": value}
    assert canonical_json(value)
    with pytest.raises(WireError, match="deep"):
        canonical_json({"a": value})


JSON_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE_INTEGER_MAX, SAFE_INTEGER_MAX) | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JSON_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(JSON_TEXT, JSON_VALUES, max_size=4))
def test_what_is_written_canonically_is_read_as_it_was(value: dict[str, object]) -> None:
    text = canonical_json(value)
    assert parse_json(text) == value
    assert parse_json(text.decode()) == value
    assert rfc8785.dumps(parse_json(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e400}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"\\u0062":2}}',
        b'{"a":9007199254740992}',
        b'{"a":-9007199254740992}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\\ud800"}',
        b'{"a":["\\udc00\\ud800"]}',
        b'{"\\ud800":1}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32"),
        b'{"a":1}x',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":\t"\t"}',
        b"{a:1}",
        b"",
        b"+1",
        b"01",
    ],
)
def test_lenient_json_is_refused(text: bytes) -> None:
    """F-02, F-03, F-11: what Python's json takes, or fails on with another error."""
    with pytest.raises(WireError):
        parse_json(text)


def test_a_lone_surrogate_in_text_is_refused() -> None:
    """F-11."""
    with pytest.raises(WireError, match="UTF-8"):
        parse_json('{"a":"\ud800"}')


def test_the_size_of_json_is_bounded_before_it_is_read() -> None:
    """F-02, SEC-10: characters first, then the bytes they make."""
    assert parse_json(b'"aa"', bytes_max=4) == "aa"
    for text in (b'"aaa"', '"aaa"', '"\u20ac"'):
        with pytest.raises(WireError, match="more than 4 bytes"):
            parse_json(text, bytes_max=4)


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_the_depth_of_json_is_bounded_before_it_is_read(brackets: str) -> None:
    """F-02, SEC-10: 16 levels are read; 17 and 30,000 are refused."""
    opening, closing = ('{"a":', "}") if brackets == "{}" else ("[", "]")

    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    assert parse_json(nested(JSON_DEPTH_MAX))
    for text in (nested(JSON_DEPTH_MAX + 1), "[" * 30_000, '{"a":' * 10_000):
        with pytest.raises(WireError, match="deep"):
            parse_json(text)


def test_brackets_in_strings_and_side_by_side_are_no_depth() -> None:
    text = '{"a":"' + "[" * 50 + '\\"[","b":[' + ",".join(["[]", "{}"] * 20) + "]}"
    assert len(parse_json(text)["b"]) == 40


def test_escaped_quotes_do_not_slow_the_scan_for_depth() -> None:
    """SEC-10: the scan is linear also where a string never ends."""
    with pytest.raises(WireError):
        parse_json(('"' + '\\"' * 30_000 + "[" * 20)[:AUTHORIZATION_BYTES_MAX])
    with pytest.raises(WireError):
        parse_json("[" * 17 + '"' + '\\"' * 30_000 + "\\")


def test_finite_floats_are_read_in_unknown_members() -> None:
    """CRED-04: an unknown member may hold what our own never do."""
    assert parse_json(b'{"a":1.5,"b":-0.0}') == {"a": 1.5, "b": 0.0}


def test_a_json_object_is_an_object() -> None:
    assert parse_json_object(b'{"a":1}') == {"a": 1}
    for text in (b"[]", b'"a"', b"1", b"null", b"true"):
        with pytest.raises(WireError, match="object"):
            parse_json_object(text)


# -- numbers


@given(st.integers(0, AMOUNT_MAX))
@example(0)
@example(AMOUNT_MAX)
def test_amounts_come_back(amount: int) -> None:
    """ENC-02."""
    assert parse_amount(format_amount(amount)) == amount


@pytest.mark.parametrize("parse", [parse_amount, parse_uint256])
@pytest.mark.parametrize("value", [*NOT_DECIMAL, *NOT_ASCII_DECIMAL, 1, 1.0, True, None, ["1"]])
def test_a_number_has_one_spelling(parse: Callable[[object], int], value: object) -> None:
    """ENC-02, F-01: a JSON string of ASCII digits without leading zeros."""
    with pytest.raises(WireError, match="canonical decimal"):
        parse(value)


def test_amounts_end_at_uint128() -> None:
    """ENC-04, F-02: 2**128 is refused, never cut; so are 5,000 digits."""
    assert parse_amount(str(AMOUNT_MAX)) == AMOUNT_MAX
    for text in (str(AMOUNT_MAX + 1), "9" * 39, "9" * 78, "9" * 5000):
        with pytest.raises(WireError):
            parse_amount(text)
    for amount in (-1, AMOUNT_MAX + 1):
        with pytest.raises(WireError):
            format_amount(amount)


def test_nonces_end_at_uint256() -> None:
    assert parse_uint256(str(2**256 - 1)) == 2**256 - 1
    with pytest.raises(WireError, match="above"):
        parse_uint256(str(2**256))


@pytest.mark.parametrize("value", [True, False, 196.0, -1, SAFE_INTEGER_MAX + 1, "196", None])
def test_a_json_number_is_an_integer_to_2_to_the_53(value: object) -> None:
    """ENC-03, F-03: `true == 1` and `196.0 == 196`, but not here."""
    with pytest.raises(WireError):
        parse_safe_integer(value)


def test_safe_integers_reach_their_bound() -> None:
    assert parse_safe_integer(0) == 0
    assert parse_safe_integer(SAFE_INTEGER_MAX) == SAFE_INTEGER_MAX


# -- hex


@given(st.binary(max_size=80))
def test_hex_comes_back_in_lowercase(value: bytes) -> None:
    """ENC-01."""
    text = format_hex(value)
    assert text == text.lower()
    assert parse_hex(text, len(value)) == parse_hex("0x" + text[2:].upper(), len(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        "0xab c",
        "0xab\n1",
        "0x_abc",
        "0Xabcd",
        "abcd",
        "0x abc",
        "0xabc",
        "0xab",
        "0xabcdef",
        "0xabcg",
        "0x\u0661\u0661\u0661\u0661",
        "",
        "0x",
        b"0xabcd",
        171,
        None,
    ],
)
def test_hex_of_two_bytes_is_0x_and_four_digits(value: object) -> None:
    """ENC-01, F-05: `bytes.fromhex` skips spaces, `int(_, 16)` skips underscores."""
    with pytest.raises(WireError):
        parse_hex(value, 2)


@pytest.mark.parametrize("value", ["0x", "0xa", "0xab cd", "0x" + "ab" * 5, "0xag", 1])
def test_hex_of_any_length_is_bounded_and_of_whole_bytes(value: object) -> None:
    """ENC-06: a wallet's signature, up to a cap."""
    assert parse_hex_bytes("0x" + "ab" * 4, size_max=4) == b"\xab" * 4
    with pytest.raises(WireError):
        parse_hex_bytes(value, size_max=4)


@given(ADDRESSES)
def test_addresses_come_back_from_either_spelling(address: Address) -> None:
    """ENC-01, F-06: any case means the same 20 bytes."""
    checksummed = format_checksum_address(address)
    assert checksummed.lower() == format_address(address)
    assert parse_address(checksummed) == parse_address(format_address(address)) == address


@pytest.mark.parametrize(
    "spelling",
    [
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
        "0x52908400098527886E0F7030069857D2E4169EE7",
        "0xde709f2102306220921060314715629080e2fb77",
    ],
)
def test_checksums_are_eip55s_own_examples(spelling: str) -> None:
    """ENC-01."""
    assert format_checksum_address(parse_address(spelling)) == spelling


def test_a_wrong_checksum_is_still_the_address() -> None:
    """ENC-01: checksums are not enforced."""
    assert parse_address("0xDE709f2102306220921060314715629080e2fb77")


# -- times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-04-01T12:05:00Z", 1775045100),
        ("2026-04-01T12:05:00z", 1775045100),
        ("2026-04-01t12:05:00Z", 1775045100),
        ("2026-04-01T12:05:00.250Z", 1775045100.25),
        ("2026-04-01T14:05:00+02:00", 1775045100),
        ("2026-04-01T06:35:00-05:30", 1775045100),
        ("2026-04-01T12:05:00-00:00", 1775045100),
        ("1970-01-01T00:00:00Z", 0),
        ("2024-02-29T00:00:00Z", 1709164800),
    ],
)
def test_times_are_instants(text: str, seconds: float) -> None:
    """CHAL-07, ENC-05: two spellings of one instant are equal."""
    assert parse_timestamp(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-04-01T12:05:00",
        "2026-04-01",
        "2026-04-01 12:05:00Z",
        "2026-04-01T12:05Z",
        "20260401T120500Z",
        "2026-04-01T24:00:00Z",
        "2026-04-01T12:05:60Z",
        "2026-13-01T12:05:00Z",
        "2026-02-29T12:05:00Z",
        "0000-01-01T00:00:00Z",
        "2026-04-01T12:05:00+24:00",
        "2026-04-01T12:05:00+0200",
        "2026-04-01T12:05:00.Z",
        "2026-04-01T12:05:00Z ",
        "2026-04-01T12:05:00Z\n",
        "\u0662026-04-01T12:05:00Z",
        "2026-W14-3T12:05:00Z",
        1775045100,
        None,
    ],
)
def test_a_time_without_offset_or_form_is_refused(text: object) -> None:
    """CHAL-07, F-112: fail closed."""
    with pytest.raises(WireError):
        parse_timestamp(text)


def test_the_first_and_last_year_do_not_overflow() -> None:
    assert parse_timestamp("0001-01-01T00:00:00+23:59") < parse_timestamp("0001-01-02T00:00:00Z")
    assert parse_timestamp("9999-12-31T23:59:59-23:59") > parse_timestamp("9999-12-31T23:59:59Z")


@given(st.floats(0, 4e9))
def test_times_come_back_without_their_fraction(seconds: float) -> None:
    """ENC-05: rounded down, so that nothing expires later than it was meant to."""
    assert parse_timestamp(format_timestamp(seconds)) == math.floor(seconds)


@pytest.mark.parametrize("seconds", [1e12, -1e12])
def test_a_time_beyond_the_calendar_cannot_be_written(seconds: float) -> None:
    with pytest.raises(WireError, match="no such time"):
        format_timestamp(seconds)


def test_a_year_has_four_digits() -> None:
    assert format_timestamp(parse_timestamp("0985-01-01T00:00:00Z")) == "0985-01-01T00:00:00Z"


# -- payers


@given(st.integers(1, SAFE_INTEGER_MAX), ADDRESSES)
def test_sources_come_back(chain_id: int, address: Address) -> None:
    """CRED-02."""
    assert parse_source(format_source(chain_id, address)) == (chain_id, address)


@pytest.mark.parametrize(
    "value",
    [
        "did:pkh:eip155:0196:0x" + "ab" * 20,
        "did:pkh:eip155:0:0x" + "ab" * 20,
        "did:pkh:eip155:196:0x" + "ab" * 20 + "#key",
        "did:pkh:eip155:196:0x" + "ab" * 20 + "\n",
        "did:pkh:eip155:196:" + "ab" * 20,
        "did:pkh:eip155:196:0x" + "ab" * 19,
        "did:pkh:eip155::0x" + "ab" * 20,
        "did:pkh:eip155:9007199254740992:0x" + "ab" * 20,
        "did:pkh:eip155:99999999999999999:0x" + "ab" * 20,
        "did:pkh:solana:196:0x" + "ab" * 20,
        "DID:pkh:eip155:196:0x" + "ab" * 20,
        "",
        None,
        1,
    ],
)
def test_a_source_is_did_pkh_and_nothing_after_the_address(value: object) -> None:
    """CRED-02."""
    with pytest.raises(WireError):
        parse_source(value)
