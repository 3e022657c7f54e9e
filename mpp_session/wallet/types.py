"""What the wallet decides about, and what it decides: values only.

Amounts are base units of the token that is asked for, times are Unix seconds.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

import msgspec

from channel.tariff import Tariff
from channel.types import Address, ChannelId
from mpp_session.agent.purpose import Alternative, Purpose

__all__ = [
    "Alternative",
    "Ask",
    "Code",
    "Counter",
    "Decision",
    "Purpose",
    "Snapshot",
    "WalletRequest",
]


class Code(StrEnum):
    """Why a payment is refused or held. Stable: programs decide by it."""

    ALLOWED = "allowed"
    FROZEN = "frozen"
    AGENT_UNKNOWN = "agent_unknown"
    AGENT_REVOKED = "agent_revoked"
    AGENT_EXPIRED = "agent_expired"
    TASK_NOT_ALLOWED = "task_not_allowed"
    NO_RULE = "no_rule"
    RULE_DENIED = "rule_denied"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    PATH_NOT_ALLOWED = "path_not_allowed"
    CHAIN_NOT_ALLOWED = "chain_not_allowed"
    TOKEN_NOT_ALLOWED = "token_not_allowed"  # noqa: S105 -- a code
    RECIPIENT_NOT_ALLOWED = "recipient_not_allowed"
    ESCROW_NOT_ALLOWED = "escrow_not_allowed"
    UNIT_PRICE_EXCEEDED = "unit_price_exceeded"
    REQUEST_EXCEEDED = "request_exceeded"
    DEPOSIT_EXCEEDED = "deposit_exceeded"
    CHANNEL_EXCEEDED = "channel_exceeded"
    ENVELOPE_EXCEEDED = "envelope_exceeded"
    LOCKED_EXCEEDED = "locked_exceeded"
    WINDOW_EXCEEDED = "window_exceeded"
    RATE_EXCEEDED = "rate_exceeded"
    CHANNELS_EXCEEDED = "channels_exceeded"
    STREAMS_EXCEEDED = "streams_exceeded"
    BREAKER_OPEN = "breaker_open"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_DENIED = "approval_denied"
    APPROVAL_EXPIRED = "approval_expired"
    APPROVALS_FULL = "approvals_full"
    ANOMALY_HELD = "anomaly_held"
    CLIENT_LIMIT = "client_limit"
    """The paying client itself refused: the server broke the protocol or its own offer."""


class WalletRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the wallet's server attaches to the request that it makes for an agent.

    With it the books know when the request ends (`WalletBooks.end_request`), so they count what it
    has cost and whether it streams. A bare `Purpose` is decided by the paying client's own id.
    """

    request_id: str
    purpose: Purpose = Purpose()


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One commitment of money that an agent asks for.

    `sign` is asked for every voucher, with `amount` 0 where the amount was signed before. The first
    `sign` or `charge` of a request counts it towards rates (`is_first`).
    """

    kind: Literal["deposit", "sign", "charge"]
    agent: str
    request_id: str
    origin: str
    """Scheme, host and port, such as `https://api.example:443`."""
    method: str
    path: str
    """As it is sent: percent-encoded, without the query."""
    purpose: Purpose
    chain_id: int
    token: Address
    recipient: Address
    escrow: Address | None
    """None for a charge."""
    tariff: Tariff | None
    """The prices of a session; None for a charge."""
    request_max: int
    """The most that the request may cost before any of it is counted."""
    amount: int
    """What is added: to deposits, to what is signed, or the charge."""
    total: int
    """With it: the channel's deposit, or what is signed of the channel; the amount of a charge."""
    request_total: int
    """With it: what was signed for this one request."""
    channel_id: ChannelId | None = None
    is_first: bool = True
    """Whether this is the first for its request."""
    is_opening: bool = False
    """Whether a deposit opens a channel, rather than adds to one."""
    is_stream: bool = False
    at: float

    @property
    def is_commitment(self) -> bool:
        """Whether it is a deposit or charge, not a voucher."""
        return self.kind != "sign"


class Counter(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """A sum that a decision reads and an allowed ask increases.

    `spent` counts amounts of `sign` and `charge`, `locked` what lies in deposits now (it grows
    with `deposit` and falls when deposits come back), `requests` first asks of requests.
    """

    what: Literal["spent", "locked", "requests"]
    scope: str
    """Stable text for whose sum it is, such as `envelope research` or
    `rule search origin https://api.example:443`."""
    token: str
    """Alias of the token, because one envelope counts one token; empty for `requests`."""
    window_s: int | None = None
    """Rolling; None counts for ever, and for `locked`."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a decision depends on beside policy and ask, read in one transaction."""

    frozen: frozenset[str] = frozenset()
    """`all`, `agent NAME`, `envelope NAME`, `origin ORIGIN`."""
    revoked: frozenset[str] = frozenset()
    """`agent NAME`, `rule NAME`."""
    sums: Mapping[Counter, int] = msgspec.field(default_factory=dict)
    channels: int = 0
    """Live channels of this agent with this origin, without the one that is asked for."""
    streams: int = 0
    """Running streams of this agent with this origin, without this one."""
    never_paid: frozenset[Literal["origin", "recipient", "chain"]] = frozenset()
    """What this agent has never committed money to."""
    breaker_until: float | None = None
    """A breaker is open for this agent and origin, until then."""
    breaker: str = ""
    """Which one, in words."""
    finding: str = ""
    """What is unusual about this ask for this agent, in words; empty for nothing."""
    approved: int | None = None
    """A valid approval of these exact terms allows this much; None if there is none."""
    approved_raise: bool = False
    """Whether that approval was asked for, and given, to go beyond an envelope."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The result. `reason` is for people, `code` for programs."""

    action: Literal["allow", "ask", "deny"]
    code: Code
    reason: str
    rule: str = ""
    field: str = ""
    """The setting of the policy that decides, such as `rule.search.cap.request`."""
    asked: int | None = None
    allowed: int | None = None
    left: int | None = None
    """The smallest rest of all caps after this ask, where it is allowed or people are asked."""
    retry_at: float | None = None
    policy_revision: int
    counters: tuple[Counter, ...] = ()
    """The sums that this ask increases."""
    envelopes: tuple[str, ...] = ()
    """The envelopes that it is booked to, from the agent's own up to the roots."""
    warnings: tuple[str, ...] = ()
    """Shares of `warn_at` that this ask crosses, in words."""
