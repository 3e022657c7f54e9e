"""A credential of method `tempo` is refused before its transaction is sent, unless it can count."""

from typing import Any

import pytest
import rlp  # type: ignore[import-untyped]

from channel.errors import MalformedPayloadError, SignerMismatchError, WireError
from channel.methods.evm.method import EVM
from channel.methods.interface import PayerTransaction
from channel.methods.tempo.method import TEMPO
from channel.methods.tempo.transaction import read_calls
from channel.types import Address, ChannelKey, ChannelTerms, SignedVoucher, TxHash
from channel.verify.signature import address_of, sign
from channel.verify.typed_data import derive_channel_id, keccak
from channel.wire.challenge import SessionRequest
from channel.wire.encoding import format_hex
from channel.wire.payload import OpenPayload, TopUpPayload, VoucherPayload

KEY = b"\x11" * 32
PAYER = address_of(KEY)
PAYEE, TOKEN, ESCROW = (Address(bytes([n]) * 20) for n in (0xB2, 0xC3, 0xE5))
SALT = b"\x05" * 32
CHAIN_ID = 4217
TERMS = ChannelTerms(PAYER, PAYEE, TOKEN, PAYER)
CHANNEL = ChannelKey(
    CHAIN_ID, ESCROW, derive_channel_id(TERMS, salt=SALT, escrow=ESCROW, chain_id=CHAIN_ID)
)
ASKED = SessionRequest(
    unit_price=1,
    currency=TOKEN,
    recipient=PAYEE,
    chain_id=CHAIN_ID,
    escrow=ESCROW,
    unit_type="",
    credential_types=("transaction",),
)


def call(signature: str, *words: bytes) -> bytes:
    return keccak(signature.encode())[:4] + b"".join(word.rjust(32, b"\0") for word in words)


def opening(payee: bytes = PAYEE, token: bytes = TOKEN, signer: bytes = PAYER) -> bytes:
    name = "open(address,address,uint128,bytes32,address)"
    return call(name, payee, token, b"\x03\xe8", SALT, signer)


def topping_up(channel_id: bytes = CHANNEL.channel_id, amount: bytes = b"\x07") -> bytes:
    return call("topUp(bytes32,uint256)", channel_id, amount)


def transaction(*data: bytes, chain_id: int = CHAIN_ID, to: bytes = ESCROW) -> bytes:
    approve = [TOKEN, b"", b"\x09\x5e\xa7\xb3" + bytes(64)]
    calls = [approve, *([to, b"", one] for one in data)]
    fields: list[Any] = [chain_id, 1, 1, 9, calls, [], 0, 0, 0, 0, TOKEN, b"", [], b"\x17" * 65]
    return b"\x76" + bytes(rlp.encode(fields))


def parse(action: str, raw: bytes, **more: str) -> Any:
    wire = {
        "action": action,
        "type": "transaction",
        "channelId": format_hex(CHANNEL.channel_id),
        "transaction": format_hex(raw),
        "cumulativeAmount": "0",
        "signature": "0x" + "17" * 65,
        "additionalDeposit": "7",
    }
    return TEMPO.parse_payload(wire | more)


def plan(payload: OpenPayload, source: Address | None = PAYER) -> Any:
    return TEMPO.plan_opening(payload, key=CHANNEL, asked=ASKED, source=source)


def test_an_opening_names_the_terms_and_the_transaction_to_send() -> None:
    raw = transaction(opening())
    payload = parse("open", raw)
    assert payload.needs_source
    found = plan(payload)
    assert (found.terms, found.deposit) == (TERMS, PayerTransaction(TxHash(keccak(raw)), raw))
    assert raw.hex() not in repr(payload) + repr(found.deposit)
    assert payload.members()["transaction"] == format_hex(raw)


@pytest.mark.parametrize(
    "raw",
    [
        transaction(opening(payee=b"\x01" * 20)),
        transaction(opening(token=b"\x01" * 20)),
        transaction(opening(signer=b"\x01" * 20)),
        transaction(opening(), chain_id=1),
        transaction(opening(), to=b"\x01" * 20),
        transaction(opening(), opening()),
        transaction(opening() + b"\0"),
        transaction(opening(payee=b"\x01" + bytes(11) + PAYEE)),
        transaction(topping_up()),
        transaction(),
        transaction(opening())[:-1],
        transaction(opening()) + b"\0",
        b"\x02" + transaction(opening())[1:],
        b"\x76",
        b"\x76" + bytes(rlp.encode([b""] * 14)),
        b"\x76\xc0",
    ],
)
def test_an_opening_that_cannot_count_is_refused_before_it_is_sent(raw: bytes) -> None:
    """OPEN-01: payee, token, chain, escrow and terms, and a transaction that is whole."""
    with pytest.raises(MalformedPayloadError):
        plan(parse("open", raw))


def test_the_payer_is_the_source_and_is_bound_by_the_channel_id() -> None:
    payload = parse("open", transaction(opening()))
    for source in (None, PAYEE):
        with pytest.raises(MalformedPayloadError):
            plan(payload, source)
    other = parse("open", transaction(opening()), authorizedSigner=format_hex(PAYEE))
    with pytest.raises(MalformedPayloadError, match="authorizedSigner"):
        plan(other)


@pytest.mark.parametrize(
    "data", [topping_up(channel_id=bytes(32)), topping_up(amount=b"\x08"), opening()]
)
def test_a_top_up_is_for_its_channel_and_amount(data: bytes) -> None:
    payload = parse("topUp", transaction(topping_up()))
    assert isinstance(payload, TopUpPayload)
    assert TEMPO.plan_top_up(payload, key=CHANNEL, asked=ASKED).amount == 7
    with pytest.raises(MalformedPayloadError):
        TEMPO.plan_top_up(parse("topUp", transaction(data)), key=CHANNEL, asked=ASKED)


def test_a_voucher_of_one_method_is_none_of_the_other() -> None:
    """SEC-03: the same key, channel, escrow and chain; only the domain's name differs."""
    for own, other in ((TEMPO, EVM), (EVM, TEMPO)):
        signature = sign(KEY, own.voucher_digest(CHANNEL, 5))
        voucher = SignedVoucher(CHANNEL.channel_id, 5, signature)
        assert own.verify_voucher(voucher, CHANNEL, PAYER).cumulative_amount == 5
        with pytest.raises(SignerMismatchError):
            other.verify_voucher(voucher, CHANNEL, PAYER)


def test_a_deposit_on_a_voucher_is_no_member_of_this_method() -> None:
    payload = TEMPO.parse_payload(
        {
            "action": "voucher",
            "channelId": format_hex(CHANNEL.channel_id),
            "cumulativeAmount": "5",
            "signature": "0x" + "17" * 65,
            "deposit": {"action": "open"},
        }
    )
    voucher = SignedVoucher(CHANNEL.channel_id, 5, b"\x17" * 65)
    assert payload == VoucherPayload(voucher)
    with pytest.raises(MalformedPayloadError):
        TEMPO.split_merged(VoucherPayload(voucher))


@pytest.mark.parametrize("change", [{"action": "pay"}, {"type": "hash"}, {"transaction": "0x"}])
def test_a_payload_of_another_form_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(MalformedPayloadError):
        parse(**{"action": "open", "raw": transaction(opening()), **change})  # type: ignore[arg-type]


def test_the_second_version_of_the_protocol_is_refused() -> None:
    wire = TEMPO.request_object(ASKED)
    assert TEMPO.parse_request_object(wire) == ASKED
    del wire["methodDetails"]["chainId"]
    assert TEMPO.parse_request_object(wire).chain_id == CHAIN_ID
    wire["methodDetails"]["sessionProtocol"] = "v2"
    with pytest.raises(WireError, match="sessionProtocol"):
        TEMPO.parse_request_object(wire)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(WireError):
        read_calls(b"\x76" + b"\xc1" * 40 + b"\xc0")
