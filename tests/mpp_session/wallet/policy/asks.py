"""Policies as tables, asks and snapshots for the tests of the wallet's policy."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from channel.tariff import Rate, Tariff
from channel.types import Address
from mpp_session.wallet.policy import WalletPolicy, counters_for, parse_policy
from mpp_session.wallet.types import Ask, Counter, Purpose, Snapshot

NOW = 1_800_000_000.0
USDC, EURC, OTHER = (Address(bytes([value]) * 20) for value in (1, 2, 3))
PAYEE, STRANGER, ESCROW = (Address(bytes([value]) * 20) for value in (4, 5, 6))
ALIASES = {"usdc": USDC, "eurc": EURC}

TOKENS = {
    alias: {"chain": 8453, "address": "0x" + token.hex(), "decimals": 6}
    for alias, token in ALIASES.items()
}
ENVELOPES = {
    "company": {"amount": "500 usdc", "window": "total"},
    "research": {"amount": "200 usdc", "window": "7d", "parent": "company"},
}
ALLOW = {"name": "search", "action": "allow", "match": {"token": ["usdc"]}}
TARIFF = Tariff((Rate("request", 10_000),))


def agent(name: str = "research-3", **changes: Any) -> dict[str, Any]:
    digest = name.encode().hex().ljust(64, "0")[:64]
    expires = datetime(2030, 1, 1, tzinfo=UTC)
    return {"token": f"sha256:{digest}", "envelopes": ["research"], "expires": expires} | changes


def tables(*rules: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "revision": 7,
        "token": TOKENS,
        "envelope": ENVELOPES,
        "agent": {"research-3": agent()},
        "rule": list(rules),
    } | changes


def policy(*rules: Mapping[str, Any], **changes: Any) -> WalletPolicy:
    return parse_policy(to_toml(tables(*rules, **changes)))


def to_toml(content: Mapping[str, Any]) -> str:
    return "\n".join(f"{json.dumps(key)} = {_value(value)}" for key, value in content.items())


def _value(value: Any) -> str:
    match value:
        case Mapping():
            inner = ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items())
            return f"{{{inner}}}"
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case datetime():
            return value.isoformat()
        case _:
            return json.dumps(value)


def allow(**parts: Any) -> dict[str, Any]:
    return ALLOW | parts


def ask(kind: Any = "sign", **changes: Any) -> Ask:
    """Return an ask for one request: of 0.01 usdc, of a deposit of 1 usdc."""
    amount = changes.pop("amount", 1_000_000 if kind == "deposit" else 10_000)
    base = Ask(
        kind=kind,
        agent="research-3",
        request_id="r1",
        origin="https://api.example:443",
        method="POST",
        path="/search",
        purpose=Purpose(task="t1", tool="find"),
        chain_id=8453,
        token=USDC,
        recipient=PAYEE,
        escrow=None if kind == "charge" else ESCROW,
        tariff=None if kind == "charge" else TARIFF,
        request_max=10_000,
        amount=amount,
        total=amount,
        request_total=0 if kind == "deposit" else amount,
        is_opening=kind == "deposit",
        at=NOW,
    )
    return replace(base, **changes)


def books(of: WalletPolicy, one: Ask, what: str, used: int, **changes: Any) -> Snapshot:
    """Return books in which every sum of this kind that the ask touches has this much."""
    return Snapshot(
        sums={sum_: used for sum_ in counters_for(of, one) if sum_.what == what}, **changes
    )


def scopes(counters: tuple[Counter, ...]) -> set[str]:
    return {f"{one.what} {one.scope} {one.token} {one.window_s}" for one in counters}
