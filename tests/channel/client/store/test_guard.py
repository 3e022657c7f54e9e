"""A guard decides in the transaction that it decides about, and several agents share a file."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.client.funding.signer import LocalSigner
from channel.client.policy.budget import Budget
from channel.client.policy.context import PURPOSE, PaymentContext
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    AgentError,
    BudgetExceededError,
    ChainUnavailableError,
    OfferRefusedError,
    PolicyRefusedError,
    StoreError,
)
from channel.limits import AMOUNT_MAX
from channel.types import ChannelId, TxHash
from tests.channel.client.conftest import OpenAgent, policy_of
from tests.channel.client.payment.test_charges import Shop, policy
from tests.channel.client.provider import NOW, PAYER_KEY, PaperChain, Provider
from tests.channel.client.store.test_record import KEY, account_of
from tests.channel.client.store.test_sqlite import UNBOUND, charge_of, of

AGENT = "research"


class Notes:
    """A guard with a table of its own, and a limit for each kind of commitment."""

    def __init__(self, **limits: int) -> None:
        self.limits = limits
        self.contexts: list[PaymentContext | None] = []

    def _note(self, db: sqlite3.Connection, kind: str, amount: int, total: int) -> None:
        assert db.in_transaction
        db.execute("CREATE TABLE IF NOT EXISTS note (kind TEXT, amount INTEGER, total INTEGER)")
        db.execute("INSERT INTO note VALUES (?, ?, ?)", (kind, amount, total))
        if total > self.limits.get(kind, 10**9):
            raise PolicyRefusedError(f"{kind} of {total}", code="test")

    def deposit(
        self,
        db: sqlite3.Connection,
        before: ChannelRecord | None,
        after: ChannelRecord,
        context: PaymentContext | None,
    ) -> None:
        self.contexts.append(context)
        amount = after.locked - (0 if before is None else before.locked)
        self._note(db, "deposit", amount, after.locked)

    def sign(
        self,
        db: sqlite3.Connection,
        before: ChannelRecord,
        after: ChannelRecord,
        context: PaymentContext | None,
    ) -> None:
        self.contexts.append(context)
        self._note(db, "sign", after.signed - before.signed, after.signed)

    def charge(
        self, db: sqlite3.Connection, record: ChargeRecord, context: PaymentContext | None
    ) -> None:
        self.contexts.append(context)
        self._note(db, "charge", record.amount, record.amount)

    def change(self, db: sqlite3.Connection, before: ChannelRecord, after: ChannelRecord) -> None:
        if after.state != before.state:
            self._note(db, after.state, 0, 0)

    def refuse(
        self, db: sqlite3.Connection, context: PaymentContext | None, error: AgentError
    ) -> AgentError:
        self.contexts.append(context)
        self._note(db, "refused", 0, 0)
        return PolicyRefusedError(f"refused: {error}", code="noted")


class CountingSigner(LocalSigner):
    """Counts what it signs."""

    def __init__(self) -> None:
        super().__init__(PAYER_KEY)
        self.count = 0

    async def sign(self, digest: bytes) -> bytes:
        self.count += 1
        return await super().sign(digest)


async def notes_of(store: PaymentStore) -> list[tuple[str, int, int]]:
    def read(db: sqlite3.Connection) -> list[tuple[str, int, int]]:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'note'").fetchone():
            return []
        return [tuple(row) for row in db.execute("SELECT * FROM note ORDER BY rowid")]

    return await store.transact(read)


async def test_every_deposit_and_voucher_is_decided(
    open_agent: OpenAgent, provider: Provider
) -> None:
    """Opening, every voucher, top-up and close; what the caller attached reaches the guard."""
    guard = Notes()
    agent = await open_agent(
        policy_of({"deposit_max": 5_000}), view=lambda store: store.for_agent(AGENT, guard)
    )
    purpose = object()
    while len(provider.books) == 0 or next(iter(provider.books.values())).spent < 1_200:
        await agent.client.post("/joke", extensions={PURPOSE: purpose})
    (record,) = await agent.store.records()
    presented = len(provider.vouchers)
    await agent.payments.close(record.key.channel_id)
    notes = await notes_of(agent.store)
    signs = [note for note in notes if note[0] == "sign"]
    deposits = [note for note in notes if note[0] == "deposit"]
    assert notes[0][0] == "deposit"
    assert len(signs) == presented, "only the close needs no decision"
    assert sum(amount for _, amount, _ in signs) == record.signed
    assert len(deposits) > 1, "the deposit of one request does not cover all"
    assert sum(amount for _, amount, _ in deposits) == record.locked
    assert notes[-1][0] == "closed"
    assert all(context and context.purpose is purpose for context in guard.contexts)
    assert len({context.request_id for context in guard.contexts if context}) > 1


@pytest.mark.parametrize("kind", ["deposit", "sign"])
async def test_what_is_refused_is_not_stored_signed_or_sent(
    open_agent: OpenAgent, chain: PaperChain, provider: Provider, kind: str
) -> None:
    signer = CountingSigner()
    guard = Notes(**{kind: 0})
    agent = await open_agent(signer=signer, view=lambda store: store.for_agent(AGENT, guard))
    with pytest.raises(PolicyRefusedError, match=f"refused: {kind} of") as caught:
        await agent.client.post("/joke")
    assert caught.value.code == "noted"
    records = await agent.store.records()
    assert [record.signed for record in records] == ([] if kind == "deposit" else [0])
    assert provider.vouchers == []
    assert signer.count == 0
    assert len(chain.facts) == len(records)
    kinds = [note[0] for note in await notes_of(agent.store)]
    assert kinds == (["refused"] if kind == "deposit" else ["deposit", *kinds[1:-1], "refused"])
    assert "sign" not in kinds, "what a refused decision wrote is undone"


async def test_a_refused_charge_is_not_signed(open_agent: OpenAgent, chain: PaperChain) -> None:
    shop, guard = Shop(chain), Notes(charge=0)
    agent = await open_agent(
        policy("charge"), transport=shop, view=lambda store: store.for_agent(AGENT, guard)
    )
    with pytest.raises(PolicyRefusedError, match="refused: charge of 30"):
        await agent.client.post("/joke")
    assert (await agent.store.charges(), shop.seen) == ([], [])
    guard.limits.clear()
    assert (await agent.client.post("/joke")).status_code == 200
    assert [note[0] for note in await notes_of(agent.store)] == ["refused", "charge"]


async def test_an_opening_is_decided_again_before_it_is_sent_again(
    open_agent: OpenAgent, chain: PaperChain
) -> None:
    """A deposit that was agreed to and not made is not made for an agent that was stopped since."""
    guard = Notes()

    async def fail(**_options: Any) -> TxHash:
        raise ChainUnavailableError("the node is away")

    send, chain.open_channel = chain.open_channel, fail  # type: ignore[method-assign]
    agent = await open_agent(view=lambda store: store.for_agent(AGENT, guard))
    with pytest.raises(ChainUnavailableError):
        await agent.client.post("/joke")
    chain.open_channel = send  # type: ignore[method-assign]
    guard.limits["deposit"] = 0
    with pytest.raises(PolicyRefusedError, match="refused: deposit"):
        await agent.client.post("/joke")
    assert not chain.facts
    guard.limits.clear()
    assert (await agent.client.post("/joke")).status_code == 200
    assert len(chain.facts) == 1


async def test_a_refused_amount_ahead_falls_to_the_least(tmp_path: Path) -> None:
    """A guard sees the amount that is stored, and undoes the one that is not."""
    store = await PaymentStore.open(tmp_path / "store.db")
    view = store.for_agent(AGENT, Notes(sign=60))
    await view.add(account_of(), channels_max=1, locked=UNBOUND)

    def choose(record: ChannelRecord, left: int) -> int:
        return max(50, record.signed + min(left, 100))

    assert (await view.sign_for(KEY, choose, budget=of(1_000), now=NOW)).signed == 50
    assert [note for note in await notes_of(store) if note[0] == "sign"] == [("sign", 50, 50)]
    (minutes,) = await store.transact(
        lambda db: db.execute("SELECT amount FROM signed_minute").fetchall()
    )
    assert int.from_bytes(minutes["amount"]) == 50
    with pytest.raises(PolicyRefusedError, match="sign of 70"):
        await view.sign_for(KEY, lambda _record, _left: 70, budget=of(1_000), now=NOW)
    assert (await view.get(KEY)).signed == 50
    await store.close()


async def test_a_greater_opening_and_a_refusal_of_the_store_itself(tmp_path: Path) -> None:
    """A deposit that is planned anew is decided by the difference."""
    store = await PaymentStore.open(tmp_path / "store.db")
    view = store.for_agent(AGENT, Notes(deposit=2_000))
    await view.add(account_of(state="opening"), channels_max=1, locked=UNBOUND)
    await view.update(KEY, lambda one: replace(one, deposit=1_500), locked=UNBOUND)
    await view.update(KEY, lambda one: replace(one, units=1), locked=UNBOUND)
    with pytest.raises(PolicyRefusedError, match="deposit of 2500"):
        await view.update(KEY, lambda one: replace(one, deposit=2_500), locked=UNBOUND)
    other = replace(KEY, channel_id=ChannelId(b"\x02" * 32))
    with pytest.raises(PolicyRefusedError, match="channels_per_origin_max"):
        await view.add(account_of(key=other), channels_max=1, locked=UNBOUND)
    assert (await view.get(KEY)).deposit == 1_500
    assert await notes_of(store) == [
        ("deposit", 1_000, 1_000),
        ("deposit", 500, 1_500),
        ("refused", 0, 0),
        ("refused", 0, 0),
    ]
    await store.close()


async def test_agents_of_one_file_do_not_see_each_other(tmp_path: Path) -> None:
    """An equal request of another agent is paid for anew, not with the first agent's credential."""
    store = await PaymentStore.open(tmp_path / "store.db")
    ann, bob = store.for_agent("ann"), store.for_agent("bob")
    await ann.add(account_of(signed=7), channels_max=1, locked=UNBOUND)
    charge = charge_of()
    await ann.add_charge(charge, budget=of(1_000), now=NOW)
    with pytest.raises(OfferRefusedError):  # planned by another agent: one authorization, once
        await bob.add_charge(charge, budget=of(1_000), now=NOW)
    await ann.add_charge(charge, budget=of(1_000), now=NOW)
    sent = replace(charge, credential="secret", state="sent")
    await ann.update_charge(sent)
    assert await ann.charges_for(charge.purchase) == await store.charges() == [sent]
    assert (await bob.charges_for(charge.purchase), await bob.charges()) == ([], [])
    origin = charge.origin
    assert (await ann.has_paid(origin, since=NOW), await bob.has_paid(origin, since=NOW)) == (
        True,
        False,
    )
    assert (await bob.records(), await bob.live_records(origin), await bob.load(KEY)) == (
        [],
    ) * 2 + (None,)
    with pytest.raises(StoreError, match="not in the payment store"):
        await bob.sign_for(KEY, lambda _record, _left: 9, budget=of(1_000), now=NOW)
    with pytest.raises(StoreError, match="not in the payment store"):
        await bob.update(KEY, lambda one: replace(one, state="closed"))
    assert await ann.records() == await store.records() == [account_of(signed=7)]
    # A channel that the wallet changes for its owner stays its agent's.
    await store.update(KEY, lambda one: replace(one, state="closing"))
    assert [one.state for one in await ann.records()] == ["closing"]
    await store.close()


async def test_an_agents_view_closes_alone(tmp_path: Path) -> None:
    """It releases its channels; the others go on."""
    store = await PaymentStore.open(tmp_path / "store.db")
    ann, bob = store.for_agent("ann"), store.for_agent("bob")
    assert await ann.claim(KEY)
    assert not await bob.claim(KEY)
    await ann.close()
    assert await bob.claim(KEY)
    await bob.add(account_of(), channels_max=1, locked=UNBOUND)
    await store.close()
    with pytest.raises(StoreError):
        await bob.records()


async def test_a_guard_counts_alone_where_the_budget_bounds_nothing(tmp_path: Path) -> None:
    """What cannot be exceeded is not counted a second time."""
    store = await PaymentStore.open(tmp_path / "store.db")
    view = store.for_agent(AGENT, Notes())
    await view.add(account_of(), channels_max=1, locked=UNBOUND)
    seen: list[int] = []

    def choose(record: ChannelRecord, left: int) -> int:
        seen.append(left)
        return record.signed + 10

    unbound = Budget(origin_max=AMOUNT_MAX, total_max=AMOUNT_MAX, window_s=60)
    for budget, minutes in ((unbound, 0), (of(AMOUNT_MAX), 0), (of(AMOUNT_MAX - 1), 1)):
        await view.sign_for(KEY, choose, budget=budget, now=NOW)
        count = await store.transact(
            lambda db: db.execute("SELECT count(*) FROM signed_minute").fetchone()[0]
        )
        assert count == minutes
    await view.add_charge(charge_of(), budget=unbound, now=NOW)
    assert seen == [AMOUNT_MAX, AMOUNT_MAX, AMOUNT_MAX - 1]
    assert await notes_of(store) == [
        ("deposit", 1_000, 1_000),
        *(("sign", 10, total) for total in (10, 20, 30)),
        ("charge", 30, 30),
    ]
    await store.close()


async def test_budgets_count_all_agents_of_a_file(tmp_path: Path) -> None:
    """The limits of the paying client are the file's: a guard divides them among agents."""
    store = await PaymentStore.open(tmp_path / "store.db")
    ann, bob = store.for_agent("ann"), store.for_agent("bob")
    await ann.add(account_of(), channels_max=1, locked=UNBOUND)
    await ann.sign_for(KEY, lambda _record, _left: 80, budget=of(100), now=NOW)
    with pytest.raises(BudgetExceededError):
        await bob.add_charge(charge_of(), budget=of(100), now=NOW)
    await store.close()
