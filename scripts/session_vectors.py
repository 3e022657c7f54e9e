#!/usr/bin/env python3
"""Write channel/vectors/evm-session.json: our vectors in the form of tempoxyz/mpp-tools.

    scripts/session_vectors.py          print them
    scripts/session_vectors.py --write  write the file

Their source is tests/vectors, which viem and mppx made: nothing here computes a hash.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "channel" / "vectors" / "evm-session.json"

Entry = dict[str, Any]

TERMS = ("payer", "payee", "token", "salt", "authorizedSigner", "escrow", "chainId")
VOUCHER = ("chainId", "escrow", "channelId", "cumulativeAmount")


def main() -> int:
    """Print or write the vectors."""
    text = published()
    if "--write" in sys.argv:
        PUBLISHED.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def published() -> str:
    """Return the text of the published file."""
    hashes, wires = (_read(name) for name in ("evm_session", "session_wire"))
    file = {
        "version": "1.0.0",
        "spec_ref": "draft-evm-session-00",
        "description": "Session payments on EVM chains: channel ids, vouchers, openings, receipts",
        "scenarios": [*_scenarios(hashes, wires)],
    }
    return json.dumps(file, indent=2, ensure_ascii=False) + "\n"


def _read(name: str) -> Entry:
    found: Entry = json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text())
    return found


def _scenarios(hashes: Entry, wires: Entry) -> Iterator[Entry]:
    for entry in hashes["channelId"]:
        given = {name: entry[name] for name in TERMS}
        yield _scenario("channel_id", entry, given, {"channelId": entry["channelId"]})
    for entry in hashes["voucher"]:
        given = {name: entry[name] for name in VOUCHER}
        yield _scenario("voucher_digest", entry, given, {"digest": entry["digest"]})
    for entry in wires["credentials"]:
        if entry["payload"]["action"] == "open":
            given = {"payload": entry["payload"]}
            yield _scenario("open_payload", entry, given, given)
    for entry in wires["receipts"]:
        given = {"header": entry["wire"]}
        yield _scenario("receipt", entry, given, {"receipt": entry["receipt"]})


def _scenario(operation: str, entry: Entry, given: Entry, expected: Entry) -> Entry:
    return {
        "name": f"{operation}_{entry['name']}",
        "op": f"evm.session.{operation}",
        "tags": ["happy-path"],
        "input": given,
        "expected": expected,
    }


if __name__ == "__main__":
    raise SystemExit(main())
