"""Deposits by signature are those of the golden vectors, byte for byte."""

import pytest

from channel.client.funding.signer import LocalSigner
from channel.client.funding.signing import (
    Domain,
    Window,
    sign_open_authorization,
    sign_open_permit,
    sign_top_up_authorization,
    sign_top_up_permit,
)
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenPermit2,
    TopUpAuthorization,
    TopUpPermit2,
    build_open,
    build_top_up,
    parse_payload,
)
from channel.types import ChannelId, ChannelTerms, SignedVoucher
from channel.verify.signature import sign
from channel.verify.typed_data import permit2_domain_separator
from channel.wire.encoding import parse_address, parse_hex
from channel.wire.funding import (
    Deposit,
)
from channel.wire.payload import (
    format_payload,
)
from tests.channel.vectors import EVM, Entry, hex32, name_of


class VectorSigner(LocalSigner):
    """Signs as the vectors' author did: without entropy."""

    def __init__(self, private_key: bytes) -> None:
        super().__init__(private_key)
        self._key = private_key

    async def sign(self, digest: bytes) -> bytes:
        return sign(self._key, digest)


def signer_of(entry: Entry) -> LocalSigner:
    return VectorSigner(parse_hex(entry["privateKey"], 32))


def terms_of(entry: Entry) -> ChannelTerms:
    return ChannelTerms(
        payer=parse_address(entry["from"]),
        payee=parse_address(entry["payee"]),
        token=parse_address(entry["token"]),
        authorized_signer=parse_address(entry["authorizedSigner"]),
    )


def token_domain_of(entry: Entry) -> Domain:
    return Domain(hex32(entry, "domainSeparator"), parse_address(entry["escrow"]))


def permit2_domain_of(entry: Entry) -> Domain:
    separator = permit2_domain_separator(entry["chainId"], parse_address(entry["permit2"]))
    return Domain(separator, parse_address(entry["spender"]))


def window_of(entry: Entry) -> Window:
    return Window(int(entry["validAfter"]), int(entry["validBefore"]))


async def deposit_of(kind: str, entry: Entry) -> Deposit:
    signer = signer_of(entry)
    if kind == "eip3009Open":
        return await sign_open_authorization(
            signer,
            token_domain_of(entry),
            window_of(entry),
            terms=terms_of(entry),
            salt=hex32(entry, "salt"),
            amount=int(entry["value"]),
        )
    if kind == "eip3009TopUp":
        return await sign_top_up_authorization(
            signer,
            token_domain_of(entry),
            window_of(entry),
            channel_id=ChannelId(hex32(entry, "channelId")),
            salt=hex32(entry, "topUpSalt"),
            amount=int(entry["additionalDeposit"]),
        )
    domain, amount = permit2_domain_of(entry), int(entry["amount"])
    nonce, deadline = int(entry["nonce"]), int(entry["deadline"])
    if kind == "permit2Open":
        return await sign_open_permit(
            signer,
            domain,
            terms=terms_of(entry),
            salt=hex32(entry, "salt"),
            amount=amount,
            nonce=nonce,
            deadline=deadline,
        )
    return await sign_top_up_permit(
        signer,
        domain,
        token=parse_address(entry["token"]),
        channel_id=ChannelId(hex32(entry, "channelId")),
        amount=amount,
        nonce=nonce,
        deadline=deadline,
    )


VECTORS = [
    pytest.param(kind, entry, id=name_of(entry))
    for kind in ("eip3009Open", "eip3009TopUp", "permit2Open", "permit2TopUp")
    for entry in EVM[kind]
]


@pytest.mark.parametrize(("kind", "entry"), VECTORS)
async def test_deposits_are_signed_as_the_vectors_are(kind: str, entry: Entry) -> None:
    """CLIENT-03, OPEN-05, OPEN-06, TOPUP-04, RELAY-06: nonce, witness and signature."""
    deposit = await deposit_of(kind, entry)
    assert "0x" + deposit.signature.hex() == entry["signature"]
    assert deposit.authorization.funder == parse_address(entry["from"])
    if kind.startswith("eip3009"):
        assert deposit.authorization.nonce == hex32(entry, "nonce")


@pytest.mark.parametrize(("kind", "entry"), VECTORS)
async def test_a_deposit_rides_alone_as_well_as_on_a_voucher(kind: str, entry: Entry) -> None:
    """TOPUP-01, VCH-06: the same signature in the credential of its own action."""
    deposit = await deposit_of(kind, entry)
    channel_id = ChannelId(hex32(entry, "channelId"))
    voucher = SignedVoucher(channel_id, 7, b"\x01" * 65)
    payload: OpenAuthorization | OpenPermit2 | TopUpAuthorization | TopUpPermit2
    if kind.endswith("Open"):
        payload = build_open(deposit, voucher)
        with pytest.raises(ValueError, match="found an opening"):
            build_top_up(deposit, channel_id)
    else:
        payload = build_top_up(deposit, channel_id)
        assert payload.additional_deposit == deposit.amount
        with pytest.raises(ValueError, match="found a top-up"):
            build_open(deposit, voucher)
    assert payload.channel_id == channel_id
    assert payload.signature == deposit.signature
    assert payload.authorization == deposit.authorization
    assert parse_payload(format_payload(payload)) == payload
