"""Transactions as bytes, held against another implementation."""

from typing import Any

from eth_account import Account
from hypothesis import example, given, settings
from hypothesis import strategies as st

from channel.types import Address
from channel.verify.signature import sign
from settlement.tx.encoding import UnsignedTx, assemble

KEY = b"\x11" * 32

_WEI = st.integers(0, 2**96)


_LONG: dict[str, Any] = {
    "chain_id": 1,
    "nonce": 128,
    "tip_wei": 1,
    "max_fee_wei": 10**9,
    "gas": 21_000,
    "to": None,
    "value_wei": 0,
}


@settings(max_examples=40)
@example(**_LONG, calldata=bytes(65_536))
@example(**_LONG, calldata=b"\x80" * 55)
@example(**_LONG, calldata=b"\x7f")
@given(
    chain_id=st.integers(1, 2**53),
    nonce=st.integers(0, 2**40),
    tip_wei=_WEI,
    max_fee_wei=_WEI,
    gas=st.integers(21_000, 30_000_000),
    to=st.none() | st.binary(min_size=20, max_size=20),
    value_wei=_WEI,
    calldata=st.binary(max_size=300),
)
def test_they_are_what_eth_account_signs(
    *,
    chain_id: int,
    nonce: int,
    tip_wei: int,
    max_fee_wei: int,
    gas: int,
    to: bytes | None,
    value_wei: int,
    calldata: bytes,
) -> None:
    unsigned = UnsignedTx(
        chain_id=chain_id,
        nonce=nonce,
        tip_wei=tip_wei,
        max_fee_wei=max_fee_wei,
        gas=gas,
        to=None if to is None else Address(to),
        value_wei=value_wei,
        calldata=calldata,
    )
    fields = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "maxPriorityFeePerGas": tip_wei,
        "maxFeePerGas": max_fee_wei,
        "gas": gas,
        "value": value_wei,
        "data": calldata,
    }
    expected = Account.from_key(KEY).sign_transaction(
        fields if to is None else {**fields, "to": to}
    )
    tx_hash, raw = assemble(unsigned, sign(KEY, unsigned.digest()))
    assert (tx_hash, raw) == (bytes(expected.hash), bytes(expected.raw_transaction))
