"""Tariffs are held against the caps of the policy, kind by kind, and against earlier offers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.client.policy.policy import deposit_size, require_offer, step_value, top_up_size
from channel.client.policy.prices import require_no_rise, worth
from channel.errors import ConfigError, OfferRefusedError
from channel.tariff import Rate, Tariff
from channel.types import TokenUnit
from channel.wire.challenge import SessionRequest
from tests.channel.client.conftest import limits_of, policy_of
from tests.channel.client.policy.tariffs import tariffs
from tests.channel.client.policy.test_policy import offer_of
from tests.channel.client.provider import NOW, session_request

ORIGIN = "https://api.example:443"
USDC = TokenUnit("USDC", 6)
CAPS: dict[str, int | str] = {
    "output_token": "0.60 usdc / 1M",
    "input_token": "0.10 / 1M",
    "request": 500,
}
MODEL = Tariff(
    (
        Rate("output_token", 400_000, 10**6),
        Rate("input_token", 100_000, 10**6),
    )
)


def request_of(tariff: Tariff) -> SessionRequest:
    price, unit_type = tariff.unit()
    return session_request(unit_price=price, unit_type=unit_type, tariff=tariff)


def refuse(tariff: Tariff, caps: dict[str, int | str] | None = None, **limits: Any) -> str:
    """Return the refusal of an offer with this tariff."""
    policy = policy_of({"unit_price_max": CAPS if caps is None else caps, "unit": USDC} | limits)
    price, unit_type = tariff.unit()
    offer = offer_of({"unit_price": price, "unit_type": unit_type, "tariff": tariff})
    with pytest.raises(OfferRefusedError) as caught:
        require_offer(policy, offer, ORIGIN, NOW)
    return f"{caught.value.field}: {caught.value}"


def test_a_tariff_within_the_caps_of_each_kind_is_taken() -> None:
    policy = policy_of({"unit_price_max": CAPS, "unit": USDC})
    offer = offer_of({"unit_price": 2, "unit_type": "5_output_tokens", "tariff": MODEL})
    assert require_offer(policy, offer, ORIGIN, NOW) is policy.limits[0]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (
            {"rates": (*MODEL.rates, Rate("image", 3))},
            "tariff.image",
            "allows input_token, output_token, request: cap image in unit_price_max to pay for it",
        ),
        (
            {"rates": (Rate("output_token", 600_001, 10**6),)},
            "tariff.output_token",
            "0.600001 USDC / 1M; the policy allows at most 0.60 USDC / 1M by unit_price_max",
        ),
        (
            {"rates": (*MODEL.rates, Rate("input_token", 200_000, 10**6, 10**5))},
            "tariff.input_token",
            "asks for tariff.input_token 0.20 USDC / 1M above 100K; the policy allows at most 0.1",
        ),
        (
            {"minimum": 501},
            "tariff.minimum",
            "tariff.minimum 0.000501 USDC; the policy allows at most 0.0005 USDC by unit_price_max",
        ),
    ],
)
def test_a_refusal_names_the_kind_and_says_what_to_set(
    changes: dict[str, Any], field: str, words: str
) -> None:
    """CLIENT-01."""
    refusal = refuse(replace(MODEL, **changes))
    assert refusal.startswith(f"{field}: ")
    assert words in refusal


def test_a_kind_that_is_free_needs_a_cap_too() -> None:
    """A cap of 0 takes it only while it is free."""
    free = replace(MODEL, rates=(*MODEL.rates, Rate("image", 0)))
    assert "tariff.image" in refuse(free)
    policy = policy_of({"unit_price_max": CAPS | {"image": 0}, "unit": USDC})
    require_offer(
        policy,
        offer_of({"unit_price": 2, "unit_type": "5_output_tokens", "tariff": free}),
        ORIGIN,
        NOW,
    )
    dear = replace(MODEL, rates=(*MODEL.rates, Rate("image", 1)))
    assert "at most 0 USDC" in refuse(dear, CAPS | {"image": 0})


def test_without_a_cap_of_a_request_a_minimum_is_at_most_a_step() -> None:
    """64 output tokens at 0.4 base units each are 26 base units."""
    caps: dict[str, int | str] = {"output_token": 1, "input_token": 1}
    refusal = refuse(replace(MODEL, minimum=27), caps, unit=None)
    assert "tariff.minimum 27 base units; the policy allows 26 base units, one step" in refusal
    policy = policy_of({"unit_price_max": caps})
    fair = replace(MODEL, minimum=26)
    offer = offer_of({"unit_price": 2, "unit_type": "5_output_tokens", "tariff": fair})
    require_offer(policy, offer, ORIGIN, NOW)


def test_a_plain_price_is_refused_in_money_where_the_unit_is_known() -> None:
    policy = policy_of({"unit_price_max": {"llm_token": "50 / 1M"}, "unit": USDC})
    with pytest.raises(OfferRefusedError, match=r"llm_token 51 USDC / 1M; .* at most 50 USDC / 1M"):
        require_offer(policy, offer_of({"unit_price": 51, "unit_type": "llm_token"}), ORIGIN, NOW)


def test_a_price_of_nothing_is_refused_not_raised_through() -> None:
    """CHAL-02."""
    offer = offer_of()
    with pytest.raises(OfferRefusedError, match="amount per request 0"):
        require_offer(
            policy_of(), replace(offer, request=replace(offer.request, unit_price=0)), ORIGIN, NOW
        )


@pytest.mark.parametrize(
    ("caps", "unit", "words"),
    [
        ({"input_token": "0.60 usdc / 1M"}, None, "TokenLimits.unit is not set: give"),
        ({"input_token": "0.60 usdt / 1M"}, USDC, "input_token: expected a price in USDC"),
        ({"input_token": "cheap"}, USDC, "input_token: expected a price such as 0.15 / 1M"),
        ({"input_token": "0.6 / 1M above 9"}, USDC, "compared with the dearest step"),
        ({"input_token": -1}, USDC, "input_token: expected amount as an int from 0"),
    ],
)
def test_a_cap_that_cannot_be_read_is_an_error_when_the_limits_are_made(
    caps: dict[str, int | str], unit: TokenUnit | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        limits_of(unit_price_max=caps, unit=unit)


def test_a_cap_in_money_and_one_in_base_units_are_the_same() -> None:
    """0.6 base units a token: more than a half, less than one."""
    for cap, fits in (("0.60 / 1M", True), ("0.59 / 1M", False), (1, True), (0, False)):
        policy = policy_of({"unit_price_max": {"output_token": cap}, "unit": USDC})
        tariff = Tariff((Rate("output_token", 600_000, 10**6),))
        price, name = tariff.unit()
        offer = offer_of({"unit_price": price, "unit_type": name, "tariff": tariff})
        if fits:
            require_offer(policy, offer, ORIGIN, NOW)
        else:
            with pytest.raises(OfferRefusedError, match=r"tariff\.output_token"):
                require_offer(policy, offer, ORIGIN, NOW)


# -- amounts


def test_a_step_is_what_so_many_units_cost() -> None:
    policy = policy_of(voucher_step=64, voucher_steps={"output_token": 10})
    assert step_value(policy, request_of(MODEL)) == 4
    cheap = Tariff((Rate("llm_token", 20_000, 10**6),))
    assert step_value(policy, request_of(cheap)) == 2
    assert step_value(policy_of(voucher_step=1), request_of(cheap)) == 1
    steep = Tariff((Rate("llm_token", 1, 10), Rate("llm_token", 3, 1, 100)))
    assert step_value(policy, request_of(steep)) == 64 * 3


def test_deposits_are_sized_by_what_units_cost() -> None:
    policy = policy_of(expected_units=1000)
    request = replace(request_of(MODEL), suggested_deposit=None)
    assert deposit_size(policy, limits_of(), request, 7) == 400
    assert top_up_size(policy, limits_of(), request, deposit=400, needed=407) == 400


@given(tariffs(), st.integers(1, 5_000))
def test_units_are_worth_what_they_cost_wherever_they_fall(tariff: Tariff, units: int) -> None:
    """F-94: a step of so many units is enough for them, before minimum and maximum."""
    free = Tariff(tariff.rates)
    kind = tariff.main.kind
    for start in (0, 1, 250, 1_000):
        before, after = free.cost({kind: start}), free.cost({kind: start + units})
        assert after - before <= worth(tariff, units)
    assert worth(tariff, units) >= 1
    assert worth(tariff, 0) == 0


# -- what may not rise


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rates": (Rate("output_token", 400_001, 10**6), MODEL.rates[1])}, "tariff.output_token"),
        ({"rates": (MODEL.rates[0], Rate("input_token", 11, 100))}, "tariff.input_token"),
        ({"rates": (*MODEL.rates, Rate("image", 0))}, "tariff.image"),
        ({"rates": (*MODEL.rates, Rate("input_token", 1, 1, 500))}, "tariff.input_token"),
        ({"minimum": 1}, "tariff.minimum"),
        ({"maximum": None}, "tariff.maximum"),
        ({"maximum": 10_001}, "tariff.maximum"),
    ],
)
def test_what_rises_in_a_running_request_is_refused_by_name(
    changes: dict[str, Any], field: str
) -> None:
    """F-95."""
    old = request_of(replace(MODEL, maximum=10_000))
    new = request_of(
        replace(MODEL, maximum=10_000, **changes)
        if "maximum" not in changes
        else replace(MODEL, **changes)
    )
    with pytest.raises(OfferRefusedError) as caught:
        require_no_rise(old, new, unit=USDC, origin=ORIGIN)
    assert caught.value.field == field
    assert "as it was offered before" in str(caught.value)


def test_a_plain_price_may_not_rise_or_get_kinds() -> None:
    """F-95."""
    old = session_request(unit_price=1, unit_type="output_token")
    dearer = replace(old, unit_price=2)
    with pytest.raises(OfferRefusedError, match="amount 2; the policy allows 1, as it was"):
        require_no_rise(old, dearer, unit=None, origin=ORIGIN)
    with pytest.raises(OfferRefusedError, match=r"tariff\.input_token .* not priced"):
        require_no_rise(old, request_of(MODEL), unit=None, origin=ORIGIN)
    require_no_rise(dearer, old, unit=None, origin=ORIGIN)
    require_no_rise(request_of(MODEL), request_of(MODEL), unit=None, origin=ORIGIN)


@given(tariffs(), tariffs())
def test_an_offer_that_does_not_rise_costs_no_more(old: Tariff, new: Tariff) -> None:
    """F-95: of every usage that the new one prices."""
    try:
        require_no_rise(request_of(old), request_of(new), unit=None, origin=ORIGIN)
    except OfferRefusedError:
        return
    for units in (1, 3, 250, 999, 5_000):
        usage = dict.fromkeys(new.kinds, units)
        assert new.cost(usage) <= old.cost(usage)
