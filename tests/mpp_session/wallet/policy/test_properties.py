"""What holds for every policy, ask and snapshot."""

import copy
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, cast

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.tariff import Rate, Tariff
from channel.types import Address
from mpp_session.wallet.policy import (
    WalletPolicy,
    client_policy,
    counters_for,
    decide,
)
from mpp_session.wallet.policy.compiling import compile_policy
from mpp_session.wallet.policy.deciding import evaluate
from mpp_session.wallet.policy.diffing import diff
from mpp_session.wallet.policy.explaining import explain
from mpp_session.wallet.policy.file import PolicyFile
from mpp_session.wallet.policy.reaching import refuse_reach
from mpp_session.wallet.types import Ask, Counter, Decision, Purpose, Snapshot
from tests.mpp_session.wallet.policy.asks import (
    ESCROW,
    NOW,
    PAYEE,
    STRANGER,
    TARIFF,
    TOKENS,
    USDC,
    agent,
)

RANK = {"deny": 0, "ask": 1, "allow": 2}
WINDOWS = ("1m", "1h", "total")
ORIGINS = ("https://api.example:443", "https://b.example:443")
PATHS = ("/search", "/admin/x")
AGENTS = ("research-3", "writer")
AMOUNT = st.integers(0, 6)


def usdc(amount: int) -> str:
    return f"{amount} usdc"


MONEY = AMOUNT.map(usdc)


def maybe(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


CAPS = maybe(
    unit_price=st.fixed_dictionaries({"request": MONEY}),
    request=MONEY,
    deposit=MONEY,
    channel=MONEY,
    per=st.lists(
        st.fixed_dictionaries(
            {
                "by": st.sampled_from(("origin", "task", "agent", "recipient", "rule")),
                "amount": MONEY,
                "window": st.sampled_from(WINDOWS),
            }
        ),
        min_size=1,
        max_size=2,
    ),
    rate=st.just([{"count": 2, "window": "1m"}]),
    channels=st.integers(1, 3),
    streams=st.integers(1, 3),
)
MATCHES = maybe(
    agent=st.sampled_from((["*"], ["research-*"], ["writer"])),
    origin=st.sampled_from((["https://api.example"], ["https://*.example"])),
    path=st.sampled_from((["/search"], ["/admin/*"], ["*"])),
    recipient=st.just(["0x" + PAYEE.hex()]),
    task=st.sampled_from((["t1"], ["*"])),
    first_seen=st.sampled_from((["recipient"], ["origin", "chain"])),
)


@st.composite
def rules(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4)):
        action = draw(st.sampled_from(("allow", "allow", "ask", "deny")))
        rule: dict[str, Any] = {"name": name, "action": action, "match": draw(MATCHES)}
        if action == "allow":
            rule["match"].pop("first_seen", None)
        if action != "deny":
            rule["cap"] = draw(CAPS)
        found.append(rule)
    return found


ENVELOPE = st.fixed_dictionaries(
    {"amount": st.integers(3, 12).map(usdc), "window": st.sampled_from((*WINDOWS, "task"))},
    optional={"locked_max": MONEY, "on_exceed": st.sampled_from(("ask", "deny"))},
)


TASKS = maybe(tasks=st.sampled_from((["t1"], ["t*"], ["t2", "u*"], ["u1"])))


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "version": 1,
        "revision": 7,
        "default": draw(st.sampled_from(("deny", "deny", "ask"))),
        "token": {"usdc": TOKENS["usdc"] | {"decimals": 0}},
        "envelope": {
            "company": draw(ENVELOPE),
            "research": draw(ENVELOPE) | draw(maybe(parent=st.just("company"))),
        },
        "agent": {name: agent(name, **draw(TASKS)) for name in AGENTS},
        "rule": draw(rules()),
        "approval": draw(maybe(above=MONEY)),
        "anomaly": {"action": draw(st.sampled_from(("ask", "pause", "note")))},
    }


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    kind = draw(st.sampled_from(("deposit", "sign", "charge")))
    amount = draw(AMOUNT)
    before = 0 if kind == "charge" else draw(AMOUNT)
    return Ask(
        kind=cast("Any", kind),
        agent=draw(st.sampled_from((*AGENTS, "stranger"))),
        request_id="r",
        origin=draw(st.sampled_from(ORIGINS)),
        method="POST",
        path=draw(st.sampled_from(PATHS)),
        purpose=Purpose(task=draw(st.sampled_from(("t1", "t2")))),
        chain_id=8453,
        token=USDC,
        recipient=draw(st.sampled_from((PAYEE, STRANGER))),
        escrow=None if kind == "charge" else ESCROW,
        tariff=None if kind == "charge" else Tariff((Rate("request", draw(st.integers(1, 4))),)),
        request_max=draw(AMOUNT),
        amount=amount,
        total=before + amount,
        request_total=0 if kind == "deposit" else amount,
        is_first=draw(st.booleans()),
        is_opening=draw(st.booleans()),
        is_stream=draw(st.booleans()),
        at=NOW,
    )


SEEN: Any = st.sets(st.sampled_from(("origin", "recipient", "chain"))).map(frozenset)


@st.composite
def snapshots(draw: st.DrawFn, policy: WalletPolicy, ask: Ask) -> Snapshot:
    return Snapshot(
        sums={one: draw(st.integers(0, 8)) for one in counters_for(policy, ask)},
        channels=draw(st.integers(0, 3)),
        streams=draw(st.integers(0, 3)),
        never_paid=draw(SEEN),
        breaker_until=draw(st.sampled_from((None, None, NOW - 1, NOW + 1))),
        finding=draw(st.sampled_from(("", "", "unusual"))),
        approved=draw(st.sampled_from((None, 0, 3, 10**9))),
        approved_raise=draw(st.booleans()),
    )


class Case:
    """A policy as tables and compiled, an ask and a snapshot."""

    def __init__(self, content: dict[str, Any], ask: Ask, data: st.DataObject) -> None:
        self.tables, self.ask = content, ask
        self.policy = compiled(content)
        self.snapshot = data.draw(snapshots(self.policy, ask), "snapshot")
        self.decision = decide(self.policy, ask, self.snapshot)

    @property
    def rank(self) -> int:
        return RANK[self.decision.action]

    def under(self, content: dict[str, Any]) -> Decision:
        return decide(compiled(content), self.ask, self.snapshot)


def compiled(content: dict[str, Any]) -> WalletPolicy:
    return compile_policy(msgspec.convert(content, PolicyFile))


ANY_TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from((*ORIGINS, *PATHS, *AGENTS, "https://[::1", "/%", "/%ff", "\ud800", "/" * 9)),
)
ANY_NUMBER = st.one_of(st.integers(-2, 9), st.sampled_from((2**128 - 1, 2**128, -(2**200))))
ANY_TIME = st.one_of(st.floats(), st.sampled_from((NOW, 1e300, -1e300)))
ANY_ADDRESS = st.binary(max_size=21).map(Address) | st.just(USDC)
ANY_ASK = st.builds(
    Ask,
    kind=st.sampled_from(("deposit", "sign", "charge")),
    agent=ANY_TEXT,
    request_id=ANY_TEXT,
    origin=ANY_TEXT,
    method=ANY_TEXT,
    path=ANY_TEXT,
    purpose=st.builds(Purpose, task=ANY_TEXT, tool=ANY_TEXT, reason=ANY_TEXT),
    chain_id=st.sampled_from((8453, 0, -1)),
    token=ANY_ADDRESS,
    recipient=ANY_ADDRESS,
    escrow=st.none() | ANY_ADDRESS,
    tariff=st.sampled_from((None, TARIFF)),
    request_max=ANY_NUMBER,
    amount=ANY_NUMBER,
    total=ANY_NUMBER,
    request_total=ANY_NUMBER,
    is_first=st.booleans(),
    is_opening=st.booleans(),
    is_stream=st.booleans(),
    at=ANY_TIME,
)
ANY_COUNTER = st.builds(
    Counter, st.sampled_from(("spent", "locked", "requests")), ANY_TEXT, ANY_TEXT, st.none()
)
ANY_SNAPSHOT = st.builds(
    Snapshot,
    frozen=st.frozensets(ANY_TEXT, max_size=2),
    revoked=st.frozensets(ANY_TEXT, max_size=2),
    sums=st.dictionaries(ANY_COUNTER, ANY_NUMBER, max_size=2),
    channels=ANY_NUMBER,
    streams=ANY_NUMBER,
    breaker_until=st.none() | ANY_TIME,
    breaker=ANY_TEXT,
    finding=ANY_TEXT,
    approved=st.none() | ANY_NUMBER,
)


@given(content=tables(), ask=ANY_ASK, snapshot=ANY_SNAPSHOT, known=st.booleans())
@settings(max_examples=50)
def test_no_ask_and_no_snapshot_makes_a_decision_raise(
    *, content: dict[str, Any], ask: Ask, snapshot: Snapshot, known: bool
) -> None:
    policy = compiled(content)
    if known:
        ask = replace(
            ask,
            agent="writer",
            origin=ORIGINS[0],
            path="/search",
            token=USDC,
            chain_id=8453,
            at=NOW,
        )
    decision = decide(policy, ask, snapshot)
    assert decision.reason
    assert "\n" not in decision.reason
    assert (decision.action == "allow") == (decision.code == "allowed")
    assert set(decision.counters) <= set(counters_for(policy, ask))
    assert explain(policy, ask, snapshot)
    limits_of = client_policy(policy, ask.agent).limits_of
    assert limits_of is not None
    limits_of(ask.origin)


@given(content=tables(), ask=asks(), data=st.data())
@settings(max_examples=50)
def test_nothing_that_tightens_a_policy_allows_more(
    content: dict[str, Any], ask: Ask, data: st.DataObject
) -> None:
    case = Case(content, ask, data)
    tight = copy.deepcopy(content)
    match data.draw(st.sampled_from(("deny", "cap", "envelope", "above", "uncovered")), "how"):
        case "deny":
            tight["rule"].append({"name": "z", "action": "deny", "match": data.draw(MATCHES)})
        case "cap":
            capped = [rule for rule in tight["rule"] if rule["action"] != "deny"]
            assume(capped)
            lower(data.draw(st.sampled_from(capped))["cap"], data)
        case "envelope":
            name = data.draw(st.sampled_from(sorted(tight["envelope"])))
            tight["envelope"][name] |= {"amount": usdc(data.draw(st.integers(0, 3)))}
            tight["envelope"][name].setdefault("locked_max", content["envelope"][name]["amount"])
        case "above":
            assume("above" not in tight["approval"])
            tight["approval"]["above"] = data.draw(MONEY)
        case "uncovered":
            tight["default"] = "deny"
    assert RANK[case.under(tight).action] <= case.rank


def lower(caps: dict[str, Any], data: st.DataObject) -> None:
    """Lower one cap, or add one that was not there."""
    key = data.draw(st.sampled_from(("request", "deposit", "channel", "per", "channels")), "cap")
    if key == "per":
        caps["per"] = [*caps.get("per", ()), {"by": "agent", "amount": "1 usdc", "window": "1h"}]
    elif key == "channels":
        caps[key] = min(1, caps.get(key, 1))
    else:
        had = int(caps.get(key, "6 usdc").split()[0])
        caps[key] = usdc(data.draw(st.integers(0, had)))


@given(content=tables(), ask=asks(), data=st.data())
@settings(max_examples=50)
def test_a_decision_follows_its_snapshot(
    content: dict[str, Any], ask: Ask, data: st.DataObject
) -> None:
    """A2CN PR#32: what exceeds a hard cap is refused before a person is asked.

    More that is spent, frozen or revoked never allows more; an approval turns ask into allow and
    nothing else; the order of the rules is of no account.
    """
    case = Case(content, ask, data)
    more = replace(
        case.snapshot,
        sums={one: used + data.draw(AMOUNT) for one, used in case.snapshot.sums.items()},
        revoked=frozenset(
            data.draw(st.sets(st.sampled_from(("rule a", "rule b", "agent writer"))))
        ),
    )
    assert RANK[decide(case.policy, ask, more).action] <= case.rank

    names = ("all", f"agent {ask.agent}", "envelope research", f"origin {ask.origin}")
    frozen = frozenset({data.draw(st.sampled_from(names))})
    assert decide(case.policy, ask, replace(case.snapshot, frozen=frozen)).action == "deny"

    without, approved = (
        decide(case.policy, ask, replace(case.snapshot, approved=amount, approved_raise=True))
        for amount in (None, ask.amount)
    )
    expected = {"deny": "deny", "ask": "allow", "allow": "allow"}
    assert approved.action == expected[without.action]
    found = evaluate(case.policy, ask, case.snapshot)
    is_granted = any(rule.action == "allow" for rule in found.granting)
    if without.action == "ask" and is_granted:
        assert ask.is_commitment or "envelope" in without.field
    if without.action == "allow" and ask.is_first and ask.request_max:
        assert is_granted, "else it is a question"

    turned = copy.deepcopy(content)
    turned["rule"].reverse()
    assert case.under(turned) == case.decision
    assert compiled(turned).hash == case.policy.hash


@given(content=tables(), ask=asks(), task=st.text("tu12", max_size=2), data=st.data())
@settings(max_examples=50)
def test_no_agent_pays_for_a_task_that_is_another_s(
    content: dict[str, Any], ask: Ask, task: str, data: st.DataObject
) -> None:
    """Under any rules and approvals, and if its own rules would allow it."""
    assume(ask.agent in AGENTS)
    case = Case(content, replace(ask, purpose=Purpose(task=task)), data)
    own = content["agent"][ask.agent].get("tasks")
    others = [
        one
        for name in AGENTS
        if name != ask.agent
        for one in content["agent"][name].get("tasks", ())
    ]
    named, taken = (any(fnmatchcase(task, one) for one in all_) for all_ in (own or (), others))
    is_foreign = bool(task) and not named and (own is not None or taken)
    assert (case.decision.code == "task_not_allowed") == is_foreign
    assert (refuse_reach(case.policy, case.ask, Snapshot()) is None) <= (not is_foreign)


@given(content=tables(), other=tables(), ask=asks(), data=st.data())
@settings(max_examples=70)
def test_a_change_without_a_looser_part_allows_nothing_new(
    content: dict[str, Any], other: dict[str, Any], ask: Ask, data: st.DataObject
) -> None:
    """`diff` marks what a reviewer must read."""
    changed = copy.deepcopy(content)
    for key in data.draw(st.sets(st.sampled_from(sorted(content)), min_size=1, max_size=2)):
        changed[key] = other[key]
    if data.draw(st.booleans(), "one cap lower"):
        for rule in changed["rule"]:
            if rule["action"] != "deny":
                lower(rule["cap"], data)
    case = Case(content, ask, data)
    found = diff(case.policy, compiled(changed))
    if not any(change.way == "looser" for change in found):
        assert RANK[case.under(changed).action] <= case.rank


@given(content=tables(), ask=asks(), data=st.data())
@settings(max_examples=50)
def test_caps_are_reckoned_as_by_hand(
    content: dict[str, Any], ask: Ask, data: st.DataObject
) -> None:
    """A second reckoning of every hard cap, of one rule that matches everything."""
    content["rule"] = [{"name": "a", "action": "allow", "cap": data.draw(CAPS)}]
    content["agent"] = {name: agent(name) for name in AGENTS}
    case = Case(content, ask, data)
    assume(ask.agent != "stranger")
    is_refused = case.decision.action == "deny" and case.decision.code.endswith("_exceeded")
    assert is_refused == (any(single_by_hand(content, case)) or any(sums_by_hand(content, case)))


def whole(text: str) -> int:
    return int(text.split(maxsplit=1)[0])


def single_by_hand(content: dict[str, Any], case: Case) -> Iterator[bool]:
    cap, ask, held = content["rule"][0]["cap"], case.ask, case.snapshot
    price = ask.amount if ask.tariff is None else ask.tariff.main.amount
    if "unit_price" in cap:
        yield price > whole(cap["unit_price"]["request"])
    if "request" in cap:
        yield max(ask.request_max, ask.request_total) > whole(cap["request"])
    if "deposit" in cap and ask.kind == "deposit":
        yield ask.total > whole(cap["deposit"])
    if "channel" in cap and ask.kind == "sign":
        yield ask.total > whole(cap["channel"])
    if ask.kind == "deposit" and ask.is_opening:
        yield held.channels >= cap.get("channels", 99)
    if ask.kind == "sign" and ask.is_stream and ask.is_first:
        yield held.streams >= cap.get("streams", 99)
    if "rate" in cap and ask.kind != "deposit" and ask.is_first:
        yield held.sums[Counter("requests", f"rule a agent {ask.agent}", "", 60)] + 1 > 2


def sums_by_hand(content: dict[str, Any], case: Case) -> Iterator[bool]:
    ask, used = case.ask, case.snapshot.sums
    seconds = {"1m": 60, "1h": 3600}
    names = ["research", *filter(None, [content["envelope"]["research"].get("parent")])]
    for name in names:
        envelope = content["envelope"][name]
        if envelope.get("on_exceed") == "ask":
            continue
        scope, what, limit, window = f"envelope {name}", "spent", envelope["amount"], None
        if ask.kind == "deposit":
            what, limit = "locked", envelope.get("locked_max", envelope["amount"])
        elif envelope["window"] == "task":
            scope += f" task {ask.purpose.task}"
        else:
            window = seconds.get(envelope["window"])
        yield ask.amount > max(
            0, whole(limit) - used[Counter(cast("Any", what), scope, "usdc", window)]
        )
    for per in content["rule"][0]["cap"].get("per", ()) if ask.kind != "deposit" else ():
        whose = {
            "origin": f" origin {ask.origin}",
            "task": f" task {ask.purpose.task}",
            "agent": f" agent {ask.agent}",
            "recipient": f" recipient 0x{ask.recipient.hex()}",
            "rule": "",
        }[per["by"]]
        counter = Counter("spent", f"rule a{whose}", "usdc", seconds.get(per["window"]))
        yield ask.amount > max(0, whole(per["amount"]) - used[counter])
