"""What a policy file may say, and the path in each error."""

from typing import Any

import pytest

from channel.errors import ConfigError
from mpp_session.wallet.policy import WalletPolicy, parse_policy
from mpp_session.wallet.policy.times import Hours
from tests.mpp_session.wallet.policy.asks import (
    ENVELOPES,
    EURC,
    TOKENS,
    USDC,
    agent,
    allow,
    policy,
    tables,
    to_toml,
)


def cap(**caps: Any) -> dict[str, Any]:
    return {"rule": [allow(), allow(name="two", cap=caps)]}


def match(**parts: Any) -> dict[str, Any]:
    return {"rule": [allow(match=parts)]}


def one_agent(**changes: Any) -> dict[str, Any]:
    return {"agent": {"research-3": agent(**changes)}}


def envelope(**changes: Any) -> dict[str, Any]:
    return {"envelope": ENVELOPES | {"company": ENVELOPES["company"] | changes}}


WRONG = [
    (cap(reqest="1 usdc"), "`rule[1].cap.reqest` (rule two): unknown key; did you mean `request`?"),
    ({"revisoin": 1}, "`revisoin`: unknown key; did you mean `revision`?"),
    ({"mandate": "required"}, "`mandate`: unknown key; known: version"),
    (one_agent(mandate="required"), "`agent.research-3.mandate`: unknown key"),
    (one_agent(identity={"key": "k1"}), "`agent.research-3.identity`: unknown key"),
    (cap(per=[{"by": "task", "amuont": "1 usdc"}]), "`rule[1].cap.per[0].amuont`"),
    ({"approval": {"webhook": {"ulr": "x"}}}, "`approval.webhook.ulr`: unknown key; did you mean"),
    (
        cap(request=0.05),
        "`rule[1].cap.request` (rule two): 0.05 is a number: write amounts as text",
    ),
    (cap(request=5), "`rule[1].cap.request` (rule two): expected text, found a number"),
    (cap(request="5"), "expected an amount such as \"5.00 usdc\", found '5'"),
    (cap(request="-5 usdc"), "`rule[1].cap.request`: expected an amount"),
    (cap(request="5 dollars"), "no token has the alias dollars; known: eurc, usdc"),
    (cap(request="0.0000001 usdc"), "at most 6 decimals of USDC"),
    (cap(request="1e3 usdc"), "expected an amount"),
    (cap(request="1,000 usdc"), "expected an amount"),
    (cap(unit_price={"image": "1 usdc above 5"}), "`rule[1].cap.unit_price.image`"),
    (cap(unit_price={"Image": "1 usdc"}), "expected a kind such as output_token"),
    (cap(unit_price={}), "`rule[1].cap.unit_price`: an empty table allows no price"),
    (cap(request="1 usdc", deposit="1 eurc"), "amounts of different tokens cannot be compared"),
    ({"rule": [allow(match={}, cap={"request": "1 usdc"})]}, 'write match.token = ["usdc"]'),
    ({"rule": [allow(action="deny", cap={"streams": 1})]}, "a rule that denies has no caps"),
    (match(origin=[]), "`rule[0].match.origin` (rule search): [] matches nothing"),
    (match(recipient=[]), "[] matches nothing"),
    (match(origin=["https://api.example/"]), "without user, path or a slash at the end"),
    (match(origin=["https://me@api.example"]), "`rule[0].match.origin`: expected an origin"),
    (match(origin=["api.example"]), "expected an origin"),
    (match(origin=["https://a*:443@b"]), "expected an origin"),
    (match(path=["search"]), "`rule[0].match.path`: expected a path"),
    (match(path=["/a/../b"]), "expected a path"),
    (match(path=["/%61"]), "expected a path"),
    (match(token=["dai"]), "no token has the alias dai"),
    (match(first_seen=["chain"]), "`rule[0].match.first_seen`: is for rules that ask or deny"),
    (match(recipient=["0x12"]), "`rule[0].match.recipient[0]` (rule search): expected an address"),
    ({"rule": [allow(), allow()]}, "`rule[1].name`: the same as `rule[0].name`"),
    ({"rule": [allow(name="a b")]}, "`rule[0].name` (rule a b): expected a name of letters"),
    ({"rule": [allow(action="alow")]}, "`rule[0].action` (rule search): Invalid enum value"),
    ({"rule": [allow(when={"hours": "8-20"})]}, "expected hours such as 08:00-20:00"),
    ({"rule": [allow(when={"hours": "08:00-20:00 Mars/Base"})]}, "a time zone that this machine"),
    ({"rule": [allow(when={"hours": "08:00-08:00 UTC"})]}, "not from a time to the same"),
    (one_agent(expires="never"), "`agent.research-3.expires`"),
    (one_agent(envelopes=[]), "`agent.research-3.envelopes`: [] matches nothing"),
    (one_agent(envelopes=["none"]), "there is no envelope none"),
    (one_agent(token="plain"), "`agent.research-3.token`"),  # noqa: S106 -- none
    (one_agent(may_approve=["research-3"], approve_max="1 usdc"), "cannot approve what it asks"),
    (one_agent(may_approve=["other"], approve_max="1 usdc"), "there is no agent other"),
    (one_agent(approve_max="1 usdc"), "`may_approve` and `approve_max` need each other"),
    ({"agent": {"a": agent("a"), "b": agent("a")}}, "`agent.b.token`: the same as `agent.a.token`"),
    (envelope(parent="research"), "a circle: company -> research -> company"),
    (envelope(parent="company"), "a circle: company -> company"),
    (envelope(parent="none"), "`envelope.company.parent`: there is no envelope none"),
    (envelope(amount="5 eurc"), "counts eurc, and this envelope usdc"),
    (envelope(locked_max="5 eurc"), "`envelope.company.locked_max`: is in eurc"),
    (envelope(window="7 days"), "`envelope.company.window`: expected a duration"),
    (envelope(window="9w9"), "expected a duration"),
    (envelope(window="367d"), "up to 366d"),
    (envelope(warn_at=[1.5]), "`envelope.company.warn_at`: expected shares above 0 and up to 1"),
    ({"token": {}}, "`token`"),
    ({"token": TOKENS | {"x": TOKENS["usdc"]}}, "`token.x`: the same as `token.usdc`"),
    ({"token": TOKENS | {"usdc": TOKENS["usdc"] | {"escrows": []}}}, "`token.usdc.escrows`"),
    ({"version": 2}, "`version`"),
    ({"revision": 0}, "`revision`"),
    ({"default": "allow"}, "`default`: Invalid enum value 'allow'"),
    ({"approval": {"on_timeout": "allow"}}, "`approval.on_timeout`: Invalid enum value"),
    ({"approval": {"above": ["1 usdc", "2 usdc"]}}, "`approval.above`: two amounts in usdc"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[said[:60] for _, said in WRONG])
def test_what_is_wrong_is_an_error_with_its_path(changes: dict[str, Any], said: str) -> None:
    """harness-sdk#4354 of strands-agents: a mistyped limit was taken and meant no limit.

    tempo#1081: None and [] were mixed up. go-micro#4841: a mandate without an expiry.
    """
    with pytest.raises(ConfigError) as caught:
        parse_policy(to_toml(tables(**changes)), "policy.toml")
    assert str(caught.value).startswith("policy.toml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_agent_must_expire() -> None:
    """go-micro#4841."""
    given = agent()
    del given["expires"]
    with pytest.raises(ConfigError, match=r"`agent\.research-3\.expires`: missing"):
        policy(agent={"research-3": given})
    text = to_toml(tables()).replace("+00:00", "")
    with pytest.raises(ConfigError, match="timezone"):
        parse_policy(text)


@pytest.mark.parametrize("text", ["x", "a = ", "version = 1\nversion = 1", "[" * 5000])
def test_what_is_not_toml_is_said_so(text: str) -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        parse_policy(text)


def full() -> WalletPolicy:
    return policy(
        allow(
            match={"token": ["usdc"], "origin": ["https://*.Example"], "method": ["post"]},
            cap={"request": "1.50 usdc", "per": [{"by": "task", "amount": "0.000001 usdc"}]},
            when={"hours": "22:00-06:00 Europe/Berlin"},
        ),
        envelope=ENVELOPES | {"one": {"amount": "1 eurc", "window": "task", "warn_at": [1, 0.8]}},
        agent={"research-3": agent(), "chief": agent("chief", may_approve=["research-3"])}
        | {"chief": agent("chief", may_approve=["research-3"], approve_max=["1 usdc", "2 eurc"])},
        approval={"above": ["1 usdc", "2 eurc"], "timeout": "2h"},
    )


def test_amounts_are_exact_and_names_are_resolved() -> None:
    """x402#3505: base units and tokens are never confused."""
    of = full()
    rule = of.rules[0]
    assert rule.match.origin == ("https://*.example:443",)
    assert rule.match.method == ("POST",)
    assert rule.caps.request == 1_500_000
    assert (rule.caps.per[0].amount, rule.caps.per[0].window_s) == (1, None)
    assert rule.when.hours == Hours(22 * 60, 6 * 60, "Europe/Berlin")
    assert of.envelopes["one"].warn_at == ((4, 5), (1, 1))
    assert of.envelopes["one"].per_task
    assert of.envelopes["research"].window_s == 7 * 86_400
    assert of.envelopes["research"].locked_max == 200_000_000, "as its amount"
    assert of.agents["chief"].approve_max == {"usdc": 1_000_000, "eurc": 2_000_000}
    assert of.approval.above == {"usdc": 1_000_000, "eurc": 2_000_000}
    assert (of.approval.timeout_s, of.approval.quorum, of.approval.pending_max) == (7200, 1, 20)
    assert of.breaker.paid_errors.cooldown_s == 1800
    assert [of.tokens[alias].address for alias in ("usdc", "eurc")] == [USDC, EURC]
    assert [one.name for one in of.envelopes_of("research-3")] == ["research", "company"]


def test_the_hash_is_of_what_the_file_means() -> None:
    one = policy(allow(), allow(name="two"))
    same = policy(allow(name="two"), allow(when={}), default="deny", approval={"timeout": "15m"})
    assert one.hash == same.hash
    text = "# a comment\n" + to_toml(dict(reversed(tables(allow(), allow(name="two")).items())))
    assert parse_policy(text).hash == one.hash
    for other in (policy(allow()), policy(allow(), allow(name="two"), revision=8)):
        assert other.hash != one.hash
