"""Decides at start which deposits to sponsor, and builds the sponsor."""

import logging
from typing import Final

from channel.chain import DepositSponsor
from channel.engine import SponsorTerms
from channel.limits import SPONSORED_PERIOD_S
from channel.types import Address
from mpp_session.settings import ProviderConfig
from settlement.escrow.reader import EscrowReader
from settlement.settle.gas_check import require_gas
from settlement.sponsor.capabilities import probe
from settlement.sponsor.orders.interface import DepositOrders
from settlement.sponsor.worker import SponsorLimits, WaitingSponsor
from settlement.tx.orders import GWEI, OrderLimits

__all__ = ["build_sponsoring"]

_log: Final = logging.getLogger(__name__)


async def build_sponsoring(
    config: ProviderConfig,
    reader: EscrowReader,
    orders: DepositOrders,
    *,
    token: Address,
    sender: Address,
) -> tuple[SponsorTerms, DepositSponsor] | None:
    """Return the terms and the sponsor, or None if `sponsoring.fee_payer` is off.

    `sender` is the account that pays the gas.

    Raises:
        ConfigError: The settings promise what the chain, the token or the gas does not allow.
        ChainUnavailableError: The node does not answer.
    """
    sponsoring = config.sponsoring
    if not sponsoring.fee_payer:
        return None
    capabilities = await probe(reader, token)
    types = capabilities.require(sponsoring.types)
    closes_min = config.exposure.closes_reserved_min
    await require_gas(reader.rpc, sender, closes_min=closes_min, setting="sponsoring.fee_payer")
    for name, why in capabilities.obstacles.items():
        _log.warning("deposits by %s are not offered: %s", name, why)
    terms = SponsorTerms(
        credential_types=(*types, "hash"),
        token_domain=capabilities.token_domain,
        deposit_min=sponsoring.deposit_min,
        per_source_max=sponsoring.deposits_per_address,
    )
    sponsor = WaitingSponsor(
        orders,
        reader,
        sender=sender,
        limits=SponsorLimits(
            orders=OrderLimits(
                period_s=SPONSORED_PERIOD_S,
                gas_gwei=sponsoring.gas_budget_wei // GWEI,
                per_funder=sponsoring.deposits_per_payer,
            ),
            gas_max=sponsoring.gas_per_deposit_max,
            gas_price_max_wei=sponsoring.gas_price_max_wei,
            margin_s=sponsoring.margin_s,
            wait_s=sponsoring.wait_s,
        ),
    )
    return terms, sponsor
