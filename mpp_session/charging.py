"""Decides at start whether to take charges and x402, and opens what they need."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from channel.errors import ConfigError
from channel.limits import SPONSORED_PERIOD_S
from channel.types import TokenUnit
from mpp_session.settings import ProviderConfig, parse_address
from settlement.charge.capabilities import require_transfers
from settlement.charge.orders.interface import GasLimit
from settlement.charge.orders.url import open_charges
from settlement.charge.worker import ChargeLimits, ChargeWorker
from settlement.escrow.reader import EscrowReader
from settlement.settle.gas_check import require_gas
from settlement.tx.orders import GWEI

if TYPE_CHECKING:
    from mpp_session.rails.serving import ChargeRails
    from settlement.escrow.token_domain import TokenDomain

__all__ = ["open_rails"]


@asynccontextmanager
async def open_rails(
    config: ProviderConfig, reader: EscrowReader, unit: TokenUnit | None, now: Callable[[], float]
) -> "AsyncIterator[ChargeRails | None]":
    """Open the rails of an application, or yield None if `rails.charge` is off.

    `unit` is the token's. `now` gives Unix seconds.

    Raises:
        ConfigError: The settings promise what the token, the gas or the installation does not
            allow.
        ChainUnavailableError: The node does not answer.
    """
    settings = config.rails
    if not settings.charge:
        yield None
        return
    if find_spec("mpp") is None:
        raise ConfigError("`rails.charge` needs pympp: pip install mpp-session[charge]")
    if unit is None:
        raise ConfigError("`rails.charge` is set, but the token states no symbol and decimals")
    token, payee = parse_address(config.chain.token), parse_address(config.payee.address)
    sender = config.gas_account
    domain = await require_transfers(reader.rpc, token, payee=payee, sender=sender)
    closes_min = config.exposure.closes_reserved_min
    await require_gas(reader.rpc, sender, closes_min=closes_min, setting="rails.charge")
    build = await asyncio.to_thread(_import_builder)
    orders = await open_charges(config.ledger.url, chain_id=config.chain.id, token=token)
    try:
        worker = ChargeWorker(
            orders,
            reader.rpc,
            token=token,
            payee=payee,
            sender=sender,
            limits=ChargeLimits(
                gas=GasLimit(period_s=SPONSORED_PERIOD_S, gas_gwei=settings.gas_budget_wei // GWEI),
                gas_price_max_wei=settings.gas_price_max_wei,
                margin_s=settings.margin_s,
                wait_s=settings.wait_s,
                lease_s=config.payment.reservation_lease_s,
            ),
            now=now,
        )
        yield build(config, worker, domain, unit)
    finally:
        await orders.close()


_Build: TypeAlias = "Callable[[ProviderConfig, ChargeWorker, TokenDomain, TokenUnit], ChargeRails]"


def _import_builder() -> _Build:
    """Import what only charges use. Slow: use a thread."""
    from mpp_session.rails.build import build_rails  # noqa: PLC0415 -- an extra

    return build_rails
