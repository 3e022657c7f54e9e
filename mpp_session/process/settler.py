"""The settler process: settles and closes for one payee, or stands by while another does.

A gateway starts it, or it runs apart on the same database (decision 14). Its inputs are in the
ledger: closes that workers decided, and the chain's state. Its actions are in the journal, in the
same database. If it is killed at any moment, the next one continues from there.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.state.channel_state import ChannelState
from channel.tasks import first_of
from channel.types import Address
from mpp_session.agent.amounts import BASE_UNITS, TokenUnit
from mpp_session.chain_watch import (
    build_budget,
    build_gate,
    build_sender,
    build_watcher,
    connect_escrow,
)
from mpp_session.errors import CommandError
from mpp_session.keys import open_signer
from mpp_session.process.leader import (
    Announce,
    name_holder,
    note_looks,
    release,
    while_leader,
)
from mpp_session.process.orders import SettleOrders
from mpp_session.settings import SettlerConfig, parse_address
from settlement.charge.orders.interface import ChargeOrders
from settlement.charge.orders.url import open_charges
from settlement.charge.sender import ChargeSender
from settlement.escrow.payout_calls import RelayedCalls
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from settlement.presigned.cover import CoverPolicy
from settlement.presigned.export import TowerExport
from settlement.presigned.file import TowerFile
from settlement.settle.pending_closes import PendingCloses
from settlement.settle.quarantine import Quarantine
from settlement.settle.settler import EscrowSettler, SettlerLimits
from settlement.sponsor.orders.interface import DepositOrders
from settlement.sponsor.orders.url import open_orders
from settlement.sponsor.sender import DepositSender
from settlement.sponsor.unclaimed import UnclaimedChannels
from settlement.tx.gas_hour import GasHour
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal
from settlement.tx.lease import LeaseLimits, keep_lease
from settlement.tx.manager import TxManager
from settlement.tx.order_sender import WANTED_LOOK_S
from settlement.tx.signer import Signer
from settlement.watch.watcher import ChannelWatcher, Sweep

__all__ = ["SETTLING", "SettledNow", "SettlerParts", "build_settler", "run_settler", "settle_now"]

_log: Final = logging.getLogger(__name__)

SETTLING: Final = "settling"
_TIDY_S: Final = 60.0
_KEPT_S: Final = 90 * 24 * 3600
_PRUNE_S: Final = 3600.0
_PRUNE_REST_S: Final = 0.2
_LEFT_OVER_LOOK_S: Final = 2.0


class SettlerParts(msgspec.Struct, frozen=True):
    """Resources that live as long as the process: ledger, nodes, keys."""

    config: SettlerConfig
    ledger: Ledger
    journal: SettlerJournal
    orders: DepositOrders
    charges: ChargeOrders
    reader: EscrowReader
    sender: Signer
    """The account that sends and pays the gas."""
    payee: Signer | None
    """The payee's signer, if the payee is another account."""

    async def build(
        self,
    ) -> tuple[TxManager, EscrowSettler, ChannelWatcher, TowerExport | None]:
        """Build the objects that live as long as the lease: they remember open transactions.

        Raises:
            ConfigError: The tower's file cannot be written, or its settles would expire too soon.
        """
        sender = build_sender(self.config, self.reader.rpc, self.sender, self.journal)
        settler = EscrowSettler(
            self.reader,
            sender,
            calls=None if self.payee is None else RelayedCalls(self.reader, self.payee),
            budget=build_budget(self.config.settlement),
            quarantine=Quarantine(self.journal),
            limits=SettlerLimits(batch_max=self.config.settlement.batch_max),
            hour=GasHour(
                self.journal,
                self.reader.rpc,
                limit_wei=self.config.settlement.gas_hour_max_wei,
            ),
        )
        export = await self._build_export()
        watcher = build_watcher(
            self.config,
            self.reader,
            self.ledger,
            settler,
            payee=settler.payee,
            gas_account=sender.address,
            gate=build_gate(self.config),
            unit_price=1 if self.config.price is None else self.config.price.per_unit or 1,
            journal=self.journal,
            export=export,
        )
        return sender, settler, watcher, export

    async def _build_export(self) -> TowerExport | None:
        tower = self.config.tower
        if tower.export_file is None:
            return None
        policy = CoverPolicy(
            uncovered_max=tower.uncovered_max,
            uncovered_age_s=tower.uncovered_age_s,
            life_s=tower.life_s,
        )
        policy.require_outlives(await self.reader.read_grace_period_s())
        try:
            file = await TowerFile.open(Path(tower.export_file))
        except OSError as error:
            raise ConfigError(f"`tower.export_file` cannot be written: {error}") from None
        return TowerExport(file, self.payee or self.sender, self.ledger, policy=policy)


@asynccontextmanager
async def build_settler(config: SettlerConfig) -> AsyncIterator[SettlerParts]:
    """Open the ledger, connect to the node, and check what could lose money (decision 15).

    Raises:
        ConfigError: A check failed.
        ChainUnavailableError: The node does not answer.
        LedgerUnavailableError: The database does not answer.
    """
    async with AsyncExitStack() as open_:
        payee = await open_.enter_async_context(open_signer(config.payee))
        relayer = None
        if config.relayer.address is not None:
            relayer = await open_.enter_async_context(open_signer(config.relayer))
        sender = relayer or payee
        ledger = await open_ledger(
            config.ledger.url, exclusive=False, accounts=config.ledger.accounts
        )
        open_.push_async_callback(ledger.close)
        reader = await open_.enter_async_context(connect_escrow(config.chain))
        await reader.require_deployment(token=parse_address(config.chain.token))
        journal = await open_journal(
            config.ledger.url, chain_id=config.chain.id, account=sender.address
        )
        open_.push_async_callback(journal.close)
        orders = await open_orders(
            config.ledger.url, chain_id=config.chain.id, escrow=reader.escrow
        )
        open_.push_async_callback(orders.close)
        charges = await open_charges(
            config.ledger.url,
            chain_id=config.chain.id,
            token=parse_address(config.chain.token),
        )
        open_.push_async_callback(charges.close)
        yield SettlerParts(
            config=config,
            ledger=ledger,
            journal=journal,
            orders=orders,
            charges=charges,
            reader=reader,
            sender=sender,
            payee=None if relayer is None else payee,
        )


async def run_settler(
    config: SettlerConfig,
    *,
    announce: Announce,
    stopping: asyncio.Event,
    lease: LeaseLimits | None = None,
) -> None:
    """Settle whenever this process has the lease, until `stopping` is set.

    Raises:
        ConfigError: A check failed; nothing was done.
        InvariantError: A bug; the process must end.
    """
    limits = lease or LeaseLimits()
    async with build_settler(config) as parts:

        async def work() -> None:
            await _settle(parts, limits, announce, stopping)

        await while_leader(parts.journal, work, limits=limits, announce=announce, stopping=stopping)


class SettledNow(msgspec.Struct, frozen=True, kw_only=True):
    """What `settle_now` did."""

    channels: int
    """That were settled; what was owed a close is not in it."""
    closed: int
    waiting: int
    """What was due and is not done: the log says why."""
    amount: int
    """What that paid out, in base units of the token."""
    unit: TokenUnit


async def settle_now(config: SettlerConfig, *, lease: LeaseLimits | None = None) -> SettledNow:
    """Settle every unsettled amount on open channels, however small, and wait until it is mined.

    Closes that are owed are made, too. Gas may cost as much as is settled, and no more.

    Raises:
        CommandError: Another settler has the payee's key.
        ConfigError: A check failed; nothing was done.
        InvariantError: A bug.
    """
    limits = lease or LeaseLimits()
    settlement = replace(config.settlement, settle_value=1, gas_share_max_percent=100)
    async with build_settler(replace(config, settlement=settlement)) as parts:
        if await parts.journal.take_lease(name_holder(), ttl_s=limits.ttl_s) is None:
            holder = await parts.journal.lease_holder() or "another settler"
            raise CommandError(
                f"{holder} settles for this payee, by `settlement.settle_value` and "
                "`settlement.settle_age_s`: stop that gateway or settler first"
            )
        try:
            return await _settle_all(parts, limits)
        finally:
            await release(parts.journal)


async def _settle_all(parts: SettlerParts, limits: LeaseLimits) -> SettledNow:
    sender, settler, watcher, _ = await parts.build()
    await settler.recover()
    before = await _open_channels(parts, settler.payee)
    swept: list[Sweep] = []

    async def sweep() -> None:
        swept.append(await watcher.sweep())

    try:
        await first_of(
            keep_lease(parts.journal, limits=limits),
            sender.run(),
            sweep(),
            settler.tasks.until_failure(),
        )
    finally:
        await settler.aclose()
    after = [await parts.ledger.load(state.key) for state in before]
    paid = sum(now.settled - then.settled for then, now in zip(before, after, strict=True) if now)
    unit = await read_token_unit(parts.reader.rpc, parse_address(parts.config.chain.token))
    return SettledNow(
        channels=swept[0].settled,
        closed=swept[0].closed,
        waiting=swept[0].waiting,
        amount=paid,
        unit=unit or BASE_UNITS,
    )


async def _open_channels(parts: SettlerParts, payee: Address) -> list[ChannelState]:
    mine = (parts.reader.chain_id, parts.reader.escrow, payee)
    found: list[ChannelState] = []
    after = None
    while page := await parts.ledger.list_channels(after=after, open_only=True):
        after = page[-1].key
        found += [
            each for each in page if (each.key.chain_id, each.key.escrow, each.terms.payee) == mine
        ]
    return found


async def _settle(
    parts: SettlerParts, limits: LeaseLimits, announce: Announce, stopping: asyncio.Event
) -> None:
    """Resume the journal's transactions, then settle until a task ends."""
    sender, settler, watcher, export = await parts.build()
    await settler.recover()
    owed = PendingCloses(
        parts.ledger,
        watcher.begin_pending,
        chain_id=parts.reader.chain_id,
        escrow=parts.reader.escrow,
        payee=settler.payee,
    )
    # Without sponsoring or charges the only orders are from before it was switched off.
    look_s = WANTED_LOOK_S if parts.config.sponsoring.fee_payer else _LEFT_OVER_LOOK_S
    deposits = DepositSender(
        parts.orders,
        parts.reader,
        sender,
        parts.journal,
        look_s=look_s,
        earliest=watcher.clock.earliest,
    )
    charges = ChargeSender(
        parts.charges,
        sender,
        parts.journal,
        token=parse_address(parts.config.chain.token),
        payee=settler.payee,
        look_s=WANTED_LOOK_S if parts.config.rails.charge else _LEFT_OVER_LOOK_S,
        earliest=watcher.clock.earliest,
    )
    announce(SETTLING, f"for 0x{settler.payee.hex()} on chain {parts.reader.chain_id}")
    try:
        await first_of(
            keep_lease(parts.journal, limits=limits),
            sender.run(),
            watcher.run(),
            note_looks(parts.journal, watcher),
            _tidy_quarantine(settler, parts.ledger),
            _prune(parts.journal, watcher),
            owed.run(),
            deposits.run(),
            charges.run(),
            SettleOrders(parts.journal, watcher).run(),
            UnclaimedChannels(
                parts.orders,
                parts.ledger,
                parts.reader,
                confirmations=parts.config.chain.confirmations,
                latest=watcher.clock.latest,
            ).run(),
            *([] if export is None else [export.run()]),
            settler.tasks.until_failure(),
            stopping.wait(),
        )
    finally:
        await settler.aclose()


async def _prune(journal: SettlerJournal, watcher: ChannelWatcher) -> None:
    """Delete transactions that ended long ago, so that the journal does not fill the disk.

    The age counts by this machine's clock and by the chain's, because either may be wrong (O-90).
    """
    while True:
        pause_s = _PRUNE_S
        try:
            if await journal.prune(watcher.clock.earliest() - _KEPT_S):
                pause_s = _PRUNE_REST_S
        except LedgerUnavailableError as error:
            _log.warning("pruning the journal failed, will retry: %s", error)
        await asyncio.sleep(pause_s)


async def _tidy_quarantine(settler: EscrowSettler, ledger: Ledger) -> None:
    """Release ended channels from quarantine, so that monitors do not report them for ever."""
    while True:
        try:
            await settler.forget_ended(ledger)
        except LedgerUnavailableError as error:
            _log.warning("tidying the quarantine failed, will retry: %s", error)
        await asyncio.sleep(_TIDY_S)
