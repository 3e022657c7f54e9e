"""The watchtower as a process: the chain, a file of settles signed ahead, and an account for gas.

It shares nothing with the gateway and its settler but what the file brings. Its own database holds
the journal of what it sent, so that it goes on after a crash with the same bytes.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from service.chain_watch import build_policy, connect_escrow, node_limits, still_s_max
from service.keys import open_signer
from service.leased import Announce, first_of, require_sound, while_leased
from service.settings import TowerConfig, parse_address
from settlement.escrow import EscrowReader
from settlement.fees import FeePolicy, GasBudget
from settlement.journal.interface import SettlerJournal
from settlement.journal.url import open_journal
from settlement.lease import LeaseLimits, keep_lease
from settlement.quarantine import Quarantine
from settlement.settler import EscrowSettler, SettlerLimits
from settlement.signer import Signer
from settlement.tower.calls import PresignedCalls
from settlement.tower.store import TowerFileReader
from settlement.tower.watchtower import TowerLimits, Watchtower
from settlement.tx_manager import TxLimits, TxManager

__all__ = ["WATCHING", "run_tower"]

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
    """Watch over the channels that `path` has settles for, until `stopping` is set.

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

        async def work() -> None:
            await _watch(config, path, reader, journal, account, announce, stopping, limits)

        await while_leased(journal, work, limits=limits, announce=announce, stopping=stopping)


async def _watch(  # noqa: PLR0917 -- what one lease's work is made of
    config: TowerConfig,
    path: Path,
    reader: EscrowReader,
    journal: SettlerJournal,
    account: Signer,
    announce: Announce,
    stopping: asyncio.Event,
    lease: LeaseLimits,
) -> None:
    settlement = config.settlement
    sender = TxManager(
        reader.rpc,
        account,
        journal=journal,
        fees=FeePolicy(max_fee_wei=settlement.max_fee_wei),
        limits=TxLimits(
            mined_within_s=settlement.close_timeout_s, confirmations=config.chain.confirmations
        ),
    )
    calls = PresignedCalls(parse_address(config.payee.address))
    settler = EscrowSettler(
        reader,
        sender,
        calls=calls,
        budget=GasBudget(
            floor_wei=settlement.gas_budget_wei,
            token_price_wei=settlement.token_price_wei,
            token_decimals=settlement.token_decimals,
        ),
        quarantine=Quarantine(journal),
        limits=SettlerLimits(batch_max=1),
    )
    await settler.recover()
    tower = Watchtower(
        reader,
        settler,
        calls,
        gas_account=account.address,
        policy=build_policy(config),
        limits=TowerLimits(
            interval_s=settlement.sweep_interval_s,
            act_percent=config.tower.act_percent,
            still_s_max=still_s_max(config.chain),
            settles_reserved_min=config.exposure.closes_reserved_min,
        ),
        nodes=node_limits(config.chain),
    )
    announce(WATCHING, f"over 0x{calls.payee.hex()} on chain {reader.chain_id} by {path}")
    try:
        await first_of(
            keep_lease(journal, limits=lease),
            sender.run(),
            _turns(tower, TowerFileReader(path), settlement.sweep_interval_s),
            require_sound(settler),
            stopping.wait(),
        )
    finally:
        await tower.aclose()
        await settler.aclose()


async def _turns(tower: Watchtower, reader: TowerFileReader, interval_s: float) -> None:
    """Take what came and look, for ever. A file that cannot be read rings when it goes on."""
    while True:
        try:
            while lines := await reader.read_new():
                tower.take(lines)
        except OSError as error:
            _log.warning("the provider's file was not read; tried again: %s", error)
        await tower.turn()
        await asyncio.sleep(interval_s)
