"""A payer leaves without its server: asks for the rest, waits out the grace, takes it (CLOSE-08).

Each step reads the chain first and does only what is missing, so it may be stopped at any point
and started again: minutes later, or on another machine with the same store.
"""

import asyncio
import enum
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from channel.client.store.record import Account, adopt_fact
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelUnusableError
from channel.types import Address, ChannelFact, ChannelId, ChannelKey, TxHash
from settlement.errors import ChannelFinalizedRevertError, ContractRevertedError
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.types import RevertReason

__all__ = ["Leaving", "Progress", "Stage", "withdraw_channels"]

_POLL_S_MAX: Final = 10.0


class Stage(enum.Enum):
    """How far a channel is on its way out."""

    LEAVING = "is left without its server"
    NEVER_OPENED = "never opened: nothing was deposited"
    WAITING = "the grace period runs"
    WITHDRAWN = "withdrawn"
    ENDED = "it has ended"


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """One channel on its way out. Amounts in base units."""

    key: ChannelKey
    origin: str
    stage: Stage
    deposit: int = 0
    settled: int = 0
    """What the payee was paid, as the chain says now."""
    ready_at: int = 0
    """Chain time from which the rest may be taken."""
    tx_hash: TxHash | None = None
    """The withdrawal, or the payee's close."""
    delivered: int = 0
    """What arrived, by the payer's own count: what a close with the server would pay."""
    signed: int = 0
    """What the payee holds vouchers for, and may settle."""

    @property
    def refunded(self) -> int:
        """What came back; 0 while it has not."""
        is_out = self.stage in (Stage.WITHDRAWN, Stage.ENDED)
        return self.deposit - self.settled if is_out else 0


Progress = Callable[[Leaving], None]


async def withdraw_channels(
    *,
    rpc: Rpc,
    account: PayerAccount,
    store: PaymentStore,
    which: Sequence[ChannelId] | None,
    waits: bool = True,
    poll_s_max: float = _POLL_S_MAX,
    tell: Progress = lambda _: None,
) -> list[Leaving]:
    """Take back what is left in channels of this account, and return how far each one is.

    Args:
        rpc: The chain.
        account: The payer's account.
        store: Where the channels are kept.
        which: Their ids; all that are not closed if None.
        waits: Whether to wait out the grace period. If not, ask again later for the rest.
        poll_s_max: Longest pause between two looks at the chain's time.
        tell: Called whenever a channel comes a step further.

    Raises:
        ChannelUnusableError: A channel is not in the purse, or all that are open are others'.
        ChainUnavailableError: No node answers; start again later.
        ContractRevertedError: The escrow refused; nothing moved.
    """
    way_out = _WayOut(rpc, account, store, tell)
    leaving = [await way_out.ask(each) for each in await _select(store, account, which)]
    leaving = [await way_out.take(each) for each in leaving]
    while waits and any(each.stage is Stage.WAITING for each in leaving):
        await way_out.wait(leaving, poll_s_max)
        leaving = [await way_out.take(each) for each in leaving]
    return leaving


async def _select(
    store: PaymentStore, account: PayerAccount, which: Sequence[ChannelId] | None
) -> list[Account]:
    kept = await store.accounts()
    own = (account.chain_id, account.account)
    known = [each for each in kept if (each.key.chain_id, each.terms.payer) == own]
    if which is None:
        live = [each for each in kept if each.state != "closed"]
        mine = [each for each in live if each in known]
        if live and not mine:
            owners = {f"0x{each.terms.payer.hex()} on chain {each.key.chain_id}" for each in live}
            raise ChannelUnusableError(
                f"The {len(live)} channels in this purse are not of 0x{account.account.hex()} on "
                f"chain {account.chain_id}, but of {', '.join(sorted(owners))}."
            )
        return mine
    by_id = {each.key.channel_id: each for each in known}
    for channel_id in which:
        if channel_id not in by_id:
            raise ChannelUnusableError(
                f"There is no channel 0x{channel_id.hex()} of this account in this purse."
            )
    return [by_id[channel_id] for channel_id in which]


class _WayOut:
    """The steps out, each of which may be repeated."""

    def __init__(
        self, rpc: Rpc, account: PayerAccount, store: PaymentStore, tell: Progress
    ) -> None:
        self._rpc = rpc
        self._account = account
        self._store = store
        self._tell = tell
        self._grace_periods_s: dict[Address, int] = {}

    async def ask(self, channel: Account) -> Leaving:
        """Start the grace period, unless it runs or the channel has ended."""
        key = channel.key
        fact = await self._account.read_channel(key.escrow, key.channel_id)
        if channel.ahead and fact is not None and not fact.close_requested_at:
            self._tell(
                Leaving(
                    key=key,
                    origin=channel.origin,
                    stage=Stage.LEAVING,
                    delivered=channel.counted,
                    signed=min(channel.signed, channel.deposit),
                )
            )
        if fact is None:
            leaving = Leaving(key=key, origin=channel.origin, stage=Stage.NEVER_OPENED)
            self._tell(leaving)
            return leaving
        leaving = await self._leaving(channel.origin, await self._requested(fact))
        self._tell(leaving)
        return leaving

    async def _requested(self, fact: ChannelFact) -> ChannelFact:
        """Ask for the rest unless that is done, or was taken back by a reorg or a top-up."""
        if fact.is_finalized or fact.close_requested_at:
            return fact
        escrow, channel_id = fact.key.escrow, fact.key.channel_id
        with suppress(ChannelFinalizedRevertError):  # its payee was faster
            await self._account.request_close(escrow=escrow, channel_id=channel_id)
        return await self._account.read_channel(escrow, channel_id) or fact

    async def take(self, leaving: Leaving) -> Leaving:
        """Withdraw one channel if its grace period is over, by the chain's own time (F-111)."""
        if leaving.stage is not Stage.WAITING:
            return leaving
        key = leaving.key
        head = await self._rpc.block()
        fact = await self._account.read_channel(key.escrow, key.channel_id)
        if fact is None:
            return leaving  # a node that lags
        now = await self._leaving(leaving.origin, await self._requested(fact))
        if now.stage is Stage.WAITING and 0 < now.ready_at <= head.timestamp:
            now = await self._withdraw(now)
        if now.stage is not Stage.WAITING:
            self._tell(now)
        return now

    async def _withdraw(self, ready: Leaving) -> Leaving:
        key = ready.key
        try:
            tx_hash = await self._account.withdraw(escrow=key.escrow, channel_id=key.channel_id)
        except ContractRevertedError as error:
            if error.reason not in (RevertReason.CLOSE_NOT_READY, RevertReason.CHANNEL_FINALIZED):
                raise
            return ready  # another block, another look
        await self._store.update(key, lambda current: replace(current, end_tx=tx_hash))
        fact = await self._account.read_channel(key.escrow, key.channel_id)
        settled = ready.settled
        if fact is not None:
            settled = fact.settled
            await self._store.update(key, partial(adopt_fact, fact=fact))
        return replace(ready, stage=Stage.WITHDRAWN, settled=settled, tx_hash=tx_hash)

    async def wait(self, leaving: Sequence[Leaving], poll_s_max: float) -> None:
        """Sleep until it is worth another look."""
        waiting = [each.ready_at for each in leaving if each.stage is Stage.WAITING]
        head = await self._rpc.block()
        left_s = max(1.0, float(min(waiting) - head.timestamp))
        await asyncio.sleep(min(left_s, poll_s_max))

    async def _leaving(self, origin: str, fact: ChannelFact) -> Leaving:
        """Return how far a channel is, once the purse knows what the chain shows."""
        key, tx_hash = fact.key, None
        if fact.is_finalized:
            log = await EscrowReader(self._rpc, key.escrow).find_closing(key.channel_id)
            tx_hash = None if log is None else log.tx_hash
        known = await self._store.update(key, partial(adopt_fact, fact=fact))
        if tx_hash is not None and known.end_tx is None:
            await self._store.update(key, lambda current: replace(current, end_tx=tx_hash))
        grace_s = await self._grace_period_s(key.escrow)
        return Leaving(
            key=key,
            origin=origin,
            stage=Stage.ENDED if fact.is_finalized else Stage.WAITING,
            deposit=fact.deposit,
            settled=fact.settled,
            ready_at=fact.close_requested_at + grace_s if fact.close_requested_at else 0,
            tx_hash=tx_hash,
        )

    async def _grace_period_s(self, escrow: Address) -> int:
        if escrow not in self._grace_periods_s:
            reader = EscrowReader(self._rpc, escrow)
            self._grace_periods_s[escrow] = await reader.read_grace_period_s()
        return self._grace_periods_s[escrow]
