"""Every hash the protocol defines, against vectors made by other implementations."""

from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from channel.methods.evm.method import EVM
from channel.types import ZERO_ADDRESS, Address, ChannelId, ChannelKey, ChannelTerms
from channel.verify.signature import address_of, recover, sign
from channel.verify.typed_data import (
    CANONICAL_PERMIT2,
    OPEN_WITNESS_TYPE_STRING,
    TOP_UP_WITNESS_TYPE_STRING,
    close_authorization_digest,
    derive_channel_id,
    domain_separator,
    keccak,
    open_nonce,
    open_permit_digest,
    open_witness,
    permit2_domain_separator,
    receive_authorization_digest,
    settle_authorization_digest,
    token_domain_separator,
    top_up_nonce,
    top_up_permit_digest,
    top_up_witness,
)
from channel.wire.encoding import format_hex, parse_address, parse_hex
from tests.channel.vectors import EVM as VECTORS
from tests.channel.vectors import Entry, entry_of, hex32, key_of, name_of

CONSTANTS: dict[str, Any] = VECTORS["constants"]


def terms_of(entry: Entry, payer: str = "payer") -> ChannelTerms:
    return ChannelTerms(
        payer=parse_address(entry[payer]),
        payee=parse_address(entry["payee"]),
        token=parse_address(entry["token"]),
        authorized_signer=parse_address(entry["authorizedSigner"]),
    )


def assert_signed(entry: Entry, digest: bytes, signer: str) -> None:
    """Check digest, deterministic signature and signer of a golden entry."""
    assert digest == hex32(entry, "digest")
    signature = parse_hex(entry["signature"], 65)
    assert sign(hex32(entry, "privateKey"), digest) == signature
    assert signature == hex32(entry, "r") + hex32(entry, "s") + bytes([entry["v"]])
    assert recover(digest, signature) == parse_address(entry[signer])
    assert address_of(hex32(entry, "privateKey")) == parse_address(entry[signer])


def token_domain(entry: Entry) -> bytes:
    domain = entry["tokenDomain"]
    return token_domain_separator(
        domain["name"],
        domain["version"],
        domain["chainId"],
        parse_address(domain["verifyingContract"]),
    )


# -- constants


@pytest.mark.parametrize("name", CONSTANTS["typeHashes"])
def test_type_hashes_are_the_hashes_of_their_type_strings(name: str) -> None:
    """Section 0: the strings the digests are built from are the draft's."""
    type_hash = keccak(CONSTANTS["typeStrings"][name].encode())
    assert format_hex(type_hash) == CONSTANTS["typeHashes"][name]


def test_type_strings_and_constants_are_the_drafts() -> None:
    """Section 0: witness strings, Permit2's address, stub."""
    strings = CONSTANTS["typeStrings"]
    assert CONSTANTS["witnessTypeStrings"] == {
        "open": OPEN_WITNESS_TYPE_STRING,
        "topUp": TOP_UP_WITNESS_TYPE_STRING,
    }
    stub = strings["PermitWitnessStub"]
    assert strings["PermitWitnessTransferFrom_open"] == stub + OPEN_WITNESS_TYPE_STRING
    assert strings["PermitWitnessTransferFrom_topUp"] == stub + TOP_UP_WITNESS_TYPE_STRING
    assert parse_address(CONSTANTS["permit2"]) == CANONICAL_PERMIT2
    domain = token_domain_separator(
        CONSTANTS["domainName"], CONSTANTS["domainVersion"], 1, ZERO_ADDRESS
    )
    assert domain == domain_separator(1, ZERO_ADDRESS)


# -- channels and vouchers


@pytest.mark.parametrize("entry", VECTORS["channelId"], ids=name_of)
def test_golden_channel_ids_are_derived(entry: Entry) -> None:
    """OPEN-01: the raw authorized signer goes in, never resolved to the payer."""
    terms, escrow = terms_of(entry), parse_address(entry["escrow"])
    derived = derive_channel_id(
        terms, salt=hex32(entry, "salt"), escrow=escrow, chain_id=entry["chainId"]
    )
    assert derived == hex32(entry, "channelId") == keccak(bytes.fromhex(entry["encoded"][2:]))


def test_a_signer_equal_to_the_payer_makes_another_channel() -> None:
    """OPEN-01, CLIENT-03."""
    plain = entry_of(VECTORS["channelId"], "channelId_00")
    named = entry_of(VECTORS["channelId"], "channelId_00_with_signer_equal_payer")
    assert terms_of(named).signer == terms_of(plain).signer == terms_of(plain).payer
    assert plain["channelId"] != named["channelId"]


@pytest.mark.parametrize("entry", VECTORS["voucher"], ids=name_of)
def test_golden_vouchers_are_digested_signed_and_recovered(entry: Entry) -> None:
    """Section 0, ENC-06, SEC-03: from 0 to 2**128 - 2, on five chains."""
    key = key_of(entry)
    assert domain_separator(key.chain_id, key.escrow) == hex32(entry, "domainSeparator")
    digest = EVM.voucher_digest(key, int(entry["cumulativeAmount"]))
    assert digest == keccak(
        b"\x19\x01" + hex32(entry, "domainSeparator") + hex32(entry, "structHash")
    )
    assert_signed(entry, digest, "signer")


KEYS = st.builds(
    ChannelKey,
    st.integers(0, 2**53 - 1),
    st.binary(min_size=20, max_size=20).map(Address),
    st.binary(min_size=32, max_size=32).map(ChannelId),
)


@given(KEYS, st.integers(0, 2**128 - 1))
def test_the_quick_voucher_digest_is_abi_encodings(key: ChannelKey, amount: int) -> None:
    """Section 0: built from cached parts, equal to the formula written out."""
    voucher_type = keccak(b"Voucher(bytes32 channelId,uint128 cumulativeAmount)")
    struct = keccak(
        encode(["bytes32", "bytes32", "uint128"], [voucher_type, key.channel_id, amount])
    )
    separator = domain_separator(key.chain_id, key.escrow)
    assert EVM.voucher_digest(key, amount) == keccak(b"\x19\x01" + separator + struct)


@given(KEYS, KEYS)
def test_another_channel_escrow_or_chain_is_another_digest(
    one: ChannelKey, two: ChannelKey
) -> None:
    """SEC-03, F-23: no voucher serves twice."""
    if one != two:
        assert EVM.voucher_digest(one, 1) != EVM.voucher_digest(two, 1)
    assert EVM.voucher_digest(one, 1) != EVM.voucher_digest(one, 2)


# -- what payees and funders sign


@pytest.mark.parametrize("entry", VECTORS["settleAuthorization"], ids=name_of)
def test_golden_settle_authorizations(entry: Entry) -> None:
    """RELAY-01."""
    amount, nonce, deadline = (int(entry[n]) for n in ("cumulativeAmount", "nonce", "deadline"))
    digest = settle_authorization_digest(key_of(entry), amount, nonce=nonce, deadline=deadline)
    assert_signed(entry, digest, "payee")
    close = close_authorization_digest(key_of(entry), amount, nonce=nonce, deadline=deadline)
    assert digest != close, "RELAY-05: one cannot stand for the other"


@pytest.mark.parametrize("entry", VECTORS["closeAuthorization"], ids=name_of)
def test_golden_close_authorizations(entry: Entry) -> None:
    """RELAY-01, RELAY-05."""
    amount, nonce, deadline = (int(entry[n]) for n in ("cumulativeAmount", "nonce", "deadline"))
    digest = close_authorization_digest(key_of(entry), amount, nonce=nonce, deadline=deadline)
    assert_signed(entry, digest, "payee")


@pytest.mark.parametrize("entry", VECTORS["eip3009Open"], ids=name_of)
def test_golden_authorizations_that_open(entry: Entry) -> None:
    """OPEN-05, F-21: the nonce is a formula, the domain the token's own."""
    terms, escrow = terms_of(entry, "from"), parse_address(entry["escrow"])
    nonce = open_nonce(terms, hex32(entry, "salt"))
    assert nonce == hex32(entry, "nonce") == keccak(bytes.fromhex(entry["nonceEncoded"][2:]))
    assert token_domain(entry) == hex32(entry, "domainSeparator")
    digest = receive_authorization_digest(
        token_domain(entry),
        funder=terms.payer,
        to=parse_address(entry["to"]),
        value=int(entry["value"]),
        valid_after=int(entry["validAfter"]),
        valid_before=int(entry["validBefore"]),
        nonce=nonce,
    )
    assert_signed(entry, digest, "from")
    derived = derive_channel_id(
        terms, salt=hex32(entry, "salt"), escrow=escrow, chain_id=entry["chainId"]
    )
    assert derived == hex32(entry, "channelId")


@pytest.mark.parametrize("entry", VECTORS["eip3009TopUp"], ids=name_of)
def test_golden_authorizations_that_top_up(entry: Entry) -> None:
    """TOPUP-04."""
    nonce = top_up_nonce(
        ChannelId(hex32(entry, "channelId")),
        additional_deposit=int(entry["additionalDeposit"]),
        funder=parse_address(entry["from"]),
        salt=hex32(entry, "topUpSalt"),
    )
    assert nonce == hex32(entry, "nonce") == keccak(bytes.fromhex(entry["nonceEncoded"][2:]))
    assert token_domain(entry) == hex32(entry, "domainSeparator")
    digest = receive_authorization_digest(
        token_domain(entry),
        funder=parse_address(entry["from"]),
        to=parse_address(entry["to"]),
        value=int(entry["additionalDeposit"]),
        valid_after=int(entry["validAfter"]),
        valid_before=int(entry["validBefore"]),
        nonce=nonce,
    )
    assert_signed(entry, digest, "from")


@pytest.mark.parametrize("entry", VECTORS["permit2Open"], ids=name_of)
def test_golden_permits_that_open(entry: Entry) -> None:
    """OPEN-06, CLIENT-03: spender signed, witness binds the terms, no version in the domain."""
    witness = open_witness(
        parse_address(entry["payee"]),
        hex32(entry, "salt"),
        parse_address(entry["authorizedSigner"]),
    )
    assert witness == hex32(entry, "witnessHash")
    assert entry["witnessTypeString"] == OPEN_WITNESS_TYPE_STRING
    separator = permit2_domain_separator(entry["chainId"], parse_address(entry["permit2"]))
    assert separator == hex32(entry, "domainSeparator")
    digest = open_permit_digest(
        separator,
        token=parse_address(entry["token"]),
        amount=int(entry["amount"]),
        spender=parse_address(entry["spender"]),
        nonce=int(entry["nonce"]),
        deadline=int(entry["deadline"]),
        witness=witness,
    )
    assert_signed(entry, digest, "from")
    derived = derive_channel_id(
        terms_of(entry, "from"),
        salt=hex32(entry, "salt"),
        escrow=parse_address(entry["spender"]),
        chain_id=entry["chainId"],
    )
    assert derived == hex32(entry, "channelId")


@pytest.mark.parametrize("entry", VECTORS["permit2TopUp"], ids=name_of)
def test_golden_permits_that_top_up(entry: Entry) -> None:
    """TOPUP-01, TOPUP-04."""
    witness = top_up_witness(ChannelId(hex32(entry, "channelId")))
    assert witness == hex32(entry, "witnessHash")
    assert entry["witnessTypeString"] == TOP_UP_WITNESS_TYPE_STRING
    separator = permit2_domain_separator(entry["chainId"], parse_address(entry["permit2"]))
    assert separator == hex32(entry, "domainSeparator")
    digest = top_up_permit_digest(
        separator,
        token=parse_address(entry["token"]),
        amount=int(entry["amount"]),
        spender=parse_address(entry["spender"]),
        nonce=int(entry["nonce"]),
        deadline=int(entry["deadline"]),
        witness=witness,
    )
    assert_signed(entry, digest, "from")
