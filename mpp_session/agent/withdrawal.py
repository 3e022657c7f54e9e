"""Withdraws without the server: request the close, wait for the grace to end (CLOSE-08).

Each step reads the chain first and does only what is missing. The command may be stopped at any
point and started again, minutes later or on another machine with the same store.
"""

import asyncio
import enum
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from channel.client.store.record import ChannelRecord, adopt_fact
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelUnusableError
from channel.types import Address, ChannelFact, ChannelId, ChannelKey, TxHash
from mpp_session.agent.amounts import BASE_UNITS, TokenUnit
from settlement.errors import ChannelFinalizedRevertError, ContractRevertedError
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from settlement.node.rpc import Rpc
from settlement.types import RevertReason

__all__ = ["Leaving", "Progress", "Stage", "withdraw_channels"]

_POLL_S_MAX: Final = 10.0


class Stage(enum.Enum):
    """The stage of a withdrawal."""

    LEAVING = "is left without its server"
    NEVER_OPENED = "never opened: nothing was deposited"
    WAITING = "the grace period runs"
    WITHDRAWN = "withdrawn"
    ENDED = "it has ended"


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """One channel being withdrawn. Amounts are in base units."""

    key: ChannelKey
    origin: str
    stage: Stage
    deposit: int = 0
    settled: int = 0
    """Paid to the payee, as the chain shows now."""
    ready_at: int = 0
    """Chain time from which the payer may withdraw."""
    tx_hash: TxHash | None = None
    """The withdrawal's transaction, or that of the payee's close."""
    delivered: int = 0
    """Delivered by the payer's own count: what a close by the server would pay."""
    signed: int = 0
    """Signed in vouchers that the payee holds and may settle."""
    unit: TokenUnit = BASE_UNITS
    """How people write amounts of the channel's token."""

    @property
    def refunded(self) -> int:
        """The refunded amount; 0 before the refund."""
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
    """Withdraw what is left in channels of this account; return the stage of each.

    Args:
        rpc: Connection to the chain.
        account: The payer's account.
        store: Holds the channels.
        which: Their ids; every open channel if None.
        waits: Whether to wait out the grace period. If not, run it again later to withdraw.
        poll_s_max: Longest pause between two looks at the chain's time.
        tell: Called whenever a channel reaches another stage.

    Raises:
        ChannelUnusableError: A channel is not in the store, or all open ones are of other accounts.
        ChainUnavailableError: No node answers; run it again later.
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
) -> list[ChannelRecord]:
    kept = await store.records()
    own = (account.chain_id, account.account)
    known = [each for each in kept if (each.key.chain_id, each.terms.payer) == own]
    if which is None:
        live = [each for each in kept if each.state != "closed"]
        mine = [each for each in live if each in known]
        if live and not mine:
            owners = {f"0x{each.terms.payer.hex()} on chain {each.key.chain_id}" for each in live}
            raise ChannelUnusableError(
                f"The {len(live)} open channels in this store belong to "
                f"{', '.join(sorted(owners))}, "
                f"not to 0x{account.account.hex()} on chain {account.chain_id}."
            )
        return mine
    by_id = {each.key.channel_id: each for each in known}
    for channel_id in which:
        if channel_id not in by_id:
            raise ChannelUnusableError(
                f"This store has no channel 0x{channel_id.hex()} of this account."
            )
    return [by_id[channel_id] for channel_id in which]


class _WayOut:
    """The steps of a withdrawal, each of which may be repeated."""

    def __init__(
        self, rpc: Rpc, account: PayerAccount, store: PaymentStore, tell: Progress
    ) -> None:
        self._rpc = rpc
        self._account = account
        self._store = store
        self._tell = tell
        self._grace_periods_s: dict[Address, int] = {}
        self._units: dict[Address, TokenUnit] = {}

    async def ask(self, channel: ChannelRecord) -> Leaving:
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
                    unit=await self._unit(channel.terms.token),
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
        """Request the close, unless that is done. A reorg or a top-up may have undone it."""
        if fact.is_finalized or fact.close_requested_at:
            return fact
        escrow, channel_id = fact.key.escrow, fact.key.channel_id
        with suppress(ChannelFinalizedRevertError):  # the payee closed it first
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
            return leaving  # this node lags
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
            return ready  # the next look decides
        await self._store.update(key, lambda current: replace(current, end_tx=tx_hash))
        fact = await self._account.read_channel(key.escrow, key.channel_id)
        settled = ready.settled
        if fact is not None:
            settled = fact.settled
            await self._store.update(key, partial(adopt_fact, fact=fact))
        return replace(ready, stage=Stage.WITHDRAWN, settled=settled, tx_hash=tx_hash)

    async def wait(self, leaving: Sequence[Leaving], poll_s_max: float) -> None:
        """Sleep until another look may show a change."""
        waiting = [each.ready_at for each in leaving if each.stage is Stage.WAITING]
        head = await self._rpc.block()
        left_s = max(1.0, float(min(waiting) - head.timestamp))
        await asyncio.sleep(min(left_s, poll_s_max))

    async def _leaving(self, origin: str, fact: ChannelFact) -> Leaving:
        """Return a channel's stage, once the store has recorded what the chain shows."""
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
            unit=await self._unit(fact.terms.token),
        )

    async def _unit(self, token: Address) -> TokenUnit:
        if token not in self._units:
            self._units[token] = await read_token_unit(self._rpc, token) or BASE_UNITS
        return self._units[token]

    async def _grace_period_s(self, escrow: Address) -> int:
        if escrow not in self._grace_periods_s:
            reader = EscrowReader(self._rpc, escrow)
            self._grace_periods_s[escrow] = await reader.read_grace_period_s()
        return self._grace_periods_s[escrow]
