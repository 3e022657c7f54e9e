"""The settler as a process: settles and closes for one payee, and stands by while another does.

It runs beside the gateway, started by it, or apart on the same database (decision 14). What it
needs to know is in the books: closes that workers decided, and what the chain says. What it did is
in the journal, in the same database. Killed at any moment, the next one goes on from there.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.types import Address, address
from service.chain_watch import build_gate, build_watcher, rpc_urls
from service.keys import load_signer
from service.settings import SettlerConfig
from settlement.deposit_sender import DepositSender
from settlement.errors import LeaseLostError
from settlement.escrow import EscrowReader
from settlement.fees import FeePolicy, GasBudget
from settlement.journal.interface import Look, SettlerJournal
from settlement.journal.url import open_journal
from settlement.lease import LeaseLimits, keep_lease, wait_for_lease
from settlement.orders.interface import DepositOrders
from settlement.orders.url import open_orders
from settlement.owed import OwedCloses
from settlement.quarantine import Quarantine
from settlement.rpc import Rpc, RpcLimits
from settlement.settler import EscrowSettler, SettlerLimits
from settlement.signer import RemoteSigner, Signer
from settlement.tx_manager import TxLimits, TxManager
from settlement.watcher import ChannelWatcher

__all__ = ["SETTLING", "STANDING_BY", "Announce", "SettlerParts", "build_settler", "run_settler"]

_log: Final = logging.getLogger(__name__)

SETTLING: Final = "settling"
STANDING_BY: Final = "standing by"

Announce = Callable[[str, str], None]
"""Told what the settler does now, and a detail for people."""

_FINISH_S: Final = 5.0
_NOTE_LOOK_S: Final = 5.0


class SettlerParts(msgspec.Struct, frozen=True):
    """What stays as long as the process: the books, the node, the keys."""

    config: SettlerConfig
    ledger: Ledger
    journal: SettlerJournal
    orders: DepositOrders
    reader: EscrowReader
    sender: Signer
    """The account that sends and pays the gas."""
    payee: Signer | None
    """Who signs for it, when that is another account."""

    def build(self) -> tuple[TxManager, EscrowSettler, ChannelWatcher]:
        """Return what lives as long as the lease: it remembers what is under way."""
        settlement = self.config.settlement
        sender = TxManager(
            self.reader.rpc,
            self.sender,
            journal=self.journal,
            fees=FeePolicy(max_fee_wei=settlement.max_fee_wei),
            limits=TxLimits(
                mined_within_s=settlement.close_timeout_s,
                confirmations=self.config.chain.confirmations,
            ),
        )
        settler = EscrowSettler(
            self.reader,
            sender,
            payee=self.payee,
            budget=GasBudget(
                floor_wei=settlement.gas_budget_wei,
                token_price_wei=settlement.token_price_wei,
                token_decimals=settlement.token_decimals,
            ),
            quarantine=Quarantine(self.journal),
            limits=SettlerLimits(batch_max=settlement.batch_max),
        )
        watcher = build_watcher(
            self.config,
            self.reader,
            self.ledger,
            settler,
            payee=settler.payee,
            gas_account=sender.address,
            gate=build_gate(self.config),
            unit_price=1 if self.config.price is None else self.config.price.per_unit,
        )
        return sender, settler, watcher


@asynccontextmanager
async def build_settler(config: SettlerConfig) -> AsyncIterator[SettlerParts]:
    """Open the books, connect to the node, and check what would lose money later (decision 15).

    Raises:
        ConfigError: A check failed.
        ChainUnavailableError: The node does not answer.
        LedgerUnavailableError: The database does not answer.
    """
    async with AsyncExitStack() as open_:
        payee = await _load(config.payee, open_)
        relayer = None if config.relayer.address is None else await _load(config.relayer, open_)
        sender = relayer or payee
        ledger = await open_ledger(config.ledger.url, exclusive=False)
        open_.push_async_callback(ledger.close)
        rpc = await open_.enter_async_context(
            await Rpc.connect(
                rpc_urls(config.chain),
                chain_id=config.chain.id,
                limits=RpcLimits(timeout_s=config.chain.rpc_timeout_s),
            )
        )
        reader = EscrowReader(rpc, _address(config.chain.escrow))
        await reader.require_deployment(token=_address(config.chain.token))
        journal = await open_journal(
            config.ledger.url, chain_id=config.chain.id, account=sender.address
        )
        open_.push_async_callback(journal.close)
        orders = await open_orders(
            config.ledger.url, chain_id=config.chain.id, escrow=reader.escrow
        )
        open_.push_async_callback(orders.close)
        yield SettlerParts(
            config=config,
            ledger=ledger,
            journal=journal,
            orders=orders,
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
    """Settle whenever the lease is ours, until `stopping` is set.

    Raises:
        ConfigError: A check failed; nothing was done.
        InvariantError: A bug; the process must end.
    """
    limits = lease or LeaseLimits()
    holder = f"{socket.gethostname()} process {os.getpid()} {secrets.token_hex(4)}"
    async with build_settler(config) as parts:
        while not stopping.is_set():
            waiting = wait_for_lease(
                parts.journal,
                holder,
                limits=limits,
                on_standby=lambda other: announce(STANDING_BY, f"{other} settles"),
            )
            if not await _unless(stopping, waiting):
                return
            try:
                await _settle(parts, limits, announce, stopping)
            except LeaseLostError as error:
                _log.warning("standing by from now on: %s", error)
            finally:
                await _release(parts.journal)


async def _settle(
    parts: SettlerParts, limits: LeaseLimits, announce: Announce, stopping: asyncio.Event
) -> None:
    """Go on with what is journalled, then settle until something ends it."""
    sender, settler, watcher = parts.build()
    await settler.recover()
    owed = OwedCloses(
        parts.ledger,
        watcher.begin_owed,
        chain_id=parts.reader.chain_id,
        escrow=parts.reader.escrow,
        payee=settler.payee,
    )
    announce(SETTLING, f"for 0x{settler.payee.hex()} on chain {parts.reader.chain_id}")
    try:
        await _first_of(
            keep_lease(parts.journal, limits=limits),
            sender.run(),
            watcher.run(),
            _note_looks(parts.journal, watcher),
            owed.run(),
            DepositSender(parts.orders, parts.reader, sender, parts.journal).run(),
            _fail_with(settler),
            stopping.wait(),
        )
    finally:
        await settler.aclose()


async def _release(journal: SettlerJournal) -> None:
    try:
        await journal.release_lease()
    except LedgerUnavailableError as error:
        _log.warning("the lease was not given back, and runs out by itself: %s", error)


async def _note_looks(journal: SettlerJournal, watcher: ChannelWatcher) -> None:
    """Write down now and then which block was seen last, for `mpp-session status`."""
    while True:
        await asyncio.sleep(_NOTE_LOOK_S)
        head, age_s = watcher.head, watcher.looked_s_ago
        if head is None or age_s is None:
            continue
        look = Look(head.number, head.hash, head.timestamp, int(time.time() - age_s))
        try:
            await journal.note_look(look)
        except LedgerUnavailableError as error:
            _log.warning("the last look at the chain was not noted: %s", error)


async def _fail_with(settler: EscrowSettler) -> None:
    """Raise what only a bug, or a lost lease, raises."""
    while True:
        await asyncio.sleep(0.2)
        settler.require_sound()


async def _first_of(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all of it until the first one ends; raise what ended it."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_FINISH_S)
    for task in done:
        task.result()


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Run something to its end; False when we are asked to stop first."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    task.result()
    return True


async def _load(settings: Any, open_: AsyncExitStack) -> Signer:
    signer = await asyncio.to_thread(load_signer, settings)
    if isinstance(signer, RemoteSigner):
        open_.push_async_callback(signer.close)
    return signer


def _address(text: str) -> Address:
    try:
        return address(bytes.fromhex(text.removeprefix("0x")))
    except ValueError as error:
        raise ConfigError(f"{text} is no address") from error
