"""What a provider has earned, by token: from all channels in the books, the ended ones too.

The gas is from the journal, which keeps what ended for 90 days.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from channel.ledger.queries import TablesMissingError
from channel.state.channel_state import ChannelState
from channel.types import Address
from settlement.charge.orders.url import open_charges
from settlement.settle.schedule import value_at_risk
from settlement.sponsor.orders.url import open_orders
from settlement.tx.gas_hour import payout_cost_wei
from settlement.tx.journal.url import open_journal
from settlement.tx.orders import GWEI

__all__ = ["Earned", "GasSpent", "Payments", "add_up", "read_gas", "read_payments"]

EVER: Final = 2**62
"""A time in Unix seconds after every other."""


class Earned(msgspec.Struct, kw_only=True):
    """All channels of one token on one chain. Amounts in base units."""

    chain_id: int
    token: Address
    channels: int = 0
    open: int = 0
    delivered: int = 0
    """Service that was delivered, paid out or not."""
    accepted: int = 0
    """What the best vouchers promise."""
    settled: int = 0
    """What the escrow has paid to the payee."""
    at_risk: int = 0
    """Delivered, or promised to a running stream, and not settled, on open channels."""
    lost: int = 0
    """Delivered on channels that ended for less."""
    refunded: int = 0
    """What ended channels gave back to their payers."""


class GasSpent(msgspec.Struct, frozen=True, kw_only=True):
    """What was paid for gas in the last 90 days, and may be still for what is under way, in wei."""

    payouts_wei: int = 0
    """For settles and closes."""
    deposits_wei: int = 0
    """For payers."""


class Payments(msgspec.Struct, kw_only=True):
    """Requests that were paid in one token by transfers of their own, as long as they are kept."""

    token: Address
    count: int = 0
    paid: int = 0
    """In base units; it is in the payee's account."""
    credit: int = 0
    """The part of `paid` that was not served yet."""


def add_up(states: Sequence[ChannelState], payee: Address | None) -> list[Earned]:
    """Return the sums, a token each; of one payee's channels, or of all if None (pure)."""
    found: dict[tuple[int, Address], Earned] = {}
    for state in states:
        if payee is not None and state.terms.payee != payee:
            continue
        chain_id, token = state.key.chain_id, state.terms.token
        sums = found.setdefault((chain_id, token), Earned(chain_id=chain_id, token=token))
        sums.channels += 1
        sums.delivered += state.spent
        sums.accepted += state.accepted
        sums.settled += state.settled
        if state.is_finalized:
            sums.refunded += state.deposit - state.settled
            sums.lost += max(0, state.spent - state.settled)
        else:
            sums.open += 1
            sums.at_risk += value_at_risk(state)
    return list(found.values())


async def read_payments(url: str, *, chain_id: int, token: Address) -> Payments:
    """Return the sums of single payments; zeros where none was ever taken on these books."""
    sums = Payments(token=token)
    try:
        orders = await open_charges(url, chain_id=chain_id, token=token, read_only=True)
    except TablesMissingError:
        return sums
    try:
        after = None
        while page := await orders.list_made(0, EVER, after=after):
            sums.count += len(page)
            sums.paid += sum(order.amount for order in page)
            sums.credit += sum(order.amount for order in page if not order.is_served)
            after = page[-1]
    finally:
        await orders.close()
    return sums


async def read_gas(url: str, *, chain_id: int, account: Address, escrow: Address) -> GasSpent:
    """Return what an account paid; nothing where no settler ever ran on these books."""
    payouts_wei = deposits_wei = 0
    try:
        journal = await open_journal(url, chain_id=chain_id, account=account, read_only=True)
    except TablesMissingError:
        return GasSpent()
    try:
        payouts_wei = payout_cost_wei(await journal.sent_since(0))
    finally:
        await journal.close()
    try:
        orders = await open_orders(url, chain_id=chain_id, escrow=escrow, read_only=True)
    except TablesMissingError:
        return GasSpent(payouts_wei=payouts_wei)
    try:
        deposits_wei = await orders.gas_gwei_since(0) * GWEI
    finally:
        await orders.close()
    return GasSpent(payouts_wei=payouts_wei, deposits_wei=deposits_wei)
