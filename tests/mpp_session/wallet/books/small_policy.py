"""A policy small enough to be seen at a glance, and money to be asked for under it.

Budgets in a tree, freezes, revocations and expiry; the whole policy is tested in its own place. It
imports no test, since a child process of a test starts with it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from channel.client.policy.budget import Budget, LockedBudget
from channel.client.policy.context import PaymentContext
from channel.client.policy.policy import Offer
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.limits import AMOUNT_MAX
from channel.types import ZERO_ADDRESS, Address, ChannelId, ChannelKey, ChannelTerms
from channel.wire.challenge import Challenge, SessionRequest
from mpp_session.wallet.books.books import WalletBooks
from mpp_session.wallet.types import Ask, Code, Counter, Decision, Snapshot, WalletRequest

FREE = Budget(origin_max=AMOUNT_MAX, window_s=3_600)
UNBOUND = LockedBudget(AMOUNT_MAX, AMOUNT_MAX)
ORIGIN = "https://api.example:443"
NOW = 1_750_000_000.0
CHAIN_ID = 31337
ESCROW = Address(b"\xe5" * 20)
TOKEN = Address(b"\x70" * 20)
PAYEE = Address(b"\xbe" * 20)
TERMS = ChannelTerms(Address(b"\xea" * 20), PAYEE, TOKEN, ZERO_ADDRESS)
HOUR_S = 3_600
USDC = "usdc"
Answer = tuple[Literal["allow", "ask", "deny"], Code]


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    amount: int
    window_s: int | None = HOUR_S
    per_task: bool = False
    locked_max: int = 2**100
    token: str = USDC
    parent: str | None = None
    on_exceed: Literal["deny", "ask"] = "deny"


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    envelopes: tuple[str, ...]
    expires: float = 2 * NOW


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    envelopes: Mapping[str, Envelope]
    agents: Mapping[str, Agent]
    revision: int = 1
    rules: tuple[()] = ()
    asks_for: frozenset[str] = frozenset()
    """Kinds that a person must approve."""

    @property
    def hash(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def envelopes_of(self, agent: str) -> tuple[str, ...]:
        found: list[str] = []
        for name in self.agents[agent].envelopes if agent in self.agents else ():
            at: str | None = name
            while at is not None and at not in found:
                found.append(at)
                at = self.envelopes[at].parent
        return tuple(found)


def counters_for(policy: Policy, ask: Ask) -> tuple[Counter, ...]:
    found = []
    for name in policy.envelopes_of(ask.agent):
        envelope, scope = policy.envelopes[name], f"envelope {name}"
        if ask.kind == "deposit":
            found.append(Counter("locked", scope, USDC))
        elif envelope.per_task:
            found.append(Counter("spent", f"{scope} task {ask.purpose.task}", USDC))
        else:
            found.append(Counter("spent", scope, USDC, envelope.window_s))
    return tuple(found)


def decide(policy: Policy, ask: Ask, snapshot: Snapshot) -> Decision:
    action, code = _answer(policy, ask, snapshot)
    return Decision(
        action=action,
        code=code,
        reason=f"{ask.agent}: {code} at {ask.amount}.",
        policy_revision=policy.revision,
        counters=counters_for(policy, ask),
        envelopes=policy.envelopes_of(ask.agent),
    )


def _answer(policy: Policy, ask: Ask, snapshot: Snapshot) -> Answer:
    names = policy.envelopes_of(ask.agent)
    stops = {"all", f"agent {ask.agent}", f"origin {ask.origin}"}
    agent = policy.agents.get(ask.agent)
    for is_over, code in (
        (snapshot.frozen & (stops | {f"envelope {name}" for name in names}), Code.FROZEN),
        (agent is None, Code.AGENT_UNKNOWN),
        (f"agent {ask.agent}" in snapshot.revoked, Code.AGENT_REVOKED),
        (agent is not None and agent.expires <= ask.at, Code.AGENT_EXPIRED),
    ):
        if is_over:
            return "deny", code
    for counter in counters_for(policy, ask):
        total = snapshot.sums.get(counter, 0)
        envelope = policy.envelopes[counter.scope.split()[1]]
        is_locked = counter.what == "locked"
        if total + ask.amount > (envelope.locked_max if is_locked else envelope.amount):
            code = Code.LOCKED_EXCEEDED if is_locked else Code.ENVELOPE_EXCEEDED
            if envelope.on_exceed == "deny":
                return "deny", code
            if snapshot.approved is None:
                return "ask", code
    if ask.kind in policy.asks_for and snapshot.approved is None:
        return "ask", Code.APPROVAL_PENDING
    return "allow", Code.ALLOWED


async def open_books(path: Any, policy: Policy, **options: Any) -> WalletBooks:
    return await WalletBooks.open(path, policy, decide=decide, counters_for=counters_for, **options)


OFFER = Offer(
    Challenge(id="one", realm="api.example", method="evm", intent="session", request="e30"),
    SessionRequest(
        unit_price=10,
        currency=TOKEN,
        recipient=PAYEE,
        chain_id=CHAIN_ID,
        escrow=ESCROW,
        unit_type="request",
        credential_types=("hash",),
    ),
)


def context_of(request_id: str = "r1", **changes: Any) -> PaymentContext:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "origin": ORIGIN,
        "method": "POST",
        "url": "https://api.example/joke",
        "offer": OFFER,
        "cost_max": 10,
        "is_stream": False,
        "purpose": WalletRequest(request_id=request_id),
    }
    return PaymentContext(**(fields | changes))


def key_of(number: int) -> ChannelKey:
    return ChannelKey(CHAIN_ID, ESCROW, ChannelId(number.to_bytes(32)))


async def deposit(view: PaymentStore, number: int, amount: int, **options: Any) -> ChannelRecord:
    record = ChannelRecord(
        key=key_of(number),
        origin=ORIGIN,
        url="https://api.example/joke",
        terms=TERMS,
        salt=b"\x05" * 32,
        state="opening",
        deposit=amount,
        opened_at=int(NOW),
    )
    await view.add(record, channels_max=10**6, locked=UNBOUND, context=context_of(**options))
    return record


async def sign_more(
    view: PaymentStore, number: int, more: int, *, request_id: str = "r1", **changes: Any
) -> ChannelRecord:
    return await view.sign_for(
        key_of(number),
        lambda record, _left: record.signed + more,
        budget=FREE,
        now=NOW,
        context=context_of(request_id, **changes),
    )
