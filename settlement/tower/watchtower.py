"""Settles for a payee who is not there, from another machine, with no key of the payee's.

The tower has settles that the payee signed ahead and an account that pays gas. It looks at the
channels they are for; once a payer has asked for the rest, so much of the grace period is gone,
and what was signed is still not settled, the payee's own settler is absent, and the tower sends
what it has. It cannot close: the payer is left its withdrawal. Where the money goes, and how much,
is in what the payee and the payer signed.

Nothing that comes in is trusted: a line counts when the payee's own key signed it for this escrow,
and the escrow itself, asked by simulation, would take it.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from channel.errors import ChainUnavailableError, InvariantError, MppSessionError, OperatorError
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
    """Between two looks at every channel."""
    act_percent: int = 50
    """Of the grace period, by the chain's time; before that it is the payee's settler's turn."""
    unheard_s_max: float = 1800.0
    """How long nothing may come from the provider before somebody is told."""
    away_s_max: float = 60.0
    skew_s_max: float = 60.0
    still_s_max: float | None = 300.0
    """As `settlement.watch.watcher.WatchLimits`."""
    forget_after_blocks: int = 64
    """How deep the end of a channel must be, or a settle by somebody else, to be relied on."""
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
        """Watch; `settler` must send by `calls`, one channel in a transaction.

        `policy` says what is too little to settle for, and weighs gas: else strangers' dust could
        use up the tower's. Of several nodes those are asked that the majority agrees with: one
        alone could hide every exit.
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
        """Since which block what is unchecked is worthless, for all that the chain shows."""
        self._spare: dict[ChannelKey, PresignedSettle] = {}
        self._running: dict[ChannelKey, asyncio.Task[None]] = {}
        self._over: dict[ChannelKey, int] = {}
        self._head: BlockRef | None = None
        self._looked_at: float | None = None
        self._behind_since: float | None = None
        self._grace_period_s: int | None = None
        self._heard_at = self._now()
        self._unread = ""
        self._log_once = LogOnce(_log, "the chain was not looked at; tried again: %s")
        self._telling = WatchAlarms(
            self.alarms,
            away_s_max=self._limits.away_s_max,
            skew_s_max=self._limits.skew_s_max,
            still_s_max=self._limits.still_s_max,
        )
        self._bug: BaseException | None = None

    @property
    def held(self) -> dict[ChannelKey, PresignedSettle]:
        """What could be settled, by channel."""
        return self._held

    @property
    def head(self) -> BlockRef | None:
        """The newest block seen."""
        return self._head

    @property
    def looked_s_ago(self) -> float | None:
        """How long ago the chain was last looked at with success; None before the first time."""
        return None if self._looked_at is None else self._now() - self._looked_at

    @property
    def waiting(self) -> int:
        """How many came that the escrow has not taken in a simulation yet."""
        return len(self._unchecked)

    def take(self, lines: Iterable[bytes]) -> int:
        """Take lines as they came from the provider; return how many were refused.

        One that is older or worth less than what is held changes nothing, however often it comes.
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
                self._spare[settle.key] = settle  # worth less, and good for longer
        if refused:
            _log.warning("%d lines were refused, the last one: %s", refused, why)
        return refused

    def note_file(self, error: OSError | None) -> None:
        """Note whether what comes from the provider can be read; None: it can."""
        self._unread = "" if error is None else str(error)

    async def look(self) -> None:
        """Check what came, look at every channel once, and begin what is due.

        Raises:
            ChainUnavailableError: No node says how things stand.
            InvariantError: A bug; the process must stop.
        """
        if self._bug is not None:
            raise self._bug
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
        """Refuse a node that is behind what was seen, until for long none shows as much.

        Then it was the other one that had a chain of its own, and this is ours. To believe a node
        that lags does no harm here: the escrow refuses a settle that is out of date.
        """
        if self._head is None or head.number >= self._head.number:
            self._behind_since = None
            return
        self._behind_since = self._now() if self._behind_since is None else self._behind_since
        if self._now() - self._behind_since < self._limits.away_s_max:
            raise ChainUnavailableError("The node is behind what was seen before.")
        _log.warning("no node shows block %d any more: %d it is", self._head.number, head.number)
        self._behind_since = None

    async def turn(self) -> None:
        """Look; a node that is away is told of, and asked again."""
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
            text = f"nothing has come from the provider for {unheard_s:.0f} s"
            self.alarms.ring(AlarmKind.TOWER_UNFED, text)
        else:
            self.alarms.end(AlarmKind.TOWER_UNFED)

    async def drain(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def aclose(self) -> None:
        """Stop. What was sent is in the journal, and is gone on with from there."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # What comes in.

    def _require_ours(self, settle: PresignedSettle) -> None:
        """Refuse what is not the payee's for this escrow, before anybody is asked about it."""
        if (settle.key.chain_id, settle.key.escrow) != (self._reader.chain_id, self._reader.escrow):
            raise PresignedError("it is for another chain or escrow")
        if settle.payee != self._calls.payee:
            raise PresignedError("it is another payee's")
        if not settle.is_signed_by_key():
            raise PresignedError("the payee did not sign it, or not as a settle")
        if settle.deadline <= self.clock.earliest():  # else the escrow says it: a line comes once
            raise PresignedError("it has expired")

    async def _check(self) -> None:
        """Ask the escrow itself about what came; what it would not take is left out."""
        settles = list(self._unchecked.values())
        refusals = await simulate(self._reader.rpc, settles, sender=self._gas_account)
        for settle, refusal in zip(settles, refusals, strict=True):
            self._keep(settle, refusal)

    def _let_check(self, settle: PresignedSettle) -> None:
        self._unchecked[settle.key] = settle
        self._refused_at.pop(settle.key, None)

    def _keep(self, settle: PresignedSettle, refusal: Refusal | None) -> None:
        """Hold what the escrow takes; what it refuses for now never displaces what it takes.

        A line comes once. So one that is worthless is asked about again until that is as deep as
        is relied on: the node may lag, or a reorg take back what makes it so (F-71, F-72).
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
        if before is not None and is_other and settle.key not in self._running:
            self._calls.drop(before)

    # What is due.

    def _judge(self, key: ChannelKey, fact: ChannelFact | None) -> None:
        settle = self._held[key]
        name = f"0x{key.channel_id.hex()}"
        is_over = fact is not None and (
            fact.is_finalized or fact.settled >= settle.cumulative_amount
        )
        has_expired = settle.deadline < self.clock.now()
        if has_expired and key in self._spare and key not in self._unchecked:
            self._let_check(settle)  # one node's time displaces none: the escrow says what expired
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
            f"{gone_s} of {grace_period_s} s of grace are gone, {at_risk} of channel {name} is "
            "not settled: the payee's settler is absent",
            subject=name,
        )
        if key not in self._running:
            deadline = fact.close_requested_at + grace_period_s
            task = asyncio.create_task(self._settle(settle, at_risk, deadline))
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(settle, done))

    def _is_worth(self, at_risk: int) -> bool:
        price_wei = 0 if self._head is None else self._head.base_fee_wei or 0
        cost = self._policy.gas_cost(self._limits.gas_per_settle, price_wei)
        return at_risk >= max(self._policy.defend_min, cost)

    def _forget_if_over(self, settle: PresignedSettle, *, is_over: bool) -> None:
        """Forget what is of no use any more, once no reorg will make it so again."""
        key, number = settle.key, 0 if self._head is None else self._head.number
        if not is_over:
            self._over.pop(key, None)
        elif key not in self._running and (
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
            _log.warning("%r is not settled yet: %s", settle, error)
        else:
            _log.warning("settled for the payee: %r", settle)

    def _ended(self, settle: PresignedSettle, done: asyncio.Task[None]) -> None:
        del self._running[settle.key]
        held = self._held.get(settle.key)
        if held is None or held.cumulative_amount != settle.cumulative_amount:
            self._calls.drop(settle)  # a newer one came meanwhile
        if not done.cancelled() and (error := done.exception()) is not None:
            self._bug = self._bug or error

    async def _look_at_gas(self, head: BlockRef) -> None:
        balance = await self._reader.rpc.balance_wei(self._gas_account)
        reserve = gas_reserve_wei(
            max(len(self._held), self._limits.settles_reserved_min),
            gas_per_close=self._limits.gas_per_settle,
            base_fee_wei=head.base_fee_wei or 0,
        )
        name = f"0x{self._gas_account.hex()}"
        if balance < reserve:
            text = f"{balance} wei at hand, {reserve} needed to settle what is held"
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
"""Only another chain than the one seen makes these good. A wallet may change its mind."""
