"""Row <-> transaction, without loss. Both databases keep wei as 16 bytes, big-endian."""

from collections.abc import Sequence
from typing import Any

from channel.errors import InvariantError
from channel.ledger.rows import amount_bytes, bytes_amount
from channel.types import Address, ChannelId, ChannelKey, TxHash
from settlement.tx.fees import Fee
from settlement.tx.journal.interface import Quarantined
from settlement.tx.state import (
    Inclusion,
    Intent,
    JournalTx,
    Purpose,
    TxStatus,
    TxVersion,
)

__all__ = [
    "intent_values",
    "quarantined_from_row",
    "transactions_from_rows",
    "tx_values",
    "version_values",
]

Row = Sequence[Any]


def intent_values(intent: Intent) -> list[Any]:
    """Return the columns that never change."""
    return [
        intent.to,
        intent.calldata,
        amount_bytes(intent.value_wei),
        int(intent.purpose),
        None if intent.budget_wei is None else amount_bytes(intent.budget_wei),
        intent.deadline,
    ]


def tx_values(tx: JournalTx) -> list[Any]:
    """Return the columns that change."""
    mined = tx.inclusion
    head = [int(tx.status), tx.nonce, tx.gas, tx.reason]
    if mined is None:
        return [*head, None, None, None, None, None, None]
    return [
        *head,
        mined.tx_hash,
        mined.is_success,
        mined.block_number,
        mined.block_hash,
        mined.gas_used,
        amount_bytes(mined.gas_price_wei),
    ]


def version_values(version: TxVersion) -> list[Any]:
    """Return a version's columns."""
    return [
        version.tx_hash,
        amount_bytes(version.fee.max_fee_wei),
        amount_bytes(version.fee.tip_wei),
        version.raw,
        version.signed_at,
    ]


def transactions_from_rows(rows: Sequence[Row], versions: Sequence[Row]) -> list[JournalTx]:
    """Return transactions from the columns of `select_*` and of `select_versions`.

    Raises:
        InvariantError: A row was not written by this module.
    """
    by_tx: dict[int, list[TxVersion]] = {}
    try:
        for row in versions:
            by_tx.setdefault(row[0], []).append(_version(row[1:]))
        return [_transaction(row, tuple(by_tx.get(row[0], ()))) for row in rows]
    except (ValueError, TypeError) as error:
        raise InvariantError(f"a row of the journal cannot be read: {error}") from error


def _version(row: Row) -> TxVersion:
    tx_hash, max_fee, tip, raw, signed_at = row
    fee = Fee(max_fee_wei=bytes_amount(max_fee), tip_wei=bytes_amount(tip))
    return TxVersion(tx_hash=TxHash(tx_hash), fee=fee, raw=raw, signed_at=signed_at)


def _transaction(row: Row, versions: tuple[TxVersion, ...]) -> JournalTx:
    intent = Intent(
        to=None if row[1] is None else Address(row[1]),
        calldata=row[2],
        value_wei=bytes_amount(row[3]),
        purpose=Purpose(row[4]),
        budget_wei=None if row[5] is None else bytes_amount(row[5]),
        deadline=row[6],
    )
    inclusion = None
    if row[11] is not None:
        inclusion = Inclusion(
            tx_hash=TxHash(row[11]),
            is_success=bool(row[12]),
            block_number=row[13],
            block_hash=row[14],
            gas_used=row[15],
            gas_price_wei=bytes_amount(row[16]),
        )
    return JournalTx(
        tx_id=row[0],
        intent=intent,
        status=TxStatus(row[7]),
        nonce=row[8],
        gas=row[9],
        reason=row[10],
        versions=versions,
        inclusion=inclusion,
    )


def quarantined_from_row(row: Row) -> Quarantined:
    """Return a channel in quarantine from the columns of `select_quarantined`."""
    key = ChannelKey(row[0], Address(row[1]), ChannelId(row[2]))
    return Quarantined(key=key, reason=row[3], tries=row[4], since=row[5], retry_at=row[6])
