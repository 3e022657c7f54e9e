"""A node's JSON <-> values: what is not of the right form is refused, not guessed (SEC-09)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import ChainUnavailableError
from settlement.node.values import (
    parse_block,
    parse_bytes,
    parse_count,
    parse_logs,
    parse_quantity,
    parse_receipt,
)

HASH = "0x" + "ab" * 32
ADDRESS = "0x" + "cd" * 20
LOG = {
    "address": ADDRESS,
    "topics": [HASH],
    "data": "0x01",
    "logIndex": "0x2",
    "transactionHash": HASH,
    "blockNumber": "0x3",
    "blockHash": HASH,
}
RECEIPT = {
    "transactionHash": HASH,
    "status": "0x1",
    "blockNumber": "0x3",
    "blockHash": HASH,
    "gasUsed": "0x5208",
    "effectiveGasPrice": "0x7",
    "contractAddress": None,
    "logs": [LOG],
}
BLOCK = {
    "number": "0x3",
    "hash": HASH,
    "parentHash": HASH,
    "timestamp": "0x4",
    "baseFeePerGas": "0x5",
}

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("0x1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def test_a_receipt_is_read() -> None:
    receipt = parse_receipt(RECEIPT)
    assert receipt.is_success
    assert (receipt.gas_used, receipt.gas_price_wei, receipt.contract) == (21000, 7, None)
    assert receipt.logs[0].payload == b"\x01"
    created = parse_receipt({**RECEIPT, "contractAddress": ADDRESS, "status": "0x0"})
    assert created.contract == bytes.fromhex("cd" * 20)
    assert not created.is_success


def test_what_a_rollup_takes_for_its_data_is_a_cost() -> None:
    """F-98: no gas price bounds it; what is not counted could be spent again and again."""
    assert parse_receipt(RECEIPT).cost_wei == 21000 * 7
    assert parse_receipt({**RECEIPT, "l1Fee": None}).cost_wei == 21000 * 7
    assert parse_receipt({**RECEIPT, "l1Fee": "0x64"}).cost_wei == 21000 * 7 + 100


def test_a_log_a_reorg_removed_is_left_out() -> None:
    """F-71."""
    assert parse_logs([{**LOG, "removed": True}]) == ()
    assert len(parse_logs([{**LOG, "removed": False}])) == 1


def test_a_block_without_a_base_fee_is_an_old_chains() -> None:
    assert parse_block(BLOCK).base_fee_wei == 5
    assert parse_block({**BLOCK, "baseFeePerGas": None}).base_fee_wei is None


@pytest.mark.parametrize("missing", sorted(RECEIPT.keys() - {"contractAddress"}))
def test_a_receipt_without_a_field_is_refused(missing: str) -> None:
    """A receipt of before Byzantium has no status: it proves nothing, and is refused too."""
    with pytest.raises(ChainUnavailableError):
        parse_receipt({name: value for name, value in RECEIPT.items() if name != missing})


@pytest.mark.parametrize("value", [1, True, None, "", "1", "0x", "0xg", "-0x1", "0x1 ", "0x_1"])
def test_only_hexadecimal_is_a_quantity(value: Any) -> None:
    """F-05: `int` alone would take underscores and blanks."""
    with pytest.raises(ChainUnavailableError):
        parse_quantity(value)


def test_more_than_the_books_can_keep_is_no_count() -> None:
    """F-73, SEC-09: were it believed, one node's garbage would stop the books of every channel."""
    assert parse_count(hex(2**48 - 1)) == 2**48 - 1
    more = hex(2**48)
    with pytest.raises(ChainUnavailableError):
        parse_count(more)
    for field in ("number", "timestamp"):
        with pytest.raises(ChainUnavailableError):
            parse_block({**BLOCK, field: more})
    with pytest.raises(ChainUnavailableError):
        parse_receipt({**RECEIPT, "logs": [{**LOG, "logIndex": more}]})


@pytest.mark.parametrize("value", [1, None, "ab", "0xabc", "0xzz", "0xab cd", "0xabcd\n"])
def test_only_hexadecimal_is_bytes(value: Any) -> None:
    with pytest.raises(ChainUnavailableError):
        parse_bytes(value)


def test_bytes_of_another_length_are_refused() -> None:
    assert parse_bytes(HASH, 32)
    with pytest.raises(ChainUnavailableError):
        parse_bytes(ADDRESS, 32)


@given(_JSON)
def test_nothing_a_node_answers_escapes_as_another_error(value: Any) -> None:
    for parse in (parse_block, parse_bytes, parse_logs, parse_quantity, parse_receipt):
        try:
            parse(value)
        except ChainUnavailableError:
            continue
