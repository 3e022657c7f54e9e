"""What is said about a policy: an explanation, a difference, a replay, the client's limits."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.client.policy.policy import Policy, limits_for, step_value
from channel.client.policy.prices import require_minimum, require_rates
from channel.errors import OfferRefusedError
from channel.tariff import Rate, Tariff
from channel.wire.challenge import SessionRequest
from mpp_session.wallet.policy import client_policy, decide
from mpp_session.wallet.policy.diffing import diff
from mpp_session.wallet.policy.explaining import explain
from mpp_session.wallet.policy.replaying import replay
from mpp_session.wallet.policy.schema import schema
from mpp_session.wallet.types import Snapshot
from tests.mpp_session.wallet.policy.asks import (
    ENVELOPES,
    ESCROW,
    PAYEE,
    TOKENS,
    USDC,
    agent,
    allow,
    ask,
    policy,
)

SCHEMA = Path(__file__).parents[4] / "docs" / "reference" / "policy.schema.json"


def test_an_explanation_shows_rules_caps_and_the_decision() -> None:
    of = policy(
        allow(cap={"request": "0.005 usdc", "unit_price": {"request": "0.01 usdc"}}),
        allow(name="other", match={"path": ["/x"]}),
    )
    text = explain(of, ask("charge"), Snapshot())
    assert "charge of 0.010000 USDC by research-3 for POST https://api.example:443/search" in text
    assert "  search: allows\n" in text
    assert "  other: does not match: path is /search, allowed /x\n" in text
    assert "rule.search.cap.unit_price.request: request at 0.01 USDC, at most 0.01 USDC\n" in text
    assert (
        "rule.search.cap.request: limit 0.005000 USDC, used 0.000000 USDC, asked 0.010000 USDC, "
        "left 0.000000 USDC  EXCEEDED\n" in text
    )
    assert "deny (request_exceeded): " in text


def test_a_difference_says_what_is_looser_first() -> None:
    old = policy(allow(cap={"request": "1 usdc", "streams": 2}), approval={"above": "5 usdc"})
    new = policy(
        allow(cap={"request": "2 usdc", "streams": 1}, match={"token": ["usdc"], "chain": [8453]}),
        {"name": "no", "action": "deny"},
        agent={"research-3": agent(), "writer": agent("writer")},
        approval={"above": "6 usdc"},
    )
    assert [str(change) for change in diff(old, new)] == [
        "LOOSER: agent.writer: is new",
        "LOOSER: approval.above: 5.000000 USDC -> 6.000000 USDC",
        "LOOSER: rule.search.cap.request: 1.000000 USDC -> 2.000000 USDC",
        "tighter: rule.no: is new (deny)",
        "tighter: rule.search.cap.streams: 2 -> 1",
        "tighter: rule.search.match.chain: anything -> 8453",
    ]
    assert {change.way for change in diff(new, old) if "rule.no" in change.field} == {"looser"}


def test_tasks_that_others_may_name_now_are_looser() -> None:
    """Also if only the agent is gone that had them to itself."""
    old, less = (
        policy(allow(), agent={"research-3": agent(), "news": agent("news", tasks=tasks)})
        for tasks in (["a*", "b"], ["b"])
    )
    gone = policy(allow())
    freed = "LOOSER: agent tasks: agents without `tasks` may now name a*"
    kept = "tighter: agent.news.tasks: no longer a*"
    assert [str(change) for change in diff(old, less)] == [freed, kept]
    assert str(diff(old, gone)[0]) == f"{freed}, b"
    assert [change.way for change in diff(less, old)] == ["looser"]


def test_a_replay_finds_what_would_be_decided_otherwise() -> None:
    old, new = policy(allow()), policy(allow(cap={"request": "0.01 usdc"}))
    asks = [ask(), ask(amount=20_000), ask(agent="stranger")]
    changed = list(replay(new, [(one, None, decide(old, one, Snapshot())) for one in asks]))
    assert [(one.ask.amount, one.after.code, one.is_looser) for one in changed] == [
        (20_000, "request_exceeded", False)
    ]
    assert [one.is_looser for one in replay(old, [(asks[1], None, changed[0].after)])] == [True]


def test_the_schema_of_the_reference_is_current() -> None:
    """`mpp-session policy schema > docs/reference/policy.schema.json` writes it."""
    assert json.loads(SCHEMA.read_text()) == json.loads(msgspec.json.encode(schema()))


def test_the_client_is_limited_by_the_greatest_caps_of_its_rules() -> None:
    tokens = TOKENS | {"usdc": TOKENS["usdc"] | {"escrows": [{"address": "0x" + ESCROW.hex()}]}}
    of = policy(
        allow(
            cap={
                "unit_price": {"output_token": "0.60 usdc / 1M", "request": "1 usdc"},
                "deposit": "5 usdc",
                "request": "1 usdc",
                "streams": 2,
                "channels": 3,
            }
        ),
        allow(
            name="dear",
            match={"token": ["usdc"], "origin": ["https://dear.example"]},
            cap={
                "unit_price": {"output_token": "0.70 usdc / 1M"},
                "deposit": "9 usdc",
                "request": "2 usdc",
                "streams": 1,
                "channels": 4,
            },
        ),
        allow(name="no", action="deny", match={"path": ["/admin/*"]}),
        token=tokens,
        envelope=ENVELOPES | {"research": ENVELOPES["research"] | {"locked_max": "8 usdc"}},
    )
    client = client_policy(of, "research-3")
    limits = client.limits[0]
    assert len(client.limits) == 1, "no envelope of the agent counts eurc"
    assert (limits.chain_id, limits.token) == (8453, USDC)
    assert limits.unit_price_max == {"output_token": "0.70 USDC / 1M", "request": "1 USDC"}
    assert limits.deposit_max == 8_000_000
    assert limits.charge_max == 2_000_000
    assert limits.escrows == frozenset({ESCROW})
    assert (client.parallel_streams_max, client.channels_per_origin_max) == (2, 4)
    assert client.pays == ("session", "charge", "x402")
    assert not client.allow_loopback_http
    for origin, deposit in (
        ("https://api.example:443", 5_000_000),
        ("https://dear.example:443", 8_000_000),
    ):
        assert limits_for(client, 8453, USDC, origin).deposit_max == deposit
    assert client_policy(of, "stranger").limits == ()


@pytest.mark.parametrize("default", ["deny", "ask"])
def test_a_client_without_a_cap_on_prices_takes_every_kind(default: str) -> None:
    of = policy(allow(), default=default, allow_loopback_http=True)
    client = client_policy(of, "research-3")
    caps = client.limits[0].unit_price_max
    assert caps.get("sellers_own_kind")
    assert "request" in caps
    assert client.allow_loopback_http


@given(data=st.data())
@settings(max_examples=50)
def test_the_client_refuses_no_price_that_the_policy_allows(data: st.DataObject) -> None:
    """Of any tariff, under any two rules."""
    price = st.sampled_from(("0.000001", "0.00001", "0.60 / 1M", "0.000002"))
    kinds = ("request", "output_token", "image")
    priced = st.dictionaries(st.sampled_from(kinds), price, min_size=1)
    rules = []
    for name in ("a", "b"):
        caps = {
            kind: text.replace(" /", " usdc /") if "/" in text else f"{text} usdc"
            for kind, text in data.draw(priced).items()
        }
        cap = data.draw(
            st.fixed_dictionaries({}, optional={"request": st.just("0.0001 usdc")})
        ) | data.draw(st.sampled_from(({"unit_price": caps}, {"unit_price": caps}, {})))
        rules.append(allow(name=name, cap=cap))
    of = policy(*rules)
    tariff = Tariff(
        tuple(
            Rate(kind, data.draw(st.integers(1, 12)), data.draw(st.sampled_from((1, 10**6))))
            for kind in data.draw(st.lists(st.sampled_from(kinds), min_size=1, unique=True))
        ),
        minimum=data.draw(st.sampled_from((0, 1, 5, 70, 200))),
    )
    allowed = any(
        decide(policy(rule), ask("deposit", tariff=tariff, request_max=0), Snapshot()).action
        == "allow"
        for rule in rules
    )
    limits = client_policy(of, "research-3").limits[0]
    request = SessionRequest(
        unit_price=1,
        currency=USDC,
        recipient=PAYEE,
        chain_id=8453,
        escrow=ESCROW,
        unit_type=tariff.main.kind,
        credential_types=(),
        tariff=tariff,
    )
    try:
        caps_of = limits.unit_price_max
        require_rates(caps_of, request, unit=limits.unit, origin="x")
        step = step_value(Policy(limits=()), request)
        require_minimum(caps_of, tariff.minimum, step=step, unit=limits.unit, origin="x")
    except OfferRefusedError:
        assert not allowed
