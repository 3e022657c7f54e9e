"""Offers that are refused say which field, what was asked and what is allowed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.client.policy.choice import choose_offer
from channel.client.policy.meter import Expectation
from channel.client.policy.policy import (
    Amounts,
    Offer,
    amounts_of,
    deposit_size,
    require_deposit,
    require_offer,
    step_value,
    top_up_size,
)
from channel.client.policy.usage import RequestCost
from channel.errors import BudgetExceededError, OfferRefusedError
from channel.methods.evm.method import EVM
from channel.tariff import Rate, Tariff
from channel.types import Address
from channel.wire.challenge import Challenge, format_challenge
from channel.wire.encoding import format_timestamp
from tests.channel.client.conftest import limits_of, policy_of
from tests.channel.client.provider import CHAIN_ID, ESCROW, NOW, PAYEE, session_request

THIEF = Address(b"\x66" * 20)
ORIGIN = "https://api.example:443"


def challenge_of(request: dict[str, Any] | None = None, **changes: Any) -> Challenge:
    fields: dict[str, Any] = {
        "id": "one",
        "realm": "api.example",
        "method": "evm",
        "intent": "session",
        "request": EVM.format_request(session_request(**(request or {}))),
        "expires": format_timestamp(NOW + 300),
    }
    return Challenge(**(fields | changes))


def offer_of(request: dict[str, Any] | None = None, **changes: Any) -> Offer:
    return Offer.from_challenge(challenge_of(request, **changes))


def test_a_fair_offer_passes_and_names_its_limits() -> None:
    policy = policy_of()
    assert require_offer(policy, offer_of(), ORIGIN, NOW) is policy.limits[0]


@pytest.mark.parametrize(
    ("request_changes", "changes", "field", "asked", "allowed"),
    [
        ({}, {"method": "tempo"}, "method/intent", "tempo/session", "evm/session"),
        ({}, {"intent": "charge"}, "method/intent", "evm/charge", "evm/session"),
        ({}, {"expires": format_timestamp(NOW - 1)}, "expires", None, "it is 2025-06-15T"),
        ({}, {"expires": format_timestamp(NOW + 1)}, "expires", None, "a time to come"),
        ({}, {"expires": None}, "expires", None, "a time to come"),
        ({}, {"expires": "soon"}, "expires", "soon", "a time to come"),
        ({}, {"header": "Cookie"}, "header", "Cookie", "Authorization or Payment-Authorization"),
        (
            {"credential_types": ("permit2", "authorization")},
            {},
            "credentialTypes",
            "permit2, authorization, and pays no gas",
            "hash",
        ),
        ({"credential_types": ("coupon",), "fee_payer": True}, {}, "credentialTypes", None, "hash"),
        ({"chain_id": 1}, {}, "chainId and currency", None, f"{CHAIN_ID}:0x7070"),
        ({"currency": THIEF}, {}, "chainId and currency", f"{CHAIN_ID}:0x6666", "0x7070"),
        ({"unit_type": "sneeze"}, {}, "unitType", "'sneeze'", "llm_token, request"),
        ({"unit_price": 51}, {}, "amount per request", 51, "1 to 50"),
        ({"min_voucher_delta": 21}, {}, "minVoucherDelta", 21, "at most 20, by the voucher step"),
    ],
)
def test_an_offer_outside_the_policy_is_refused_by_name(
    request_changes: dict[str, Any],
    changes: dict[str, Any],
    field: str,
    asked: object,
    allowed: str,
) -> None:
    """CLIENT-01, CLIENT-02, F-112, F-95."""
    with pytest.raises(OfferRefusedError) as caught:
        require_offer(policy_of(), offer_of(request_changes, **changes), ORIGIN, NOW)
    assert caught.value.field == field
    if asked is not None:
        assert str(asked).lower() in str(caught.value.asked).lower()
    assert allowed.lower() in str(caught.value.allowed).lower()
    assert ORIGIN in str(caught.value)
    assert str(caught.value.allowed) in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "request_changes", "field"),
    [
        ({"escrows": frozenset({ESCROW})}, {"escrow": THIEF}, "escrowContract"),
        ({"recipients": frozenset({PAYEE})}, {"recipient": THIEF}, "recipient"),
        ({"recipients": frozenset()}, {}, "recipient"),
    ],
)
def test_parties_not_listed_are_refused(
    limits: dict[str, Any], request_changes: dict[str, Any], field: str
) -> None:
    """F-91."""
    with pytest.raises(OfferRefusedError) as caught:
        require_offer(policy_of(limits), offer_of(request_changes), ORIGIN, NOW)
    assert caught.value.field == field


def test_a_policy_without_limits_allows_nothing() -> None:
    policy = policy_of()
    with pytest.raises(OfferRefusedError, match="none"):
        require_offer(replace(policy, limits=()), offer_of(), ORIGIN, NOW)


def test_limits_may_differ_by_origin() -> None:
    """So deposits are sized by what is allowed there, not by the greatest of all limits."""
    near, policy = limits_of(deposit_max=7), policy_of()
    split = replace(policy, limits_of=lambda origin: (near,) if origin == ORIGIN else ())
    assert require_offer(split, offer_of(), ORIGIN, NOW) is near
    with pytest.raises(OfferRefusedError, match="the policy allows none"):
        require_offer(split, offer_of(), "https://other.example:443", NOW)


def test_the_description_decides_nothing() -> None:
    """CHAL-13."""
    offer = offer_of({"description": "free of charge"}, description="free of charge")
    assert require_offer(policy_of(), offer, ORIGIN, NOW) is not None


def test_the_first_allowed_offer_of_several_is_taken() -> None:
    lines = [
        format_challenge(challenge_of(method="tempo")),
        format_challenge(challenge_of({"unit_price": 1_000})),
        "Bearer realm=x, " + format_challenge(challenge_of(id="third")),
    ]
    chosen = choose_offer(policy_of(), lines, ORIGIN, NOW)
    assert chosen is not None
    assert chosen[0].challenge.id == "third"


def test_no_challenge_of_the_scheme_is_nothing_to_refuse() -> None:
    assert choose_offer(policy_of(), ["Bearer realm=x"], ORIGIN, NOW) is None
    assert choose_offer(policy_of(), [], ORIGIN, NOW) is None


def test_of_several_refusals_the_one_for_our_own_method_is_raised() -> None:
    lines = [
        format_challenge(challenge_of(method="tempo")),
        format_challenge(challenge_of({"unit_price": 1_000})),
    ]
    with pytest.raises(OfferRefusedError, match="amount per request 1000"):
        choose_offer(policy_of(), lines, ORIGIN, NOW)
    with pytest.raises(OfferRefusedError, match="tempo/session"):
        choose_offer(policy_of(), lines[:1], ORIGIN, NOW)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("Payment id=", "WWW-Authenticate"),
        (format_challenge(replace(challenge_of(), request="e30")), "request"),
    ],
)
def test_an_unreadable_challenge_is_refused_not_raised_through(line: str, field: str) -> None:
    with pytest.raises(OfferRefusedError) as caught:
        choose_offer(policy_of(), [line], ORIGIN, NOW)
    assert caught.value.field == field


def test_the_deposit_is_the_least_of_suggestion_expectation_and_cap() -> None:
    """F-92: the cap is a cap, not a default."""
    policy = policy_of(expected_units=100)
    limits = limits_of(deposit_max=5_000)
    assert deposit_size(policy, limits, session_request(suggested_deposit=None), 10) == 1_000
    assert deposit_size(policy, limits, session_request(suggested_deposit=300), 10) == 300
    assert deposit_size(policy, limits, session_request(suggested_deposit=10**20), 10) == 1_000
    assert deposit_size(policy, limits_of(deposit_max=700), session_request(), 10) == 700
    assert deposit_size(policy, limits, session_request(suggested_deposit=0), 10) == 10


def test_input_of_the_first_request_is_deposited_on_top() -> None:
    """F-92: within the cap. What a prompt may cost is no part of what units of output cost."""
    policy = policy_of(expected_units=100)
    limits = limits_of(deposit_max=5_000)
    asked = session_request(suggested_deposit=300)
    assert deposit_size(policy, limits, asked, 10, ahead=2_000) == 2_300
    assert deposit_size(policy, limits, asked, 10, ahead=9_000) == 5_000


def test_what_a_request_costs_follows_from_offer_and_policy() -> None:
    """A stream of a tariff: 964 tokens of input at 1 for 10, and 26 for 64 tokens of output."""
    policy = policy_of(lost_units_max=100, voucher_step_max=1_000)
    tariff = Tariff((Rate("output_token", 4, 10), Rate("input_token", 1, 10)))
    asked = session_request(unit_price=2, unit_type="5_output_tokens", tariff=tariff)
    expectation = Expectation(is_stream=True, units_max=None, prompt_bytes=900)
    cost = RequestCost(tariff, expectation, units_max=4096)
    assert amounts_of(policy, asked, cost) == Amounts(
        unit=1, cost=1, ahead=97, cost_max=97, step=26, step_max=400, lost_max=40 + 96
    )
    one = policy_of(voucher_step=1)
    assert amounts_of(one, asked, cost).step_max == amounts_of(one, asked, cost).step == 1


def test_a_top_up_covers_what_is_needed_and_stays_below_the_cap() -> None:
    policy = policy_of(expected_units=100)
    limits = limits_of(deposit_max=1_500)
    asked = session_request()
    assert top_up_size(policy, limits, asked, deposit=1_000, needed=1_010) == 500
    assert top_up_size(policy, limits_of(), asked, deposit=1_000, needed=1_010) == 1_000
    assert top_up_size(policy, limits_of(), asked, deposit=1_000, needed=3_500) == 2_500


@pytest.mark.parametrize(
    ("limits", "limit"),
    [({"deposit_max": 99}, "deposit_max"), ({"cumulative_max": 99}, "cumulative_max")],
)
def test_a_channel_never_grows_beyond_its_caps(limits: dict[str, Any], limit: str) -> None:
    require_deposit(limits_of(**limits), 99, ORIGIN)
    with pytest.raises(BudgetExceededError) as caught:
        require_deposit(limits_of(**limits), 100, ORIGIN)
    assert (caught.value.limit, caught.value.asked, caught.value.allowed) == (limit, 100, 99)


def test_the_step_is_counted_in_units_of_the_offer() -> None:
    policy = policy_of(voucher_step=7)
    assert step_value(policy, session_request(unit_price=3)) == 3
    assert step_value(policy, session_request(unit_price=3, unit_type="llm_token")) == 21


@given(
    suggested=st.none() | st.integers(0, 2**128 - 1),
    price=st.integers(1, 50),
    cap=st.integers(1, 10**6),
    needed=st.integers(0, 10**6),
)
def test_no_suggestion_moves_a_deposit_beyond_cap_and_expectation(
    suggested: int | None, price: int, cap: int, needed: int
) -> None:
    """F-92."""
    policy = policy_of(expected_units=1_000)
    limits = limits_of(deposit_max=cap)
    needed = min(needed, cap)
    size = deposit_size(
        policy, limits, session_request(unit_price=price, suggested_deposit=suggested), needed
    )
    assert needed <= size <= max(needed, min(cap, 1_000 * price))
