"""Budgets and freezes against a model in plain Python, with a restart between any two steps.

The model holds a list of what was signed, with its exact times. The books must agree with it to the
base unit: they never count less than was committed within a window, nor a bucket more.
"""

import asyncio
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from msgspec.structs import replace

from channel.errors import ConfigError, PolicyRefusedError
from tests.channel.client.store.test_sqlite import charge_of
from tests.mpp_session.wallet.books.small_policy import (
    FREE,
    HOUR_S,
    NOW,
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

if TYPE_CHECKING:
    from mpp_session.wallet.books.books import WalletBooks

AGENTS = ("ann", "bob")
LOCKED_MAX = 900
TREE = {"ann": ("lab", "company"), "bob": ("company",)}
EXPIRES = NOW + 6 * HOUR_S


def policy_of(revision: int, lab: int, window_s: int) -> Policy:
    return Policy(
        revision=revision,
        envelopes={
            "lab": Envelope(amount=lab, window_s=window_s, parent="company"),
            "company": Envelope(amount=700, window_s=None, locked_max=LOCKED_MAX),
        },
        agents={
            "ann": Agent(envelopes=("lab",)),
            "bob": Agent(envelopes=("company",), expires=EXPIRES),
        },
    )


class Spend:
    """One amount that was signed."""

    def __init__(self, agent: str, channel: int | None, at: float, amount: int) -> None:
        self.agent = agent
        self.channel = channel
        self.at = at
        self.amount = amount
        self.owed = amount
        """What it cost in the end: all, until its channel returns some."""


class Books(RuleBasedStateMachine):
    """Every rule is one step of the wallet, and `reopen` may come between any two."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.path = Path(self.folder.name) / "wallet.db"
        self.now = NOW
        self.policy = policy_of(1, 300, HOUR_S)
        self.books: WalletBooks
        self.spends: list[Spend] = []
        self.locked: dict[int, tuple[str, int]] = {}
        self.signed: dict[int, int] = {}
        self.frozen: set[str] = set()
        self.revoked: set[str] = set()
        self.channels = 0
        self.charges = 0

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.books.close())
        self.runner.close()
        self.folder.cleanup()

    @initialize()
    def start(self) -> None:
        self.books = self.run(open_books(self.path, self.policy, now=lambda: self.now))

    # What the model expects.

    def window(self, name: str) -> tuple[float, int]:
        """Return the exact start of an envelope's window, and the start of its oldest bucket."""
        window_s = self.policy.envelopes[name].window_s
        if window_s is None:
            return -math.inf, -(10**12)
        step = max(1, window_s // 60)
        return self.now - window_s, math.floor((self.now - window_s) / step) * step

    def counted(self, name: str) -> int:
        oldest = self.window(name)[1]
        return sum(
            each.owed for each in self.spends if name in TREE[each.agent] and each.at >= oldest
        )

    def truth(self, name: str) -> int:
        since = self.window(name)[0]
        return sum(
            each.owed for each in self.spends if name in TREE[each.agent] and each.at > since
        )

    def may_pay(self, agent: str) -> bool:
        stops = {"all", f"agent {agent}", *(f"envelope {name}" for name in TREE[agent])}
        is_over = agent == "bob" and self.now >= EXPIRES
        return not (stops & self.frozen) and agent not in self.revoked and not is_over

    def is_affordable(self, agent: str, amount: int) -> bool:
        return self.may_pay(agent) and all(
            self.counted(name) + amount <= self.policy.envelopes[name].amount
            for name in TREE[agent]
        )

    def expect(self, work: Any, *, is_allowed: bool) -> bool:
        try:
            self.run(work)
        except PolicyRefusedError:
            assert not is_allowed
            return False
        assert is_allowed
        return True

    def open_ones(self) -> list[int]:
        return sorted(self.signed)

    # Steps.

    @rule(agent=st.sampled_from(AGENTS), amount=st.integers(1, 400))
    def open_channel(self, agent: str, amount: int) -> None:
        total = sum(locked for _, locked in self.locked.values())
        is_allowed = self.may_pay(agent) and total + amount <= LOCKED_MAX
        number = self.channels + 1
        if self.expect(deposit(self.books.view(agent), number, amount), is_allowed=is_allowed):
            self.channels = number
            self.locked[number] = agent, amount
            self.signed[number] = 0

    @precondition(lambda self: self.signed)
    @rule(data=st.data(), amount=st.integers(1, 200))
    def top_up(self, data: st.DataObject, amount: int) -> None:
        number = data.draw(st.sampled_from(self.open_ones()))
        agent, locked = self.locked[number]
        total = sum(each for _, each in self.locked.values())
        work = self.books.view(agent).update(
            key_of(number),
            lambda record: replace(record, goal=record.locked + amount),
            locked=UNBOUND,
            context=context_of(),
        )
        if self.expect(work, is_allowed=self.may_pay(agent) and total + amount <= LOCKED_MAX):
            self.locked[number] = agent, locked + amount

    @precondition(lambda self: self.signed)
    @rule(data=st.data(), amount=st.integers(0, 150))
    def sign(self, data: st.DataObject, amount: int) -> None:
        number = data.draw(st.sampled_from(self.open_ones()))
        agent, _ = self.locked[number]
        work = sign_more(self.books.view(agent), number, amount)
        if self.expect(work, is_allowed=self.is_affordable(agent, amount)):
            self.signed[number] += amount
            self.spends.append(Spend(agent, number, self.now, amount))

    @rule(agent=st.sampled_from(AGENTS), amount=st.integers(1, 100))
    def charge(self, agent: str, amount: int) -> None:
        self.charges += 1
        record = charge_of(amount=amount, nonce=self.charges.to_bytes(32))
        work = self.books.view(agent).add_charge(
            record, budget=FREE, now=self.now, context=context_of()
        )
        if self.expect(work, is_allowed=self.is_affordable(agent, amount)):
            self.spends.append(Spend(agent, None, self.now, amount))

    @precondition(lambda self: self.signed)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        """The chain ends a channel; telling it twice returns nothing more."""
        number = data.draw(st.sampled_from(self.open_ones()))
        agent, _ = self.locked.pop(number)
        signed = self.signed.pop(number)
        settled = data.draw(st.integers(0, signed))
        view = self.books.view(agent)
        self.run(
            view.update(
                key_of(number), lambda record: replace(record, state="closed", settled=settled)
            )
        )
        self.run(view.update(key_of(number), lambda record: replace(record, units=1)))
        own = [each for each in self.spends if each.channel == number]
        rest = settled
        for each in own:
            each.owed = min(rest, each.amount)
            rest -= each.owed

    @rule(scope=st.sampled_from(["all", "agent ann", "envelope lab", "envelope company"]))
    def freeze(self, scope: str) -> None:
        if scope in self.frozen:
            assert self.run(self.books.unfreeze(scope, by="owner"))
            self.frozen.remove(scope)
        else:
            self.run(self.books.freeze(scope, reason="a test", by="owner"))
            self.frozen.add(scope)

    @precondition(lambda self: not self.revoked and self.channels > 3)
    @rule()
    def revoke(self) -> None:
        self.run(self.books.revoke("agent bob", reason="a test", by="owner"))
        self.revoked.add("bob")

    @rule(seconds=st.floats(0.1, 3_000))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(amount=st.integers(100, 400))
    def reload(self, amount: int) -> None:
        newer = policy_of(self.policy.revision + 1, amount, HOUR_S)
        self.run(self.books.reload(newer))
        with pytest.raises(ConfigError, match="raise `revision`"):
            self.run(self.books.reload(self.policy))
        self.policy = newer

    @rule()
    def reopen(self) -> None:
        self.run(self.books.close())
        self.start()

    # What always holds.

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "books"):
            return
        total = sum(locked for _, locked in self.locked.values())
        for budget in self.run(self.books.budgets()):
            name = budget.envelope
            assert budget.spent == self.counted(name) >= self.truth(name)
            assert budget.locked == (
                total
                if name == "company"
                else sum(locked for agent, locked in self.locked.values() if agent == "ann")
            )
            if budget.window_s is None:
                assert budget.spent == self.truth(name)
        live = {agent.name: agent.channels for agent in self.run(self.books.agents())}
        owners = [agent for agent, _ in self.locked.values()]
        assert live == {agent: owners.count(agent) for agent in AGENTS}
        to_close = {each.record.key for each in self.run(self.books.channels_to_close())}
        for number, (agent, _) in self.locked.items():
            is_stopped = agent in self.revoked or (agent == "bob" and self.now >= EXPIRES)
            is_stopped = is_stopped or bool(self.frozen & {"all", f"agent {agent}"})
            assert (key_of(number) in to_close) == is_stopped


Books.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestBooks = Books.TestCase
