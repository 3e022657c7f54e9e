"""What this package asks a node: each JSON-RPC method is spelt here, with its parameters.

A question is a method and its parameters (`transport.Call`), for one request or for a batch.
"""

from collections.abc import Mapping
from typing import Final

from channel.types import Address, TxHash
from settlement.node.transport import Call

__all__ = [
    "BLOCK_NUMBER",
    "CALL",
    "CHAIN_ID",
    "ESTIMATE_GAS",
    "GAS_PRICE",
    "LOGS",
    "SEND",
    "SUBSCRIBE",
    "TIP",
    "balance_of",
    "block",
    "block_by_hash",
    "call",
    "code_of",
    "estimate_gas",
    "logs",
    "nonces_of",
    "receipt",
    "transaction",
]

CALL: Final = "eth_call"
ESTIMATE_GAS: Final = "eth_estimateGas"
LOGS: Final = "eth_getLogs"
SEND: Final = "eth_sendRawTransaction"
SUBSCRIBE: Final = "eth_subscribe"

BLOCK_NUMBER: Final[Call] = ("eth_blockNumber", ())
CHAIN_ID: Final[Call] = ("eth_chainId", ())
GAS_PRICE: Final[Call] = ("eth_gasPrice", ())
TIP: Final[Call] = ("eth_maxPriorityFeePerGas", ())

_LATEST: Final = "latest"


def block(number: int | None = None) -> Call:
    """A block without its transactions; the head if None."""
    return "eth_getBlockByNumber", [_LATEST if number is None else hex(number), False]


def block_by_hash(block_hash: bytes) -> Call:
    """A block without its transactions."""
    return "eth_getBlockByHash", [_hex(block_hash), False]


def code_of(address: Address) -> Call:
    """A contract's code, at the head."""
    return "eth_getCode", [_hex(address), _LATEST]


def balance_of(address: Address) -> Call:
    """An account's ether, at the head."""
    return "eth_getBalance", [_hex(address), _LATEST]


def nonces_of(address: Address, *, with_pending: bool = False) -> Call:
    """How many transactions of an account are mined, or mined and in the node's pool."""
    return "eth_getTransactionCount", [_hex(address), "pending" if with_pending else _LATEST]


def transaction(tx_hash: TxHash) -> Call:
    """A transaction, mined or not."""
    return "eth_getTransactionByHash", [_hex(tx_hash)]


def receipt(tx_hash: TxHash) -> Call:
    """What became of a transaction; null while it is not mined."""
    return "eth_getTransactionReceipt", [_hex(tx_hash)]


def logs(query: Mapping[str, object]) -> Call:
    """The events that a filter selects."""
    return LOGS, [query]


def call(request: Mapping[str, object], at: object = _LATEST) -> Call:
    """Run a call without effect, at a block."""
    return CALL, [request, at]


def estimate_gas(request: Mapping[str, object]) -> Call:
    """What gas a call would use, at the head: some nodes would take "pending" otherwise."""
    return ESTIMATE_GAS, [request, _LATEST]


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
