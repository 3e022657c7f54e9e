"""Approvals within the wallet's own books: asked by the guard, used by the payment it allows."""

from pathlib import Path
from sqlite3 import Connection

import pytest
from msgspec.structs import replace

from channel.errors import ApprovalPendingError, PolicyRefusedError
from mpp_session.wallet.approvals.record import Record, State
from mpp_session.wallet.approvals.rules import rules_of
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.audit.trail import Trail
from mpp_session.wallet.books.books import WalletBooks
from tests.channel.client.provider import NOW
from tests.mpp_session.wallet.approvals.asks import MIA, RULES
from tests.mpp_session.wallet.books.small_policy import (
    Agent,
    Envelope,
    Policy,
    deposit,
    key_of,
    open_books,
    sign_more,
)
from tests.mpp_session.wallet.policy.asks import USDC, agent, allow, policy

SMALL = Policy(
    envelopes={"lab": Envelope(amount=50, locked_max=1_000, on_exceed="ask")},
    agents={"ann": Agent(envelopes=("lab",))},
    asks_for=frozenset({"deposit"}),
)


@pytest.fixture
def approvals() -> Approvals:
    return Approvals(replace(RULES, policy_revision=1), Trail())


async def start(folder: Path, approvals: Approvals) -> WalletBooks:
    return await open_books(
        folder / "wallet.db", SMALL, trail=Trail(), approvals=approvals, now=lambda: NOW
    )


async def answer(books: WalletBooks, approvals: Approvals, name: str) -> Record:
    def change(db: Connection) -> Record:
        return approvals.decide(db, name, by=MIA, verdict="approve", now=NOW)

    return await books.store.transact(change)


async def test_a_deposit_waits_for_an_answer_over_a_restart_and_is_paid_once(
    tmp_path: Path, approvals: Approvals
) -> None:
    books = await start(tmp_path, approvals)
    with pytest.raises(ApprovalPendingError) as asked:
        await deposit(books.view("ann"), 1, 100)
    assert await books.view("ann").records() == []
    await books.close()
    books = await start(tmp_path, approvals)
    name = asked.value.approval_id
    with pytest.raises(ApprovalPendingError) as again:
        await deposit(books.view("ann"), 1, 100)
    assert again.value.approval_id == name
    await answer(books, approvals, name)
    await deposit(books.view("ann"), 1, 100)
    record = await books.store.transact(lambda db: approvals.get(db, name))
    assert (record.state, record.used) == (State.USED, 100)
    assert record.used_by_channel == key_of(1).channel_id
    with pytest.raises(ApprovalPendingError) as another:
        await deposit(books.view("ann"), 2, 100)
    assert another.value.approval_id != name
    await books.close()


async def test_a_request_goes_beyond_its_envelope_by_what_was_approved(
    tmp_path: Path, approvals: Approvals
) -> None:
    books = await start(tmp_path, approvals)
    view = books.view("ann")
    with pytest.raises(ApprovalPendingError) as asked:
        await deposit(view, 1, 100)
    await answer(books, approvals, asked.value.approval_id)
    await deposit(view, 1, 100)
    await view.update(key_of(1), lambda record: replace(record, state="open"))
    await sign_more(view, 1, 45)
    with pytest.raises(ApprovalPendingError) as raised:
        await sign_more(view, 1, 10, request_id="r2", cost_max=12)
    name = raised.value.approval_id
    record = await answer(books, approvals, name)
    assert (record.question.kind, record.question.is_raise, record.approved) == ("raise", True, 12)
    await sign_more(view, 1, 10, request_id="r3", cost_max=12)
    await sign_more(view, 1, 2, request_id="r3", cost_max=12)
    with pytest.raises((ApprovalPendingError, PolicyRefusedError)):
        await sign_more(view, 1, 1, request_id="r3", cost_max=13)
    record = await books.store.transact(lambda db: approvals.get(db, name))
    assert (record.state, record.used, record.left) == (State.USED, 12, 0)
    await books.close()


def test_the_rules_are_those_of_the_policy() -> None:
    agents = {
        "research-3": agent(),
        "lead": agent("lead", may_approve=["research-3"], approve_max="2 usdc"),
    }
    table = {"quorum": 2, "timeout": "5m", "pending_max": 3, "scope_max": "window"}
    of = policy(allow(), agent=agents, approval=table)
    found = rules_of(of, people=frozenset({"mia"}))
    assert (found.quorum, found.timeout_s, found.pending_max) == (2, 300, 3)
    assert (found.policy_revision, found.policy_hash) == (of.revision, of.hash)
    assert found.scope_max == "window"
    assert found.people == {"mia"}
    assert found.unit(8453, USDC).format(1_500_000) == "1.500000 USDC"
    supervisor = found.supervisors["lead"]
    assert supervisor.may_approve == {"research-3"}
    assert supervisor.approve_max == {(8453, USDC): 2_000_000}
    assert "research-3" not in found.supervisors
