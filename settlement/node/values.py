"""A node's JSON as values (pure). A node is not trusted to send the right shape (SEC-09)."""

import re
from collections.abc import Mapping
from typing import Any

from channel.errors import ChainUnavailableError
from channel.types import Address, TxHash
from settlement.errors import RpcRefusedError
from settlement.node import questions
from settlement.types import BlockRef, Log, Receipt

__all__ = [
    "parse_block",
    "parse_bytes",
    "parse_count",
    "parse_logs",
    "parse_price",
    "parse_quantity",
    "parse_receipt",
]

_HEXADECIMAL = re.compile(r"0x([0-9a-fA-F]*)")
_QUANTITY_DIGITS_MAX = 64
_COUNT_MAX = 2**48 - 1  # sums and products of a few such values fit the ledger's columns
_PRICE_BITS = 96
_LOGS_MAX = 20_000
_HASH_BYTES = 32
_ADDRESS_BYTES = 20


def parse_quantity(value: Any) -> int:
    """Read `0x`-prefixed hexadecimal as a number."""
    digits = _digits(value, "a quantity")
    if not 0 < len(digits) <= _QUANTITY_DIGITS_MAX:
        raise _nonsense("a quantity")
    return int(digits, 16)


def parse_count(value: Any) -> int:
    """Read a quantity that is a count: blocks, seconds, logs, gas."""
    count = parse_quantity(value)
    if count > _COUNT_MAX:
        raise _nonsense("a count")
    return count


def parse_price(value: Any) -> int:
    """Read a quantity in wei per unit of gas."""
    price_wei = parse_quantity(value)
    if price_wei >> _PRICE_BITS:
        raise _nonsense("a price of gas")
    return price_wei


def parse_bytes(value: Any, size: int | None = None) -> bytes:
    """Read `0x`-prefixed hexadecimal as bytes, of exactly `size` if given."""
    digits = _digits(value, "bytes")
    if len(digits) % 2 or (size is not None and len(digits) != 2 * size):
        raise _nonsense("bytes" if size is None else f"{size} bytes")
    return bytes.fromhex(digits)


def _digits(value: Any, what: str) -> str:
    """Return the digits after `0x`. `int` and `fromhex` alone accept blanks and underscores."""
    if not isinstance(value, str) or (found := _HEXADECIMAL.fullmatch(value)) is None:
        raise _nonsense(what)
    return found[1]


def parse_block(value: Any) -> BlockRef:
    """Read a block header. A node that lacks the block answers null."""
    fields = _fields(value, "a block")
    base_fee = fields.get("baseFeePerGas")
    return BlockRef(
        number=parse_count(fields.get("number")),
        hash=parse_bytes(fields.get("hash"), _HASH_BYTES),
        timestamp=parse_count(fields.get("timestamp")),
        base_fee_wei=None if base_fee is None else parse_price(base_fee),
        parent_hash=parse_bytes(fields.get("parentHash"), _HASH_BYTES),
    )


def parse_receipt(value: Any) -> Receipt:
    """Read a receipt."""
    fields = _fields(value, "a receipt")
    contract = fields.get("contractAddress")
    return Receipt(
        tx_hash=TxHash(parse_bytes(fields.get("transactionHash"), _HASH_BYTES)),
        is_success=parse_quantity(fields.get("status")) == 1,
        block_number=parse_count(fields.get("blockNumber")),
        block_hash=parse_bytes(fields.get("blockHash"), _HASH_BYTES),
        gas_used=parse_count(fields.get("gasUsed")),
        gas_price_wei=parse_price(fields.get("effectiveGasPrice")),
        contract=None if contract is None else Address(parse_bytes(contract, _ADDRESS_BYTES)),
        logs=parse_logs(fields.get("logs")),
        data_fee_wei=parse_price(fields.get("l1Fee") or "0x0"),
    )


def parse_logs(value: Any) -> tuple[Log, ...]:
    """Read a list of logs, without those that a reorg removed."""
    if not isinstance(value, list):
        raise _nonsense("a list of logs")
    if len(value) > _LOGS_MAX:  # a caller that reads logs asks for fewer
        raise RpcRefusedError(questions.LOGS, code=0, message=f"more than {_LOGS_MAX} logs")
    entries = [_fields(entry, "a log") for entry in value]
    return tuple(_log(entry) for entry in entries if entry.get("removed") is not True)


def _log(fields: Mapping[str, Any]) -> Log:
    topics = fields.get("topics")
    if not isinstance(topics, list):
        raise _nonsense("a log")
    return Log(
        address=Address(parse_bytes(fields.get("address"), _ADDRESS_BYTES)),
        topics=tuple(parse_bytes(topic, _HASH_BYTES) for topic in topics),
        payload=parse_bytes(fields.get("data")),
        log_index=parse_count(fields.get("logIndex")),
        tx_hash=TxHash(parse_bytes(fields.get("transactionHash"), _HASH_BYTES)),
        block_number=parse_count(fields.get("blockNumber")),
        block_hash=parse_bytes(fields.get("blockHash"), _HASH_BYTES),
    )


def _fields(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _nonsense(what)
    return value


def _nonsense(what: str) -> ChainUnavailableError:
    return ChainUnavailableError(f"The node answered something that is not {what}.")
