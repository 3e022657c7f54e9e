"""Approvals against a model, with the file closed and opened between any two steps."""

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from channel.errors import ApprovalPendingError, PolicyRefusedError
from channel.types import ChannelId
from mpp_session.wallet.approvals.record import SCOPES, ApprovalError, Decider, State
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.types import Ask, Code
from tests.mpp_session.wallet.approvals.asks import RULES, ask_of, decision_of
from tests.mpp_session.wallet.approvals.file import WalletFile

M = 1_000_000
ONE, TWO = ChannelId(bytes(31) + b"\x01"), ChannelId(bytes(31) + b"\x02")
SIGN = {"kind": "sign", "is_opening": False, "request_max": 100}
KINDS: list[dict[str, Any]] = [
    {"channel_id": ONE},
    {"channel_id": TWO},
    {"channel_id": ONE, "is_opening": False},
    {"channel_id": TWO, "is_opening": False},
    {"kind": "charge", "channel_id": None, "is_opening": False, "escrow": None, "tariff": None},
    {**SIGN, "channel_id": ONE, "request_id": "r1"},
    {**SIGN, "channel_id": ONE, "request_id": "r2"},
    {**SIGN, "channel_id": ONE, "request_id": "r1", "is_first": False},
    {**SIGN, "channel_id": TWO, "request_id": "r2", "is_first": False},
]


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    """Return one of few asks, so that many of them are about the same terms."""
    kind = draw(st.sampled_from(KINDS))
    is_sign = kind.get("kind") == "sign"
    amount = draw(st.sampled_from([2, 5])) * (10 if is_sign else M)
    before = draw(st.sampled_from([0, 7])) if is_sign else 0
    return ask_of(
        **kind,
        agent=draw(st.sampled_from(["scout", "lead"])),
        task=draw(st.sampled_from(["t1", "t1", "t2"])),
        path=draw(st.sampled_from(["/search", "/search", "/extract"])),
        amount=amount,
        total=before + amount,
        request_total=amount,
    )


WHO = st.sampled_from(
    [
        Decider("person", "mia"),
        Decider("person", "bob"),
        Decider("person", "eve"),
        Decider("agent", "lead"),
        Decider("agent", "deputy"),
        Decider("agent", "scout"),
    ]
)
SUPERVISOR = RULES.supervisors["lead"]
QUORUM, PENDING_MAX = 2, 3
ORDER = ["once", "channel", "window"]


class Known(msgspec.Struct):
    """What the model knows of one approval."""

    ask: Ask
    amount: int
    state: State
    until: float
    policy: int
    is_raise: bool = False
    again_at: float = 0
    votes: dict[Decider, tuple[str, int, str]] = msgspec.field(default_factory=dict)
    approved: int = 0
    scope: str = "once"
    uses: list[Ask] = msgspec.field(default_factory=list)
    request_id: str = ""
    """Whose vouchers it covers."""

    @property
    def used(self) -> int:
        return sum(each.amount for each in self.uses)


def seen(ask: Ask, *fields: str) -> tuple[object, ...]:
    """What a person was shown of an ask; the task always."""
    return (ask.purpose.task, *(getattr(ask, name) for name in fields))


PAYEE = ("agent", "origin", "chain_id", "token", "escrow", "recipient", "tariff")
TERMS = (*PAYEE, "kind", "method", "path")


def is_same(first: Ask, second: Ask) -> bool:
    """Whether two asks are about one subject: the amount may differ."""
    same = seen(first, *TERMS, "is_opening") == seen(second, *TERMS, "is_opening")
    is_top_up = first.kind == "deposit" and not first.is_opening
    return same and (not is_top_up or first.channel_id == second.channel_id)


def is_deposit(each: Known, ask: Ask) -> bool:
    """Whether an approval is of a deposit that may pay for a voucher."""
    return each.ask.kind == "deposit" and ask.kind == "sign"


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = WalletFile(Path(self.folder.name) / "wallet.db")
        self.policy = 7
        self.now = 1_800_000_000.0
        self.known: dict[str, Known] = {}
        self.reopen()

    def teardown(self) -> None:
        self.file.close()
        self.folder.cleanup()

    @rule()
    def reopen(self) -> None:
        self.file.reopen()
        self.approvals = Approvals(
            replace(
                RULES,
                policy_revision=self.policy,
                quorum=QUORUM,
                people=frozenset({"mia", "bob"}),
                pending_max=PENDING_MAX,
                supervisors={"lead": SUPERVISOR, "deputy": SUPERVISOR, "scout": SUPERVISOR},
            )
        )

    @rule(seconds=st.sampled_from([1, 450, 900, 3600]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(is_rare=st.integers(0, 3))
    def load_another_policy(self, is_rare: int) -> None:
        """openai-agents-python#4896: the policy changed after an approval, none asked again."""
        if is_rare == 0:
            self.policy += 1
            self.reopen()

    def lapse(self) -> None:
        """What `expire` does, in the model."""
        for each in self.known.values():
            if each.state in {State.PENDING, State.APPROVED}:
                if each.policy != self.policy:
                    each.state = State.EXPIRED
                elif each.until <= self.now:
                    if each.state == State.PENDING:
                        each.again_at = each.until + 900
                    each.state = State.EXPIRED

    @rule(ask=asks(), is_raise=st.booleans())
    def request(self, *, ask: Ask, is_raise: bool) -> None:
        decision = decision_of(Code.ENVELOPE_EXCEEDED if is_raise else Code.APPROVAL_PENDING)
        error = self.file.run(lambda db: self.approvals.request(db, ask, decision, self.now))
        self.lapse()
        amount = 100 if ask.kind == "sign" else ask.amount
        about = {name: each for name, each in self.known.items() if is_same(each.ask, ask)}
        joined = {
            name
            for name, e in about.items()
            if e.state == State.PENDING and e.amount >= amount and e.is_raise >= is_raise
        }
        refused = any(self.now < e.again_at for e in about.values())
        partial = any(
            e.state == State.APPROVED and not e.uses and e.approved < min(e.amount, amount)
            for e in about.values()
        )
        waiting = [
            e
            for e in self.known.values()
            if e.state == State.PENDING or (e.state == State.WITHDRAWN and e.again_at > self.now)
        ]
        mine = [e for e in waiting if e.ask.agent == ask.agent]
        if isinstance(error, ApprovalPendingError):
            if error.approval_id in self.known:
                assert error.approval_id in joined
                return
            assert not joined
            assert not refused
            assert not partial
            assert len(mine) < PENDING_MAX
            until = self.now + 900
            assert error.expires_at == until
            known = Known(ask, amount, State.PENDING, until, self.policy, is_raise)
            self.known[error.approval_id] = known
            return
        assert isinstance(error, PolicyRefusedError)
        if error.code == Code.APPROVALS_FULL:
            assert len(mine) >= PENDING_MAX  # also what was approved, and then taken back
        elif error.retry_at is None:
            assert partial
        else:
            assert refused
            assert error.retry_at > self.now

    @precondition(lambda self: self.known)
    @rule(
        pick=st.integers(0, 99),
        by=WHO,
        verdict=st.sampled_from(["approve", "approve", "approve", "approve", "deny"]),
        share=st.sampled_from([None, None, 0, 1, 2, 3]),
        scope=st.sampled_from(SCOPES),
    )
    def decide(self, pick: int, by: Decider, verdict: Any, share: int | None, scope: Any) -> None:
        name = list(self.known)[pick % len(self.known)]
        each = self.known[name]
        amount = each.amount if share is None else each.amount * share // 2
        may = by.kind == "person" and by.id in {"mia", "bob"}
        if by.kind == "agent":
            limit = verdict == "deny" or (amount <= 3 * M and not each.is_raise)
            may = by.id != each.ask.agent and each.ask.agent in SUPERVISOR.may_approve and limit
        if verdict == "approve":
            may = may and amount > 0 and (scope != "once" or amount <= each.amount)
            may = may and (scope != "channel" or each.ask.kind != "charge")
            is_fixed = each.ask.kind != "sign" and not each.ask.is_opening
            may = may and (scope != "once" or not is_fixed or amount == each.amount)
        is_open = each.state == State.PENDING and self.now < each.until
        try:
            record = self.file.run(
                lambda db: self.approvals.decide(
                    db,
                    name,
                    by=by,
                    verdict=verdict,
                    amount=None if share is None else amount,
                    scope=scope,
                    now=self.now,
                )
            )
        except ApprovalError:
            assert not (may and is_open and each.policy == self.policy)
            return
        assert may
        assert is_open
        assert each.policy == self.policy
        each.votes[by] = (verdict, amount, scope)
        if verdict == "deny":
            each.state, each.again_at = State.DENIED, self.now + 900
        people = sum(voter.kind == "person" for voter in each.votes)
        if verdict != "deny" and people + (people < len(each.votes)) >= QUORUM:
            each.state, each.until = State.APPROVED, self.now + 3600
            each.approved = min(vote[1] for vote in each.votes.values())
            each.scope = min((vote[2] for vote in each.votes.values()), key=ORDER.index)
        assert record.state == each.state

    def covering(self, ask: Ask) -> set[str]:
        return {
            name
            for name, each in self.known.items()
            if each.policy == self.policy and self.covers(each, ask)
        }

    def covers(self, each: Known, ask: Ask) -> bool:
        last = each.uses[-1] if each.uses else None
        is_own = last is not None and ask.kind == "sign" and each.request_id == ask.request_id
        goes_on = is_own and not ask.is_first
        is_in_time = self.now < each.until and each.state in {State.APPROVED, State.USED}
        was_given = each.state in {State.APPROVED, State.USED, State.EXPIRED}
        if not (is_in_time or (goes_on and was_given)):
            return False
        if is_deposit(each, ask):
            return last is not None and self.pays_for(each, last, ask)
        return (each.state != State.USED or is_own) and self.fits(each, ask)

    def fits(self, each: Known, ask: Ask) -> bool:
        """Whether an approval of the same kind of payment is for these terms, and enough."""
        if ask.kind != each.ask.kind or each.used + ask.amount > each.approved:
            return False
        is_alike = seen(each.ask, *TERMS) == seen(ask, *TERMS)
        if each.scope == "window":
            return is_alike
        if each.scope == "channel" and each.uses:
            is_alike = is_alike or ask.kind == "deposit"
            payee = seen(each.ask, *PAYEE) == seen(ask, *PAYEE)
            return payee and is_alike and ask.channel_id == each.uses[0].channel_id
        is_its_own = each.scope == "once" or each.ask.is_opening
        return is_same(each.ask, ask) and (is_its_own or ask.channel_id == each.ask.channel_id)

    def pays_for(self, each: Known, last: Ask, ask: Ask) -> bool:
        """Whether an approved deposit pays for a voucher: of its terms, on its channel."""
        terms = [name for name in TERMS if name != "kind"]
        if last.channel_id != ask.channel_id or seen(each.ask, *terms) != seen(ask, *terms):
            return False
        is_unpaid = each.ask.is_opening and ask.total == ask.amount
        return each.scope != "once" or each.request_id == ask.request_id or is_unpaid

    @rule(ask=asks(), is_raise=st.booleans())
    def pay(self, *, ask: Ask, is_raise: bool) -> None:
        covering = self.covering(ask)
        found = self.file.run(
            lambda db: self.approvals.valid(db, ask, self.policy, self.now, is_raise=is_raise)
        )
        assert (found is not None) == bool(covering)
        used = self.file.run(lambda db: self.approvals.use(db, ask, self.now, is_raise=is_raise))
        assert used == (found and found.id)
        if found is None:
            return
        assert found.id in covering
        raises = {
            name: self.known[name].is_raise and not is_deposit(self.known[name], ask)
            for name in covering
        }
        assert found.is_raise == raises[found.id]
        assert found.is_raise == is_raise or is_raise not in raises.values()
        each = self.known[found.id]
        if is_deposit(each, ask):
            before = ask.total - ask.amount
            is_own = each.request_id == ask.request_id
            assert found.amount == each.approved - (0 if is_own else before)
            if each.scope == "once":
                each.request_id = ask.request_id
            return
        assert found.amount == each.approved - each.used
        each.uses.append(ask)
        each.request_id = ask.request_id
        is_over = each.scope == "once" or each.used == each.approved
        if is_over and each.state == State.APPROVED:
            each.state = State.USED

    @precondition(lambda self: any(e.state == State.APPROVED for e in self.known.values()))
    @rule(pick=st.integers(0, 99))
    def pay_what_was_asked(self, pick: int) -> None:
        given = [each for each in self.known.values() if each.state == State.APPROVED]
        asked = given[pick % len(given)]
        self.pay(ask=asked.ask, is_raise=asked.is_raise)

    @precondition(lambda self: self.known)
    @rule(pick=st.integers(0, 99), by=WHO)
    def withdraw(self, pick: int, by: Decider) -> None:
        name = list(self.known)[pick % len(self.known)]
        each = self.known[name]
        is_open = each.state in {State.PENDING, State.APPROVED}
        is_mine = by.kind == "person" or by.id == each.ask.agent
        try:
            self.file.run(lambda db: self.approvals.withdraw(db, name, by=by, now=self.now))
        except ApprovalError:
            assert not (is_open and is_mine)
            return
        assert is_open
        assert is_mine
        each.state = State.WITHDRAWN
        each.again_at = each.until if by.kind == "agent" else 0

    @rule()
    def expire(self) -> None:
        self.file.run(lambda db: self.approvals.expire(db, self.now))
        self.lapse()

    @invariant()
    def the_file_and_the_model_agree(self) -> None:
        for record in self.file.run(lambda db: self.approvals.recent(db, 1000)):
            each = self.known[record.id]
            assert (record.state, record.used, record.approved) == (
                each.state,
                each.used,
                each.approved,
            )
            assert each.used <= each.approved
            if each.scope == "once":
                assert len({use.request_id for use in each.uses}) <= 1
                assert len(each.uses) <= 1 or each.ask.kind == "sign"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
