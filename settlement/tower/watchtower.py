"""Settles for an absent payee, from another machine, without the payee's key.

The tower has settles that the payee signed ahead, and an account that pays gas. It reads the
channels they are for. Once a payer has requested a close, `act_percent` of the grace period has
passed, and the presigned amount is still not settled, the payee's own settler must be absent, and
the tower sends what it has. It cannot close: the payer withdraws the remaining deposit. The
recipient and the amount are fixed by what the payee and the payer signed.

The tower trusts no input: a line counts if the payee's own key signed it for this escrow, and the
escrow itself accepts it in a simulation.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final, Protocol

import msgspec

from channel.errors import ChainUnavailableError, InvariantError, MppSessionError, OperatorError
from channel.tasks import Tasks
from channel.types import Address, ChannelFact, ChannelKey
from settlement.alarms import AlarmKind, Alarms
from settlement.errors import ContractRevertedError, LeaseLostError
from settlement.escrow.reader import EscrowReader
from settlement.log_once import LogOnce
from settlement.node.chain_clock import ChainClock
from settlement.presigned.authorization import PresignedError, PresignedSettle, parse_line
from settlement.presigned.file import BEAT
from settlement.settle.exposure import gas_reserve_wei
from settlement.settle.schedule import SettlePolicy
from settlement.tower.calls import PresignedCalls
from settlement.tower.simulation import Refusal, simulate
from settlement.types import BlockRef, RevertReason
from settlement.watch.node_guard import NodeGuard, NodeLimits
from settlement.watch.watch_alarms import WatchAlarms

__all__ = ["TowerLimits", "TowerSettler", "Watchtower"]

_log: Final = logging.getLogger(__name__)

_PERCENT: Final = 100


class TowerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """When the tower acts, and what it needs."""

    interval_s: float = 15.0
    """Seconds between two looks at every channel."""
    act_percent: int = 50
    """Per cent of the grace period, by chain time, that belong to the payee's settler."""
    unheard_s_max: float = 1800.0
    """Seconds without a line from the provider before an alarm rings."""
    away_s_max: float = 60.0
    skew_s_max: float = 60.0
    still_s_max: float | None = 300.0
    """As `settlement.watch.watcher.WatchLimits`."""
    forget_after_blocks: int = 64
    """How deep a channel's end, or a settle by another sender, must be to be relied on."""
    settles_reserved_min: int = 20
    gas_per_settle: int = 120_000


class TowerSettler(Protocol):
    """Gets settles mined."""

    async def settle_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,
        deadline: int = 0,
    ) -> object:
        """See `settlement.settle.settler.EscrowSettler.settle_channel`."""


class Watchtower:
    """Watches the channels of one payee in one escrow."""

    def __init__(
        self,
        reader: EscrowReader,
        settler: TowerSettler,
        calls: PresignedCalls,
        *,
        gas_account: Address,
        alarms: Alarms | None = None,
        policy: SettlePolicy | None = None,
        limits: TowerLimits | None = None,
        nodes: NodeLimits | None = None,
    ) -> None:
        """Watch; `settler` must send by `calls`, one channel a transaction.

        `policy` gives the least amount to settle for, and weighs gas: otherwise strangers' tiny
        channels could use up the tower's gas. With several nodes, only those that a majority agrees
        with are asked: one node alone could hide every exit.
        """
        self._reader = reader
        self._settler = settler
        self._calls = calls
        self._gas_account = gas_account
        self.alarms = alarms or Alarms()
        self.clock = ChainClock()
        self._policy = policy or SettlePolicy()
        self._limits = limits or TowerLimits()
        self._nodes = NodeGuard(reader, self.alarms, limits=nodes)
        self._held: dict[ChannelKey, PresignedSettle] = {}
        self._unchecked: dict[ChannelKey, PresignedSettle] = {}
        self._refused_at: dict[ChannelKey, int] = {}
        """Block since which an unchecked settle is worthless, as far as the chain shows."""
        self._spare: dict[ChannelKey, PresignedSettle] = {}
        self.tasks = Tasks()
        """The running settles. Sent transactions are in the journal: the next process resumes
        them."""
        self._over: dict[ChannelKey, int] = {}
        self._head: BlockRef | None = None
        self._looked_at: float | None = None
        self._behind_since: float | None = None
        self._grace_period_s: int | None = None
        self._heard_at = self._now()
        self._unread = ""
        self._log_once = LogOnce(_log, "reading the chain failed, will retry: %s")
        self._telling = WatchAlarms(
            self.alarms,
            away_s_max=self._limits.away_s_max,
            skew_s_max=self._limits.skew_s_max,
            still_s_max=self._limits.still_s_max,
        )

    @property
    def held(self) -> dict[ChannelKey, PresignedSettle]:
        """The settles that could be sent, by channel."""
        return self._held

    @property
    def head(self) -> BlockRef | None:
        """The newest block seen."""
        return self._head

    @property
    def looked_s_ago(self) -> float | None:
        """Seconds since the last successful look; None before the first one."""
        return None if self._looked_at is None else self._now() - self._looked_at

    @property
    def waiting(self) -> int:
        """Number of settles that the escrow has not accepted in a simulation yet."""
        return len(self._unchecked)

    def take(self, lines: Iterable[bytes]) -> int:
        """Take lines from the provider; return how many were refused.

        A line that is older or worth less than the held one changes nothing, however often it
        comes.
        """
        refused, why = 0, PresignedError()
        for line in lines:
            if line == BEAT.rstrip():
                self._heard_at = self._now()
                continue
            try:
                settle = parse_line(line)
                self._require_ours(settle)
            except PresignedError as error:
                refused += 1
                why = error
                continue
            self._heard_at = self._now()
            known = self._unchecked.get(settle.key) or self._held.get(settle.key)
            if known is None or settle.supersedes(known):
                self._let_check(settle)
            elif settle.deadline > known.deadline:
                self._spare[settle.key] = settle  # worth less, but valid for longer
        if refused:
            _log.warning("refused %d lines of the provider; the last because %s", refused, why)
        return refused

    def note_file(self, error: OSError | None) -> None:
        """Record whether the provider's file can be read; None: it can."""
        self._unread = "" if error is None else str(error)

    async def look(self) -> None:
        """Check new lines, read every channel once, and start what is due.

        Raises:
            ChainUnavailableError: No node gives the channels' state.
            InvariantError: A bug; the process must stop.
        """
        await self._nodes.check()
        head = await self._reader.rpc.block()
        self._require_ahead(head)
        is_new = self._head is None or head.hash != self._head.hash
        if self._telling.moved(self._now(), is_new=is_new):
            self._reader.rpc.mark_unhealthy()
        if is_new:
            self.clock.saw(head)
            self._telling.skew(self.clock.skew_s)
        self._head = head
        self._grace_period_s = await self._reader.read_grace_period_s()
        await self._check()
        keys = list(self._held)
        facts = await self._reader.read_channels_at([key.channel_id for key in keys], head)
        for key, fact in zip(keys, facts, strict=True):
            self._judge(key, fact)
        await self._look_at_gas(head)

    def _require_ahead(self, head: BlockRef) -> None:
        """Refuse a node that is behind the head seen, until no node has shown that head for long.

        Then the earlier node was on a chain of its own. Believing a lagging node is harmless here:
        the escrow refuses an outdated settle.
        """
        if self._head is None or head.number >= self._head.number:
            self._behind_since = None
            return
        self._behind_since = self._now() if self._behind_since is None else self._behind_since
        if self._now() - self._behind_since < self._limits.away_s_max:
            raise ChainUnavailableError("The node is behind the newest block seen.")
        _log.warning("no node shows block %d now: using %d", self._head.number, head.number)
        self._behind_since = None

    async def turn(self) -> None:
        """Look; log a failure of the node, and retry."""
        began = self._now()
        try:
            await self.look()
        except OperatorError as error:
            self._log_once.make(error)
            self._reader.rpc.mark_unhealthy()
            self._telling.unanswered(began, error)
        else:
            self._log_once.over()
            self._looked_at = began
            self._telling.answered(began)
        unheard_s = self._now() - self._heard_at
        if self._unread:
            text = f"the provider's file cannot be read: {self._unread}"
            self.alarms.ring(AlarmKind.TOWER_UNFED, text)
        elif unheard_s >= self._limits.unheard_s_max:
            text = f"no line has come from the provider for {unheard_s:.0f} s"
            self.alarms.ring(AlarmKind.TOWER_UNFED, text)
        else:
            self.alarms.end(AlarmKind.TOWER_UNFED)

    # Incoming lines.

    def _require_ours(self, settle: PresignedSettle) -> None:
        """Refuse a line that is not the payee's for this escrow, before a node is asked."""
        if (settle.key.chain_id, settle.key.escrow) != (self._reader.chain_id, self._reader.escrow):
            raise PresignedError("it is for another chain or escrow")
        if settle.payee != self._calls.payee:
            raise PresignedError("it is another payee's")
        if not settle.is_signed_by_key():
            raise PresignedError("the payee did not sign it, or not as a settle")
        if settle.deadline <= self.clock.earliest():  # later the escrow decides: a line comes once
            raise PresignedError("it has expired")

    async def _check(self) -> None:
        """Simulate new settles; drop those the escrow would never accept."""
        settles = list(self._unchecked.values())
        refusals = await simulate(self._reader.rpc, settles, sender=self._gas_account)
        for settle, refusal in zip(settles, refusals, strict=True):
            self._keep(settle, refusal)

    def _let_check(self, settle: PresignedSettle) -> None:
        self._unchecked[settle.key] = settle
        self._refused_at.pop(settle.key, None)

    def _keep(self, settle: PresignedSettle, refusal: Refusal | None) -> None:
        """Hold a settle that the escrow accepts; a refused one never replaces it.

        A line comes once. A worthless settle is therefore simulated again until the block that
        makes it worthless is deep enough: the node may lag, or a reorg may undo the cause (F-71,
        F-72).
        """
        if refusal is None:
            self._unchecked.pop(settle.key, None)
        if isinstance(refusal, ContractRevertedError) and refusal.reason in _WORTHLESS:
            self._drop_if_lasting(settle, refusal)
            return
        self._refused_at.pop(settle.key, None)
        if refusal is None or settle.key not in self._held:
            self._hold(settle)

    def _drop_if_lasting(self, settle: PresignedSettle, refusal: ContractRevertedError) -> None:
        key, number = settle.key, 0 if self._head is None else self._head.number
        if key not in self._refused_at:
            _log.warning("%r was refused: %s", settle, refusal)
        blocks = number - self._refused_at.setdefault(key, number)
        has_expired = refusal.reason is RevertReason.AUTHORIZATION_EXPIRED
        if has_expired or blocks >= self._limits.forget_after_blocks:
            del self._unchecked[key], self._refused_at[key]
            if key in self._spare:
                self._let_check(self._spare.pop(key))

    def _hold(self, settle: PresignedSettle) -> None:
        before = self._held.get(settle.key)
        self._held[settle.key] = settle
        self._calls.hold(settle)
        is_other = before is not None and before.cumulative_amount != settle.cumulative_amount
        if before is not None and is_other and self.tasks.find(settle.key) is None:
            self._calls.drop(before)

    # Due settles.

    def _judge(self, key: ChannelKey, fact: ChannelFact | None) -> None:
        settle = self._held[key]
        name = f"0x{key.channel_id.hex()}"
        is_over = fact is not None and (
            fact.is_finalized or fact.settled >= settle.cumulative_amount
        )
        has_expired = settle.deadline < self.clock.now()
        if has_expired and key in self._spare and key not in self._unchecked:
            self._let_check(settle)  # one node's time replaces none: the escrow decides expiry
        self._forget_if_over(settle, is_over=is_over or has_expired)
        if fact is None or is_over or not fact.close_requested_at:
            self.alarms.end(AlarmKind.TOWER_ACTS, subject=name)
            return
        grace_period_s = self._grace_period_s or 0
        gone_s = self.clock.latest() - fact.close_requested_at
        if _PERCENT * gone_s < self._limits.act_percent * grace_period_s:
            return
        at_risk = settle.cumulative_amount - fact.settled
        if not self._is_worth(at_risk):
            return
        self.alarms.ring(
            AlarmKind.TOWER_ACTS,
            f"{gone_s} of {grace_period_s} s of the grace period have passed, and {at_risk} of "
            f"channel {name} is not settled: the payee's settler is absent",
            subject=name,
        )
        if self.tasks.find(key) is None:
            deadline = fact.close_requested_at + grace_period_s
            task = self.tasks.share(key, partial(self._settle, settle, at_risk, deadline))
            task.add_done_callback(lambda _: self._drop_if_replaced(settle))

    def _is_worth(self, at_risk: int) -> bool:
        price_wei = 0 if self._head is None else self._head.base_fee_wei or 0
        cost = self._policy.gas_cost(self._limits.gas_per_settle, price_wei)
        return at_risk >= max(self._policy.defend_min, cost)

    def _forget_if_over(self, settle: PresignedSettle, *, is_over: bool) -> None:
        """Forget a settle that is of no use, once no reorg can make it useful again."""
        key, number = settle.key, 0 if self._head is None else self._head.number
        if not is_over:
            self._over.pop(key, None)
        elif self.tasks.find(key) is None and (
            number - self._over.setdefault(key, number) >= self._limits.forget_after_blocks
        ):
            del self._held[key], self._over[key]
            self._spare.pop(key, None)
            self._calls.drop(settle)

    async def _settle(self, settle: PresignedSettle, at_risk: int, deadline: int) -> None:
        try:
            await self._settler.settle_channel(
                settle.key,
                settle.cumulative_amount,
                settle.voucher_signature,
                value=at_risk,
                deadline=deadline,
            )
        except (LeaseLostError, InvariantError):
            raise
        except MppSessionError as error:
            _log.warning("settling %r failed, will retry: %s", settle, error)
        else:
            _log.warning("settled for the payee: %r", settle)

    def _drop_if_replaced(self, settle: PresignedSettle) -> None:
        held = self._held.get(settle.key)
        if held is None or held.cumulative_amount != settle.cumulative_amount:
            self._calls.drop(settle)  # a newer one came in the meantime

    async def _look_at_gas(self, head: BlockRef) -> None:
        balance = await self._reader.rpc.balance_wei(self._gas_account)
        reserve = gas_reserve_wei(
            max(len(self._held), self._limits.settles_reserved_min),
            gas_per_close=self._limits.gas_per_settle,
            base_fee_wei=head.base_fee_wei or 0,
        )
        name = f"0x{self._gas_account.hex()}"
        if balance < reserve:
            text = f"{balance} wei in the account, {reserve} needed to settle what is held"
            self.alarms.ring(AlarmKind.GAS_LOW, text, subject=name)
        else:
            self.alarms.end(AlarmKind.GAS_LOW, subject=name)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


_WORTHLESS: Final = frozenset(
    {
        RevertReason.AMOUNT_NOT_INCREASING,
        RevertReason.AUTHORIZATION_EXPIRED,
        RevertReason.CHANNEL_FINALIZED,
        RevertReason.CHANNEL_NOT_FOUND,
        RevertReason.NONCE_ALREADY_USED,
    }
)
"""Only another chain than the one seen makes these valid. A wallet may accept again."""
