"""One decision at a time: the order, the codes, and every cap at its edge."""

from hashlib import sha256
from typing import Any

import pytest
from msgspec.structs import replace

from channel.limits import TARGET_BYTES_MAX
from channel.tariff import Rate, Tariff
from mpp_session.wallet.policy import counters_for, decide
from mpp_session.wallet.types import Ask, Code, Purpose, Snapshot
from tests.mpp_session.wallet.policy.asks import (
    ENVELOPES,
    ESCROW,
    EURC,
    NOW,
    OTHER,
    PAYEE,
    STRANGER,
    TOKENS,
    agent,
    allow,
    ask,
    books,
    policy,
    scopes,
)

NOTHING = Snapshot()


def per(by: str, window: str = "1h") -> dict[str, Any]:
    return {"per": [{"by": by, "amount": "1 usdc", "window": window}]}


# Cap, the envelopes' settings, kind, what changes by one, what is used before, at the cap, code.
CAPS = [
    ({"request": "1 usdc"}, "sign", "request_total", None, 1_000_000, Code.REQUEST_EXCEEDED),
    ({"request": "1 usdc"}, "sign", "request_max", None, 1_000_000, Code.REQUEST_EXCEEDED),
    ({"request": "1 usdc"}, "deposit", "request_max", None, 1_000_000, Code.REQUEST_EXCEEDED),
    ({"request": "1 usdc"}, "charge", "amount", None, 1_000_000, Code.REQUEST_EXCEEDED),
    ({"deposit": "5 usdc"}, "deposit", "total", None, 5_000_000, Code.DEPOSIT_EXCEEDED),
    ({"deposit": "5 usdc"}, "deposit", "amount", None, 5_000_000, Code.DEPOSIT_EXCEEDED),
    ({"channel": "9 usdc"}, "sign", "total", None, 9_000_000, Code.CHANNEL_EXCEEDED),
    (per("origin"), "sign", "amount", ("spent", 999_000), 1_000, Code.WINDOW_EXCEEDED),
    (per("task", "total"), "charge", "amount", ("spent", 1), 999_999, Code.WINDOW_EXCEEDED),
    (per("agent"), "sign", "amount", ("spent", 0), 1_000_000, Code.WINDOW_EXCEEDED),
    (per("recipient"), "sign", "amount", ("spent", 0), 1_000_000, Code.WINDOW_EXCEEDED),
    (per("rule"), "sign", "amount", ("spent", 0), 1_000_000, Code.WINDOW_EXCEEDED),
    ({}, "sign", "amount", ("spent", 199_000_000), 1_000_000, Code.ENVELOPE_EXCEEDED),
    ({}, "charge", "amount", ("spent", 199_000_000), 1_000_000, Code.ENVELOPE_EXCEEDED),
    ({}, "deposit", "amount", ("locked", 150_000_000), 50_000_000, Code.LOCKED_EXCEEDED),
]


@pytest.mark.parametrize(("cap", "kind", "field", "used", "edge", "code"), CAPS)
def test_an_amount_at_a_cap_is_allowed_and_one_more_is_not(
    *, cap: dict[str, Any], kind: str, field: str, used: Any, edge: int, code: Code
) -> None:
    """payments#418 of nevermined: a cap is for what it says, not for each step towards it."""
    of = policy(allow(cap=cap))
    at, over = (replace(ask(kind), **{field: edge + more}) for more in (0, 1))
    held = NOTHING if used is None else books(of, at, *used)
    assert decide(of, at, held).code == Code.ALLOWED
    refused = decide(of, over, held)
    assert (refused.action, refused.code) == ("deny", code)
    assert refused.field
    assert refused.field in refused.reason
    assert refused.asked == edge + 1
    assert refused.allowed == edge
    assert decide(of, over, replace(held, approved=10**9)).code == code, "approvals lift no cap"


@pytest.mark.parametrize(
    ("cap", "one", "edge", "over", "code"),
    [
        ({"channels": 2}, ask("deposit"), {"channels": 1}, {"channels": 2}, "channels"),
        ({"streams": 2}, ask(is_stream=True), {"streams": 1}, {"streams": 2}, "streams"),
    ],
)
def test_a_number_at_its_cap_is_allowed_and_one_more_is_not(
    cap: Any, one: Ask, edge: Any, over: Any, code: str
) -> None:
    of = policy(allow(cap=cap))
    assert decide(of, one, Snapshot(**edge)).action == "allow"
    refused = decide(of, one, Snapshot(**over))
    assert (refused.code, refused.allowed) == (f"{code}_exceeded", 0)


def test_requests_are_counted_once_each_and_again_when_the_window_frees() -> None:
    of = policy(allow(cap={"rate": [{"count": 60, "window": "1m"}]}))
    first, later = ask(), ask(is_first=False)
    assert decide(of, first, books(of, first, "requests", 59)).action == "allow"
    refused = decide(of, first, books(of, first, "requests", 60))
    assert (refused.code, refused.retry_at) == (Code.RATE_EXCEEDED, NOW + 61)
    assert decide(of, later, books(of, first, "requests", 60)).action == "allow"
    assert not [one for one in counters_for(of, later) if one.what == "requests"]


@pytest.mark.parametrize(
    ("tariff", "code"),
    [
        (Tariff((Rate("output_token", 600_000, 10**6),)), Code.ALLOWED),
        (Tariff((Rate("output_token", 600_001, 10**6),)), Code.UNIT_PRICE_EXCEEDED),
        (Tariff((Rate("output_token", 1, 10**6), Rate("image", 1))), Code.UNIT_PRICE_EXCEEDED),
        (
            Tariff((Rate("output_token", 1, 10**6), Rate("output_token", 1, 1, 9))),
            Code.UNIT_PRICE_EXCEEDED,
        ),
        (Tariff((Rate("output_token", 600_000, 10**6),), minimum=39), Code.ALLOWED),
        (Tariff((Rate("output_token", 600_000, 10**6),), minimum=40), Code.UNIT_PRICE_EXCEEDED),
    ],
    ids=["at the cap", "above", "a kind without a cap", "a dear step", "step", "a dear request"],
)
def test_every_price_of_a_tariff_is_held_against_its_cap(tariff: Tariff, code: Code) -> None:
    """x402#3505: prices are compared by unit, exactly; the dearest step counts."""
    of = policy(allow(cap={"unit_price": {"output_token": "0.60 usdc / 1M"}}))
    for kind in ("deposit", "sign"):
        assert decide(of, ask(kind, tariff=tariff), NOTHING).code == code


def test_a_charge_is_a_request_at_its_price() -> None:
    of = policy(allow(cap={"unit_price": {"request": "0.01 usdc"}}))
    assert decide(of, ask("charge", amount=10_000), NOTHING).action == "allow"
    refused = decide(of, ask("charge", amount=10_001), NOTHING)
    assert refused.code == Code.UNIT_PRICE_EXCEEDED


MATCHES = [
    ({"origin": ["https://other.example"]}, Code.ORIGIN_NOT_ALLOWED, "origin"),
    ({"path": ["/find"]}, Code.PATH_NOT_ALLOWED, "path"),
    ({"chain": [1]}, Code.CHAIN_NOT_ALLOWED, "chain"),
    ({"token": ["eurc"]}, Code.TOKEN_NOT_ALLOWED, "token"),
    ({"recipient": ["0x" + STRANGER.hex()]}, Code.RECIPIENT_NOT_ALLOWED, "recipient"),
    ({"escrow": ["0x" + STRANGER.hex()]}, Code.ESCROW_NOT_ALLOWED, "escrow"),
    ({"method": ["GET"]}, Code.NO_RULE, "method"),
    ({"task": ["t2"]}, Code.NO_RULE, "task"),
    ({"tool": ["delete"]}, Code.NO_RULE, "tool"),
    ({"unit": ["image"]}, Code.NO_RULE, "unit"),
]


@pytest.mark.parametrize(("match", "code", "key"), MATCHES)
def test_a_refusal_names_the_part_of_the_nearest_rule_that_does_not_match(
    match: Any, code: Code, key: str
) -> None:
    """What no rule allows is refused; CDP accepts an operation that no rule names."""
    far = allow(name="far", match={"path": ["/a"], "origin": ["https://a.example"], "chain": [5]})
    refused = decide(policy(allow(match=match), far), ask(), NOTHING)
    assert (refused.action, refused.code) == ("deny", code)
    assert refused.field == f"rule.search.match.{key}"
    assert refused.field in refused.reason


def test_without_a_rule_about_the_agent_nothing_is_allowed() -> None:
    for of in (policy(), policy(allow(match={"agent": ["writer"]}))):
        assert decide(of, ask(), NOTHING).code == Code.NO_RULE


def test_unknown_tokens_and_chains_are_refused_before_any_rule() -> None:
    of = policy({"name": "all", "action": "allow"})
    assert decide(of, ask(token=OTHER), NOTHING).code == Code.TOKEN_NOT_ALLOWED
    assert decide(of, ask(chain_id=1), NOTHING).code == Code.CHAIN_NOT_ALLOWED


def test_a_token_that_no_envelope_of_the_agent_counts_cannot_be_spent() -> None:
    """The walletcap page: $150 were capped in USDC, and the rest was spent in EURC."""
    of = policy({"name": "all", "action": "allow"})
    assert decide(of, ask(), NOTHING).action == "allow"
    refused = decide(of, ask(token=EURC), NOTHING)
    assert refused.code == Code.TOKEN_NOT_ALLOWED
    assert refused.field == "agent.research-3.envelopes"


def test_amounts_of_two_tokens_never_share_a_sum() -> None:
    """Nor does one token's cap count for the other."""
    envelopes = ENVELOPES | {"euros": {"amount": "10 eurc", "window": "7d"}}
    of = policy(
        {"name": "all", "action": "allow"},
        envelope=envelopes,
        agent={"research-3": agent(envelopes=["research", "euros"])},
    )
    usdc, eurc = (counters_for(of, ask(token=one)) for one in (ask().token, EURC))
    assert scopes(usdc) == {
        "spent envelope research usdc 604800",
        "spent envelope company usdc None",
    }
    assert scopes(eurc) == {"spent envelope euros eurc 604800"}


def test_a_task_has_a_sum_of_its_own_and_no_text_can_take_another() -> None:
    envelopes = {"research": {"amount": "200 usdc", "window": "task"}}
    of = policy(allow(), envelope=envelopes)
    digest = f"sha256:{sha256(b'a' * 129).hexdigest()}"
    found = {
        task: scopes(counters_for(of, ask(purpose=Purpose(task=task))))
        for task in ("t1", "t2", "", "a" * 129, digest, "a\nb", "\ud800")
    }
    assert found["t1"] == {"spent envelope research task t1 usdc None"}
    assert len(set(map(frozenset, found.values()))) == len(found)
    assert all("\n" not in text and text.isprintable() for one in found.values() for text in one)


def test_an_escrow_that_the_token_does_not_name_holds_no_deposit() -> None:
    token = TOKENS["usdc"] | {"escrows": [{"address": "0x" + ESCROW.hex()}]}
    of = policy(allow(), token={"usdc": token})
    assert decide(of, ask("deposit"), NOTHING).action == "allow"
    assert decide(of, ask("charge"), NOTHING).action == "allow"
    refused = decide(of, ask("deposit", escrow=PAYEE), NOTHING)
    assert (refused.code, refused.field) == (Code.ESCROW_NOT_ALLOWED, "token.usdc.escrows")


@pytest.mark.parametrize(
    "path",
    [
        "/admin/x",
        "/admin",
        "/ADMIN/x",
        "/x/../admin/x",
        "//admin/x",
        "/%61dmin/x",
        "/%2561dmin/x",
        "/admin%2Fx",
        "/admin;a=b/x",
        "/./admin/x",
        "/x/%2e%2e/admin/x",
        "\\admin\\x",
        "/admin\x00/x",
        "/admin?x",
    ],
)
def test_no_spelling_of_a_path_evades_a_rule_that_denies(path: str) -> None:
    deny = {"name": "admin", "action": "deny", "match": {"path": ["/admin/*"]}}
    refused = decide(policy(allow(), deny), ask(path=path), NOTHING)
    assert refused.code in (Code.RULE_DENIED, Code.PATH_NOT_ALLOWED)


@pytest.mark.parametrize("path", ["/", "/search", "/v1/caf%C3%A9", "/a%20b", "/~me/a.b-c_d", "/a/"])
def test_plain_paths_are_read_as_they_are(path: str) -> None:
    assert decide(policy(allow(match={"path": ["/*"]})), ask(path=path), NOTHING).action == "allow"


def test_a_path_is_as_long_as_servers_take() -> None:
    of = policy(allow())
    longest = "/" + "a" * (TARGET_BYTES_MAX - 1)
    assert decide(of, ask(path=longest), NOTHING).action == "allow"
    assert decide(of, ask(path=longest + "a"), NOTHING).code == Code.PATH_NOT_ALLOWED


@pytest.mark.parametrize(
    ("pattern", "origin", "is_match"),
    [
        ("https://api.example", "https://api.example:443", True),
        ("https://api.example", "https://api.example", True),
        ("https://api.example:443", "https://API.example", True),
        ("https://api.example", "https://api.example:8443", False),
        ("https://api.example", "http://api.example:80", False),
        ("https://*.example", "https://api.example:443", True),
        ("https://*.example", "https://a.b.example:443", True),
        ("https://*.example", "https://example:443", False),
        ("https://*.example", "https://evil.com/.example:443", False),
        ("https://*.example", "https://evil.com/.example", False),
        ("https://*.example", "https://me@evil.example.com#.example", False),
        ("https://*.example", "https://evil.com:443@a.example", False),
        ("https://*.example", "https://evil.com?.example", False),
        ("https://*.example", "https://evil.com:1.example", False),
        ("https://*", "http://api.example:80", False),
        ("http://127.0.0.1:*", "http://127.0.0.1:8402", True),
        ("http://127.0.0.1:*", "http://127.1:8402", False),
        ("*", "http://2130706433", False),
        ("*", "https://a..example", False),
        ("*", "https://api.example.:443", False),
        ("*", "https://[::1]:443", True),
        ("*", "ftp://api.example", False),
        ("*", "", False),
    ],
)
def test_an_origin_matches_whole_or_not_at_all(pattern: str, origin: str, is_match: bool) -> None:  # noqa: FBT001
    decision = decide(policy(allow(match={"origin": [pattern]})), ask(origin=origin), NOTHING)
    assert (decision.action == "allow") is is_match
    assert is_match or decision.code == Code.ORIGIN_NOT_ALLOWED


def test_freezing_comes_first_and_reaches_ancestors() -> None:
    of = policy(allow())
    for frozen in (
        "all",
        "agent research-3",
        "envelope research",
        "envelope company",
        "origin https://api.example:443",
        "origin https://api.example",
    ):
        decision = decide(of, ask(), Snapshot(frozen=frozenset({frozen}), approved=10**9))
        assert decision.code == Code.FROZEN
    assert decide(of, ask(agent="x"), Snapshot(frozen=frozenset({"all"}))).code == Code.FROZEN
    assert decide(of, ask(), Snapshot(frozen=frozenset({"agent other"}))).action == "allow"


def test_an_agent_must_be_known_alive_and_within_its_time() -> None:
    """go-micro#4841: what never expires is never given."""
    of = policy(allow(), agent={"research-3": agent(), "old": agent("old")})
    end = of.agents["old"].expires
    assert decide(of, ask(agent="stranger"), NOTHING).code == Code.AGENT_UNKNOWN
    revoked = Snapshot(revoked=frozenset({"agent research-3"}))
    assert decide(of, ask(), revoked).code == Code.AGENT_REVOKED
    assert decide(of, ask(agent="old", at=end - 1), NOTHING).action == "allow"
    for at in (end, float("nan"), float("inf"), -1.0):
        assert decide(of, ask(agent="old", at=at), NOTHING).code == Code.AGENT_EXPIRED


def test_an_agent_names_its_own_tasks_and_no_other_agent_s() -> None:
    """A budget for each task, and a rule by task, would stand on the word of any agent."""
    agents = {
        "research-3": agent(),
        "news": agent("news", tasks=["news-*", "shared", "a", "b"]),
        "press": agent("press", tasks=["shared"]),
    }
    of = policy(allow(match={"task": ["*"]}), agent=agents)
    allowed = {
        name: [
            task
            for task in ("news-1", "shared", "free", "")
            if decide(of, ask(agent=name, purpose=Purpose(task=task)), NOTHING).action == "allow"
        ]
        for name in agents
    }
    assert allowed == {
        "research-3": ["free", ""],
        "news": ["news-1", "shared", ""],
        "press": ["shared", ""],
    }
    for name in ("research-3", "press"):
        one = ask(agent=name, purpose=Purpose(task="news-1"))
        refused = decide(of, one, Snapshot(approved=10**9))
        assert (refused.code, refused.field) == (Code.TASK_NOT_ALLOWED, f"agent.{name}.tasks")
        assert refused.field in refused.reason
    frozen = Snapshot(frozen=frozenset({"agent press"}))
    assert decide(of, one, frozen).code == Code.FROZEN


def test_a_revoked_rule_allows_nothing_and_its_caps_stay() -> None:
    revoked = Snapshot(revoked=frozenset({"rule search"}))
    of = policy(allow(cap={"request": "0.001 usdc"}))
    assert decide(of, ask(request_total=0, request_max=0), revoked).code == Code.NO_RULE
    other = policy(allow(cap={"request": "0.001 usdc"}), allow(name="wide"))
    assert decide(other, ask(), revoked).code == Code.REQUEST_EXCEEDED


def test_a_rule_holds_in_its_time_and_says_when_it_will() -> None:
    hours = policy(allow(when={"hours": "08:00-20:00 UTC"}))
    assert decide(hours, ask(), NOTHING).action == "allow"  # NOW is 08:00
    refused = decide(hours, ask(at=NOW - 1), NOTHING)
    assert (refused.code, refused.field) == (Code.NO_RULE, "rule.search.when.hours")
    assert refused.retry_at == NOW
    night = policy(allow(when={"hours": "22:00-06:00 Europe/Berlin"}))
    assert decide(night, ask(), NOTHING).action == "deny"
    assert decide(night, ask(at=NOW - 4 * 3600), NOTHING).action == "allow"


ASKING = {"name": "new", "action": "ask", "match": {"first_seen": ["recipient", "chain"]}}


def test_people_are_asked_about_deposits_and_charges_and_never_about_vouchers() -> None:
    of = policy(allow(), ASKING)
    new = Snapshot(never_paid=frozenset({"recipient"}))
    for kind in ("deposit", "charge"):
        held = decide(of, ask(kind), new)
        assert (held.action, held.code, held.rule) == ("ask", Code.APPROVAL_PENDING, "new")
        assert decide(of, ask(kind), NOTHING).action == "allow"
        amount = ask(kind).amount
        assert decide(of, ask(kind), replace(new, approved=amount)).action == "allow"
        assert decide(of, ask(kind), replace(new, approved=amount - 1)).action == "ask"
    assert decide(of, ask(), new).action == "allow"


def test_a_rule_about_what_is_new_grants_nothing_by_itself() -> None:
    """Else its approval would open every origin, and the first voucher would match no rule."""
    new = Snapshot(never_paid=frozenset({"recipient"}), approved=10**9)
    of = policy(allow(match={"path": ["/other"]}), ASKING)
    for kind in ("deposit", "sign"):
        assert decide(of, ask(kind), new).code == Code.PATH_NOT_ALLOWED
    granting = policy({"name": "new", "action": "ask"})
    assert decide(granting, ask("deposit"), Snapshot()).action == "ask"
    assert decide(granting, ask("deposit"), new).action == "allow"


def test_an_amount_above_the_threshold_is_asked_about_and_a_top_up_cannot_evade_it() -> None:
    of = policy(allow(), approval={"above": "5 usdc"})
    assert decide(of, ask("deposit", amount=5_000_000), NOTHING).action == "allow"
    for over in (
        ask("deposit", amount=5_000_001),
        ask("deposit", amount=1, total=5_000_001, is_opening=False),
        ask("charge", amount=5_000_001),
    ):
        held = decide(of, over, NOTHING)
        assert (held.action, held.field) == ("ask", "approval.above")
    assert decide(of, ask(amount=5_000_001), NOTHING).action == "allow"


def test_a_token_without_a_threshold_is_always_asked_about() -> None:
    envelopes = {"research": {"amount": "10 eurc", "window": "7d"}}
    of = policy(
        {"name": "all", "action": "allow"}, envelope=envelopes, approval={"above": "5 usdc"}
    )
    assert decide(of, ask("charge", token=EURC, amount=1), NOTHING).action == "ask"


def test_what_no_rule_allows_is_asked_about_where_the_owner_wants_it() -> None:
    of = policy(default="ask")
    held = decide(of, ask("deposit"), NOTHING)
    assert (held.action, held.field) == ("ask", "default")
    denying = policy({"name": "no", "action": "deny"}, default="ask")
    refused = decide(denying, ask("deposit"), Snapshot(approved=10**9))
    assert refused.code == Code.RULE_DENIED


def test_a_soft_envelope_is_exceeded_by_approval_and_a_hard_parent_is_not() -> None:
    """A2CN PR#32: hard caps come before the pause for an approval."""
    soft = ENVELOPES | {"research": ENVELOPES["research"] | {"on_exceed": "ask"}}
    of, one = policy(allow(), envelope=soft), ask(amount=10_000_000)
    full = dict.fromkeys(counters_for(of, one), 195_000_000)
    held = decide(of, one, Snapshot(sums=full))
    assert (held.action, held.code) == ("ask", Code.ENVELOPE_EXCEEDED)
    assert (held.asked, held.allowed) == (10_000_000, 5_000_000)
    for_another_reason = Snapshot(sums=full, approved=10_000_000)
    assert decide(of, one, for_another_reason) == held, "who approved was not asked for a raise"
    allowed = decide(of, one, replace(for_another_reason, approved_raise=True))
    assert (allowed.action, allowed.left) == ("allow", 0)
    fuller = dict.fromkeys(full, 495_000_000)
    refused = decide(of, one, Snapshot(sums=fuller, approved=10**9, approved_raise=True))
    assert (refused.action, refused.field) == ("deny", "envelope.company.amount")
    again = ask(amount=0, request_total=10_000_000)
    assert decide(of, again, Snapshot(sums=fuller)).action == "allow", "it adds nothing"


def test_breaker_and_anomaly() -> None:
    unusual = Snapshot(finding="ten times the usual amount")
    actions = {
        action: decide(policy(allow(), anomaly={"action": action}), ask("charge"), unusual)
        for action in ("note", "ask", "pause")
    }
    assert {key: one.action for key, one in actions.items()} == {
        "note": "allow",
        "ask": "ask",
        "pause": "deny",
    }
    assert "ten times" in actions["note"].warnings[0]
    assert {actions["ask"].code, actions["pause"].code} == {Code.ANOMALY_HELD}
    stopped = Snapshot(breaker_until=NOW + 60, breaker="three refusals", approved=10**9)
    refused = decide(policy(allow()), ask(), stopped)
    assert (refused.code, refused.retry_at) == (Code.BREAKER_OPEN, NOW + 60)
    assert decide(policy(allow()), ask(at=NOW + 60), stopped).action == "allow"


def test_crossing_a_share_of_an_envelope_warns_once() -> None:
    envelopes = {"research": {"amount": "10 usdc", "window": "7d", "warn_at": [0.5, 0.8]}}
    text = policy(allow(), envelope=envelopes)
    one = ask(amount=1_000_000)
    warned = {
        used: decide(text, one, books(text, one, "spent", used * 1_000_000)).warnings
        for used in (3, 4, 5, 7, 8)
    }
    assert [used for used, found in warned.items() if found] == [4, 7]
    assert "50%" in warned[4][0]
    assert "80%" in warned[7][0]


def test_an_allowed_ask_says_what_it_is_booked_to_and_what_is_left() -> None:
    of = policy(allow(cap={"rate": [{"count": 9, "window": "1m"}], "request": "1 usdc"}))
    decision = decide(of, ask(amount=10_000), NOTHING)
    assert decision.envelopes == ("research", "company")
    assert set(decision.counters) == set(counters_for(of, ask()))
    assert decision.left == 990_000
    assert decision.policy_revision == 7
