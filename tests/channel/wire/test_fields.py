"""Members of an object, read one by one, refused by name."""

import pytest

from channel.errors import WireError
from channel.limits import DESCRIPTION_CHARS_MAX
from channel.wire.fields import (
    optional,
    parse_bool,
    parse_bytes32,
    parse_channel_id,
    parse_name,
    parse_object,
    parse_text,
    parse_tx_hash,
    required,
)


def test_a_refusal_names_the_field_and_the_reason() -> None:
    """ERR-02: the error tells the peer what to correct."""
    with pytest.raises(WireError, match=r"^a: missing$"):
        required({}, "a", parse_bool)
    with pytest.raises(WireError, match=r"^a: not a boolean$"):
        required({"a": 1}, "a", parse_bool)
    with pytest.raises(WireError, match=r"^a: not a boolean$"):
        optional({"a": None}, "a", parse_bool)


def test_absent_is_none_and_false_is_false() -> None:
    assert optional({}, "a", parse_bool) is None
    assert optional({"a": False}, "a", parse_bool) is False
    assert required({"a": True}, "a", parse_bool) is True


def test_text_is_bounded_and_a_name_is_not() -> None:
    longest = "x" * DESCRIPTION_CHARS_MAX
    assert parse_text(longest) == longest
    assert parse_name(longest + "x")
    for bad in (longest + "x", 5, None, b"x"):
        with pytest.raises(WireError):
            parse_text(bad)
    with pytest.raises(WireError):
        parse_name(5)


def test_words_are_32_bytes() -> None:
    """ENC-01."""
    for parse in (parse_bytes32, parse_channel_id, parse_tx_hash):
        assert parse("0x" + "AB" * 32) == b"\xab" * 32
        for bad in ("0x" + "ab" * 31, "0x" + "ab" * 33, "ab" * 32, None):
            with pytest.raises(WireError):
                parse(bad)


def test_an_object_is_a_dict() -> None:
    assert parse_object({"a": 1}) == {"a": 1}
    not_objects: list[object] = [[], "x", None]
    for bad in not_objects:
        with pytest.raises(WireError):
            parse_object(bad)
