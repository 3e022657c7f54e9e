"""The golden vectors, and the values that their entries stand for."""

import json
from pathlib import Path
from typing import Any

from channel.types import ChannelId, ChannelKey
from channel.wire.encoding import parse_address, parse_hex

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
EVM: dict[str, Any] = json.loads((FOLDER / "evm_session.json").read_text(encoding="utf-8"))
WIRE: dict[str, Any] = json.loads((FOLDER / "session_wire.json").read_text(encoding="utf-8"))

Entry = dict[str, Any]


def name_of(entry: Entry) -> str:
    """Return what to call an entry in a test's id."""
    return str(entry.get("name", entry.get("function")))


def entry_of(entries: list[Entry], name: str) -> Entry:
    """Return the entry of that name."""
    return next(entry for entry in entries if entry["name"] == name)


def hex32(entry: Entry, field: str) -> bytes:
    """Return a 32-byte field."""
    return parse_hex(entry[field], 32)


def key_of(entry: Entry) -> ChannelKey:
    """Return the channel an entry is about."""
    return ChannelKey(
        entry["chainId"], parse_address(entry["escrow"]), ChannelId(hex32(entry, "channelId"))
    )
