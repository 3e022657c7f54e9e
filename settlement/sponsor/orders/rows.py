"""Rows to orders and back, without loss, and the rule of `place`; used by both databases."""

from collections.abc import Sequence
from typing import Any, Final

from channel.errors import SponsoringPausedError, TooManyDepositsError
from channel.ledger.rows import amount_bytes, bytes_amount
from channel.types import Address, ChannelId, ChannelKey, TxHash
from settlement.sponsor.orders.interface import DepositOrder, FirstVoucher
from settlement.tx.orders import OrderLimits, OrderStatus

__all__ = ["order_from_row", "order_values", "require_room"]


_DEADLINE_BYTES: Final = 32
_AMOUNT_BYTES: Final = 16


def order_values(order: DepositOrder) -> list[Any]:
    """Return every column, in the order of `upsert_order`. A top-up is known from the start."""
    first = order.first_voucher
    return [
        order.order_id,
        order.key.chain_id,
        order.key.escrow,
        order.key.channel_id,
        order.funder,
        order.calldata,
        order.deadline.to_bytes(_DEADLINE_BYTES),  # uint256: payers use its maximum for "never"
        order.gas_gwei,
        order.wanted_at,
        int(order.status),
        order.tx_hash,
        order.reason,
        None if first is None else amount_bytes(first.cumulative_amount) + first.signature,
        int(first is None),
    ]


def order_from_row(row: Sequence[Any]) -> DepositOrder:
    """Return an order from the columns of `select_order`."""
    return DepositOrder(
        order_id=row[0],
        key=ChannelKey(row[1], Address(row[2]), ChannelId(row[3])),
        funder=Address(row[4]),
        calldata=row[5],
        deadline=int.from_bytes(row[6]),
        gas_gwei=row[7],
        wanted_at=row[8],
        status=OrderStatus(row[9]),
        tx_hash=None if row[10] is None else TxHash(row[10]),
        reason=row[11],
        first_voucher=_voucher(row[12]),
    )


def _voucher(column: bytes | None) -> FirstVoucher | None:
    if column is None:
        return None
    return FirstVoucher(bytes_amount(column[:_AMOUNT_BYTES]), column[_AMOUNT_BYTES:])


def require_room(order: DepositOrder, limits: OrderLimits, usage: Sequence[int]) -> None:
    """Check an order against the period's usage: gas in gwei, and the funder's deposits.

    Raises:
        TooManyDepositsError: The funder has used its number of deposits.
        SponsoringPausedError: It would exceed the period's gas.
    """
    used_gwei, of_funder = usage
    if of_funder >= limits.per_funder:
        raise TooManyDepositsError(
            f"The server pays for {limits.per_funder} deposits of a payer in {limits.period_s} s "
            "(the provider sets `sponsoring.deposits_per_payer`)."
        )
    if used_gwei + order.gas_gwei > limits.gas_gwei:
        raise SponsoringPausedError(
            "The server has used up its gas budget for deposits "
            "(the provider sets `sponsoring.gas_budget_wei`)."
        )
