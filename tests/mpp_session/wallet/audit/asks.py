"""Asks of any shape, for properties."""

from hypothesis import strategies as st

from channel.limits import AMOUNT_MAX
from channel.tariff import Rate, Tariff
from channel.types import Address, ChannelId
from mpp_session.wallet.types import Alternative, Ask, Code, Decision, Purpose

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
AMOUNTS = st.one_of(st.integers(0, 2**20), st.just(10**18), st.just(AMOUNT_MAX))
TIMES = st.integers(1_700_000_000_000, 2_000_000_000_000).map(lambda at: at / 1000)
ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)
CHANNELS = st.binary(min_size=32, max_size=32).map(ChannelId)
RATES = st.builds(Rate, st.sampled_from(["request", "output_token"]), st.integers(1, 2**70))
TARIFFS = st.builds(
    Tariff,
    st.tuples(RATES),
    st.integers(0, 5),
    st.one_of(st.none(), st.integers(5, 2**60)),
)
PURPOSES = st.builds(
    Purpose,
    task=TEXT,
    on_behalf_of=TEXT,
    reason=TEXT,
    tool=TEXT,
    trace_id=TEXT,
    span_id=TEXT,
    alternatives=st.lists(st.builds(Alternative, TEXT, TEXT, TEXT), max_size=2).map(tuple),
)
ASKS = st.builds(
    Ask,
    kind=st.sampled_from(["deposit", "sign", "charge"]),
    agent=TEXT,
    request_id=TEXT,
    origin=TEXT,
    method=TEXT,
    path=TEXT,
    purpose=PURPOSES,
    chain_id=st.integers(1, 2**40),
    token=ADDRESSES,
    recipient=ADDRESSES,
    escrow=st.one_of(st.none(), ADDRESSES),
    tariff=st.one_of(st.none(), TARIFFS),
    request_max=AMOUNTS,
    amount=AMOUNTS,
    total=AMOUNTS,
    request_total=AMOUNTS,
    channel_id=st.one_of(st.none(), CHANNELS),
    is_first=st.booleans(),
    is_opening=st.booleans(),
    is_stream=st.booleans(),
    at=TIMES,
)
DECISIONS = st.builds(
    Decision,
    action=st.sampled_from(["allow", "ask", "deny"]),
    code=st.sampled_from(Code),
    reason=TEXT,
    rule=TEXT,
    field=TEXT,
    asked=st.one_of(st.none(), AMOUNTS),
    allowed=st.one_of(st.none(), AMOUNTS),
    left=st.one_of(st.none(), AMOUNTS),
    retry_at=st.one_of(st.none(), TIMES),
    policy_revision=st.integers(0, 1000),
    envelopes=st.lists(TEXT, max_size=2).map(tuple),
    warnings=st.lists(TEXT, max_size=2).map(tuple),
)


def make_ask(**members: object) -> Ask:
    """Return an ask that differs from a usual one in some members."""
    usual = {
        "kind": "sign",
        "agent": "a",
        "request_id": "r1",
        "origin": "https://api.example:443",
        "method": "POST",
        "path": "/search",
        "purpose": Purpose(task="t", reason="because"),
        "chain_id": 8453,
        "token": Address(b"\x01" * 20),
        "recipient": Address(b"\x02" * 20),
        "escrow": Address(b"\x03" * 20),
        "tariff": Tariff.of("request", 5),
        "request_max": 5,
        "amount": 5,
        "total": 5,
        "request_total": 5,
        "channel_id": ChannelId(b"\x04" * 32),
        "at": 1_790_000_000.0,
    }
    return Ask(**(usual | members))  # type: ignore[arg-type]


def make_decision(action: str = "allow", **members: object) -> Decision:
    code = Code.ALLOWED if action == "allow" else Code.RULE_DENIED
    usual = {"action": action, "code": code, "reason": "rule search", "policy_revision": 7}
    return Decision(**(usual | members))  # type: ignore[arg-type]
