"""Requests that only a rule which asks is about, paid from a channel that is open already."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import pytest
from msgspec.structs import replace

from channel.client.store.sqlite import PaymentStore
from channel.errors import ApprovalPendingError, PolicyRefusedError
from mpp_session.wallet.approvals.record import Record, State
from mpp_session.wallet.approvals.rules import rules_of
from mpp_session.wallet.approvals.shown import Line, lines
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.audit.trail import Trail
from mpp_session.wallet.books.books import WalletBooks
from mpp_session.wallet.policy import counters_for, decide
from tests.mpp_session.wallet.approvals.asks import MIA
from tests.mpp_session.wallet.books.small_policy import (
    CHAIN_ID,
    NOW,
    TOKEN,
    UNBOUND,
    context_of,
    deposit,
    key_of,
    sign_more,
)
from tests.mpp_session.wallet.policy.asks import agent, policy

DEAR = "https://api.example/dear"
ALLOW = {"name": "jokes", "action": "allow", "match": {"path": ["/joke"]}}
ASK = {"name": "dear", "action": "ask", "match": {"path": ["/dear*"]}}


class Wallet:
    """Books under a real policy, and the person who answers."""

    def __init__(self, approvals: Approvals) -> None:
        self.approvals = approvals
        self.books: WalletBooks
        self.now = NOW

    @property
    def view(self) -> PaymentStore:
        return self.books.view("ann")

    async def open(self, number: int = 1, amount: int = 100, **options: Any) -> None:
        await deposit(self.view, number, amount, **options)
        await self.view.update(key_of(number), lambda record: replace(record, state="open"))

    async def top_up(self, amount: int, **options: Any) -> None:
        await self.view.update(
            key_of(1),
            lambda record: replace(record, goal=record.locked + amount),
            locked=UNBOUND,
            context=context_of(**options),
        )

    async def sign(self, request_id: str, more: int, **options: Any) -> None:
        fields: dict[str, Any] = {"url": DEAR, "cost_max": 12} | options
        await sign_more(self.view, fields.pop("number", 1), more, request_id=request_id, **fields)

    async def answer(self, name: str, **options: Any) -> Record:
        def change(db: Connection) -> Record:
            return self.approvals.decide(
                db, name, by=MIA, verdict="approve", now=self.now, **options
            )

        return await self.books.store.transact(change)

    async def get(self, name: str) -> Record:
        return await self.books.store.transact(lambda db: self.approvals.get(db, name))


async def open_wallet(folder: Path, **tables: Any) -> Wallet:
    tables = {
        "rule": [ALLOW, ASK],
        "token": {"usdc": {"chain": CHAIN_ID, "address": "0x" + TOKEN.hex(), "decimals": 0}},
        "agent": {"ann": agent("ann")},
        "approval": {"scope_max": "window"},
    } | tables
    of = policy(**tables)
    wallet = Wallet(Approvals(rules_of(of), Trail()))
    wallet.books = await WalletBooks.open(
        folder / "wallet.db",
        of,
        decide=decide,
        counters_for=counters_for,
        trail=Trail(),
        approvals=wallet.approvals,
        now=lambda: wallet.now,
    )
    return wallet


@contextmanager
def question() -> Iterator[list[str]]:
    found: list[str] = []
    with pytest.raises(ApprovalPendingError) as asked:
        yield found
    found.append(asked.value.approval_id)


@pytest.mark.parametrize("tables", [{}, {"rule": [ALLOW], "default": "ask"}])
async def test_a_channel_that_another_path_opened_pays_for_no_request_without_a_question(
    tmp_path: Path, tables: dict[str, Any]
) -> None:
    """The question is about all that the request may cost, and its later vouchers are not asked."""
    wallet = await open_wallet(tmp_path, **tables)
    await wallet.open()
    await wallet.sign("r0", 10, url="https://api.example/joke")
    with question() as asked:
        await wallet.sign("r1", 5)
    with question() as credit:
        await wallet.sign("r1", 0)
    assert credit == asked, "what was signed and not used pays for nothing, either"
    record = await wallet.answer(asked[0])
    shown = record.question
    assert (shown.kind, shown.amount, shown.is_raise) == ("request", 12, False)
    with question():
        await wallet.sign("r1", 5, url=DEAR + "er")
    await wallet.sign("r2", 5)
    wallet.now += 3_700
    await wallet.sign("r2", 4)
    await wallet.sign("r2", 0)
    await wallet.sign("r2", 3)
    with question() as more:
        await wallet.sign("r2", 1)
    with question() as another:
        await wallet.sign("r3", 5)
    assert len({asked[0], more[0], another[0]}) == 3
    record = await wallet.get(asked[0])
    assert (record.state, record.used, record.used_by_request) == (State.USED, 12, "r2")
    assert (await wallet.view.get(key_of(1))).signed == 22
    await wallet.books.close()


@pytest.mark.parametrize("scope", ["once", "channel", "window"])
async def test_a_deposit_that_was_approved_for_a_request_pays_for_it(
    tmp_path: Path, scope: Any
) -> None:
    """One question for one purchase; with a wider scope for the same terms on this channel."""
    wallet = await open_wallet(tmp_path)
    options: dict[str, Any] = {"url": DEAR, "cost_max": 12}
    with question() as asked:
        await wallet.open(**options)
    await wallet.answer(asked[0], scope=scope)
    await wallet.open(request_id="r1", **options)
    await wallet.sign("r2", 10)  # the request was sent again after the deposit
    await wallet.sign("r2", 2)
    await wallet.sign("r2", 0)
    assert (await wallet.get(asked[0])).used == 100
    if scope == "once":
        with question():
            await wallet.sign("r3", 5)
    else:
        await wallet.sign("r3", 5)
    await wallet.open(2, 50, url="https://api.example/joke")
    for changes in ({"url": DEAR + "er"}, {"method": "GET"}, {"number": 2}):
        with question():
            await wallet.sign("r4", 5, **changes)
    await wallet.top_up(50)
    await wallet.sign("r0", 80, url="https://api.example/joke")
    with question():  # which the top-up would pay, and it was no question
        await wallet.sign("r5", 9)
    wallet.now += 3_700
    with question():
        await wallet.sign("r5", 1)
    await wallet.books.close()


async def test_a_top_up_that_was_approved_pays_what_the_question_said(tmp_path: Path) -> None:
    """Not what the request may cost when it is sent again."""
    wallet = await open_wallet(tmp_path)
    await wallet.open(amount=60)
    with question() as asked:
        await wallet.top_up(5, url=DEAR, cost_max=12)
    record = await wallet.answer(asked[0])
    assert Line("The request costs", "at most 12 USDC") in lines(record, wallet.approvals.rules)
    await wallet.top_up(5, url=DEAR, cost_max=50, request_id="r2")
    await wallet.sign("r2", 7, cost_max=50)
    await wallet.sign("r2", 5, cost_max=50)
    with question():
        await wallet.sign("r2", 1, cost_max=50)
    await wallet.books.close()


async def test_a_request_that_was_approved_asks_again_only_for_its_envelope(
    tmp_path: Path,
) -> None:
    """Each question has its answer, and neither stands for the other."""
    envelope = {"amount": "12 usdc", "locked_max": "200 usdc", "window": "1h", "on_exceed": "ask"}
    wallet = await open_wallet(tmp_path, envelope={"research": envelope})
    await wallet.open()
    await wallet.sign("r0", 8, url="https://api.example/joke")
    with question() as asked:
        await wallet.sign("r1", 3)
    await wallet.answer(asked[0])
    await wallet.sign("r1", 3)
    with question() as raised:
        await wallet.sign("r1", 3)
    record = await wallet.answer(raised[0])
    assert (record.question.kind, record.question.is_raise) == ("raise", True)
    await wallet.sign("r1", 3)
    assert [(await wallet.get(one)).used for one in (asked[0], raised[0])] == [3, 3]
    await wallet.books.close()


async def test_hard_caps_come_before_the_question_and_a_denial_stands(tmp_path: Path) -> None:
    wallet = await open_wallet(tmp_path, rule=[ALLOW, ASK | {"cap": {"request": "12 usdc"}}])
    await wallet.open()
    with pytest.raises(PolicyRefusedError) as refused:
        await wallet.sign("r1", 5, cost_max=13)
    assert refused.value.code == "request_exceeded"
    with question() as asked:
        await wallet.sign("r1", 5)

    def deny(db: Connection) -> Record:
        return wallet.approvals.decide(db, asked[0], by=MIA, verdict="deny", now=NOW)

    await wallet.books.store.transact(deny)
    with pytest.raises(PolicyRefusedError) as refused:
        await wallet.sign("r2", 5)
    assert refused.value.code == "approval_denied"
    assert (await wallet.view.get(key_of(1))).signed == 0
    await wallet.books.close()


async def test_a_voucher_that_a_rule_allows_reads_no_approval(tmp_path: Path) -> None:
    wallet = await open_wallet(tmp_path)
    await wallet.open()
    seen: list[str] = []
    await wallet.books.store.transact(lambda db: db.set_trace_callback(seen.append))
    for request_id in ("r1", "r1", "r2"):
        await wallet.sign(request_id, 5, url="https://api.example/joke")
    assert any("approval" in one for one in seen) is False
    with question():
        await wallet.sign("r3", 5)
    assert any("FROM approval" in one for one in seen)
    await wallet.books.close()
