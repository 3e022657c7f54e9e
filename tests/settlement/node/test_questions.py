"""Each JSON-RPC method is spelt in one module."""

import re
from pathlib import Path

import settlement
from channel.types import Address, TxHash
from settlement.node import questions

SOURCES = Path(settlement.__file__).parent


def test_no_other_module_of_the_package_spells_a_method_of_a_node() -> None:
    spelling = [
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if re.search(r"[\"']eth_[a-zA-Z]+[\"']", path.read_text())
    ]
    assert spelling == ["node/questions.py"]


def test_questions_are_what_a_node_reads() -> None:
    """The Ethereum JSON-RPC specification: quantities without leading zeros, data as it is."""
    account, tx_hash = Address(bytes(19) + b"\1"), TxHash(bytes(31) + b"\2")
    assert questions.block() == ("eth_getBlockByNumber", ["latest", False])
    assert questions.block(16) == ("eth_getBlockByNumber", ["0x10", False])
    assert questions.nonces_of(account) == (
        "eth_getTransactionCount",
        ["0x" + 39 * "0" + "1", "latest"],
    )
    assert questions.nonces_of(account, with_pending=True)[1][1] == "pending"
    assert questions.receipt(tx_hash) == ("eth_getTransactionReceipt", ["0x" + 63 * "0" + "2"])
    assert questions.call({"to": "0x01"}) == ("eth_call", [{"to": "0x01"}, "latest"])
    assert questions.call({}, {"blockHash": "0x02"}) == ("eth_call", [{}, {"blockHash": "0x02"}])
