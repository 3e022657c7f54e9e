"""Carries out a plan: stores each step in the ledger, sends it, records the outcome.

Durable before a close is broadcast: its voucher, and that the close is due. Durable before a settle
is broadcast: that its voucher is public. Durable after mining: what the chain shows. If the process
dies in between, the next plan continues with the channel.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol

import msgspec

from channel.errors import (
    ChannelFinalizedError,
    InvariantError,
    MppSessionError,
    OperatorError,
    PeerError,
    TransactionRevertedError,
)
from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.commands import (
    AbortClose,
    BeginClose,
    Command,
    CommitClose,
    EndReservations,
    Observe,
    Publish,
    RecordClose,
)
from channel.state.ladder import closing_voucher, forced_settling_voucher
from channel.tasks import Tasks
from channel.types import ChannelFact, ChannelKey
from settlement.alarms import AlarmKind, Alarms
from settlement.errors import ChannelQuarantinedError, FeeAboveBudgetError, GasHourUsedError
from settlement.settle.jobs import CloseResult
from settlement.settle.schedule import Action, Due

__all__ = ["CloseExecutor", "Done", "SettledChannel", "Settler", "report_loss"]

_log: Final = logging.getLogger(__name__)

_REFUSED_S_MAX: Final = 60.0
_PENDING_S_MAX: Final = 15.0
_DEAR: Final = (FeeAboveBudgetError, GasHourUsedError)


class _Failure(msgspec.Struct, frozen=True):
    """Until when an action is put off, for how long, and the error that was logged."""

    until: float = float("-inf")
    pause_s: float = 0.0
    said: str = ""


class SettledChannel(Protocol):
    """A channel after a settle."""

    @property
    def fact(self) -> ChannelFact:
        """The channel's state on the chain."""


class Settler(Protocol):
    """Gets settles and closes mined; concurrent requests share a transaction.

    `value` is the amount at risk in base units. `deadline` is the chain time at which the payer may
    withdraw it, 0 for none. Both decide the order and the gas budget.
    """

    async def close_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,
        deadline: int = 0,
    ) -> CloseResult:
        """Close the channel at `cumulative_amount` and return once it is mined.

        Calling it again for a closed channel returns the first close.

        Raises:
            TransactionRevertedError: The escrow refused; nothing changed on chain.
            SettlementPendingError: Not mined within the bound; ask again (F-75).
            ChainUnavailableError: Nothing was broadcast.
        """

    async def settle_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,
        deadline: int = 0,
    ) -> SettledChannel:
        """Settle up to `cumulative_amount`; the channel stays open. Errors as `close_channel`."""


class Done(msgspec.Struct, frozen=True):
    """The result of carrying out a plan."""

    closed: int = 0
    settled: int = 0
    waiting: int = 0
    """Number of actions that wait for a running request, a receipt or a node."""


class CloseExecutor:
    """Settles and closes for one payee. Each channel has at most one action at a time."""

    def __init__(
        self,
        ledger: Ledger,
        settler: Settler,
        alarms: Alarms,
        *,
        at_once: int = 512,
        retry_s: float = 2.0,
    ) -> None:
        self._ledger = ledger
        self._settler = settler
        self._alarms = alarms
        self.tasks = Tasks()
        """The running actions. Cancelling one is safe: another process continues each durable
        step."""
        self._room = asyncio.Semaphore(at_once)
        self._retry_s = retry_s
        self._failed: dict[tuple[ChannelKey, Action], _Failure] = {}
        """Actions put off for a while: each try is recorded, and each record wakes this class
        again."""

    async def carry_out(self, dues: Sequence[Due]) -> Done:
        """Carry out all actions in order, as many at a time as there is room; return the result.

        A failed action does not stop the others.

        Raises:
            InvariantError: A bug; the process must stop.
        """
        tasks = {due.key: self._start(due) for due in dues}
        if tasks:
            await asyncio.wait(tasks.values())
        self.tasks.require_sound()
        done = [due for due in dues if tasks[due.key].result()]
        return Done(
            closed=sum(due.action is Action.CLOSE for due in done),
            settled=sum(due.action is Action.SETTLE for due in done),
            waiting=len(dues) - len(done),
        )

    def submit(self, dues: Sequence[Due]) -> None:
        """Start all actions and return without waiting for them.

        Skips a channel with a running action, and an action that failed just now.
        """
        now = asyncio.get_running_loop().time()
        for due in dues:
            if self._failure(due).until <= now:
                self._start(due)

    def _start(self, due: Due) -> asyncio.Task[bool]:
        return self.tasks.share(due.key, partial(self._do, due))

    async def _do(self, due: Due) -> bool:
        """Carry out one action; return False if it must be retried."""
        async with self._room:
            try:
                if due.action is Action.SETTLE:
                    is_done = await self._settle(due, _required(due))
                else:
                    is_done = await self._close(due)
            except ChannelFinalizedError:
                is_done = True  # another process was faster
            except (OperatorError, PeerError) as error:
                self._put_off(due, error)
                return False
        if is_done:
            self._alarms.end(AlarmKind.GAS_HOUR)
            for action in Action:
                self._failed.pop((due.key, action), None)
        return is_done

    def _failure(self, due: Due) -> "_Failure":
        return self._failed.get((due.key, due.action), _Failure())

    def _put_off(self, due: Due, error: MppSessionError) -> None:
        """Put an action off, longer after each failure, longest if the escrow refused it."""
        if isinstance(error, GasHourUsedError):
            self._alarms.ring(AlarmKind.GAS_HOUR, str(error))
        before = self._failure(due)
        is_refusal = isinstance(error, TransactionRevertedError)
        longest_s = _REFUSED_S_MAX if is_refusal else _PENDING_S_MAX
        pause_s = min(2 * before.pause_s or self._retry_s, longest_s)
        # A fee above budget changes its numbers with each block: that is no new message.
        said = type(error).__name__ if isinstance(error, _DEAR) else str(error)
        until = asyncio.get_running_loop().time() + pause_s
        self._failed[due.key, due.action] = _Failure(until, pause_s, said)
        if is_refusal or said != before.said:
            name, what = f"0x{due.key.channel_id.hex()}", due.action.value
            verb = "refused: " if is_refusal else ""
            _log.warning("channel %s: %s failed, will retry: %s%s", name, what, verb, error)

    async def _close(self, due: Due) -> bool:
        voucher = await self._decide(due)
        if voucher is None:
            return False
        # Durable by now: that this voucher is public, and that the channel's close is due.
        try:
            result = await self._settler.close_channel(
                due.key,
                voucher.cumulative_amount,
                voucher.signature,
                value=due.value,
                deadline=due.deadline or 0,
            )
        except TransactionRevertedError:
            (await self._ledger.apply(due.key, [AbortClose()])).require()
            await self._save_rest(due)
            raise
        except ChannelQuarantinedError:
            await self._save_rest(due)  # the close stays due, and is retried
            raise
        await self._record(due.key, result)
        return True

    async def _save_rest(self, due: Due) -> None:
        """After a close that the escrow refuses late: settle at least what was delivered (F-86)."""
        state = await self._ledger.load(due.key)
        voucher = None if state is None else forced_settling_voucher(state)
        if due.is_late and voucher is not None:
            await self._settle(due, voucher)

    async def _decide(self, due: Due) -> LadderVoucher | None:
        """Return the voucher to close with, once it is durable; None while a request runs."""
        begin: list[Command] = [BeginClose(only_if_idle=due.idle)]
        if due.ends_reservations:
            begin.append(EndReservations(by_close=True))
        state = (await self._ledger.apply(due.key, begin)).require()
        if state.closing_with is None:
            if state.reservations:
                return None
            commit = CommitClose(closing_voucher(state, None))
            state = (await self._ledger.apply(due.key, [commit])).require()
        if state.closing_with is None:  # pragma: no cover - CommitClose fixes one or is refused
            msg = "a close was decided without a voucher"
            raise InvariantError(msg)
        return state.closing_with

    async def _record(self, key: ChannelKey, result: CloseResult) -> None:
        record = RecordClose(fact=result.fact, tx_hash=result.tx_hash)
        state = (await self._ledger.apply(key, [record])).require()
        _log.info(
            "closed channel 0x%s: %d base units paid in all, %d refunded",
            key.channel_id.hex(),
            state.settled,
            state.deposit - state.settled,
        )
        self._alarms.end(AlarmKind.GRACE_RUNS, subject=f"0x{key.channel_id.hex()}")
        report_loss(state, self._alarms)

    async def _settle(self, due: Due, voucher: LadderVoucher) -> bool:
        amount = voucher.cumulative_amount
        state = (await self._ledger.apply(due.key, [Publish(amount)])).require()
        if state.is_finalized or state.settled >= amount:
            return True  # another process was faster (F-80)
        result = await self._settler.settle_channel(
            due.key, amount, voucher.signature, value=due.value, deadline=due.deadline or 0
        )
        (await self._ledger.apply(due.key, [Observe(result.fact)])).require()
        _log.info(
            "settled channel 0x%s: %d base units, %d in all",
            due.key.channel_id.hex(),
            amount - state.settled,
            amount,
        )
        return True


def _required(due: Due) -> LadderVoucher:
    if due.voucher is None:
        msg = "a settle was planned without a voucher"
        raise InvariantError(msg)
    return due.voucher


def report_loss(state: ChannelState, alarms: Alarms) -> None:
    """Log and alarm when a channel closed for less than was delivered (F-64)."""
    if state.is_finalized and state.spent > state.settled:
        name = f"0x{state.key.channel_id.hex()}"
        lost = state.spent - state.settled
        alarms.ring(
            AlarmKind.CHANNEL_LOST,
            f"channel {name} ended with {lost} delivered and unpaid",
            subject=name,
        )
