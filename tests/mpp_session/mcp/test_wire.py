"""The same values in HTTP's strings and in MCP's objects."""

from typing import Any

import pytest

from channel.errors import WireError
from channel.wire.challenge import Challenge, format_opaque
from channel.wire.encoding import canonical_json, encode_base64url
from mpp_session.mcp.wire import (
    challenge_object,
    credential_object,
    format_credential_header,
    format_receipt_header,
    parse_challenge_object,
    receipt_object,
)

REQUEST = {"b": [1, "\u00e9"], "a": {"y": True, "x": None}}
CHALLENGE = Challenge(
    id="i",
    realm="r",
    method="evm",
    intent="session",
    request=encode_base64url(canonical_json(REQUEST)),
    expires="2026-01-01T00:00:00Z",
    opaque=format_opaque({"route": "/a", "nonce": "n"}),
    description="d",
)


def test_a_challenge_is_plain_json_and_back() -> None:
    """MCP-02, MCP-03: in any order of its members, the id covers the canonical form."""
    plain = challenge_object(CHALLENGE)
    assert plain["request"] == REQUEST
    assert "digest" not in plain
    reordered = {name: plain[name] for name in reversed(plain)}
    reordered["request"] = {name: REQUEST[name] for name in reversed(REQUEST)}
    assert parse_challenge_object(reordered) == CHALLENGE


def test_opaque_may_be_an_object() -> None:
    """MCP-02: as pympp sends it."""
    plain = challenge_object(CHALLENGE) | {"opaque": {"nonce": "n", "route": "/a"}}
    assert parse_challenge_object(plain) == CHALLENGE


def test_a_credential_is_plain_json_and_back() -> None:
    """MCP-04"""
    plain = {
        "challenge": challenge_object(CHALLENGE),
        "payload": {"action": "voucher"},
        "source": "did:x",
    }
    assert credential_object(format_credential_header(plain)) == plain


def test_a_receipt_is_plain_json_and_back() -> None:
    """MCP-05"""
    assert receipt_object(format_receipt_header({"status": "success"})) == {"status": "success"}


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"challenge": {}},
        {"challenge": {"request": "text"}},
        {"challenge": {"request": {"a": 1.5}}},
        {"challenge": {"request": {"a": 2**53}}},
        {"challenge": {"request": {"a": "\ud800"}}},
        {"challenge": {"request": nested(100)}},
        {"challenge": {"request": nested(100_000)}},
        {"challenge": {"request": {}, "opaque": {"a": 1.5}}},
        {"challenge": {"request": {}}, "payload": "x" * 70_000},
    ],
)
def test_what_is_no_credential_is_refused(value: object) -> None:
    """MCP-06, F-11: before any of it is canonicalised if it is large."""
    with pytest.raises(WireError):
        format_credential_header(value)


@pytest.mark.parametrize("value", [None, "text", {"a": "x" * 20_000}])
def test_what_is_no_receipt_is_refused(value: object) -> None:
    with pytest.raises(WireError):
        format_receipt_header(value)
