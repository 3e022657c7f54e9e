"""Builds every object of a provider, once, and closes them in order.

Faults that would lose money later are found here, before the socket opens (decision 15): the node's
chain, the escrow's code, signing domain, token and grace period (OPEN-09), and the ledger's
durability. The settler, which has the key in a process of its own (decision 14), checks that the
key is the payee's (F-81). Each check raises `ConfigError`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec

from channel.chain import CloseRefusals, DepositSponsor
from channel.engine import Engine, EngineSettings, SponsorTerms, verifying_threads
from channel.errors import LedgerUnavailableError
from channel.http.rails import Rails
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.verify.challenge_id import ChallengeBinder
from mpp_session.agent.amounts import TokenUnit
from mpp_session.chain_watch import build_gate, build_watcher, connect_escrow
from mpp_session.charging import open_rails
from mpp_session.one_ledger import LedgerGuard, guard_ledger
from mpp_session.process.child import SettlerChild, start_settler
from mpp_session.process.clock import ServiceClock, require_clock
from mpp_session.settings import ProviderConfig, parse_address
from mpp_session.sponsoring import build_sponsoring
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from settlement.settle.exposure import ExposureGate
from settlement.settle.refusals import JournalRefusals
from settlement.sponsor.orders.url import open_orders
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal
from settlement.watch.watcher import ChannelWatcher

__all__ = ["Parts", "build_parts"]

_log: Final = logging.getLogger(__name__)

_PRUNE_INTERVAL_S: Final = 600.0
_TIME_LOOK_S: Final = 1.0


class Parts(msgspec.Struct, frozen=True):
    """The objects of one provider: a gateway, or a selling application."""

    config: ProviderConfig
    ledger: Ledger
    reader: EscrowReader
    engine: Engine
    watcher: ChannelWatcher
    """Records in the ledger what the chain shows; the settler settles and closes."""
    settler: SettlerChild | None
    """The settler, if this process started it."""
    clock: ServiceClock
    guard: LedgerGuard
    journal: SettlerJournal
    """The settler's, which holds the operator's orders too."""
    rails: Rails | None = None
    """The ways to pay beside the session, if `rails.charge` is set."""
    unit: TokenUnit | None = None
    """How people write amounts of the token; None if the token reports no name."""
    is_first: bool = True
    """Whether this process does what one of several workers must do: expire, prune."""

    def _earliest(self) -> float:
        """Return the earlier of this clock's time and the chain's; 0 before the first block."""
        return min(self.clock.now(), self.watcher.clock.earliest())

    def background(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Return the tasks that must run while the gateway serves, by name.

        None of them ends by itself. If one ends, the caller must stop serving.
        """
        watching = {
            "watching the chain": self.watcher.run(),
            "keeping time": _keep_time(self.clock, self.watcher),
            "looking after the ledger": self.guard.run(self.watcher.alarms),
        }
        if not self.is_first:
            return watching
        lease_s = self.config.payment.reservation_lease_s
        tasks = {
            **watching,
            "ending expired reservations": _expire_reservations(self.engine, lease_s / 4),
            "pruning the ledger": _prune(self.ledger, self._earliest),
        }
        if self.settler is not None:
            tasks["keeping the settler alive"] = self.settler.run()
        return tasks


@asynccontextmanager
async def build_parts(
    config: ProviderConfig, *, is_first: bool = True, processes: int = 1
) -> AsyncIterator[Parts]:
    """Build, check and connect; on leaving, finish what must be finished and close.

    Of several workers (`processes` on this machine) with one ledger, one is the first: it expires
    reservations for all. Every worker watches the chain for its own decisions; none has a key.

    Raises:
        ConfigError: A check failed; nothing was served.
        ChainUnavailableError: The node does not answer.
        LedgerUnavailableError: The ledger cannot be opened.
    """
    async with AsyncExitStack() as open_:
        ledger = await open_ledger(
            config.ledger.url,
            exclusive=True,
            channels_cached_max=config.ledger.channels_cached,
            accounts=config.ledger.accounts,
        )
        open_.push_async_callback(ledger.close)
        reader = await open_.enter_async_context(connect_escrow(config.chain))
        token, payee = parse_address(config.chain.token), parse_address(config.payee.address)
        await reader.require_deployment(token=token)
        guard = await open_.enter_async_context(guard_ledger(config, ledger, reader, payee))
        child = None
        if config.settlement.start:  # not on a refused ledger: it would close for too little
            child = await open_.enter_async_context(start_settler(config))
        journal = await open_journal(  # the settler's: it holds the last look at the chain
            config.ledger.url, chain_id=config.chain.id, account=config.gas_account
        )
        open_.push_async_callback(journal.close)
        await _require_clock(reader, journal)
        clock = ServiceClock()
        gate = build_gate(config, processes=processes)
        orders = await open_orders(
            config.ledger.url, chain_id=config.chain.id, escrow=reader.escrow
        )
        open_.push_async_callback(orders.close)
        sponsored = await build_sponsoring(
            config, reader, orders, token=token, sender=config.gas_account
        )
        engine = _build_engine(
            config,
            ledger,
            reader,
            JournalRefusals(journal),
            gate=gate,
            sponsored=sponsored,
            threads=verifying_threads(processes),
            clock=clock,
        )
        open_.push_async_callback(engine.aclose)
        watcher = build_watcher(
            config,
            reader,
            ledger,
            None,
            payee=payee,
            gas_account=config.gas_account,
            gate=gate,
            journal=journal,
        )
        if child is not None:
            await child.ready()
        unit = await read_token_unit(reader.rpc, token)
        rails = await open_.enter_async_context(open_rails(config, reader, unit, clock.now))
        yield Parts(
            config=config,
            ledger=ledger,
            reader=reader,
            engine=engine,
            watcher=watcher,
            settler=child,
            clock=clock,
            guard=guard,
            journal=journal,
            rails=rails,
            unit=unit,
            is_first=is_first,
        )


def _build_engine(
    config: ProviderConfig,
    ledger: Ledger,
    reader: EscrowReader,
    refusals: CloseRefusals,
    *,
    gate: ExposureGate,
    sponsored: tuple[SponsorTerms, DepositSponsor] | None,
    threads: int,
    clock: ServiceClock,
) -> Engine:
    payment = config.payment
    terms, sponsor = sponsored or (None, None)
    return Engine(
        ledger=ledger,
        chain=reader,
        admission=gate,
        sponsor=sponsor,
        refusals=refusals,
        now=clock.now,
        binder=ChallengeBinder([secret.reveal().encode() for secret in payment.secrets]),
        settings=EngineSettings(
            realm=payment.realm,
            payee=parse_address(config.payee.address),
            token=parse_address(config.chain.token),
            confirmations=config.chain.confirmations,
            challenge_lifetime_s=payment.challenge_lifetime_s,
            credential_header=payment.credential_header,
            chain_checks_per_address=payment.chain_checks_per_address,
            vouchers_per_second=payment.vouchers_per_second,
            reservation_step_units=payment.reservation_step_units,
            reservation_lease_s=payment.reservation_lease_s,
            close_timeout_s=config.settlement.close_timeout_s,
            verifying_threads=threads,
            takes_contract_signatures=config.exposure.contract_signed_max > 0,
            sponsor=terms,
        ),
    )


async def _expire_reservations(engine: Engine, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            ended = await engine.end_expired()
        except LedgerUnavailableError:
            _log.exception("ending expired reservations failed, will retry")
        else:
            if ended:
                _log.warning("ended the reservations of %d channels whose owner died", ended)


async def _require_clock(reader: EscrowReader, journal: SettlerJournal) -> None:
    """Compare this machine's clock with the chain's, and with the ledger's last look.

    With several nodes the middle time counts, so that one node cannot prevent the start; of two
    middle times, the one closer to the clock.

    Raises:
        ConfigError: They differ too much.
    """
    views, look = await reader.rpc.compare_nodes(depth=0), await journal.last_look()
    times = sorted(view.head.timestamp for view in views if view.head is not None)
    if not times:
        times = [(await reader.rpc.block()).timestamp]
    middle, wall = (times[(len(times) - 1) // 2], times[len(times) // 2]), time.time()
    head_time = min(middle, key=lambda each: abs(wall - each))
    newest = max(head_time, 0 if look is None else look.block_time)
    require_clock(newest, chain_id=reader.chain_id, wall=wall)


async def _keep_time(clock: ServiceClock, watcher: ChannelWatcher) -> None:
    """Show the clock each block that comes while watching; the first block may be of any age."""
    seen = None
    while True:
        await asyncio.sleep(_TIME_LOOK_S)
        head = watcher.head
        if head is not None and seen is not None and head.number > seen.number:
            clock.saw(head.timestamp)
        seen = head


async def _prune(ledger: Ledger, earliest: Callable[[], float] = time.time) -> None:
    """Delete rows that are old by `earliest`, in Unix seconds: the least of the clocks (O-90)."""
    while True:
        try:
            await ledger.prune(int(earliest()))
        except LedgerUnavailableError:
            _log.exception("pruning the ledger failed, will retry")
        await asyncio.sleep(_PRUNE_INTERVAL_S)
