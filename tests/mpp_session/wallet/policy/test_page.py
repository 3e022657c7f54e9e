"""The page about the policy: its example is a policy, and it names every key and code."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from mpp_session.wallet.policy import decide, parse_policy
from mpp_session.wallet.policy.file import PolicyFile
from mpp_session.wallet.types import Code, Snapshot
from tests.mpp_session.wallet.policy.asks import ask

PAGE = (Path(__file__).parents[4] / "docs" / "guide" / "policy.md").read_text()
EXAMPLE = re.findall(r"(?s)```toml\n(.+?)```", PAGE)[0]
AT = datetime(2027, 1, 11, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("agent", "origin", "path", "kind", "amount", "action", "code"),
    [
        ("scout", "https://search.example", "/search", "charge", 10_000, "allow", "allowed"),
        ("scout", "https://search.example", "/search", "charge", 10_001, "deny", "unit_price"),
        ("scout", "https://search.example", "/other", "charge", 10_000, "deny", "path_not"),
        ("scout", "https://a.llm.example", "/search", "charge", 10_000, "deny", "origin_not"),
        ("scout", "https://search.example", "/extract/admin", "sign", 10_000, "allow", "allowed"),
        ("writer", "https://a.llm.example", "/admin/x", "charge", 1, "deny", "rule_denied"),
        ("stranger", "https://search.example", "/search", "charge", 1, "deny", "agent_unknown"),
    ],
)
def test_the_example_decides_as_the_page_says(
    *, agent: str, origin: str, path: str, kind: str, amount: int, action: str, code: str
) -> None:
    policy = parse_policy(EXAMPLE)
    token = policy.tokens["usdc"].address
    one = ask(kind, agent=agent, origin=origin, path=path, amount=amount, token=token, at=AT)
    decision = decide(policy, one, Snapshot())
    assert decision.action == action
    assert decision.code.startswith(code)


def test_the_example_asks_about_a_new_payee() -> None:
    policy = parse_policy(EXAMPLE)
    token = policy.tokens["usdc"].address
    origin = "https://search.example"
    one = ask("deposit", agent="scout", origin=origin, token=token, at=AT, request_max=0)
    new = Snapshot(never_paid=frozenset({"recipient"}))
    assert decide(policy, one, new).action == "ask"
    assert decide(policy, one, Snapshot()).action == "allow"


def test_the_page_names_every_key_and_every_code() -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", PAGE))
    keys = set(keys_of(msgspec.inspect.type_info(PolicyFile)))
    inline = {"by", "amount", "window", "count", "cooldown", "url", "secret_file"}
    inline |= {"address", "code_hash", "token", "envelope", "agent", "rule", "breaker", "anomaly"}
    inline |= {"approval", "match", "cap", "when", "name", "action"}
    assert keys - inline <= named
    assert all(re.search(rf"\b{key}\b", PAGE) for key in inline)
    assert {str(code) for code in Code} - {"allowed"} <= named


def keys_of(kind: object) -> Iterator[str]:
    match kind:
        case msgspec.inspect.StructType():
            for field in kind.fields:
                yield field.encode_name
                yield from keys_of(field.type)
        case msgspec.inspect.DictType():
            yield from keys_of(kind.value_type)
        case msgspec.inspect.VarTupleType():
            yield from keys_of(kind.item_type)
        case msgspec.inspect.UnionType():
            for one in kind.types:
                yield from keys_of(one)
        case msgspec.inspect.Metadata():
            yield from keys_of(kind.type)
