"""A provider's status: amounts at risk, deadlines, and what needs an operator's attention.

`mpp-session status` shows it. `mpp_session.operator.status_reading` reads the data; this module
judges it (pure).
"""

import enum
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from channel.limits import GRACE_PERIOD_S_MIN
from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelId, TxHash
from mpp_session.agent.amounts import BASE_UNITS, TokenUnit, format_ether
from mpp_session.settings import DEVELOPMENT_CHAINS
from settlement.node.nodes import EndpointView, judge_nodes, nodes_behind
from settlement.settle.exposure import exposure_of
from settlement.settle.schedule import Moment, SettlePolicy, grace_stage, owes_close, value_at_risk
from settlement.tx.journal.interface import Look, Quarantined
from settlement.tx.state import JournalTx
from settlement.types import BlockRef
from settlement.watch.health import REFUSALS_ALARMED
from settlement.watch.node_guard import NodeLimits

__all__ = [
    "Books",
    "ChainView",
    "Exit",
    "Finding",
    "JournalView",
    "Level",
    "Status",
    "count_channel",
    "judge",
    "judge_views",
    "to_json",
]

_STALE_HEAD_S: Final = 300
_PENDING_S: Final = 300
_BLIND_S: Final = 120
_CRITICAL_STAGE: Final = 50


class Level(enum.IntEnum):
    """Severity; also the exit code, so that a monitor needs no parser."""

    FINE = 0
    WARNING = 10
    """An operator should look today."""
    CRITICAL = 20
    """Money is lost unless an operator acts now. Only if an amount is at risk (O-69)."""


class Finding(msgspec.Struct, frozen=True):
    """One problem that needs an operator."""

    level: Level
    text: str


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """A channel whose payer has requested a close."""

    channel_id: ChannelId
    at_risk: int
    asked_at: int
    deadline: int
    stage: int
    """Passed part of the grace period in per cent, by quarters."""


class Books(msgspec.Struct, kw_only=True):
    """Sums over the ledger, in base units."""

    open: int = 0
    closing: int = 0
    stopped: int = 0
    at_risk: int = 0
    """Delivered or reserved, and not settled."""
    unsettled: int = 0
    """Accepted and not settled: the payee's exposure."""
    undelivered: int = 0
    """Accepted and not delivered: the payers' exposure."""
    locked: int = 0
    """Deposits of open channels, less what is settled."""
    defended: int = 0
    exits: list[Exit] = msgspec.field(default_factory=list)
    foreign: set[ChannelId] = msgspec.field(default_factory=set)
    """Channels settled or closed with the payee's key, but not by this ledger."""


class ChainView(msgspec.Struct, frozen=True, kw_only=True):
    """What the nodes show."""

    chain_id: int
    head: BlockRef
    grace_period_s: int
    balance_wei: int
    reserve_wei: int
    nodes: tuple[EndpointView, ...]
    nonces_used: int | None = None
    """Mined transactions of the account that pays the gas; None if not read."""
    payout_obstacle: str | None = None
    """Why the token would refuse a payout now; None if it would not."""
    unit: TokenUnit | None = None
    """Symbol and decimals of the token; None if it reports none."""


class JournalView(msgspec.Struct, frozen=True, kw_only=True):
    """The settler's journal."""

    holder: str | None
    """The holder of the key's lease; None if no settler runs."""
    pending: tuple[JournalTx, ...]
    quarantined: tuple[Quarantined, ...]
    hour_wei: int = 0
    """Gas of the last hour's settles and closes, actual or likely at most, in wei."""
    look: Look | None = None
    """A settler's last look at the chain; None if there was none."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The data, and the findings."""

    payee: Address
    asked_at: int
    """This machine's time, in Unix seconds."""
    books: Books
    chain: ChainView | None
    """None: no node answers."""
    journal: JournalView
    at_risk_max: int | None = None
    """The bound on `books.at_risk`, if set."""
    hour_max_wei: int | None = None
    """The bound on `journal.hour_wei`, if set."""
    sponsored_wei: int = 0
    """Gas of the last hour's sponsored deposits, actual or possible, in wei."""
    findings: tuple[Finding, ...] = ()

    @property
    def unit(self) -> TokenUnit:
        """How to format amounts of the token."""
        return (None if self.chain is None else self.chain.unit) or BASE_UNITS

    @property
    def worst(self) -> Level:
        """Severity of a fault of chain, node or settler: it endangers only amounts due (O-69)."""
        return Level.CRITICAL if self.books.at_risk or self.books.exits else Level.WARNING

    @property
    def level(self) -> Level:
        """The highest severity found."""
        return max((finding.level for finding in self.findings), default=Level.FINE)


def count_channel(books: Books, state: ChannelState, moment: Moment, policy: SettlePolicy) -> None:
    """Add one channel, unless it has ended."""
    if state.foreign_block:
        books.foreign.add(state.key.channel_id)
    if state.is_finalized:
        return
    risk, exposure = value_at_risk(state), exposure_of(state)
    books.open += 1
    books.closing += state.is_closing
    books.stopped += state.is_stopped
    books.at_risk += risk
    books.defended += state.spent > state.settled
    books.unsettled += exposure.payee
    books.undelivered += exposure.payer
    books.locked += max(0, state.deposit - state.settled)
    if state.close_requested_at and owes_close(state, policy):
        books.exits.append(
            Exit(
                channel_id=state.key.channel_id,
                at_risk=risk,
                asked_at=state.close_requested_at,
                deadline=state.close_requested_at + moment.grace_period_s,
                stage=grace_stage(state, moment),
            )
        )


def judge(status: Status, *, skew_s_max: float = 60.0) -> tuple[Finding, ...]:
    """Return the findings, the worst first (pure)."""
    found = [
        *_judge_exits(status),
        *_judge_exposure(status),
        *_judge_chain(status, skew_s_max),
        *_judge_journal(status),
    ]
    if status.books.foreign:
        text = (
            f"{_channels(len(status.books.foreign))} settled or closed with the payee's key, "
            "and not by these books: the key is stolen, or other books are kept for it: no new "
            "channels are taken (docs/guide/operating.md, When a key is stolen)"
        )
        found.append(Finding(Level.CRITICAL, text))
    if status.books.stopped:
        stopped = _channels(status.books.stopped, "is", "are")
        text = f"{stopped} stopped: books and chain contradict each other"
        found.append(Finding(Level.CRITICAL, text))
    return tuple(sorted(found, key=lambda finding: -finding.level))


def _channels(number: int, one: str = "was", many: str = "were") -> str:
    return f"1 channel {one}" if number == 1 else f"{number:,} channels {many}"


def _judge_exposure(status: Status) -> list[Finding]:
    bound, at_risk = status.at_risk_max, status.books.at_risk
    if bound is None or at_risk < bound:
        return []
    at_stake = status.unit.format(at_risk)
    text = f"{at_stake} at risk, as much as exposure.total_max allows: nothing more is served"
    return [Finding(Level.WARNING, text)]


def _judge_exits(status: Status) -> list[Finding]:
    found = []
    for each in status.books.exits:
        if each.stage:
            level = Level.CRITICAL if each.stage >= _CRITICAL_STAGE else Level.WARNING
            text = (
                f"channel 0x{each.channel_id.hex()}: {each.stage} % of its grace period is gone, "
                f"{status.unit.format(each.at_risk)} at risk"
            )
            found.append(Finding(level, text))
    return found


def _judge_chain(status: Status, skew_s_max: float) -> list[Finding]:
    chain = status.chain
    if chain is None:
        return [Finding(status.worst, "no node answers")]
    found = []
    if chain.balance_wei < chain.reserve_wei:
        has, needs = format_ether(chain.balance_wei), format_ether(chain.reserve_wei)
        text = f"{has} for gas, {needs} needed to close what is open"
        found.append(Finding(status.worst, text))
    if chain.payout_obstacle is not None:
        text = f"the token would not pay you out: {chain.payout_obstacle}: nothing more is sold"
        found.append(Finding(status.worst, text))
    if chain.grace_period_s < GRACE_PERIOD_S_MIN:
        text = f"the escrow gives {chain.grace_period_s} s to answer an exit: it is not yours"
        found.append(Finding(status.worst, text))
    age_s = status.asked_at - chain.head.timestamp
    if age_s > _STALE_HEAD_S and chain.chain_id not in DEVELOPMENT_CHAINS:
        found.append(Finding(Level.WARNING, f"the newest block is {age_s} s old"))
    elif -age_s > skew_s_max:
        found.append(Finding(Level.WARNING, f"this clock is {-age_s} s behind the chain's"))
    return found + judge_views(chain.nodes, status.worst)


def judge_views(nodes: Sequence[EndpointView], worst: Level) -> list[Finding]:
    """Return what is wrong with the nodes, each alone and all together."""
    found = []
    judged = judge_nodes(nodes)
    if judged.disputing:
        text = f"nodes disagree, no deposit is believed: {', '.join(judged.disputing)}"
        found.append(Finding(worst, text))
    elif judged.left_out:
        text = f"nodes disagree with the majority: {', '.join(sorted(judged.left_out))}"
        found.append(Finding(worst, text))
    found += [
        Finding(Level.WARNING, f"node {view.name} does not answer")
        for view in nodes
        if view.head is None
    ]
    lag = NodeLimits().lag_blocks_max
    found += [
        Finding(Level.WARNING, f"node {name} is {lag} blocks or more behind")
        for name in nodes_behind(nodes, blocks=lag)
    ]
    return found


def _judge_journal(status: Status) -> list[Finding]:
    journal, found = status.journal, []
    has_run = journal.look is not None  # here, or the tower whose journal this is
    if journal.holder is None and (status.books.at_risk or has_run):
        level = Level.CRITICAL if status.books.exits else Level.WARNING
        found.append(Finding(level, "no settler runs"))
    blind_s = 0 if journal.look is None else status.asked_at - journal.look.looked_at
    if journal.holder is not None and blind_s > _BLIND_S:
        found.append(Finding(status.worst, f"the settler has not seen the chain for {blind_s} s"))
    if status.hour_max_wei is not None and journal.hour_wei >= status.hour_max_wei:
        used = format_ether(journal.hour_wei)
        text = f"the hour's gas is used up: {used}, settles and closes wait"
        found.append(Finding(Level.CRITICAL if status.books.exits else Level.WARNING, text))
    for tx in journal.pending:
        signed_at = tx.versions[0].signed_at if tx.versions else status.asked_at
        age_s = status.asked_at - signed_at
        if tx.is_unmined and age_s > _PENDING_S:
            text = f"nonce {tx.nonce} ({tx.intent.purpose.name.lower()}) is not mined for {age_s} s"
            urgent = bool(tx.intent.deadline or status.books.exits)
            found.append(Finding(Level.CRITICAL if urgent else Level.WARNING, text))
    found += _judge_nonces(status)
    for entry in journal.quarantined:
        level = Level.CRITICAL if entry.tries >= REFUSALS_ALARMED else Level.WARNING
        text = f"channel 0x{entry.key.channel_id.hex()} is refused: {entry.reason.lower()}"
        found.append(Finding(level, text))
    return found


def _judge_nonces(status: Status) -> list[Finding]:
    """Find a missing nonce that later transactions wait for."""
    used = None if status.chain is None else status.chain.nonces_used
    nonces = [tx.nonce for tx in status.journal.pending if tx.is_unmined and tx.nonce is not None]
    if used is None or not nonces or min(nonces) <= used:
        return []
    text = f"nonce {used} is missing, and {len(nonces)} transactions wait for it: none is mined"
    return [Finding(status.worst, text)]


def to_json(status: Status) -> dict[str, Any]:
    """Return it for programs; amounts and wei are numbers that the caller formats."""
    chain, books, look = status.chain, status.books, status.journal.look
    return {
        "level": status.level.name.lower(),
        "findings": [{"level": f.level.name.lower(), "text": f.text} for f in status.findings],
        "payee": status.payee,
        "settler": status.journal.holder,
        "head": None
        if chain is None
        else {
            "number": chain.head.number,
            "hash": chain.head.hash,
            "timestamp": chain.head.timestamp,
        },
        "last_seen_block": None if look is None else look.block_number,
        "last_seen_at": None if look is None else look.looked_at,
        "balance_wei": None if chain is None else str(chain.balance_wei),
        "payout_obstacle": None if chain is None else chain.payout_obstacle,
        "reserve_wei": None if chain is None else str(chain.reserve_wei),
        "hour_wei": str(status.journal.hour_wei),
        "sponsored_wei": str(status.sponsored_wei),
        "channels": {"open": books.open, "closing": books.closing, "stopped": books.stopped},
        "at_risk": str(books.at_risk),
        "at_risk_max": None if status.at_risk_max is None else str(status.at_risk_max),
        "unsettled": str(books.unsettled),
        "undelivered": str(books.undelivered),
        "locked": str(books.locked),
        "foreign_payouts": sorted(books.foreign),
        "exits": [_exit(each) for each in books.exits],
        "pending": [_pending(tx) for tx in status.journal.pending],
        "quarantine": [
            {
                "channel_id": entry.key.channel_id,
                "reason": entry.reason,
                "tries": entry.tries,
                "since": entry.since,
                "retry_at": entry.retry_at,
            }
            for entry in status.journal.quarantined
        ],
    }


def _exit(each: Exit) -> dict[str, Any]:
    return {
        "channel_id": each.channel_id,
        "at_risk": str(each.at_risk),
        "asked_at": each.asked_at,
        "deadline": each.deadline,
        "grace_percent": each.stage,
    }


def _pending(tx: JournalTx) -> dict[str, Any]:
    tx_hash = tx.newest.tx_hash if tx.versions else TxHash(b"")
    return {
        "nonce": tx.nonce,
        "purpose": tx.intent.purpose.name.lower(),
        "state": tx.status.name.lower(),
        "tx_hash": tx_hash,
        "bids": len(tx.versions),
        "deadline": tx.intent.deadline,
    }
