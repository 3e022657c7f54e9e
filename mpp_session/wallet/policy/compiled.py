"""A policy ready to decide: every name resolved, every amount in base units (values only)."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from channel.tariff import Rate
from channel.types import Address, TokenUnit
from mpp_session.wallet.policy.times import Hours

__all__ = [
    "Agent",
    "Anomaly",
    "Approval",
    "Breaker",
    "Caps",
    "Envelope",
    "Escrow",
    "Match",
    "Per",
    "RateCap",
    "Rule",
    "Token",
    "Trip",
    "WalletPolicy",
    "Webhook",
    "When",
]

By = Literal["origin", "task", "agent", "recipient", "rule"]


class Escrow(msgspec.Struct, frozen=True):
    """A contract that may hold deposits."""

    address: Address
    code_hash: bytes | None = None


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token under its alias."""

    alias: str
    chain: int
    address: Address
    unit: TokenUnit
    escrows: tuple[Escrow, ...] | None = None
    """None: the file names none, and the client's own check decides."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A budget. It counts one token."""

    name: str
    token: str
    """Its alias."""
    amount: int
    window_s: int | None
    """Rolling; None with `per_task` or for ever."""
    per_task: bool
    locked_max: int
    on_exceed: Literal["deny", "ask"]
    parent: str | None
    warn_at: tuple[tuple[int, int], ...]
    """Shares as fractions, smallest first."""


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that asks the wallet."""

    name: str
    token_digest: bytes
    """SHA-256 of its bearer token."""
    uid: int | None
    envelopes: tuple[str, ...]
    expires: float
    tasks: tuple[str, ...] | None
    """Patterns of the tasks that it may name; None for every one that is not another agent's."""
    may_approve: tuple[str, ...]
    approve_max: Mapping[str, int]
    """By alias; a token without an entry cannot be approved."""


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule is about; None matches everything."""

    agent: tuple[str, ...] | None = None
    origin: tuple[str, ...] | None = None
    method: tuple[str, ...] | None = None
    path: tuple[str, ...] | None = None
    chain: tuple[int, ...] | None = None
    token: tuple[str, ...] | None = None
    recipient: tuple[Address, ...] | None = None
    escrow: tuple[Address, ...] | None = None
    unit: tuple[str, ...] | None = None
    tool: tuple[str, ...] | None = None
    task: tuple[str, ...] | None = None
    first_seen: tuple[Literal["origin", "recipient", "chain"], ...] | None = None


class Per(msgspec.Struct, frozen=True):
    """A cap on a sum of what is signed and charged."""

    by: By
    amount: int
    window_s: int | None


class RateCap(msgspec.Struct, frozen=True):
    """A cap on a number of requests."""

    by: By
    count: int
    window_s: int


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule allows at most; None bounds nothing. Amounts in the rule's one token."""

    unit_price: Mapping[str, Rate] | None = None
    request: int | None = None
    deposit: int | None = None
    channel: int | None = None
    per: tuple[Per, ...] = ()
    rate: tuple[RateCap, ...] = ()
    channels: int | None = None
    streams: int | None = None


class When(msgspec.Struct, frozen=True, kw_only=True):
    """When a rule is in force."""

    not_before: float | None = None
    not_after: float | None = None
    hours: Hours | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule."""

    name: str
    action: Literal["allow", "ask", "deny"]
    match: Match
    caps: Caps
    when: When

    @property
    def may_grant(self) -> bool:
        """Whether what it matches is allowed by it, with or without an approval.

        One that asks about what is new grants nothing: with the first payment it would match no
        longer. It adds a question to what another rule allows.
        """
        return self.action == "allow" or (self.action == "ask" and self.match.first_seen is None)


class Webhook(msgspec.Struct, frozen=True):
    """Where new approvals are announced."""

    url: str
    secret_file: str


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """When people are asked."""

    above: Mapping[str, int]
    """By alias; empty: no amount by itself asks. With entries, a token without one asks always."""
    timeout_s: int
    on_timeout: Literal["deny"]
    quorum: int
    scope_max: Literal["once", "channel", "window"]
    webhook: Webhook | None
    pending_max: int


class Trip(msgspec.Struct, frozen=True):
    """So many events within a window open the breaker."""

    count: int
    window_s: int
    cooldown_s: int


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """What stops an agent's payments to an origin for a while."""

    repeated_402: Trip
    paid_errors: Trip
    same_request: Trip


class Anomaly(msgspec.Struct, frozen=True):
    """What becomes of an unusual payment, and after how many payments one can be unusual."""

    action: Literal["ask", "pause", "note"]
    warm_up: int


class WalletPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A whole policy. Two with the same `hash` decide alike."""

    revision: int
    hash: str
    """SHA-256 of the file's canonical form, 64 hexadecimal digits: without comments, order of
    keys, order of rules, and settings at their defaults."""
    default: Literal["deny", "ask"]
    allow_loopback_http: bool
    tokens: Mapping[str, Token]
    envelopes: Mapping[str, Envelope]
    agents: Mapping[str, Agent]
    tasks: tuple[str, ...]
    """The patterns of all agents' tasks, each once."""
    rules: tuple[Rule, ...]
    """By name."""
    approval: Approval
    breaker: Breaker
    anomaly: Anomaly

    def token_of(self, chain_id: int, address: Address) -> Token | None:
        """Return a token by where it is, or None for one that the file does not name."""
        return next(
            (
                token
                for token in self.tokens.values()
                if (token.chain, token.address) == (chain_id, address)
            ),
            None,
        )

    def envelopes_of(self, agent: str, token: str | None = None) -> tuple[Envelope, ...]:
        """Return an agent's envelopes up to the roots, each once; of one token, if it is given."""
        found: dict[str, Envelope] = {}
        known = self.agents.get(agent)
        for name in () if known is None else known.envelopes:
            at: str | None = name
            while at is not None and at not in found:
                found[at] = self.envelopes[at]
                at = found[at].parent
        return tuple(one for one in found.values() if token in (None, one.token))
