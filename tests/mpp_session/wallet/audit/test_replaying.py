"""Another policy decides the trail's asks over the books that it would have had."""

from msgspec.structs import replace

from mpp_session.wallet.audit.records import decision_fields
from mpp_session.wallet.audit.replaying import replay_trail, snapshots
from mpp_session.wallet.policy import WalletPolicy
from mpp_session.wallet.types import Ask, Code
from tests.mpp_session.wallet.audit.asks import make_decision
from tests.mpp_session.wallet.audit.payments import AT, Writer
from tests.mpp_session.wallet.policy.asks import ENVELOPES, NOW, agent, allow, ask, policy

CHANNEL = b"\x09" * 32
EXPIRES = {"agent": {"research-3": agent()}}


def pays(kind: str, amount: int, *, at: float, request: str = "r1", **changes: object) -> Ask:
    made = ask(kind)
    members = {"amount": amount, "total": amount, "request_total": amount, "request_max": amount}
    named = {"at": at, "request_id": request, "channel_id": CHANNEL} | changes
    return replace(made, **(members | named))


def test_windows_and_deposits_are_counted_under_the_other_policy() -> None:
    writer = Writer(":memory:")
    day = 24 * 3600
    opening = pays("deposit", 30_000_000, at=NOW, is_opening=True, request_total=0)
    writer.decide(opening)
    for number in range(3):
        writer.decide(pays("charge", 40_000_000, at=NOW + number * day, request=f"c{number}"))
    writer.decide(pays("charge", 40_000_000, at=NOW + 8.5 * day, request="late"))
    writer.decide(replace(opening, at=NOW + 9 * day, request_id="more", channel_id=b"\x08" * 32))
    for channel in (CHANNEL, b"\x08" * 32):
        writer.add("close", channel_id=channel, settled=0, returned=30_000_000)
    writer.decide(replace(opening, at=NOW + 10 * day, request_id="again"))

    def refused(other: WalletPolicy) -> list[tuple[str, str]]:
        asked, changes = replay_trail(writer.db, other)
        assert asked == 7
        return [(one.first.ask.request_id, str(one.first.after.code)) for one in changes]

    smaller = {"research": ENVELOPES["research"] | {"amount": "100 usdc"}}
    assert refused(policy(allow())) == []
    assert refused(policy(allow(), envelope=ENVELOPES | smaller)) == [("c2", "envelope_exceeded")]
    tight = {"research": ENVELOPES["research"] | {"locked_max": "50 usdc"}}
    assert refused(policy(allow(), envelope=ENVELOPES | tight)) == [("more", "locked_exceeded")]
    assert refused(policy(allow(cap={"channels": 1}))) == [("more", "channels_exceeded")]
    new = {"name": "new", "action": "deny", "match": {"first_seen": ["origin"]}}
    assert refused(policy(allow(), new)) == [("r1", "rule_denied")]


def test_what_no_policy_decided_is_left_out_and_an_approval_counts_as_given() -> None:
    writer = Writer(":memory:")
    charge = pays("charge", 1_000_000, at=NOW)
    frozen = make_decision("deny", code=Code.FROZEN)
    writer.add("decision", **decision_fields(charge, frozen))
    writer.decide(replace(charge, request_id="r2"), approval="ap1")
    writer.decide(replace(charge, request_id="r3"))
    asks_people = policy(allow(action="ask"))
    asked, changes = replay_trail(writer.db, asks_people)
    assert asked == 2
    assert [(one.first.ask.request_id, one.first.after.action) for one in changes] == [
        ("r3", "ask")
    ]
    assert list(snapshots(writer.db, asks_people, since=NOW + 1)) == []
    assert NOW > AT


def test_vouchers_of_a_request_are_one_change() -> None:
    writer = Writer(":memory:")
    writer.pay(pays("sign", 0, at=NOW), 10, 20, 30)
    asked, (change,) = replay_trail(writer.db, policy({"name": "no", "action": "deny"}))
    assert (asked, change.asks, change.amount) == (3, 3, 60)
    assert change.first.after.code == Code.RULE_DENIED
