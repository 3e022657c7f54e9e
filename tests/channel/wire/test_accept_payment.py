"""`Accept-Payment`: what a client would rather pay with (CORE-11)."""

import pytest

from channel.limits import ACCEPT_PAYMENT_RANGES_MAX, REQUEST_PARAM_BYTES_MAX
from channel.wire.accept_payment import PaymentRange, parse_accept_payment, rank_offers

OFFERS = [("evm", "session"), ("evm", "charge"), ("tempo", "session")]


def test_ranges_have_a_method_an_intent_and_a_quality() -> None:
    """CORE-11."""
    assert parse_accept_payment("evm/session, tempo/*;q=0.5 ,*/charge ; Q=0.125,x:y/*;q=1.000") == (
        PaymentRange("evm", "session", 1.0),
        PaymentRange("tempo", "*", 0.5),
        PaymentRange("*", "charge", 0.125),
        PaymentRange("x:y", "*", 1.0),
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "evm",
        "evm/",
        "/session",
        "evm/session;q=1.001",
        "evm/session;q=2",
        "evm/session;q=0.1234",
        "evm/session;q=.5",
        "evm/session;level=1",
        "evm/session,,",
        "evm/session, ",
        "EVM/session",
        ",".join(["evm/session"] * (ACCEPT_PAYMENT_RANGES_MAX + 1)),
        "a" * REQUEST_PARAM_BYTES_MAX + "/session",
    ],
)
def test_a_malformed_header_is_ignored(value: str) -> None:
    """CORE-11, CORE-01: every offer is made."""
    assert parse_accept_payment(value) is None
    assert rank_offers(value, OFFERS) == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "ranked"),
    [
        (None, [0, 1, 2]),
        ("*/*", [0, 1, 2]),
        ("evm/*", [0, 1]),
        ("*/session", [0, 2]),
        ("tempo/*, evm/*;q=0.5", [2, 0, 1]),
        ("evm/*;q=0.5, evm/charge", [1, 0]),
        ("*/*;q=0.1, evm/charge;q=0.9", [1, 0, 2]),
        ("evm/*, evm/session;q=0", [1]),
        ("*/session;q=0, tempo/*;q=0.2", [2]),
        ("*/session;q=0.2, tempo/*;q=0", [0]),
        ("solana/charge", [0, 1, 2]),
        ("*/*;q=0", [0, 1, 2]),
    ],
)
def test_the_most_specific_range_decides_and_quality_orders(
    value: str | None, ranked: list[int]
) -> None:
    """CORE-11: q > 0, most specific range, falling q, then the server's order."""
    assert rank_offers(value, OFFERS) == ranked
