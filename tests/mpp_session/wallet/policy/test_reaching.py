"""Which servers an agent may ask at all, before it is known what they cost."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp_session.wallet.policy import decide, refuse_reach
from mpp_session.wallet.types import Code, Snapshot
from tests.mpp_session.wallet.policy.asks import allow, ask, policy

OPEN = Snapshot()
NAMED = policy(
    allow(match={"origin": ["https://*.api.example"], "path": ["/search"]}),
    {"name": "inside", "action": "deny", "match": {"path": ["/admin/*"]}},
    {"name": "dear", "action": "deny", "match": {"unit": ["image"], "path": ["/draw"]}},
)


@pytest.mark.parametrize(
    ("origin", "path", "code"),
    [
        ("https://a.api.example:443", "/search", None),
        ("https://a.api.example:443", "/models", None),  # what is free is for the server to say
        ("https://a.api.example:443", "/draw", None),  # denied for images only, if it sells them
        ("https://a.api.example:8443", "/search", Code.ORIGIN_NOT_ALLOWED),
        ("http://a.api.example:80", "/search", Code.ORIGIN_NOT_ALLOWED),
        ("https://169.254.169.254:443", "/latest/meta-data", Code.ORIGIN_NOT_ALLOWED),
        ("https://evil.example:443", "/.api.example", Code.ORIGIN_NOT_ALLOWED),
        ("https://a.api.example@evil.example:443", "/search", Code.ORIGIN_NOT_ALLOWED),
        ("https://a.api.example:443", "/admin/keys", Code.RULE_DENIED),
        ("https://a.api.example:443", "/admin", Code.RULE_DENIED),
        ("https://a.api.example:443", "/x/../admin/keys", Code.RULE_DENIED),
        ("https://a.api.example:443", "//ADMIN/%6beys", Code.RULE_DENIED),
    ],
)
def test_only_servers_of_which_a_rule_lets_the_agent_buy(
    origin: str, path: str, code: Code | None
) -> None:
    found = refuse_reach(NAMED, ask(origin=origin, path=path), OPEN)
    assert (None if found is None else found.code) == code


def test_no_rule_no_server_and_a_policy_that_asks_asks_any() -> None:
    none = policy()
    assert refuse_reach(none, ask(), OPEN) is not None
    assert refuse_reach(policy(default="ask"), ask(), OPEN) is None


@pytest.mark.parametrize("stop", ["all", "agent research-3", "envelope company"])
def test_a_frozen_agent_sends_nothing(stop: str) -> None:
    found = refuse_reach(policy(allow()), ask(), Snapshot(frozen=frozenset({stop})))
    assert found is not None
    assert found.code == Code.FROZEN


def test_a_revoked_rule_names_no_server_any_more_and_an_expired_agent_has_none() -> None:
    revoked = Snapshot(revoked=frozenset({"rule search"}))
    assert refuse_reach(NAMED, ask(origin="https://a.api.example:443"), revoked) is not None
    late = datetime(2031, 1, 1, tzinfo=UTC).timestamp()
    found = refuse_reach(policy(allow()), ask(at=late), OPEN)
    assert found is not None
    assert found.code == Code.AGENT_EXPIRED


@given(
    origin=st.sampled_from(["https://a.api.example:443", "https://b.example:443", "x", ""]),
    path=st.text(max_size=8).map("/".__add__) | st.just("/search"),
    agent=st.sampled_from(["research-3", "other"]),
)
def test_what_may_be_paid_may_be_sent(origin: str, path: str, agent: str) -> None:
    """Total; and never narrower than the decision about the payment."""
    asked = ask(origin=origin, path=path, agent=agent)
    if refuse_reach(NAMED, asked, OPEN) is not None:
        assert decide(NAMED, asked, OPEN).action == "deny"
