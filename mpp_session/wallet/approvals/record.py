"""One approval: the question, the votes, and what was made of it (values only)."""

from enum import StrEnum
from typing import Final, Literal

import msgspec

from channel.tariff import Tariff
from channel.types import Address, ChannelId
from mpp_session.errors import CommandError
from mpp_session.wallet.approvals.terms import Terms
from mpp_session.wallet.types import Alternative, Code

__all__ = [
    "SCOPES",
    "ApprovalError",
    "Approved",
    "Decider",
    "Kind",
    "Notice",
    "Question",
    "Record",
    "Scope",
    "State",
    "Vote",
]

Kind = Literal["open", "top_up", "charge", "request", "raise", "anomaly"]
Scope = Literal["once", "channel", "window"]
SCOPES: Final[tuple[Scope, ...]] = ("once", "channel", "window")
"""From the narrowest to the widest."""


class State(StrEnum):
    """`pending` -> one of the next four; `approved` -> `used`, `expired` or `withdrawn`."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    USED = "used"


class ApprovalError(CommandError):
    """An answer does not count, and the record is as it was.

    It comes late, from someone who may not give it, or approves more than may be approved.
    """


class Decider(msgspec.Struct, frozen=True):
    """Who answers. The caller has authenticated them."""

    kind: Literal["person", "agent"]
    id: str


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. A second one of the same decider replaces it while the question is pending."""

    by: Decider
    verdict: Literal["approve", "deny"]
    amount: int
    scope: Scope
    comment: str
    at: float


class Notice(msgspec.Struct, frozen=True):
    """A message about a question that was sent, or was given up."""

    channel: str
    at: float
    status: str


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, as it stood when it was asked. Nothing in it changes."""

    id: str
    created_at: float
    answer_by: float
    kind: Kind
    ask: Literal["deposit", "sign", "charge"]
    agent: str
    task: str
    on_behalf_of: str
    reason: str
    """The agent's own words: it may say anything."""
    alternatives: tuple[Alternative, ...]
    request_id: str
    method: str
    origin: str
    path: str
    tool: str
    chain_id: int
    token: Address
    recipient: Address
    escrow: Address | None
    tariff: Tariff | None
    channel_id: ChannelId | None
    """The channel that a top-up is for, or that vouchers are signed on; None for a new one."""
    amount: int
    """What is asked for, in base units."""
    envelopes: tuple[str, ...]
    left_before: int | None
    """The smallest rest of all limits before this payment, where it is known."""
    rule: str
    code: Code
    why: str
    """Why the policy asks, in its words."""
    is_raise: bool
    """Whether an approval lets the payment go beyond an envelope."""
    policy_revision: int
    policy_hash: str
    request_max: int = 0
    """What the request costs at most, in base units, where it is known; a top-up may be less."""

    @property
    def left_after(self) -> int | None:
        """What is left after the payment; negative beyond an envelope."""
        return None if self.left_before is None else self.left_before - self.amount


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A question and what came of it. Amounts in base units, times in Unix seconds."""

    question: Question
    terms: Terms
    state: State
    expires_at: float
    """Until when it can be answered; once it is approved, until when it can be used."""
    again_at: float | None
    """Before then the same terms are refused without a question."""
    scope: Scope
    approved: int
    """The most that all its uses together may add up to; 0 unless it is approved or used."""
    used: int
    decided_at: float | None
    comment: str
    used_at: float | None
    used_by_channel: ChannelId | None
    used_by_request: str
    votes: tuple[Vote, ...]
    notices: tuple[Notice, ...]

    @property
    def id(self) -> str:
        """The record's name, of letters and digits."""
        return self.question.id

    @property
    def left(self) -> int:
        """What can still be used."""
        return self.approved - self.used


class Approved(msgspec.Struct, frozen=True):
    """An approval that covers an ask."""

    id: str
    amount: int
    """The most that the ask may be for, in base units; never below its amount."""
    is_raise: bool
    """Whether it was asked, and given, for going beyond an envelope."""
