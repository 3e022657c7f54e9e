"""Builds the chain watcher and the transaction sender from the settings."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from channel.ledger.interface import Ledger
from channel.types import Address
from mpp_session.settings import DEVELOPMENT_CHAINS, Chain, Settlement, WatchConfig, parse_address
from settlement.alarms import Alarms
from settlement.escrow.reader import EscrowReader
from settlement.node.block_notifier import BlockNotifier
from settlement.node.rpc import Rpc, RpcLimits
from settlement.presigned.export import TowerExport
from settlement.settle.executor import Settler
from settlement.settle.exposure import ExposureGate, ExposureLimits
from settlement.settle.schedule import SettlePolicy
from settlement.tx.fees import FeePolicy, GasBudget
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.signer import Signer
from settlement.watch.health import HealthChecks, HealthLimits, Payout
from settlement.watch.node_guard import NodeGuard, NodeLimits
from settlement.watch.watcher import STILL_S_MAX, ChannelWatcher, WatchLimits

__all__ = [
    "build_budget",
    "build_gate",
    "build_policy",
    "build_sender",
    "build_watcher",
    "connect_escrow",
    "node_limits",
    "still_s_max",
]


def _rpc_urls(chain: Chain) -> Sequence[str]:
    """Return every node, the preferred one first."""
    return [chain.rpc_url, *chain.more_rpc_urls]


@asynccontextmanager
async def connect_escrow(chain: Chain) -> AsyncIterator[EscrowReader]:
    """Connect to the chain's nodes and return a reader of its escrow; the escrow is not checked.

    Raises:
        ConfigError: A node serves another chain.
        ChainUnavailableError: No node answers.
    """
    async with await Rpc.connect(
        _rpc_urls(chain), chain_id=chain.id, limits=RpcLimits(timeout_s=chain.rpc_timeout_s)
    ) as rpc:
        yield EscrowReader(rpc, parse_address(chain.escrow))


def still_s_max(chain: Chain) -> float | None:
    """Return how long a node may show no new block; None on a development chain, which may idle."""
    return None if chain.id in DEVELOPMENT_CHAINS else STILL_S_MAX


def node_limits(chain: Chain) -> NodeLimits:
    """Return how far nodes may differ: they must agree at the depth at which deposits count."""
    usual = NodeLimits()
    return replace(usual, compare_depth=max(usual.compare_depth, chain.confirmations))


def build_gate(config: WatchConfig, *, processes: int = 1) -> ExposureGate:
    """Return the exposure gate for one of `processes` processes."""
    exposure = config.exposure
    limits = ExposureLimits(
        channel_max=exposure.channel_max,
        signer_max=exposure.signer_max,
        contract_signed_max=exposure.contract_signed_max // processes,
        total_max=exposure.total_max,
    )
    return ExposureGate(limits)


def build_policy(config: WatchConfig, *, unit_price: int = 1) -> SettlePolicy:
    """Return the policy of settling and closing. `unit_price` is for settling by units."""
    settlement = config.settlement
    return SettlePolicy(
        settle_value=settlement.settle_value,
        settle_age_s=settlement.settle_age_s,
        settle_units=settlement.settle_units,
        unit_price=unit_price,
        exposure_max=config.exposure.channel_max,
        close_idle_s=settlement.close_idle_s or None,
        defend_min=settlement.defend_min,
        token_price_wei=settlement.token_price_wei,
        token_decimals=settlement.token_decimals,
        gas_share_max_percent=settlement.gas_share_max_percent,
    )


def build_budget(settlement: Settlement) -> GasBudget:
    """Return the bound on gas."""
    return GasBudget(
        floor_wei=settlement.gas_budget_wei,
        token_price_wei=settlement.token_price_wei,
        token_decimals=settlement.token_decimals,
    )


def build_sender(
    config: WatchConfig, rpc: Rpc, signer: Signer, journal: SettlerJournal
) -> TxManager:
    """Return the manager of `signer`'s transactions."""
    settlement = config.settlement
    return TxManager(
        rpc,
        signer,
        journal=journal,
        fees=FeePolicy(max_fee_wei=settlement.max_fee_wei),
        limits=TxLimits(
            mined_within_s=settlement.close_timeout_s, confirmations=config.chain.confirmations
        ),
    )


def build_watcher(  # noqa: PLR0913 -- what a watcher is built of, by name
    config: WatchConfig,
    reader: EscrowReader,
    ledger: Ledger,
    settler: Settler | None,
    *,
    payee: Address,
    gas_account: Address | None = None,
    gate: ExposureGate,
    unit_price: int = 1,
    journal: SettlerJournal,
    export: TowerExport | None = None,
) -> ChannelWatcher:
    """Return the watcher of the payee's channels; it settles and closes by `settler` if given.

    `gas_account` is the account whose ether is checked; the payee's if None. Channels in
    `journal`'s quarantine are not served. `export` passes settles signed ahead to a tower.
    """
    settlement = config.settlement
    alarms = Alarms() if export is None else export.alarms
    health = HealthChecks(
        reader,
        alarms,
        gate,
        gas_account=gas_account or payee,
        limits=HealthLimits(closes_reserved_min=config.exposure.closes_reserved_min),
        nodes=NodeGuard(reader, alarms, limits=node_limits(config.chain)),
        export=export,
        refusals=journal,
        ledger=ledger,
        payout=Payout(parse_address(config.chain.token), payee),
    )
    return ChannelWatcher(
        reader,
        ledger,
        settler,
        payee=payee,
        limits=WatchLimits(
            interval_s=settlement.sweep_interval_s,
            poll_interval_s=settlement.poll_interval_s,
            confirmations=config.chain.confirmations,
            still_s_max=still_s_max(config.chain),
        ),
        policy=build_policy(config, unit_price=unit_price),
        heads=BlockNotifier(poll_interval_s=settlement.poll_interval_s, ws_url=config.chain.ws_url),
        health=health,
    )
