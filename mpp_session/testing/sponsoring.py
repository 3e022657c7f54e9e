"""Pays the gas of payers that only sign, in one process and without bounds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from channel.chain import DepositSponsor
from channel.engine import SponsorTerms
from channel.tasks import Tasks
from channel.types import Address
from mpp_session.testing.settling import ledger_url
from settlement.escrow.reader import EscrowReader
from settlement.sponsor.capabilities import probe
from settlement.sponsor.orders.url import open_orders
from settlement.sponsor.sender import DepositSender
from settlement.sponsor.worker import SponsorLimits, WaitingSponsor
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.manager import TxManager
from settlement.tx.orders import GWEI, OrderLimits

__all__ = ["DEPOSIT_MIN", "PaidGas", "pay_gas"]

DEPOSIT_MIN: Final = 1_000
"""Least deposit that is worth its gas, in base units."""

_PLENTY: Final = 1_000_000


class PaidGas(msgspec.Struct, frozen=True):
    """What an engine needs to accept signed deposits."""

    terms: SponsorTerms
    sponsor: DepositSponsor


@asynccontextmanager
async def pay_gas(
    reader: EscrowReader, sender: TxManager, journal: SettlerJournal, token: Address, folder: Path
) -> AsyncIterator[PaidGas]:
    """Send signed deposits by `sender`, as a settler does, until the context ends.

    The orders are stored in `folder`, beside the ledger. Only the account's ether bounds them: a
    test may make any number of deposits.
    """
    capabilities = await probe(reader, token)
    orders = await open_orders(ledger_url(folder), chain_id=reader.chain_id, escrow=reader.escrow)
    limits = SponsorLimits(
        orders=OrderLimits(period_s=1, gas_gwei=_PLENTY * GWEI, per_funder=_PLENTY),
        gas_price_max_wei=_PLENTY * GWEI,
        margin_s=1,
        wait_s=10,
    )
    try:
        async with Tasks() as tasks:
            tasks.start(DepositSender(orders, reader, sender, journal).run())
            yield PaidGas(
                terms=SponsorTerms(
                    credential_types=(*capabilities.able, "hash"),
                    token_domain=capabilities.token_domain,
                    deposit_min=DEPOSIT_MIN,
                    per_source_max=_PLENTY,
                ),
                sponsor=WaitingSponsor(orders, reader, sender=sender.address, limits=limits),
            )
    finally:
        await orders.close()
