"""The policy file as it is written: one struct a table. The schema for editors is made from here.

Amounts stay text here; `compiling` reads them with the tokens' decimals.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "FORMS",
    "AgentTable",
    "AnomalyTable",
    "ApprovalTable",
    "BreakerTable",
    "CapsTable",
    "EnvelopeTable",
    "EscrowTable",
    "MatchTable",
    "PerTable",
    "PolicyFile",
    "RateTable",
    "RuleTable",
    "Table",
    "TokenTable",
    "TripTable",
    "WebhookTable",
    "WhenTable",
]

REVISION_LAST: Final = 2**53 - 1

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_ALIAS: Final = r"^[a-z][a-z0-9_]{0,15}$"
_DURATION: Final = r"^[1-9][0-9]{0,8}[smhdw]$"
_ADDRESS: Final = r"^0x[0-9a-fA-F]{40}$"
_HASH: Final = r"^0x[0-9a-fA-F]{64}$"
_DIGEST: Final = r"^sha256:[0-9a-f]{64}$"
FORMS: Final = {
    _NAME: "a name of letters, digits and . _ -",
    _ALIAS: "an alias of lower-case letters and digits, such as usdc",
    _DURATION: "a duration such as 90s, 15m, 2h, 7d or 4w",
    _ADDRESS: "an address, 0x and 40 hexadecimal digits",
    _HASH: "a hash, 0x and 64 hexadecimal digits",
    _DIGEST: "sha256: and 64 hexadecimal digits, as `mpp-session wallet agent-add` prints them",
}
"""What each pattern expects, for errors."""

Text = Annotated[str, Meta(min_length=1, max_length=512)]
Name = Annotated[str, Meta(pattern=_NAME)]
Alias = Annotated[str, Meta(pattern=_ALIAS)]
Money = Annotated[
    str,
    Meta(
        max_length=128,
        description='A decimal of a token and its alias, such as "5.00 usdc".',
    ),
]
Price = Annotated[
    str,
    Meta(max_length=128, description='A price with its alias, such as "0.60 usdc / 1M".'),
]
Duration = Annotated[str, Meta(pattern=_DURATION, description='Such as "90s", "15m", "7d".')]
Address = Annotated[str, Meta(pattern=_ADDRESS)]
Hash = Annotated[str, Meta(pattern=_HASH)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
ChainNumber = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Instant = Annotated[datetime, Meta(tz=True)]
By = Literal["origin", "task", "agent", "recipient", "rule"]
OneOrMore = Money | tuple[Money, ...]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""


class EscrowTable(Table, frozen=True, kw_only=True):
    """A contract that may hold deposits."""

    address: Address
    code_hash: Hash | None = None
    """keccak-256 of the code at the address."""


class TokenTable(Table, frozen=True, kw_only=True):
    """A token that amounts of this file name by an alias."""

    chain: ChainNumber
    address: Address
    decimals: Annotated[int, Meta(ge=0, le=36)]
    escrows: tuple[EscrowTable, ...] | None = None


class EnvelopeTable(Table, frozen=True, kw_only=True):
    """A budget that agents share."""

    amount: Money
    window: Annotated[str, Meta(description='A duration, "task" or "total".')]
    locked_max: Money | None = None
    on_exceed: Literal["deny", "ask"] = "deny"
    parent: Name | None = None
    warn_at: tuple[Decimal, ...] = ()


class AgentTable(Table, frozen=True, kw_only=True):
    """An agent that asks the wallet."""

    token: Annotated[str, Meta(pattern=_DIGEST)]
    envelopes: tuple[Name, ...]
    expires: Instant
    uid: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    tasks: (
        Annotated[
            tuple[Text, ...],
            Meta(
                description="The tasks that this agent may name, with `*`. An agent whose own "
                "`tasks` matches none of them may not."
            ),
        ]
        | None
    ) = None
    may_approve: tuple[Name, ...] = ()
    approve_max: OneOrMore | None = None


class MatchTable(Table, frozen=True, kw_only=True):
    """What a rule is about. A key that is left out matches everything."""

    agent: tuple[Text, ...] | None = None
    origin: tuple[Text, ...] | None = None
    method: tuple[Text, ...] | None = None
    path: tuple[Text, ...] | None = None
    task: tuple[Text, ...] | None = None
    tool: tuple[Text, ...] | None = None
    chain: tuple[ChainNumber, ...] | None = None
    token: tuple[Alias, ...] | None = None
    recipient: tuple[Address, ...] | None = None
    escrow: tuple[Address, ...] | None = None
    unit: tuple[Text, ...] | None = None
    first_seen: tuple[Literal["origin", "recipient", "chain"], ...] | None = None


class PerTable(Table, frozen=True, kw_only=True):
    """A cap on a sum."""

    by: By
    amount: Money
    window: Annotated[str, Meta(description='A duration or "total".')] = "total"


class RateTable(Table, frozen=True, kw_only=True):
    """A cap on a number of requests."""

    count: Count
    window: Duration
    by: By = "agent"


class CapsTable(Table, frozen=True, kw_only=True):
    """What a rule allows at most."""

    unit_price: Mapping[str, Price] | None = None
    request: Money | None = None
    deposit: Money | None = None
    channel: Money | None = None
    per: tuple[PerTable, ...] | None = None
    rate: tuple[RateTable, ...] | None = None
    channels: Count | None = None
    streams: Count | None = None


class WhenTable(Table, frozen=True, kw_only=True):
    """When a rule is in force."""

    not_before: Instant | None = None
    not_after: Instant | None = None
    hours: Text | None = None


class RuleTable(Table, frozen=True, kw_only=True):
    """One rule."""

    name: Name
    action: Literal["allow", "ask", "deny"]
    match: MatchTable = MatchTable()
    cap: CapsTable = CapsTable()
    when: WhenTable = WhenTable()


class WebhookTable(Table, frozen=True, kw_only=True):
    """Where new approvals are announced."""

    url: Text
    secret_file: Text


class ApprovalTable(Table, frozen=True, kw_only=True):
    """When people are asked, and how long their answer is awaited."""

    above: OneOrMore | None = None
    timeout: Duration = "15m"
    on_timeout: Literal["deny"] = "deny"
    quorum: Annotated[int, Meta(ge=1, le=16)] = 1
    scope_max: Literal["once", "channel", "window"] = "channel"
    webhook: WebhookTable | None = None
    pending_max: Annotated[int, Meta(ge=1, le=10_000)] = 20


class TripTable(Table, frozen=True, kw_only=True):
    """So many events within a window open the breaker."""

    count: Count
    window: Duration
    cooldown: Duration = "5m"


class BreakerTable(Table, frozen=True, kw_only=True):
    """What stops an agent's payments to an origin for a while."""

    repeated_402: TripTable = TripTable(count=3, window="1m", cooldown="5m")
    paid_errors: TripTable = TripTable(count=3, window="10m", cooldown="30m")
    same_request: TripTable = TripTable(count=20, window="10m", cooldown="5m")


class AnomalyTable(Table, frozen=True, kw_only=True):
    """What becomes of a payment that is unusual for its agent."""

    action: Literal["ask", "pause", "note"] = "ask"
    warm_up: Annotated[int, Meta(ge=1, le=100_000)] = 30


class PolicyFile(Table, frozen=True, kw_only=True):
    """The whole file."""

    version: Literal[1]
    revision: Annotated[int, Meta(ge=1, le=REVISION_LAST)]
    default: Literal["deny", "ask"] = "deny"
    allow_loopback_http: bool = False
    token: Annotated[Mapping[Alias, TokenTable], Meta(min_length=1)]
    envelope: Mapping[Name, EnvelopeTable] = {}
    agent: Mapping[Name, AgentTable] = {}
    rule: tuple[RuleTable, ...] = ()
    approval: ApprovalTable = ApprovalTable()
    breaker: BreakerTable = BreakerTable()
    anomaly: AnomalyTable = AnomalyTable()
