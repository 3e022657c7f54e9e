"""Which of several offers is taken, and what a refusal says of each."""

import base64
import json
from typing import Any

import pytest
from mpp.methods.evm import challenge_hash
from msgspec.structs import replace

from channel.client.policy.charges import ChargeOffer, require_charge
from channel.client.policy.choice import (
    REPEATED,
    SINGLE,
    accept_payment,
    choose_offer,
    choose_payment,
)
from channel.client.policy.policy import Policy
from channel.errors import OfferRefusedError
from channel.verify.typed_data import charge_nonce, keccak
from channel.wire.challenge import Challenge, format_challenge
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    format_checksum_address,
    format_timestamp,
)
from tests.channel.client.conftest import policy_of
from tests.channel.client.policy.test_policy import ORIGIN, challenge_of
from tests.channel.client.provider import CHAIN_ID, NOW, PAYEE, TOKEN

SESSION = format_challenge(challenge_of())


def charge_line(amount: int = 30, **changes: Any) -> str:
    request = {
        "amount": str(amount),
        "currency": format_checksum_address(TOKEN),
        "recipient": format_checksum_address(PAYEE),
        "methodDetails": {"chainId": CHAIN_ID, "credentialTypes": ["authorization"]},
    }
    fields: dict[str, Any] = {
        "id": "two",
        "realm": "api.example",
        "method": "evm",
        "intent": "charge",
        "request": encode_base64url(canonical_json(request | changes.pop("request", {}))),
        "expires": format_timestamp(NOW + 300),
    }
    return format_challenge(Challenge(**(fields | changes)))


def exact(amount: int = 30, **changes: Any) -> dict[str, Any]:
    return {
        "scheme": "exact",
        "network": f"eip155:{CHAIN_ID}",
        "amount": str(amount),
        "asset": format_checksum_address(TOKEN),
        "payTo": format_checksum_address(PAYEE),
        "maxTimeoutSeconds": 60,
        "extra": {"name": "Paper Dollar", "version": "1"},
    } | changes


def header_of(*accepts: object, **changes: Any) -> str:
    required = {"x402Version": 2, "accepts": list(accepts), "resource": {"url": "/joke"}}
    return base64.b64encode(json.dumps(required | changes).encode()).decode()


def policy(*pays: Any, **limits: Any) -> Policy:
    return policy_of({"charge_max": 30, **limits}, pays=pays or ("session", "charge", "x402"))


def chosen(lines: list[str], x402: str | None, order: Any, *pays: Any) -> str:
    taken = choose_payment(policy(*pays), lines, ORIGIN, NOW, x402=x402, order=order)
    assert taken is not None
    return taken[0].way if isinstance(taken[0], ChargeOffer) else "session"


@pytest.mark.parametrize(
    ("order", "pays", "taken"),
    [
        (REPEATED, (), "session"),
        (SINGLE, (), "charge"),
        (SINGLE, ("session", "x402"), "x402"),
        (SINGLE, ("session",), "session"),
        (REPEATED, ("x402", "charge"), "charge"),
    ],
)
def test_a_session_pays_repeated_use_and_a_charge_one_request(
    order: Any, pays: Any, taken: str
) -> None:
    """CLIENT-15: in whichever order the server lists them, in one header or many."""
    x402 = header_of(exact())
    for lines in ([SESSION, charge_line()], [f"{charge_line()}, Bearer realm=x, {SESSION}"]):
        assert chosen(lines, x402, order, *pays) == taken


def test_an_offer_that_is_too_dear_leaves_the_next() -> None:
    """CLIENT-01, CLIENT-15: each is held against the limits by itself."""
    assert chosen([charge_line(31), charge_line(30)], None, SINGLE) == "charge"
    assert chosen([charge_line(31)], header_of(exact(31), exact(29)), SINGLE) == "x402"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (charge_line(31), "amount for a request 31; the policy allows 1 to 30"),
        (charge_line(0), "amount for a request 0; the policy allows 1 to 30"),
        (charge_line(expires=format_timestamp(NOW + 5)), "asks for expires"),
        (charge_line(expires=None), "asks for expires no expiry"),
        (charge_line(request={"methodDetails": {"chainId": 1}}), "a credential other than"),
        (charge_line(request={"recipient": "0xnone"}), "something unreadable .recipient"),
        (charge_line(method="stripe"), "takes a client that pays so"),
    ],
)
def test_a_charge_beyond_the_policy_is_refused_with_its_reason(line: str, said: str) -> None:
    """CLIENT-01, O-53."""
    with pytest.raises(OfferRefusedError, match=said):
        choose_payment(policy(), [line], ORIGIN, NOW)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (exact(scheme="upto"), r"x402 upto on eip155:31337,.* \(scheme: not exact\)"),
        (exact(network="solana:main"), "x402 exact on solana:main,.*network: not eip155"),
        (exact(extra={"assetTransferMethod": "permit2"}), "assetTransferMethod: not eip3009"),
        (exact(maxTimeoutSeconds=5), "expires a payment within 5 s"),
        (exact(asset="0x12"), "takes a client that pays so"),
    ],
)
def test_an_x402_payment_that_cannot_be_made_is_named(terms: Any, said: str) -> None:
    """O-53: beside a session, and by itself."""
    for lines in ([], [format_challenge(challenge_of({"unit_price": 51}))]):
        with pytest.raises(OfferRefusedError) as refused:
            choose_payment(policy(), lines, ORIGIN, NOW, x402=header_of(terms))
        *_, last = refused.value.offers
        assert refused.match(said)
        assert last.method.startswith("x402")


def test_what_a_name_or_address_holds_stays_in_one_printable_line() -> None:
    """O-53: a refusal is logged."""
    terms = exact(scheme="ex\nact\x1b[2J", asset="\u202e" * 99)
    with pytest.raises(OfferRefusedError) as refused:
        choose_payment(policy(), [], ORIGIN, NOW, x402=header_of(terms))
    assert str(refused.value).isprintable()
    assert refused.value.offers[0].token is None


def test_where_only_a_session_is_of_use_a_charge_is_refused() -> None:
    with pytest.raises(OfferRefusedError, match="session where the use repeats"):
        choose_offer(policy(), [charge_line()], ORIGIN, NOW)


@pytest.mark.parametrize(
    ("pays", "said"),
    [
        (("session",), "evm/session"),
        (("session", "charge", "x402"), "evm/session, evm/charge;q=0.8"),
        (("x402", "charge"), "evm/charge"),
        (("x402",), ""),
    ],
)
def test_accept_payment_names_what_the_policy_pays(pays: Any, said: str) -> None:
    """CORE-11."""
    assert accept_payment(policy(*pays)) == said


def test_an_authorization_ends_with_its_offer_and_within_the_bound() -> None:
    now = int(NOW)
    for lasts, seconds in ((120, 120), (9_000, 300)):
        line = charge_line(expires=format_timestamp(NOW + lasts))
        taken = choose_payment(policy(), [line], ORIGIN, NOW)
        assert taken is not None
        assert isinstance(taken[0], ChargeOffer)
        assert taken[0].valid_before(now) == now + seconds
        assert require_charge(policy(), taken[0], ORIGIN, NOW).charge_max == 30


@pytest.mark.parametrize("amount", ["0", "01", "1.5", "-1", "", 5, None])
def test_a_session_without_a_positive_price_is_refused(amount: object) -> None:
    """SESSION-01: as the generic intent has it."""
    request = json.loads(decode_base64url(challenge_of().request)) | {"amount": amount}
    encoded = encode_base64url(json.dumps(request).encode())
    with pytest.raises(OfferRefusedError, match="amount"):
        choose_offer(
            policy(), [format_challenge(replace(challenge_of(), request=encoded))], ORIGIN, NOW
        )


@pytest.mark.parametrize("field", ["Authorization", "payment-authorization", "X-Pay"])
def test_a_charge_that_selects_another_field_is_no_offer(field: str) -> None:
    """CHAL-12: an unrecognised challenge; the right one is answered in the field it selects."""
    line = charge_line().replace("id=", f'header="{field}", id=', 1)
    assert choose_payment(policy(), [line], ORIGIN, NOW) is None
    taken = choose_payment(policy(), [charge_line(header="Payment-Authorization")], ORIGIN, NOW)
    assert taken is not None
    assert taken[0].header == "Payment-Authorization"


def test_the_nonce_of_a_charge_is_that_of_the_other_programs() -> None:
    """AMB-30."""
    text = json.dumps(["two", "api.example"], separators=(",", ":"))
    assert charge_nonce("two", "api.example") == keccak(text.encode())
    assert "0x" + charge_nonce("two", "a/\u00e9").hex() == challenge_hash("two", "a/\u00e9")
