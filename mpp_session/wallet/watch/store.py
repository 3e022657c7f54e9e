"""Profiles and breakers in the wallet's file: one row for an agent and origin, of fixed size.

Every method runs inside a transaction that the caller opened. Profiles are kept decoded beside the
bytes of their row, and read again when the row has other bytes: a change that was rolled back
leaves nothing.
"""

import hashlib
import sqlite3
import struct
from collections import OrderedDict
from importlib import resources
from typing import Final, NamedTuple

import msgspec

from channel.sql import parse_queries
from channel.types import Address, TokenUnit
from mpp_session.wallet.policy.compiled import WalletPolicy
from mpp_session.wallet.types import Ask
from mpp_session.wallet.watch.breaker import BreakerState, Outcome, note, open_until
from mpp_session.wallet.watch.judge import Case, judge, learn
from mpp_session.wallet.watch.observation import KEY_BYTES, Finding, Observation
from mpp_session.wallet.watch.profile import Profile
from mpp_session.wallet.watch.repeats import (
    Repeats,
    accept_repeats,
    judge_repeats,
    note_request,
)
from mpp_session.wallet.watch.words import money_in

__all__ = ["SCHEMA", "Known", "Watch", "observe", "read_known"]

_SQL: Final = resources.files("mpp_session.wallet.watch") / "sql"
SCHEMA: Final = (_SQL / "schema.sql").read_text()
_QUERIES: Final = parse_queries((_SQL / "queries.sql").read_text())
ORIGINS_KEPT: Final = 1_000
"""Of one agent; the one that was not paid for the longest time is forgotten."""
CACHED: Final = 512
"""Profiles that are kept decoded."""


class _State(msgspec.Struct, array_like=True, frozen=True):
    breaker: BreakerState = BreakerState()
    repeats: Repeats = Repeats()


class _Judged(NamedTuple):
    """An ask with what is known of it."""

    ask: Ask
    case: Case
    finding: Finding | None
    agent_key: tuple[str, str, str]
    origin_key: tuple[str, str, str]
    is_new: bool
    """Whether the agent has not paid there."""


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_State).decode


class Watch:
    """Breakers and findings by a policy; assign `policy` when it changes."""

    SCHEMA = SCHEMA

    def __init__(self, policy: WalletPolicy) -> None:
        self.policy = policy
        self._cached: OrderedDict[tuple[str, str, str], tuple[bytes, Profile]] = OrderedDict()
        self._judged: _Judged | None = None

    def finding(self, db: sqlite3.Connection, ask: Ask) -> str:
        """Return what is unusual about an ask, in one sentence; empty for nothing."""
        self._judged = self._judge(db, ask)
        finding = self._judged.finding
        return "" if finding is None else finding.text

    def breaker(
        self, db: sqlite3.Connection, agent: str, origin: str, now: float
    ) -> tuple[str, float] | None:
        """Return in words which breaker is open, and until when; None if none is."""
        return open_until(self._load_state(db, agent, origin).breaker, now, self.policy.breaker)

    def learn(self, db: sqlite3.Connection, ask: Ask, *, is_approved: bool = False) -> None:
        """Learn from an ask that was allowed; call it for every one that adds an amount.

        Args:
            db: In the transaction that commits to the payment.
            ask: It.
            is_approved: Whether a person agreed to it: then it is normal from now on.
        """
        if ask.amount <= 0:
            return
        judged, self._judged = self._judged, None
        if judged is None or judged.ask is not ask:  # else it is what `finding` saw, just before
            judged = self._judge(db, ask)
        finding, keys = judged.finding, (judged.agent_key, judged.origin_key)
        if is_approved and finding is not None and finding.statistic == "repeat":
            state = self._load_state(db, ask.agent, ask.origin)
            repeats = accept_repeats(state.repeats, ask.at)
            self._save_state(db, ask.agent, ask.origin, _State(state.breaker, repeats), ask.at)
        for key in keys:
            self._cached.pop(key, None)  # they change now, and the row may not
        learn(judged.case, self.policy.anomaly.warm_up, finding, is_approved=is_approved)
        for key, profile in zip(keys, (judged.case.agent, judged.case.origin), strict=True):
            data = profile.to_bytes()
            db.execute(_QUERIES["store_profile"], (*key, ask.at, data))
            self._keep(key, data, profile)
        if judged.is_new:
            _forget(db, "forget_profiles", ask.agent)

    def note_outcome(
        self,
        db: sqlite3.Connection,
        *,
        agent: str,
        origin: str,
        request_digest: bytes,
        status: int,
        paid: int,
        at: float,
    ) -> None:
        """Count how a request ended.

        Args:
            db: In a transaction.
            agent: Who asked for it.
            origin: Who answered.
            request_digest: Equal for equal requests: of method, URL and body.
            status: Of the answer; 0 where there was none.
            paid: What it was charged, or may have been, in base units; 0 is counted as free.
            at: When it ended.
        """
        state = self._load_state(db, agent, origin)
        digest = hashlib.sha256(request_digest).digest()[:KEY_BYTES]
        outcome = Outcome(at=at, digest=digest, status=status, paid=paid)
        if not outcome.events():
            return
        repeats = state.repeats
        if paid > 0:
            repeats = note_request(repeats, digest, at, self.policy.anomaly.warm_up)
        breaker = note(state.breaker, outcome, self.policy.breaker)
        self._save_state(db, agent, origin, _State(breaker, repeats), at)
        if not state.repeats.requests:
            _forget(db, "forget_states", agent)

    def profiles(self, db: sqlite3.Connection, ask: Ask) -> tuple[Profile, Profile]:
        """Return what is known of an ask's agent, and of it at the ask's origin."""
        case = self._judge(db, ask).case
        return case.agent, case.origin

    def _judge(self, db: sqlite3.Connection, ask: Ask) -> _Judged:
        key, warm_up = _token_key(ask.chain_id, ask.token), self.policy.anomaly.warm_up
        agent_key, origin_key = (ask.agent, "", key), (ask.agent, ask.origin, key)
        agent, origin = self._load(db, agent_key), self._load(db, origin_key)
        token = self.policy.token_of(ask.chain_id, ask.token)
        money = money_in(TokenUnit("base units", 0) if token is None else token.unit)
        seen = observe(ask)
        case = Case(agent or Profile(), origin or Profile(), seen, money, ask.origin)
        found = judge(case, warm_up)
        if found is None and ask.is_first:
            state = self._load_state(db, ask.agent, ask.origin)
            found = judge_repeats(state.repeats, warm_up, ask.origin)
        return _Judged(ask, case, found, agent_key, origin_key, origin is None)

    def _load(self, db: sqlite3.Connection, key: tuple[str, str, str]) -> Profile | None:
        row = db.execute(_QUERIES["load_profile"], key).fetchone()
        if row is None:
            return None
        data: bytes = row[0]
        cached = self._cached.pop(key, None)
        if cached is None or cached[0] != data:
            cached = (data, _read_profile(data))
        self._keep(key, *cached)
        return cached[1]

    def _keep(self, key: tuple[str, str, str], data: bytes, profile: Profile) -> None:
        self._cached[key] = data, profile
        self._cached.move_to_end(key)
        if len(self._cached) > CACHED:
            self._cached.popitem(last=False)

    def _load_state(self, db: sqlite3.Connection, agent: str, origin: str) -> _State:
        row = db.execute(_QUERIES["load_state"], (agent, origin)).fetchone()
        if row is None:
            return _State()
        try:
            return _DECODE(row[0])
        except msgspec.DecodeError:
            return _State()  # of another version: it counts anew

    def _save_state(
        self, db: sqlite3.Connection, agent: str, origin: str, state: _State, at: float
    ) -> None:
        db.execute(_QUERIES["store_state"], (agent, origin, at, _ENCODE(state)))


class Known(NamedTuple):
    """What is known of an agent; of one origin of it, or of all where `origin` is empty."""

    agent: str
    origin: str
    token: str
    """Chain and address, such as `8453:0x...`."""
    profile: Profile


def read_known(db: sqlite3.Connection, agent: str | None = None) -> list[Known]:
    """Return what is known of each agent as a whole; of one agent, also of its origins."""
    if agent is None:
        rows = db.execute(_QUERIES["load_agents"])
    else:
        rows = db.execute(_QUERIES["load_agent"], (agent,))
    return [Known(name, origin, token, _read_profile(data)) for name, origin, token, data in rows]


def _read_profile(data: bytes) -> Profile:
    """Return a row's profile; a new one, which warms up, where the bytes are not understood."""
    try:
        return Profile.from_bytes(data)
    except (msgspec.DecodeError, struct.error, ValueError):
        return Profile()


def _token_key(chain_id: int, token: Address) -> str:
    """Return how a row names a token: amounts of different ones are not compared."""
    return f"{chain_id}:0x{token.hex()}"


def _forget(db: sqlite3.Connection, query: str, agent: str) -> None:
    db.execute(_QUERIES[query], {"agent": agent, "kept": ORIGINS_KEPT})


def observe(ask: Ask) -> Observation:
    """Return an ask as profiles see it."""
    rates = () if ask.tariff is None else ask.tariff.rates
    return Observation(
        at=ask.at,
        is_deposit=ask.kind == "deposit",
        is_charge=ask.kind == "charge",
        amount=ask.amount,
        total=ask.total if ask.kind == "deposit" else ask.request_total,
        is_first=ask.is_first,
        request=hashlib.sha256(ask.request_id.encode()).digest()[:KEY_BYTES],
        payee=ask.recipient[-KEY_BYTES:],
        prices=tuple((rate.kind, rate.amount / rate.per) for rate in rates if rate.amount),
    )
