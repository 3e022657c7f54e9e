"""One payload of every form as it stands on the wire, and strategies for all of them."""

from typing import Any

from hypothesis import strategies as st

from channel.limits import AMOUNT_MAX
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenHash,
    OpenPermit2,
    TopUpAuthorization,
    TopUpHash,
    TopUpPermit2,
)
from channel.types import ZERO_ADDRESS, Address, ChannelId, SignedVoucher, TxHash
from channel.wire.funding import (
    Deposit,
    OpenPermit,
    TopUpPermit,
    TransferAuthorization,
)
from channel.wire.payload import (
    ClosePayload,
    Payload,
    VoucherPayload,
)

A, B, C = ("0x" + digits * 20 for digits in ("a1", "b2", "c3"))
W1, W2, W3 = ("0x" + digits * 32 for digits in ("d4", "e5", "f6"))
SIGNATURE, OTHER_SIGNATURE = ("0x" + digits * 65 for digits in ("17", "28"))

TRANSFER = {
    "from": A,
    "to": B,
    "value": "5000000",
    "validAfter": "0",
    "validBefore": "1743523501",
    "nonce": W3,
}
PERMITTED = {"token": C, "amount": "5000000"}
OPEN_PERMIT = {
    "from": A,
    "permitted": PERMITTED,
    "nonce": str(2**256 - 1),
    "deadline": "1743523501",
    "witness": {"payee": B, "salt": W2, "authorizedSigner": C},
}
TOP_UP_PERMIT = {**OPEN_PERMIT, "witness": {"channelId": W1}}
VOUCHER = {"channelId": W1, "cumulativeAmount": "250000", "signature": SIGNATURE}
OPEN = {
    "action": "open",
    "channelId": W1,
    "cumulativeAmount": "250000",
    "salt": W2,
    "authorizedSigner": C,
}
TOP_UP = {"action": "topUp", "channelId": W1, "additionalDeposit": "5000000"}

PAYLOADS: dict[str, dict[str, Any]] = {
    "open hash": {**OPEN, "type": "hash", "hash": W3, "signature": SIGNATURE},
    "open authorization": {
        **OPEN,
        "type": "authorization",
        "voucherSignature": SIGNATURE,
        "authorization": TRANSFER,
        "signature": OTHER_SIGNATURE,
    },
    "open permit2": {
        **OPEN,
        "type": "permit2",
        "voucherSignature": SIGNATURE,
        "authorization": OPEN_PERMIT,
        "signature": OTHER_SIGNATURE,
    },
    "topUp hash": {**TOP_UP, "type": "hash", "hash": W3},
    "topUp authorization": {
        **TOP_UP,
        "type": "authorization",
        "salt": W2,
        "authorization": TRANSFER,
        "signature": SIGNATURE,
    },
    "topUp permit2": {
        **TOP_UP,
        "type": "permit2",
        "authorization": TOP_UP_PERMIT,
        "signature": SIGNATURE,
    },
    "voucher": {"action": "voucher", **VOUCHER},
    "close": {"action": "close", **VOUCHER},
}
DEPOSITS: dict[str, dict[str, Any]] = {
    "open authorization": {
        "action": "open",
        "type": "authorization",
        "salt": W2,
        "authorizedSigner": C,
        "authorization": TRANSFER,
        "signature": OTHER_SIGNATURE,
    },
    "open permit2": {
        "action": "open",
        "type": "permit2",
        "salt": W2,
        "authorizedSigner": C,
        "authorization": OPEN_PERMIT,
        "signature": OTHER_SIGNATURE,
    },
    "topUp authorization": {
        "action": "topUp",
        "type": "authorization",
        "salt": W2,
        "authorization": TRANSFER,
        "signature": OTHER_SIGNATURE,
    },
    "topUp permit2": {
        "action": "topUp",
        "type": "permit2",
        "authorization": TOP_UP_PERMIT,
        "signature": OTHER_SIGNATURE,
    },
}

addresses = st.binary(min_size=20, max_size=20).map(Address)
words = st.binary(min_size=32, max_size=32)
channel_ids = words.map(ChannelId)
tx_hashes = words.map(TxHash)
amounts = st.integers(0, AMOUNT_MAX)
uint256s = st.integers(0, 2**256 - 1)
signatures = st.binary(min_size=1, max_size=80)
vouchers = st.builds(SignedVoucher, channel_ids, amounts, signatures)
transfers = st.builds(
    TransferAuthorization, addresses, addresses, amounts, uint256s, uint256s, words
)
open_permits = st.builds(
    OpenPermit,
    addresses,
    addresses,
    amounts,
    uint256s,
    uint256s,
    addresses,
    words,
    st.just(ZERO_ADDRESS) | addresses,
)
top_up_permits = st.builds(
    TopUpPermit, addresses, addresses, amounts, uint256s, uint256s, channel_ids
)
signers = st.just(ZERO_ADDRESS) | addresses
deposits = st.one_of(
    st.builds(
        Deposit, st.just("open"), st.just("authorization"), transfers, signatures, words, signers
    ),
    st.builds(
        Deposit, st.just("open"), st.just("permit2"), open_permits, signatures, words, signers
    ),
    st.builds(
        Deposit,
        st.just("topUp"),
        st.just("authorization"),
        transfers,
        signatures,
        words,
        st.just(ZERO_ADDRESS),
    ),
    st.builds(
        Deposit,
        st.just("topUp"),
        st.just("permit2"),
        top_up_permits,
        signatures,
        st.none(),
        st.just(ZERO_ADDRESS),
    ),
)
payloads: st.SearchStrategy[Payload] = st.one_of(
    st.builds(OpenHash, vouchers, words, signers, tx_hashes),
    st.builds(OpenAuthorization, vouchers, words, signers, transfers, signatures),
    st.builds(OpenPermit2, vouchers, words, signers, open_permits, signatures),
    st.builds(TopUpHash, channel_ids, amounts, tx_hashes),
    st.builds(TopUpAuthorization, channel_ids, amounts, words, transfers, signatures),
    st.builds(TopUpPermit2, channel_ids, amounts, top_up_permits, signatures),
    st.builds(VoucherPayload, vouchers, st.none() | deposits),
    st.builds(ClosePayload, vouchers),
)
