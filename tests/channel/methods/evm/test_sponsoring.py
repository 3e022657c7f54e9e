"""Signed deposits against the golden vectors: what others signed is taken, a change is not."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from channel.chain import SponsoredDeposit
from channel.engine import Engine, SponsorTerms
from channel.errors import (
    ChallengeNotFoundError,
    ConfigError,
    MalformedPayloadError,
    SignerMismatchError,
)
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenPermit2,
    TopUpAuthorization,
    TopUpPermit2,
)
from channel.methods.evm.sponsoring import (
    SponsoredOpening,
    SponsoredTopUp,
    build_opening_deposit,
    build_top_up_deposit,
    require_key_signature,
    split_merged,
)
from channel.types import (
    ZERO_ADDRESS,
    Address,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    SignedVoucher,
)
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.encoding import parse_address, parse_hex
from channel.wire.funding import (
    Deposit,
    OpenPermit,
    TopUpPermit,
    TransferAuthorization,
)
from channel.wire.payload import (
    VoucherPayload,
)
from settlement.escrow.deposit_calls import build_deposit_call
from tests.channel.selling import SECRET, SETTINGS, open_provider
from tests.channel.vectors import EVM, Entry, hex32, name_of

OTHER = Address(b"\x77" * 20)


class Case(msgspec.Struct):
    """A payload made of a vector's values, and what is known around it."""

    payload: Any
    key: ChannelKey
    terms: ChannelTerms
    domain: bytes

    def build(self, payload: Any = None) -> SponsoredDeposit:
        payload = payload or self.payload
        if isinstance(payload, SponsoredOpening):
            return build_opening_deposit(self.key, payload, self.terms)
        return build_top_up_deposit(self.key, payload, self.terms.token)


def case_of(kind: str, entry: Entry) -> Case:
    escrow = parse_address(entry["escrow" if kind.startswith("eip") else "spender"])
    key = ChannelKey(entry["chainId"], escrow, ChannelId(hex32(entry, "channelId")))
    payer = parse_address(entry["from"])
    token = parse_address(entry.get("token", "0x" + "00" * 20))
    terms = ChannelTerms(
        payer,
        parse_address(entry.get("payee", "0x" + "00" * 20)),
        token,
        parse_address(entry.get("authorizedSigner", "0x" + "00" * 20)),
    )
    signature = parse_hex(entry["signature"], 65)
    voucher = SignedVoucher(key.channel_id, 0, b"\x01" * 65)
    payload: SponsoredOpening | SponsoredTopUp
    if kind.startswith("eip3009"):
        amount = int(entry["value" if kind == "eip3009Open" else "additionalDeposit"])
        funding = TransferAuthorization(
            funder=payer,
            to=escrow,
            value=amount,
            valid_after=int(entry["validAfter"]),
            valid_before=int(entry["validBefore"]),
            nonce=hex32(entry, "nonce"),
        )
        if kind == "eip3009Open":
            payload = OpenAuthorization(
                voucher, hex32(entry, "salt"), terms.authorized_signer, funding, signature
            )
        else:
            salt = hex32(entry, "topUpSalt")
            payload = TopUpAuthorization(key.channel_id, amount, salt, funding, signature)
    else:
        head = (payer, token, int(entry["amount"]), int(entry["nonce"]), int(entry["deadline"]))
        if kind == "permit2Open":
            salt = hex32(entry, "salt")
            permit = OpenPermit(*head, terms.payee, salt, terms.authorized_signer)
            payload = OpenPermit2(voucher, salt, terms.authorized_signer, permit, signature)
        else:
            top_up = TopUpPermit(*head, key.channel_id)
            payload = TopUpPermit2(key.channel_id, top_up.amount, top_up, signature)
    return Case(payload, key, terms, hex32(entry, "domainSeparator"))


CASES = [
    pytest.param(kind, entry, id=name_of(entry))
    for kind in ("eip3009Open", "eip3009TopUp", "permit2Open", "permit2TopUp")
    for entry in EVM[kind]
]


@pytest.mark.parametrize(("kind", "entry"), CASES)
def test_what_the_vectors_signed_is_taken(kind: str, entry: Entry) -> None:
    """OPEN-05, OPEN-06, TOPUP-04, RELAY-06: digest, nonce, witness and spender as viem has it."""
    case = case_of(kind, entry)
    deposit = case.build()
    require_key_signature(deposit, case.domain, case.terms)
    with pytest.raises(SignerMismatchError):
        require_key_signature(replace(deposit, amount=deposit.amount + 1), case.domain, case.terms)


@pytest.mark.parametrize(("kind", "entry"), CASES)
def test_a_field_that_contradicts_the_rest_is_refused(kind: str, entry: Entry) -> None:
    """OPEN-05, OPEN-06, TOPUP-02, CRED-06: before any signature is looked at."""
    case = case_of(kind, entry)
    funding = case.payload.authorization
    fields: dict[str, list[tuple[str, Any]]] = {
        "eip3009Open": [("to", OTHER), ("nonce", bytes(32))],
        "eip3009TopUp": [("to", OTHER), ("nonce", bytes(32)), ("value", 7), ("funder", OTHER)],
        "permit2Open": [
            ("token", OTHER),
            ("payee", OTHER),
            ("salt", bytes(32)),
            ("authorized_signer", OTHER),
        ],
        "permit2TopUp": [("token", OTHER), ("amount", 7), ("channel_id", ChannelId(bytes(32)))],
    }
    for field, value in fields[kind]:
        wrong = replace(case.payload, authorization=replace(funding, **{field: value}))
        with pytest.raises(MalformedPayloadError, match=r"payload\.authorization\."):
            case.build(wrong)


@pytest.mark.parametrize(
    "call", [c for c in EVM["calldata"] if c["function"].endswith("Permit2")], ids=name_of
)
def test_the_calldata_is_that_of_the_vectors(call: Entry) -> None:
    """CONTRACT-10: from payload to call, byte for byte."""
    kind = "permit2Open" if call["function"].startswith("open") else "permit2TopUp"
    (entry,) = [e for e in EVM[kind] if e["name"] == call["from"]]
    assert "0x" + build_deposit_call(case_of(kind, entry).build()).hex() == call["data"]


@pytest.mark.parametrize(("kind", "entry"), CASES)
def test_a_deposit_on_a_voucher_is_what_it_would_be_by_itself(kind: str, entry: Entry) -> None:
    """VCH-06: no amount of its own; the salt is not sent for a top-up by Permit2."""
    whole = case_of(kind, entry).payload
    opens = isinstance(whole, SponsoredOpening)
    voucher = SignedVoucher(whole.channel_id, 0, b"\x01" * 65)
    deposit = Deposit(
        "open" if opens else "topUp",
        whole.type,
        whole.authorization,
        whole.signature,
        getattr(whole, "salt", None),
        whole.authorized_signer if opens else ZERO_ADDRESS,
    )
    assert split_merged(VoucherPayload(voucher, deposit), deposit) == whole


async def test_gas_is_not_promised_without_a_sponsor(tmp_path: Path) -> None:
    """CHAL-04, decision 15; and without a promise a signed deposit is a payload not offered."""
    promised = SponsorTerms(credential_types=("authorization", "hash"), token_domain=bytes(32))
    async with open_provider(tmp_path) as provider:
        with pytest.raises(ConfigError):
            Engine(
                ledger=provider.ledger,
                chain=provider.chain,
                binder=ChallengeBinder([SECRET]),
                settings=replace(SETTINGS, sponsor=promised),
            )
        challenge = provider.engine.challenger.issue(provider.offer)
        payload = case_of("eip3009Open", EVM["eip3009Open"][0]).payload
        with pytest.raises(MalformedPayloadError, match="credentialTypes"):
            provider.engine.challenger.authenticate(
                provider.payer.credential(challenge, payload), [provider.offer]
            )


@pytest.mark.parametrize(
    ("types", "late_s", "refusal"),
    [
        (("authorization", "hash"), -1, None),
        (("authorization", "hash"), 0, ChallengeNotFoundError),
        (("authorization", "hash"), 1, ChallengeNotFoundError),
        (("hash",), -1, MalformedPayloadError),
        (("hash", "permit2"), -1, MalformedPayloadError),
    ],
)
async def test_a_deposit_on_a_voucher_needs_a_challenge_that_offers_it_now(
    tmp_path: Path, types: tuple[str, ...], late_s: int, refusal: type[Exception] | None
) -> None:
    """O-97, CRED-05, AMB-05: what a live stream's voucher may be late for, a deposit may not."""
    whole = case_of("eip3009Open", EVM["eip3009Open"][0]).payload
    deposit = Deposit(
        "open",
        whole.type,
        whole.authorization,
        whole.signature,
        whole.salt,
        whole.authorized_signer,
    )
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        offer = replace(
            provider.offer, request=replace(provider.offer.request, credential_types=types)
        )
        challenge = provider.engine.challenger.issue(offer)
        provider.clock.advance(SETTINGS.challenge_lifetime_s + late_s)
        payload = VoucherPayload(provider.payer.sign(50), deposit)
        credential = provider.payer.credential(challenge, payload)
        if refusal is None:
            assert (
                provider.engine.challenger.authenticate(credential, [offer]).key
                == provider.payer.key
            )
        else:
            with pytest.raises(refusal):
                provider.engine.challenger.authenticate(credential, [offer])
        alone = provider.payer.credential(challenge, provider.payer.voucher(50))
        assert provider.engine.challenger.authenticate(alone, [offer]).is_expired is (late_s >= 0)
