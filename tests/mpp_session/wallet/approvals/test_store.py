"""What is asked, who may answer, and what the agent reads."""

import sqlite3
from typing import Any

import pytest
from msgspec.structs import replace

from channel.errors import AgentError, ApprovalPendingError, PolicyRefusedError
from channel.limits import APPROVAL_ALTERNATIVES_MAX, APPROVAL_TEXT_CHARS_MAX
from channel.tariff import Tariff
from channel.types import Address
from mpp_session.wallet.approvals.record import ApprovalError, Decider, Record, State
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.types import Alternative, Ask, Code
from tests.mpp_session.wallet.approvals.asks import BOB, MIA, RULES, ask_of, decision_of
from tests.mpp_session.wallet.approvals.file import WalletFile

NOW = 1_800_000_000.0
M = 1_000_000


class Inbox:
    """Asks and answers in a transaction each."""

    def __init__(self, file: WalletFile, approvals: Approvals) -> None:
        self.file, self.approvals, self.now = file, approvals, NOW

    def request(self, ask: Ask | None = None, code: Code = Code.APPROVAL_PENDING) -> AgentError:
        asked = ask or ask_of()
        return self.file.run(
            lambda db: self.approvals.request(db, asked, decision_of(code), self.now)
        )

    def ask(self, ask: Ask | None = None, code: Code = Code.APPROVAL_PENDING) -> str:
        error = self.request(ask, code)
        assert isinstance(error, ApprovalPendingError), error
        return error.approval_id

    def decide(self, name: str, by: Decider = MIA, verdict: Any = "approve", **more: Any) -> Record:
        return self.file.run(
            lambda db: self.approvals.decide(db, name, by=by, verdict=verdict, now=self.now, **more)
        )

    def pay(self, ask: Ask | None = None) -> str | None:
        """Return the id of the approval that was used, if one covers the ask."""
        asked = ask or ask_of()
        revision = self.approvals.rules.policy_revision

        def change(db: sqlite3.Connection) -> str | None:
            if self.approvals.valid(db, asked, revision, self.now) is None:
                return None
            return self.approvals.use(db, asked, self.now)

        return self.file.run(change)

    def get(self, name: str) -> Record:
        return self.file.run(lambda db: self.approvals.get(db, name))


@pytest.fixture
def inbox(file: WalletFile, approvals: Approvals) -> Inbox:
    return Inbox(file, approvals)


OTHERS = [
    ("recipient", Address(b"\xb3" * 20)),
    ("token", Address(b"\xc4" * 20)),
    ("escrow", Address(b"\xe6" * 20)),
    ("chain_id", 1),
    ("origin", "https://api.example:444"),
    ("method", "GET"),
    ("path", "/search/"),
    ("task", "t2"),
    ("tool", "search"),
    ("agent", "other"),
    ("tariff", Tariff.of("request", 10_001)),
    ("amount", 5 * M + 1),
    ("kind", "charge"),
]


@pytest.mark.parametrize(("field", "value"), OTHERS)
def test_an_approval_is_for_the_terms_that_were_shown(inbox: Inbox, field: str, value: Any) -> None:
    """extra#139: the arguments that were executed differed from those that were approved."""
    name = inbox.ask()
    inbox.decide(name)
    assert inbox.pay(ask_of(**{field: value})) is None
    assert inbox.get(name).state == State.APPROVED
    assert inbox.pay() == name
    assert inbox.pay() is None


def test_a_payment_that_fails_afterwards_uses_nothing(inbox: Inbox) -> None:
    name = inbox.ask()
    inbox.decide(name)

    def fail(db: sqlite3.Connection) -> None:
        assert inbox.approvals.use(db, ask_of(), NOW) == name
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        inbox.file.run(fail)
    inbox.file.reopen()
    assert inbox.get(name).state == State.APPROVED
    assert inbox.pay() == name


def test_two_questions_that_wait_get_their_own_answers(inbox: Inbox) -> None:
    """LangGraph #6533: resume values went to the wrong interrupt."""
    first, second = inbox.ask(), inbox.ask(ask_of(path="/extract"))
    inbox.decide(second)
    assert inbox.pay() is None
    assert inbox.get(first).state == State.PENDING
    assert inbox.pay(ask_of(path="/extract")) == second


def test_the_same_terms_are_asked_once_and_a_denial_stands_for_a_while(inbox: Inbox) -> None:
    """preloop#119, agentric#139, synapbus: people drown in questions and reminders."""
    name = inbox.ask()
    assert [inbox.ask(), inbox.ask(ask_of(request_id="r2")), inbox.ask(ask_of(amount=M))] == [
        name
    ] * 3
    inbox.decide(name, verdict="deny", comment="too dear")
    for ask in (ask_of(), ask_of(amount=5 * M - 1)):
        error = inbox.request(ask)
        assert isinstance(error, PolicyRefusedError)
        assert (error.code, error.retry_at) == (Code.APPROVAL_DENIED, NOW + 900)
        assert "too dear" in str(error)
    inbox.now += 900
    assert inbox.ask() != name


def test_a_question_without_an_answer_counts_as_denied(inbox: Inbox) -> None:
    name = inbox.ask()
    inbox.now += 900
    with pytest.raises(ApprovalError, match="expired"):
        inbox.decide(name)
    error = inbox.request()
    assert isinstance(error, PolicyRefusedError)
    assert (error.code, error.retry_at) == (Code.APPROVAL_EXPIRED, NOW + 1800)
    assert inbox.get(name).state == State.EXPIRED


def test_an_approval_is_used_in_time_or_not_at_all(inbox: Inbox) -> None:
    name = inbox.ask()
    inbox.decide(name)
    inbox.now += 3600
    assert inbox.pay() is None
    inbox.now -= 1
    assert inbox.pay() == name


def test_so_many_questions_of_an_agent_wait_and_no_more(file: WalletFile) -> None:
    """agentric#139: what waits piles up. Another agent's questions have room of their own."""
    inbox = Inbox(file, Approvals(replace(RULES, pending_max=2)))
    inbox.ask()
    inbox.now += 1
    inbox.ask(ask_of(path="/2"))
    error = inbox.request(ask_of(path="/3"))
    assert isinstance(error, PolicyRefusedError)
    assert (error.code, error.allowed, error.retry_at) == (Code.APPROVALS_FULL, 2, NOW + 900)
    inbox.ask(ask_of(path="/3", agent="lead"))


def test_a_question_that_its_agent_took_back_keeps_its_place(file: WalletFile) -> None:
    """Else an agent that asks and takes back in a loop floods people, and fills the disk."""
    inbox = Inbox(file, Approvals(replace(RULES, pending_max=2)))

    def ask_and_withdraw(path: str, by: Decider) -> None:
        name = inbox.ask(ask_of(path=path))
        file.run(lambda db: inbox.approvals.withdraw(db, name, by=by, now=inbox.now))

    for number in range(5):
        ask_and_withdraw(f"/{number}", MIA)
    for number in range(2):
        ask_and_withdraw(f"/own/{number}", Decider("agent", ask_of().agent))
    error = inbox.request(ask_of(path="/more"))
    assert isinstance(error, PolicyRefusedError)
    assert (error.code, error.retry_at) == (Code.APPROVALS_FULL, NOW + 900)
    inbox.now += 900
    inbox.ask(ask_of(path="/more"))


def test_a_smaller_amount_may_be_approved_and_the_agent_reads_which(inbox: Inbox) -> None:
    name = inbox.ask()
    inbox.decide(name, amount=3 * M)
    assert inbox.pay() is None
    error = inbox.request()
    assert isinstance(error, PolicyRefusedError)
    assert (error.asked, error.allowed) == (5 * M, 3 * M)
    assert "3.000000 USDC" in str(error)
    assert inbox.pay(ask_of(amount=3 * M)) == name


@pytest.mark.parametrize("kind", ["charge", "deposit"])
def test_a_price_and_a_top_up_are_approved_in_full(inbox: Inbox, kind: Any) -> None:
    """No one can pay a part of them."""
    name = inbox.ask(ask_of(kind=kind, is_opening=False))
    with pytest.raises(ApprovalError, match="in full"):
        inbox.decide(name, amount=3 * M)
    assert inbox.decide(name).approved == 5 * M


def test_an_approval_of_another_policy_is_void_and_the_record_says_so(inbox: Inbox) -> None:
    """openai-agents-python#4896: the policy changed after the approval; no question came."""
    given, waiting = inbox.ask(), inbox.ask(ask_of(path="/extract"))
    inbox.decide(given)
    inbox.approvals.rules = replace(RULES, policy_hash="b2")
    with pytest.raises(ApprovalError, match="another policy"):
        inbox.decide(waiting)
    assert inbox.pay() is None
    assert inbox.ask() not in {given, waiting}
    for name in (given, waiting):
        assert inbox.get(name).state == State.EXPIRED
        assert "policy has changed" in inbox.get(name).comment


def test_a_channel_that_was_approved_takes_top_ups_up_to_the_amount(inbox: Inbox) -> None:
    name = inbox.ask()
    inbox.decide(name, scope="channel", amount=8 * M)
    assert inbox.pay() == name
    top_up = ask_of(is_opening=False, amount=2 * M, path="/extract", request_id="r2")
    assert inbox.pay(replace(top_up, channel_id=bytes(32))) is None
    assert inbox.pay(replace(top_up, kind="sign")) is None, "it is for deposits"
    assert inbox.pay(top_up) == name
    assert inbox.pay(top_up) is None
    assert inbox.pay(replace(top_up, amount=M)) == name
    assert inbox.get(name).state == State.USED


def test_a_raise_covers_the_vouchers_of_one_request(inbox: Inbox) -> None:
    def voucher(amount: int, total: int, request_id: str = "r1") -> Ask:
        known = {"kind": "sign", "is_opening": False, "request_max": 100}
        return ask_of(**known, amount=amount, request_total=total, request_id=request_id)

    name = inbox.ask(voucher(10, 40), Code.ENVELOPE_EXCEEDED)
    assert inbox.get(name).question.amount == 70
    assert inbox.get(name).question.kind == "raise"
    inbox.decide(name)
    assert inbox.pay(voucher(10, 40, "r2")) == name
    assert inbox.pay(voucher(10, 40, "r3")) is None
    assert inbox.pay(voucher(60, 100, "r2")) == name
    assert inbox.pay(voucher(1, 101, "r2")) is None


def test_so_many_distinct_people_must_agree(file: WalletFile) -> None:
    """Steward#205: one approver only, and buyers want M of N. Two agents are one voter."""
    rules = replace(RULES, quorum=3, people=frozenset({"mia", "bob", "ann"}))
    supervisor = RULES.supervisors["lead"]
    inbox = Inbox(
        file, Approvals(replace(rules, supervisors={"lead": supervisor, "vice": supervisor}))
    )
    name = inbox.ask(ask_of(amount=2 * M))
    for by in (MIA, MIA, Decider("agent", "lead"), Decider("agent", "vice")):
        assert inbox.decide(name, by).state == State.PENDING
    with pytest.raises(ApprovalError, match="'eve' may not answer"):
        inbox.decide(name, Decider("person", "eve"))
    done = inbox.decide(name, BOB, amount=M)
    assert (done.state, done.approved) == (State.APPROVED, M)


@pytest.mark.parametrize(
    ("ask", "by", "said"),
    [
        (ask_of(amount=3 * M + 1), "lead", "approve_max"),
        (ask_of(amount=M, token=Address(bytes(20))), "lead", "approve_max"),
        (ask_of(amount=M, request_max=3 * M + 1, is_opening=False), "lead", "approve_max"),
        (ask_of(amount=M, agent="lead"), "lead", "its own question"),
        (ask_of(amount=M, on_behalf_of="lead"), "lead", "its own question"),
        (ask_of(amount=M, agent="other"), "lead", "may_approve"),
        (ask_of(amount=M), "vice", "may_approve"),
    ],
)
def test_a_supervisor_answers_within_its_bounds(inbox: Inbox, ask: Ask, by: str, said: str) -> None:
    """nexus#1358: a supervising agent first, then a person."""
    name = inbox.ask(ask)
    with pytest.raises(ApprovalError, match=said):
        inbox.decide(name, Decider("agent", by))
    assert inbox.get(name).votes == ()
    within = inbox.ask(ask_of(amount=3 * M, path="/small"))
    assert inbox.decide(within, Decider("agent", "lead")).state == State.APPROVED


def test_agents_among_themselves_lift_no_envelope(inbox: Inbox) -> None:
    """fak#3273: two agents that called each other for 11 days. A denial is as good as another."""
    name = inbox.ask(ask_of(amount=M), Code.LOCKED_EXCEEDED)
    with pytest.raises(ApprovalError, match="only people"):
        inbox.decide(name, Decider("agent", "lead"))
    assert inbox.decide(name, Decider("agent", "lead"), "deny").state == State.DENIED


@pytest.mark.parametrize("scope", ["channel", "window"])
def test_no_scope_is_wider_than_the_policy_s(file: WalletFile, scope: Any) -> None:
    inbox = Inbox(file, Approvals(replace(RULES, scope_max="once")))
    name = inbox.ask()
    with pytest.raises(ApprovalError, match="scope_max"):
        inbox.decide(name, scope=scope)
    with pytest.raises(ApprovalError, match="cannot exceed what was asked"):
        inbox.decide(name, amount=5 * M + 1)
    with pytest.raises(ApprovalError, match="above 0"):
        inbox.decide(name, amount=0)


def test_the_question_shows_its_context(inbox: Inbox) -> None:
    text = "x" * (APPROVAL_TEXT_CHARS_MAX + 1)
    others = tuple(Alternative(text) for _ in range(APPROVAL_ALTERNATIVES_MAX + 1))
    question = inbox.get(inbox.ask(ask_of(reason=text + "\ud800", alternatives=others))).question
    assert len(question.reason) == APPROVAL_TEXT_CHARS_MAX
    assert len(question.alternatives) == APPROVAL_ALTERNATIVES_MAX
    assert len(question.alternatives[0].origin) == APPROVAL_TEXT_CHARS_MAX
    assert (question.left_before, question.left_after) == (25 * M, 20 * M)
    assert (question.rule, question.kind, question.amount) == ("search", "open", 5 * M)


def test_text_that_is_not_unicode_is_refused_where_it_is_a_term(inbox: Inbox) -> None:
    error = inbox.request(ask_of(task="\ud800"))
    assert isinstance(error, PolicyRefusedError)
    assert error.field == "task"


def test_every_step_is_in_the_trail_in_the_same_transaction(file: WalletFile) -> None:
    class Trail:
        def append(self, db: sqlite3.Connection, kind: str, **fields: Any) -> int:
            db.execute("CREATE TABLE IF NOT EXISTS seen (kind TEXT, state TEXT, who TEXT)")
            db.execute("INSERT INTO seen VALUES (?, ?, ?)", (kind, fields["state"], fields["by"]))
            return 1

    inbox = Inbox(file, Approvals(RULES, Trail()))
    name = inbox.ask()
    inbox.decide(name)
    with pytest.raises(ApprovalError):
        inbox.decide(name)
    inbox.pay()
    rows = file.run(lambda db: db.execute("SELECT state, who FROM seen").fetchall())
    assert [tuple(row) for row in rows] == [
        ("pending", ""),
        ("approved", "person mia"),
        ("used", "person mia"),
    ]


def test_what_ended_long_ago_is_forgotten_and_what_is_open_is_not(inbox: Inbox) -> None:
    ended, open_ = inbox.ask(), inbox.ask(ask_of(path="/extract"))
    inbox.decide(ended, verdict="deny")
    inbox.file.run(lambda db: inbox.approvals.forget(db, NOW + 1))
    assert inbox.get(open_).state == State.PENDING
    with pytest.raises(ApprovalError, match="There is no approval"):
        inbox.get(ended)
