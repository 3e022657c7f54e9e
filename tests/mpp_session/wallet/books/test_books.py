"""The wallet's file: its policies, its channels' ends, what stops an agent, what is recorded."""

import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from channel.client.policy.context import PURPOSE
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    AgentError,
    ApprovalPendingError,
    ConfigError,
    OfferRefusedError,
    OverclaimError,
    PolicyRefusedError,
    StoreError,
)
from channel.limits import AUDIT_REFUSALS_PER_MINUTE_MAX
from mpp_session.wallet.audit.trail import Trail, read_entries
from mpp_session.wallet.books.books import WalletBooks
from mpp_session.wallet.books.running import KEPT, Running
from mpp_session.wallet.types import Ask, Code, Decision, Purpose, Snapshot, WalletRequest
from tests.channel.client.conftest import OpenAgent, policy_of
from tests.channel.client.provider import Provider
from tests.channel.client.store.test_sqlite import charge_of
from tests.mpp_session.wallet.books import small_policy
from tests.mpp_session.wallet.books.small_policy import (
    FREE,
    HOUR_S,
    NOW,
    ORIGIN,
    UNBOUND,
    Agent,
    Envelope,
    Policy,
    context_of,
    deposit,
    key_of,
    open_books,
    sign_more,
)

POLICY = Policy(
    envelopes={"lab": Envelope(amount=100, window_s=None, locked_max=1_000)},
    agents={"ann": Agent(envelopes=("lab",)), "bob": Agent(envelopes=("lab",), expires=NOW + 60)},
)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def budget_of(books: WalletBooks) -> tuple[int, int]:
    (budget,) = await books.budgets()
    return budget.spent, budget.locked


async def records_of(books: WalletBooks) -> list[tuple[str, str]]:
    def read(db: sqlite3.Connection) -> list[tuple[str, str]]:
        found = []
        for entry in read_entries(db):
            decision = entry.fields.get("decision")
            found.append((entry.kind, decision["code"] if decision else entry.agent))
        return found

    return await books.store.transact(read)


async def refusal_of(work: Any) -> PolicyRefusedError:
    with pytest.raises(PolicyRefusedError) as caught:
        await work
    return caught.value


async def test_policies_only_grow(tmp_path: Path) -> None:
    path = tmp_path / "wallet.db"
    second = replace(POLICY, revision=2)
    books = await open_books(path, POLICY, trail=Trail())
    await books.reload(POLICY)
    await books.reload(second)
    assert books.policy == second
    other = replace(second, envelopes={})
    for older in (POLICY, other):
        with pytest.raises(ConfigError, match="expected a policy of revision 3 or later"):
            await books.reload(older)
    assert books.policy == second
    await books.close()
    for older in (POLICY, other):
        with pytest.raises(ConfigError, match="raise `revision` in the file"):
            await open_books(path, older)
    books = await open_books(path, second, trail=Trail())
    assert [kind for kind, _ in await records_of(books)] == ["genesis", "policy", "policy"]
    await books.close()


async def test_deposits_that_stand_open_count_in_a_new_envelope(tmp_path: Path) -> None:
    """Also if the policy changed while the wallet did not run."""
    path = tmp_path / "wallet.db"
    books = await open_books(path, POLICY, now=lambda: NOW)
    await deposit(books.view("ann"), 1, 300)
    second = replace(
        POLICY,
        revision=2,
        envelopes={
            "lab": Envelope(amount=100, locked_max=1_000, parent="company"),
            "company": Envelope(amount=100, locked_max=400),
        },
    )
    await books.reload(second)
    await books.reload(second)
    assert [budget.locked for budget in await books.budgets()] == [300, 300]
    assert (await refusal_of(deposit(books.view("bob"), 2, 101))).code == Code.LOCKED_EXCEEDED
    await deposit(books.view("bob"), 2, 100)
    await books.close()
    third = replace(
        second,
        revision=3,
        envelopes={**second.envelopes, "other": Envelope(amount=1)},
        agents={"bob": Agent(envelopes=("other", "lab"))},
    )
    books = await open_books(path, third, now=lambda: NOW)
    assert [budget.locked for budget in await books.budgets()] == [400, 400, 100]
    for number, agent in ((1, "ann"), (2, "bob")):
        await books.view(agent).update(key_of(number), lambda one: replace(one, state="closed"))
    assert [budget.locked for budget in await books.budgets()] == [0, 0, 0]
    await books.close()


async def test_a_file_has_one_wallet(tmp_path: Path) -> None:
    """Also in one process; and one that was refused leaves the lock with its owner."""
    path = tmp_path / "wallet.db"
    books = await open_books(path, POLICY)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"another wallet process uses {path}"):
            await open_books(path, POLICY)
    await books.close()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError):
        await open_books(path, POLICY)
    path.unlink()
    await (await open_books(path, POLICY)).close()


async def test_what_a_channel_did_not_pay_comes_back_once(tmp_path: Path) -> None:
    """Also if another tool notices its end, or its opening was never made (tempo#2466)."""
    path = tmp_path / "wallet.db"
    books = await open_books(path, POLICY, trail=Trail())
    view = books.view("ann")
    for number, more in ((1, 40), (2, 30), (3, 20)):
        await deposit(view, number, 100)
        await sign_more(view, number, more)
    assert await budget_of(books) == (90, 300)
    await view.update(key_of(1), lambda one: replace(one, state="open", settled=5))
    assert await budget_of(books) == (90, 300), "it may settle more"
    for _ in range(3):
        await view.update(key_of(1), lambda one: replace(one, state="closed", settled=10))
        await view.update(key_of(1), lambda one: replace(one, units=one.units + 1))
        assert await budget_of(books) == (60, 200)
    await view.update(key_of(2), lambda one: replace(one, state="closed", deposit=0))
    assert await budget_of(books) == (30, 100), "a deposit that was never made pays nothing"
    await books.store.update(key_of(3), lambda one: replace(one, state="closed", settled=20))
    assert await budget_of(books) == (30, 100), "without the guard it is not noticed"
    assert (await books.agents())[0].spent == {"31337:0x" + "70" * 20: 30}
    await books.close()
    books = await open_books(path, POLICY, trail=Trail())
    assert await budget_of(books) == (30, 0)
    assert [kind for kind, _ in await records_of(books) if kind in ("refund", "close")] == [
        "close",
        "refund",
        "close",
        "refund",
    ]
    assert [agent.channels for agent in await books.agents()] == [0, 0]
    await books.close()


async def test_deposits_that_shrink_and_grow_on_chain_are_followed(tmp_path: Path) -> None:
    books = await open_books(tmp_path / "wallet.db", POLICY)
    view = books.view("ann")
    await deposit(view, 1, 100)
    context = context_of()
    await view.update(
        key_of(1), lambda one: replace(one, goal=150), locked=UNBOUND, context=context
    )
    assert await budget_of(books) == (0, 150)
    await view.update(key_of(1), lambda one: replace(one, goal=0))  # it reverted
    assert await budget_of(books) == (0, 100)
    await view.update(key_of(1), lambda one: replace(one, deposit=2_000))  # by a stranger
    assert await budget_of(books) == (0, 2_000)
    refused = await refusal_of(deposit(view, 2, 1))
    assert refused.code == Code.LOCKED_EXCEEDED
    await view.update(key_of(1), lambda one: replace(one, state="closed"))
    assert await budget_of(books) == (0, 0)
    await books.close()


async def test_a_stopped_agent_pays_nothing_more(tmp_path: Path, clock: Clock) -> None:
    """Not even from a channel that is open, nor by an amount that was signed before.

    okx/wallet-core#21: a revoked session went on. agent-governance-toolkit PR#795: a kill switch
    ended nothing. infrabroker#117: a session outlived the credential that opened it.
    """
    books = await open_books(tmp_path / "wallet.db", POLICY, now=clock, trail=Trail())
    ann, bob = books.view("ann"), books.view("bob")
    for number, view in ((1, ann), (2, bob)):
        await deposit(view, number, 50)
        await sign_more(view, number, 5)
    assert await books.channels_to_close() == []
    for scope in ("all", "agent  ann", "envelope lab", "origin https://api.example"):
        await books.freeze(scope, reason="looks odd", by="owner")
        for more in (1, 0):
            assert (await refusal_of(sign_more(ann, 1, more))).code == Code.FROZEN
        charge = ann.add_charge(charge_of(), budget=FREE, now=NOW, context=context_of())
        assert (await refusal_of(charge)).code == Code.FROZEN
        again = ann.permit(await ann.get(key_of(1)), context_of())
        assert (await refusal_of(again)).code == Code.FROZEN
        assert await books.unfreeze(scope, by="owner")
        assert not await books.unfreeze(scope, by="owner")
        await sign_more(ann, 1, 1)
    clock.now += 60
    assert (await refusal_of(sign_more(bob, 2, 0))).code == Code.AGENT_EXPIRED
    await books.revoke("agent ann", reason="leaked", by="owner")
    await books.revoke("agent ann", reason="again", by="owner")
    assert (await refusal_of(sign_more(ann, 1, 0))).code == Code.AGENT_REVOKED
    assert (await refusal_of(deposit(books.view("eve"), 3, 1))).code == Code.AGENT_UNKNOWN
    assert [(each.agent, each.reason) for each in await books.channels_to_close()] == [
        ("ann", "leaked"),
        ("bob", "expired"),
    ]
    assert [(stop.kind, stop.scope, stop.reason) for stop in await books.stops()] == [
        ("revoke", "agent ann", "leaked")
    ]
    states = {agent.name: (agent.state, agent.channels) for agent in await books.agents()}
    assert states == {"ann": ("revoked", 1), "bob": ("expired", 1)}
    await ann.update(key_of(1), lambda one: replace(one, state="closing"))  # it can be closed
    await books.close()


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        ("agent anne", "the policy has no agent 'anne'; it has ann, bob"),
        ("envelope labs", "the policy has no envelope 'labs'"),
        ("lab", "expected `all`, `agent NAME`"),
        ("rule search", "expected `all`"),
        ("origin ftp://x", "expected an origin such as"),
        ("origin https://api.example/path", "expected an origin such as"),
    ],
)
async def test_a_mistyped_scope_stops_nothing_silently(
    tmp_path: Path, scope: str, found: str
) -> None:
    books = await open_books(tmp_path / "wallet.db", POLICY)
    with pytest.raises(ConfigError, match=found):
        await books.freeze(scope, reason="", by="owner")
    with pytest.raises(ConfigError):
        await books.revoke("all", reason="", by="owner")
    with pytest.raises(ConfigError, match="the policy has no rule"):
        await books.revoke("rule search", reason="", by="owner")
    await books.close()


async def test_requests_and_streams_are_counted_while_they_run(tmp_path: Path) -> None:
    seen: list[tuple[Ask, Snapshot]] = []

    def decide(policy: Policy, ask: Ask, snapshot: Snapshot) -> Decision:
        seen.append((ask, snapshot))
        return small_policy.decide(policy, ask, snapshot)

    books = await WalletBooks.open(
        tmp_path / "wallet.db", POLICY, decide=decide, counters_for=small_policy.counters_for
    )
    view = books.view("ann")
    await deposit(view, 1, 100)
    await sign_more(view, 1, 5, request_id="a", is_stream=True)
    await sign_more(view, 1, 3, request_id="a", is_stream=True)
    await sign_more(view, 1, 2, request_id="b", is_stream=True)
    books.begin_stream("ann", ORIGIN, "c")
    books.begin_stream("ann", ORIGIN, "c")
    await sign_more(view, 1, 0, request_id="a", is_stream=True)
    books.end_stream("c")
    books.end_request("a")
    books.end_request("a")
    bare = Purpose(task="a bare purpose has no end that anyone reports")
    await sign_more(view, 1, 1, request_id="d", is_stream=True, purpose=bare)
    await sign_more(view, 1, 1, request_id="a", is_stream=True)
    await sign_more(view, 1, 1, request_id="b", is_stream=True)
    assert (books.paid("a"), books.paid("b"), books.paid("x")) == (9, 3, 0)
    assert [
        (ask.is_first, ask.amount, ask.total, ask.request_total, snapshot.streams)
        for ask, snapshot in seen[1:]
    ] == [
        (True, 5, 5, 5, 0),
        (False, 3, 8, 8, 0),
        (True, 2, 10, 2, 1),
        (False, 0, 10, 8, 2),
        (True, 1, 11, 1, 1),
        (False, 1, 12, 9, 1),
        (False, 1, 13, 3, 0),
    ]
    opening, first = seen[0], seen[1]
    assert opening[1].never_paid == {"origin", "recipient", "chain"}
    assert (first[1].never_paid, first[1].channels, first[0].path) == (frozenset(), 0, "/joke")
    assert seen[5][0].purpose is bare
    await books.close()


async def test_the_paying_clients_own_refusals_are_recorded(tmp_path: Path) -> None:
    books = await open_books(tmp_path / "wallet.db", POLICY, trail=Trail())
    view = books.view("ann")
    await deposit(view, 1, 50)

    def refuse(_record: object, _left: int) -> int:
        raise OverclaimError(asked=7, allowed=1, received=0)

    with pytest.raises(OverclaimError):
        await view.sign_for(key_of(1), refuse, budget=FREE, now=NOW, context=context_of())

    def violate(_record: object) -> Any:
        raise AgentError("a receipt that contradicts")

    with pytest.raises(AgentError, match="contradicts"):
        await view.update(key_of(1), violate)
    with pytest.raises(StoreError):
        await sign_more(view, 9, 1)
    assert (
        await refusal_of(view.sign_for(key_of(1), lambda _record, _left: 1, budget=FREE, now=NOW))
    ).code == Code.NO_RULE
    assert (await refusal_of(sign_more(view, 1, 101))).code == Code.ENVELOPE_EXCEEDED
    assert (await records_of(books))[3:] == [
        ("decision", "client_limit"),
        ("refusal", "ann"),
        ("refusal", "ann"),
        ("decision", "envelope_exceeded"),
    ]
    assert await budget_of(books) == (0, 50)
    await books.close()


class Question:
    """Asks the test: `given` is what was approved."""

    SCHEMA = "CREATE TABLE IF NOT EXISTS question (kind TEXT)"

    def __init__(self) -> None:
        self.given: int | None = None

    @property
    def amount(self) -> int:
        return self.given or 0

    @property
    def is_raise(self) -> bool:
        return True

    def valid(self, *_: object, **_is_raise: bool) -> "Question | None":
        return None if self.given is None else self

    def use(self, db: sqlite3.Connection, _ask: Ask, _now: float, **_is_raise: bool) -> str:
        self.given = None
        db.execute("INSERT INTO question VALUES ('used')")
        return "q1"

    def request(
        self, db: sqlite3.Connection, _ask: Ask, decision: Decision, now: float
    ) -> AgentError:
        db.execute("INSERT INTO question VALUES ('asked')")
        return ApprovalPendingError(decision.reason, approval_id="q1", expires_at=now + 60)


async def test_an_approval_is_asked_for_and_used_where_it_is_needed(tmp_path: Path) -> None:
    """Beyond a budget with `on_exceed = "ask"`, and for deposits; not for what is allowed."""
    question = Question()
    policy = replace(
        POLICY,
        asks_for=frozenset({"deposit"}),
        envelopes={"lab": Envelope(amount=100, on_exceed="ask")},
    )
    books = await open_books(tmp_path / "wallet.db", policy, approvals=question)
    view = books.view("ann")

    async def asked() -> list[str]:
        return await books.store.transact(
            lambda db: [kind for (kind,) in db.execute("SELECT kind FROM question")]
        )

    with pytest.raises(ApprovalPendingError, match="waits for approval q1"):
        await deposit(view, 1, 500)
    assert (await asked(), await view.records()) == (["asked"], [])
    question.given = 500
    record = await deposit(view, 1, 500)
    assert await asked() == ["asked", "used"]
    question.given = 50
    await view.permit(record, context_of())
    await sign_more(view, 1, 100)
    assert question.given == 50, "within the budget none is needed"
    assert (await sign_more(view, 1, 50)).signed == 150
    with pytest.raises(ApprovalPendingError):
        await sign_more(view, 1, 1)
    assert await asked() == ["asked", "used", "used", "asked"]
    assert (await books.budgets())[0].left == 0
    await books.close()


async def test_what_is_left_and_when_more_is_free(tmp_path: Path, clock: Clock) -> None:
    policy = replace(POLICY, envelopes={"lab": Envelope(amount=100, window_s=HOUR_S)})
    books = await open_books(tmp_path / "wallet.db", policy, now=clock)
    (fresh,) = await books.budgets()
    assert (fresh.spent, fresh.left, fresh.next_release) == (0, 100, None)
    view = books.view("ann")
    await deposit(view, 1, 100)
    await sign_more(view, 1, 30)
    clock.now += 600
    await sign_more(view, 1, 20)
    (budget,) = await books.budgets()
    release = budget.next_release
    assert release is not None
    assert (budget.left, release.amount) == (50, 30)
    assert NOW + HOUR_S < release.at <= NOW + HOUR_S + 60
    clock.now = release.at - 0.001
    assert (await books.budgets())[0].left == 50
    clock.now = release.at
    assert (await books.budgets())[0].left == 80
    seen = {agent.name: agent.last_seen for agent in await books.agents()}
    assert seen["bob"] is None
    assert seen["ann"] is not None
    assert NOW + 540 < seen["ann"] <= NOW + 600
    await books.close()


async def test_each_task_has_a_budget_for_itself(tmp_path: Path) -> None:
    envelopes = {
        "lab": Envelope(amount=10, window_s=None, per_task=True, parent="company"),
        "company": Envelope(amount=25, window_s=HOUR_S),
    }
    books = await open_books(tmp_path / "wallet.db", replace(POLICY, envelopes=envelopes))
    view = books.view("ann")
    await deposit(view, 1, 100)
    for task, more in (("b", 10), ("a", 9)):
        purpose = WalletRequest(request_id=task, purpose=Purpose(task=task))
        await sign_more(view, 1, more, purpose=purpose)
        assert (await refusal_of(sign_more(view, 1, 2, purpose=purpose))).code
    found = [(each.scope, each.spent, each.left, each.locked) for each in await books.budgets()]
    assert found == [
        ("envelope lab task a", 9, 1, 100),
        ("envelope lab task b", 10, 0, 100),
        ("envelope company", 19, 6, 100),
    ]
    shorter = replace(envelopes["company"], window_s=60)
    policy = replace(POLICY, revision=2, envelopes=envelopes | {"company": shorter})
    await books.reload(policy)
    assert (await books.budgets())[-1].spent == 19, "another window is no new budget"
    await view.update(key_of(1), lambda one: replace(one, state="closed", settled=10))
    found = [(each.scope, each.spent, each.left, each.locked) for each in await books.budgets()]
    assert found[:2] == [("envelope lab task a", 0, 10, 0), ("envelope lab task b", 10, 0, 0)]
    await books.close()


async def test_what_if_books_nothing(tmp_path: Path) -> None:
    seen: list[Ask] = []

    def decide(policy: Policy, ask: Ask, snapshot: Snapshot) -> Decision:
        seen.append(ask)
        return small_policy.decide(policy, ask, snapshot)

    books = await WalletBooks.open(
        tmp_path / "wallet.db", POLICY, decide=decide, counters_for=small_policy.counters_for
    )
    view = books.view("ann")
    await deposit(view, 1, 100)
    await sign_more(view, 1, 60)
    for amount, action in ((40, "allow"), (41, "deny")):
        snapshot, decision = await books.what_if(replace(seen[-1], amount=amount))
        assert (list(snapshot.sums.values()), decision.action) == ([60], action)
    assert await budget_of(books) == (60, 100)
    await books.close()


class FullDisk(Trail):
    """A trail whose disk may be full."""

    is_full = False

    def append(self, *positional: Any, **fields: Any) -> int:
        if self.is_full:
            raise sqlite3.OperationalError("database or disk is full")
        return super().append(*positional, **fields)


async def test_a_reload_that_is_undone_leaves_no_sum_behind(tmp_path: Path) -> None:
    """Its new sums were remembered by their numbers, which other sums got afterwards."""
    trail = FullDisk()
    books = await open_books(tmp_path / "wallet.db", POLICY, trail=trail, now=lambda: NOW)
    view = books.view("ann")
    await deposit(view, 1, 100)
    await deposit(view, 2, 200)
    top = {
        "lab": replace(POLICY.envelopes["lab"], parent="top"),
        "top": Envelope(amount=500, window_s=None, locked_max=1_000),
    }
    trail.is_full = True
    with pytest.raises(StoreError, match="full"):
        await books.reload(replace(POLICY, envelopes=top, revision=2))
    trail.is_full = False
    await sign_more(view, 1, 30)
    await books.reload(replace(POLICY, envelopes=top, revision=2))
    await deposit(view, 3, 50)
    found = {each.envelope: (each.spent, each.locked) for each in await books.budgets()}
    assert found == {"lab": (30, 350), "top": (0, 350)}
    await books.close()


def test_what_a_running_request_cost_is_not_forgotten_for_others() -> None:
    """Else an agent could start the cap of one request anew, by paying for many others."""
    running = Running()
    running.store_total("stream", 90, is_ended_later=True)
    for number in range(KEPT + 1):
        running.store_total(f"r{number}", 0, is_ended_later=True)
        running.end_request(f"r{number}")
    assert (running.total("stream"), running.total("r0"), running.total("r1")) == (90, None, 0)
    running.end_request("stream")
    running.store_total("stream", 95, is_ended_later=True)
    assert running.total("stream") == 95
    for number in range(KEPT):
        running.store_total(f"bare{number}", 1)
    assert running.total("stream") is None


async def test_a_price_that_the_client_refuses_is_recorded_once(
    open_agent: OpenAgent, provider: Provider, tmp_path: Path
) -> None:
    """No guard sees it: the client refuses the offer before it commits money."""
    books = await open_books(tmp_path / "wallet.db", POLICY, trail=Trail(), now=lambda: NOW)
    agent = await open_agent(policy_of(), view=lambda _: books.view("ann"))
    provider.offer = {"unit_price": 51}
    with pytest.raises(OfferRefusedError) as price:
        await agent.client.post("/joke")
    provider.offer = {}
    await books.freeze("agent ann", reason="", by="owner")
    frozen = await refusal_of(agent.client.post("/joke"))
    for error in (price.value, frozen):
        for _ in range(2):
            await books.note_refusal("ann", error, request_id="r1", origin=ORIGIN)
    entries = await books.store.transact(lambda db: list(read_entries(db)))
    assert [entry.kind for entry in entries[2:]] == ["freeze", "decision", "refusal"]
    last = entries[-1].fields
    assert (last["code"], last["request_id"], last["origin"]) == ("client_limit", "r1", ORIGIN)
    assert "51" in last["reason"]
    await books.close()


async def test_an_agent_buys_until_its_budget_is_spent(
    open_agent: OpenAgent, provider: Provider, tmp_path: Path
) -> None:
    """The whole paying client behind the books: every base unit of the budget buys something."""
    policy = Policy(
        envelopes={"lab": Envelope(amount=105, window_s=None)},
        agents={"ann": Agent(envelopes=("lab",))},
    )
    books = await open_books(tmp_path / "wallet.db", policy, trail=Trail(), now=lambda: NOW)

    def view(_store: PaymentStore) -> PaymentStore:
        return books.view("ann")

    agent = await open_agent(policy_of(), view=view)

    async def buy(number: int) -> httpx.Response:
        purpose = WalletRequest(request_id=f"r{number}", purpose=Purpose(task="jokes"))
        response: httpx.Response = await agent.client.post("/joke", extensions={PURPOSE: purpose})
        books.end_request(f"r{number}")
        return response

    for number in range(10):
        assert (await buy(number)).status_code == 200
    refused = await refusal_of(buy(10))
    assert (refused.code, provider.books.popitem()[1].spent) == (Code.ENVELOPE_EXCEEDED, 100)
    (record,) = await agent.store.records()
    spent, locked = await budget_of(books)
    assert (spent, locked) == (record.signed, record.locked) == (100, 1_000)
    kinds = [kind for kind, _ in await records_of(books)]
    assert kinds.count("voucher") == 10
    assert kinds.count("receipt") >= 10
    await books.close()


async def test_an_agent_in_a_loop_does_not_fill_the_disk_with_refusals(
    tmp_path: Path, clock: Clock
) -> None:
    """Beyond the bound refusals are counted, and the next record says how many there were."""
    books = await open_books(tmp_path / "wallet.db", POLICY, now=clock, trail=Trail())
    ann, bob = books.view("ann"), books.view("bob")
    for _ in range(AUDIT_REFUSALS_PER_MINUTE_MAX + 3):
        await refusal_of(deposit(ann, 1, 1_001))
    await refusal_of(deposit(bob, 2, 1_001))
    clock.now += 60
    await refusal_of(deposit(ann, 1, 1_001))

    def read(db: sqlite3.Connection) -> list[tuple[str, object]]:
        found = [entry for entry in read_entries(db) if entry.kind == "decision"]
        return [(entry.agent, entry.fields.get("left_out")) for entry in found]

    records = await books.store.transact(read)
    await books.close()
    assert records == [
        *[("ann", None)] * AUDIT_REFUSALS_PER_MINUTE_MAX,
        ("bob", None),
        ("ann", 3),
    ]
