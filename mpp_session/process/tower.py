"""The watchtower process: reads the chain and the provider's file, and pays gas.

It shares nothing with the gateway and its settler except the file. Its own database holds the
journal of its transactions, so that after a crash it continues with the same bytes.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from channel.tasks import first_of
from mpp_session.chain_watch import (
    build_budget,
    build_policy,
    build_sender,
    connect_escrow,
    node_limits,
    still_s_max,
)
from mpp_session.keys import open_signer
from mpp_session.process.leader import Announce, note_looks, while_leader
from mpp_session.settings import TowerConfig, parse_address
from settlement.escrow.reader import EscrowReader
from settlement.presigned.file import TowerFileReader
from settlement.settle.quarantine import Quarantine
from settlement.settle.settler import EscrowSettler, SettlerLimits
from settlement.tower.calls import PresignedCalls
from settlement.tower.watchtower import TowerLimits, Watchtower
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal
from settlement.tx.lease import LeaseLimits, keep_lease
from settlement.tx.manager import TxManager
from settlement.tx.signer import Signer

__all__ = ["WATCHING", "TowerParts", "run_tower"]

_log: Final = logging.getLogger(__name__)

WATCHING: Final = "watching"


async def run_tower(
    config: TowerConfig,
    path: Path,
    *,
    announce: Announce,
    stopping: asyncio.Event,
    lease: LeaseLimits | None = None,
) -> None:
    """Watch the channels for which `path` has settles, until `stopping` is set.

    Raises:
        ConfigError: A check failed; nothing was done.
        ChainUnavailableError: No node answers.
        LedgerUnavailableError: The journal's database does not answer.
        InvariantError: A bug; the process must end.
    """
    limits = lease or LeaseLimits()
    async with AsyncExitStack() as open_:
        account = await open_.enter_async_context(open_signer(config.relayer))
        reader = await open_.enter_async_context(connect_escrow(config.chain))
        await reader.require_deployment(token=parse_address(config.chain.token))
        journal = await open_journal(
            config.ledger.url, chain_id=config.chain.id, account=account.address
        )
        open_.push_async_callback(journal.close)

        parts = TowerParts(config, path, reader, journal, account)

        async def work() -> None:
            await _watch(parts, announce, stopping, limits)

        await while_leader(journal, work, limits=limits, announce=announce, stopping=stopping)


class TowerParts(msgspec.Struct, frozen=True):
    """Resources that live as long as the process."""

    config: TowerConfig
    path: Path
    """The file that the provider writes."""
    reader: EscrowReader
    journal: SettlerJournal
    account: Signer
    """The tower's own account, which pays the gas."""

    def build(self) -> tuple[TxManager, EscrowSettler, Watchtower]:
        """Build the objects that live as long as the lease: they remember open transactions."""
        config, settlement = self.config, self.config.settlement
        sender = build_sender(config, self.reader.rpc, self.account, self.journal)
        calls = PresignedCalls(parse_address(config.payee.address))
        settler = EscrowSettler(
            self.reader,
            sender,
            calls=calls,
            budget=build_budget(settlement),
            quarantine=Quarantine(self.journal),
            limits=SettlerLimits(batch_max=1),
        )
        tower = Watchtower(
            self.reader,
            settler,
            calls,
            gas_account=self.account.address,
            policy=build_policy(config),
            limits=TowerLimits(
                interval_s=settlement.sweep_interval_s,
                act_percent=config.tower.act_percent,
                still_s_max=still_s_max(config.chain),
                settles_reserved_min=config.exposure.closes_reserved_min,
            ),
            nodes=node_limits(config.chain),
        )
        return sender, settler, tower


async def _watch(
    parts: TowerParts, announce: Announce, stopping: asyncio.Event, lease: LeaseLimits
) -> None:
    """Resume the journal's transactions, then watch until a task ends."""
    sender, settler, tower = parts.build()
    await settler.recover()
    where = f"on chain {parts.reader.chain_id} by {parts.path}"
    announce(WATCHING, f"over 0x{settler.payee.hex()} {where}")
    interval_s = parts.config.settlement.sweep_interval_s
    try:
        await first_of(
            keep_lease(parts.journal, limits=lease),
            sender.run(),
            note_looks(parts.journal, tower),
            _turns(tower, interval_s),
            _take_lines(tower, TowerFileReader(parts.path), interval_s),
            settler.tasks.until_failure(),
            tower.tasks.until_failure(),
            stopping.wait(),
        )
    finally:
        await tower.tasks.aclose()
        await settler.aclose()


async def _turns(tower: Watchtower, interval_s: float) -> None:
    """Look at the chain for ever."""
    while True:
        await tower.turn()
        await asyncio.sleep(interval_s)


async def _take_lines(tower: Watchtower, reader: TowerFileReader, interval_s: float) -> None:
    """Read new lines for ever, in a task of its own: a hanging file holds up no settle."""
    while True:
        try:
            while lines := await reader.read_new():
                tower.take(lines)
                await asyncio.sleep(0)
            tower.note_file(None)
        except OSError as error:
            tower.note_file(error)
        await asyncio.sleep(interval_s)
