"""Rows to charge orders and back, without loss; used by both databases."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from channel.errors import SponsoringPausedError
from channel.limits import OPEN_ORDERS_MAX
from channel.state.requests import StoredResponse
from channel.types import Address, TxHash
from settlement.charge.orders.interface import PAID_KEPT_S, ChargeOrder, GasLimit
from settlement.tx.orders import OrderStatus

__all__ = [
    "credit_values",
    "made_values",
    "order_from_row",
    "order_values",
    "owner_values",
    "place_values",
    "prune_values",
    "require_gas_left",
]

_CLAIMED: Final = 0
_AMOUNT_BYTES: Final = 32  # uint256, as the payer signed it
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(StoredResponse)


def _encode(response: StoredResponse | None) -> bytes | None:
    return None if response is None else _encoder.encode(response)


def order_values(order: ChargeOrder, place: tuple[int, Address]) -> list[Any]:
    """Return every column, in the order of `upsert_order`."""
    return [
        order.order_id,
        *place,
        order.funder,
        order.amount.to_bytes(_AMOUNT_BYTES),
        order.nonce,
        order.calldata,
        order.deadline,
        order.from_block,
        order.request_digest,
        order.owner,
        order.owned_until,
        order.wanted_at,
        order.gas_gwei,
        _CLAIMED if order.status is None else int(order.status),
        order.tx_hash,
        order.reason,
        _encode(order.response),
        int(order.is_served),
        order.paid_by,
    ]


def credit_values(order: ChargeOrder, place: tuple[int, Address], now: int) -> list[Any]:
    """Return the arguments of `select_credit`, for a payer's new authorization."""
    return [*place, order.funder, order.amount.to_bytes(_AMOUNT_BYTES), now]


def owner_values(order: ChargeOrder) -> list[Any]:
    """Return the arguments of `own_order`."""
    return [order.owner, order.owned_until, order.order_id]


def place_values(order: ChargeOrder) -> list[Any]:
    """Return the arguments of `place_order`."""
    return [
        _encode(order.response),
        order.gas_gwei,
        order.wanted_at,
        order.owned_until,
        order.order_id,
        order.owner,
    ]


def made_values(
    place: tuple[int, Address], since: int, until: int, after: ChargeOrder | None
) -> list[Any]:
    """Return the arguments of `select_made`."""
    start = (since, b"") if after is None else (after.wanted_at, after.order_id)
    return [*place, until, *start, OPEN_ORDERS_MAX]


def prune_values(place: tuple[int, Address], before: int) -> list[Any]:
    """Return the arguments of `delete_ended`."""
    return [*place, before, before, before - PAID_KEPT_S]


def order_from_row(row: Sequence[Any]) -> ChargeOrder:
    """Return an order from the columns of `select_order`."""
    return ChargeOrder(
        order_id=row[0],
        funder=Address(row[3]),
        amount=int.from_bytes(row[4]),
        nonce=row[5],
        calldata=row[6],
        deadline=row[7],
        from_block=row[8],
        request_digest=row[9],
        owner=row[10],
        owned_until=row[11],
        wanted_at=row[12],
        gas_gwei=row[13],
        status=None if row[14] == _CLAIMED else OrderStatus(row[14]),
        tx_hash=None if row[15] is None else TxHash(row[15]),
        reason=row[16],
        response=None if row[17] is None else _decoder.decode(row[17]),
        is_served=bool(row[18]),
        paid_by=row[19],
    )


def require_gas_left(order: ChargeOrder, limit: GasLimit, used_gwei: int) -> None:
    """Check an order against the period's gas.

    Raises:
        SponsoringPausedError: It would exceed it.
    """
    if used_gwei + order.gas_gwei > limit.gas_gwei:
        raise SponsoringPausedError(
            "The server has used up its gas budget for charges (the provider sets "
            "`rails.gas_budget_wei`); nothing was charged."
        )
