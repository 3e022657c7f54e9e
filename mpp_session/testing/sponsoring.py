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
from settlement.escrow.reader import EscrowReader
from settlement.sponsor.capabilities import probe
from settlement.sponsor.orders.interface import GWEI, OrderLimits
from settlement.sponsor.orders.url import open_orders
from settlement.sponsor.sender import DepositSender
from settlement.sponsor.worker import SponsorLimits, WaitingSponsor
from settlement.tx.journal.url import open_journal
from settlement.tx.manager import TxManager
from settlement.tx.signer import Signer

__all__ = ["DEPOSIT_MIN", "PaidGas", "pay_gas"]

DEPOSIT_MIN: Final = 1_000
"""Least deposit that is worth its gas, in base units."""

_PLENTY: Final = 1_000_000
_LEASE_S: Final = 24 * 3600.0


class PaidGas(msgspec.Struct, frozen=True):
    """What an engine needs to accept signed deposits, and the account that sends them."""

    terms: SponsorTerms
    sponsor: DepositSponsor
    sender: TxManager
    """Sends from the paying account, which also sends the closes."""


@asynccontextmanager
async def pay_gas(
    reader: EscrowReader, signer: Signer, token: Address, folder: Path
) -> AsyncIterator[PaidGas]:
    """Send signed deposits from `signer`, as a settler does, until the context ends.

    Journal and orders are stored in `folder`, beside the ledger. Only the account's ether bounds
    them: a test may make any number of deposits.
    """
    url, chain_id = f"sqlite:///{folder / 'ledger.db'}", reader.chain_id
    capabilities = await probe(reader, token)
    journal = await open_journal(url, account=signer.address, chain_id=chain_id)
    orders = await open_orders(url, chain_id=chain_id, escrow=reader.escrow)
    limits = SponsorLimits(
        orders=OrderLimits(period_s=1, gas_gwei=_PLENTY * GWEI, per_funder=_PLENTY),
        gas_price_max_wei=_PLENTY * GWEI,
        margin_s=1,
        wait_s=10,
    )
    await journal.take_lease("mpp_session.testing", ttl_s=_LEASE_S)
    sender = TxManager(reader.rpc, signer, journal=journal)
    try:
        async with Tasks() as tasks:
            tasks.start(sender.run())
            tasks.start(DepositSender(orders, reader, sender, journal).run())
            yield PaidGas(
                terms=SponsorTerms(
                    credential_types=(*capabilities.able, "hash"),
                    token_domain=capabilities.token_domain,
                    deposit_min=DEPOSIT_MIN,
                    per_source_max=_PLENTY,
                ),
                sponsor=WaitingSponsor(orders, reader, sender=signer.address, limits=limits),
                sender=sender,
            )
    finally:
        await orders.close()
        await journal.close()
