"""Calls, logs and reverts <-> values, against the compiled contracts and the golden vectors."""

import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from channel.chain import OpenedLog, ToppedUpLog
from channel.errors import ChainUnavailableError
from channel.types import Address, ChannelFact, ChannelId, ChannelKey, ChannelTerms, TxHash
from channel.verify.typed_data import keccak
from settlement import abi
from settlement.artifacts import ContractName, load_artifact
from settlement.types import ChannelClosedLog, CloseRequestedLog, Log, RevertReason, SettledLog

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "evm_session.json").read_text(encoding="utf-8")
)
KEY = ChannelKey(1, Address(b"\x0e" * 20), ChannelId(b"\x0c" * 32))
_ADDRESSES = st.binary(min_size=20, max_size=20)
_AMOUNTS = st.integers(min_value=0, max_value=2**128 - 1)
_CHANNEL = "(bool,uint64,address,address,address,address,uint128,uint128)"


def signature_of(entry: dict[str, Any]) -> str:
    return f"{entry['name']}({','.join(given['type'] for given in entry['inputs'])})"


def entries(name: ContractName, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in load_artifact(name).abi if entry["type"] == kind]


# -- calls


@pytest.mark.parametrize(
    ("function", "selector"),
    [
        (abi.open_, "c79ea485"),
        (abi.settle, "516d3b88"),
        (abi.top_up, "9f6f687a"),
        (abi.close, "0d65c51d"),
        (abi.request_close, "6bf5fe6f"),
        (abi.withdraw, "8e19899e"),
        (abi.get_channel, "831c2b82"),
        (abi.domain_separator, "f698da25"),
        (abi.close_grace_period, "956c8327"),
    ],
)
def test_selectors_are_the_drafts(function: abi.Function, selector: str) -> None:
    """CONTRACT-14 and the core ABI."""
    assert function.selector.hex() == selector


@pytest.mark.parametrize(
    ("function", "encoder"),
    [("open", abi.open_), ("close", abi.close), ("withdraw", abi.withdraw)],
)
def test_calldata_is_that_of_the_golden_vectors(function: str, encoder: abi.Function) -> None:
    (vector,) = [v for v in VECTORS["calldata"] if v["function"] == function and "args" in v]
    arguments = [
        bytes.fromhex(value[2:]) if value.startswith("0x") else int(value)
        for value in vector["args"]
    ]
    assert encoder.encode(*arguments).hex() == vector["data"][2:]


def test_every_function_used_is_in_the_escrow() -> None:
    known = {keccak(signature_of(e).encode())[:4] for e in entries("SessionEscrow", "function")}
    used = {
        abi.open_, abi.top_up, abi.settle, abi.close, abi.request_close, abi.withdraw,
        abi.get_channel, abi.get_channels, abi.domain_separator, abi.close_grace_period,
        abi.token, abi.is_valid_voucher_signer,
    }  # fmt: skip
    assert {function.selector for function in used} <= known


# -- channels


@given(
    parties=st.tuples(_ADDRESSES.filter(any), _ADDRESSES, _ADDRESSES, _ADDRESSES),
    deposit=_AMOUNTS,
    settled=_AMOUNTS,
    close_requested_at=st.integers(min_value=0, max_value=2**48 - 1),
    is_finalized=st.booleans(),
)
def test_a_channel_is_read_word_for_word(
    *,
    parties: tuple[bytes, bytes, bytes, bytes],
    deposit: int,
    settled: int,
    close_requested_at: int,
    is_finalized: bool,
) -> None:
    settled = min(settled, deposit)
    answer = encode([_CHANNEL], [(is_finalized, close_requested_at, *parties, deposit, settled)])
    assert abi.decode_channel(KEY, answer, block_number=9) == ChannelFact(
        key=KEY,
        terms=ChannelTerms(*map(Address, parties)),
        deposit=deposit,
        settled=settled,
        close_requested_at=close_requested_at,
        is_finalized=is_finalized,
        block_number=9,
    )


def test_many_channels_are_read_in_order() -> None:
    a, b = (b"\x0a" * 20, b"\x0b" * 20)
    channels = [(False, 0, who, a, a, a, i, 0) for i, who in enumerate([a, bytes(20), b])]
    answer = encode([f"{_CHANNEL}[]"], [channels])
    facts = abi.decode_channels([KEY] * 3, answer, block_number=1)
    assert [fact and (fact.terms.payer, fact.deposit) for fact in facts] == [(a, 0), None, (b, 2)]
    assert abi.decode_channels([], encode([f"{_CHANNEL}[]"], [[]]), block_number=1) == []


@pytest.mark.parametrize("answer", [b"", bytes(31), bytes(255), bytes(257)])
def test_an_answer_of_another_shape_is_not_a_channel(answer: bytes) -> None:
    """SEC-09: a node's answer is trusted for what it says, not for its form."""
    with pytest.raises(ChainUnavailableError):
        abi.decode_channel(KEY, answer, block_number=1)
    with pytest.raises(ChainUnavailableError):
        abi.decode_channels([KEY], answer, block_number=1)
    with pytest.raises(ChainUnavailableError):
        abi.domain_separator.decode_int(answer)


@pytest.mark.parametrize(
    ("word", "value"),
    [(0, 2), (1, 2**48), (6, 2**128), (6, 4), (7, 6), (7, 2**255)],
    ids=["finalized", "time", "deposit", "deposit below settled", "settled", "negative"],
)
def test_what_no_escrow_could_say_is_nonsense(word: int, value: int) -> None:
    """F-73, SEC-09: were it believed, one node's garbage would stop the books of every channel."""
    words = [0, 0, 1, 1, 1, 1, 5, 5]
    words[word] = value
    answer = b"".join(one.to_bytes(32) for one in words)
    with pytest.raises(ChainUnavailableError):
        abi.decode_channel(KEY, answer, block_number=1)
    with pytest.raises(ChainUnavailableError):
        abi.decode_channel(KEY, bytes(31) + bytes(1) + answer[32:], block_number=2**48)


def test_one_word_too_few_or_of_another_kind_is_refused() -> None:
    with pytest.raises(ChainUnavailableError):
        abi.token.decode_address(b"")
    with pytest.raises(ChainUnavailableError):
        abi.allowance.decode_int(bytes(16))
    with pytest.raises(ChainUnavailableError):
        abi.Function("name()", ["string"]).decode_int(encode(["string"], ["USD Coin"]))


# -- logs


def log(event: str, *words: int) -> Log:
    topics = (keccak(event.encode()), KEY.channel_id, bytes(32), bytes(32))
    payload = b"".join(word.to_bytes(32, "big") for word in words)
    return Log(
        KEY.escrow,
        topics,
        payload,
        log_index=3,
        tx_hash=TxHash(bytes(32)),
        block_number=1,
        block_hash=bytes(32),
    )


@pytest.mark.parametrize(
    ("event", "words", "expected"),
    [
        ("ChannelOpened", (1, 2, 3, 4), OpenedLog(KEY.channel_id, 3)),
        ("TopUp", (5, 9), ToppedUpLog(KEY.channel_id, 5, 3)),
        ("Settled", (9, 5, 9), SettledLog(KEY.channel_id, paid=5, settled=9)),
        ("CloseRequested", (77,), CloseRequestedLog(KEY.channel_id, grace_ends_at=77)),
        ("ChannelClosed", (8, 2), ChannelClosedLog(KEY.channel_id, settled=8, refunded=2)),
    ],
)
def test_each_event_is_read_as_the_contract_declares_it(
    event: str, words: tuple[int, ...], expected: abi.EscrowLog
) -> None:
    (declared,) = [e for e in entries("SessionEscrow", "event") if e["name"] == event]
    assert [given["indexed"] for given in declared["inputs"]].count(True) == 3
    read = log(signature_of(declared), *words)
    assert abi.decode_log(read) == expected
    with pytest.raises(ChainUnavailableError):
        abi.decode_log(log(signature_of(declared), *words, 0))


def test_other_events_are_none() -> None:
    assert abi.decode_log(log("Transfer(address,address,uint256)", 1)) is None
    assert abi.decode_log(Log(KEY.escrow, (), b"", 0, TxHash(bytes(32)), 1, bytes(32))) is None


# -- reverts (ERR-02)

_NEVER_FROM_A_CALL = {
    "InvalidShortString()", "StringTooLong(string)", "ReentrancyGuardReentrantCall()",
}  # fmt: skip


@pytest.mark.parametrize("signature", [signature_of(e) for e in entries("SessionEscrow", "error")])
def test_every_error_of_the_escrow_has_a_reason(signature: str) -> None:
    reason, _ = abi.decode_revert(keccak(signature.encode())[:4] + bytes(64))
    assert (reason is RevertReason.UNKNOWN) == (signature in _NEVER_FROM_A_CALL)


@pytest.mark.parametrize("name", [name for name in RevertReason if name.name != "UNKNOWN"])
def test_every_reason_is_one_a_contract_gives(name: RevertReason) -> None:
    signatures = [signature_of(e) for e in entries("SessionEscrow", "error")]
    given = {abi.decode_revert(keccak(s.encode())[:4])[0] for s in signatures}
    assert name in given


def test_a_token_that_speaks_is_quoted_as_far_as_it_can_be_printed() -> None:
    """F-87, F-86: Circle's token refuses in words."""
    said = "ERC20: transfer amount exceeds balance\n\x1b[31m" + "x" * 500
    answer = keccak(b"Error(string)")[:4] + encode(["string"], [said])
    reason, text = abi.decode_revert(answer)
    assert reason is RevertReason.TOKEN_REFUSED
    assert text.startswith("ERC20: transfer amount exceeds balance[31mxxx")
    assert len(text) == 200


@given(st.binary(max_size=300))
def test_no_revert_is_too_strange_to_read(answer: bytes) -> None:
    for prefix in (b"", keccak(b"Error(string)")[:4]):
        reason, text = abi.decode_revert(prefix + answer)
        assert isinstance(reason, RevertReason)
        assert text.isprintable()
