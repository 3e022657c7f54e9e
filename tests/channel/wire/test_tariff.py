"""The `tariff` member: every rate, in one spelling, bound with the request."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import WireError
from channel.limits import AMOUNT_MAX, KIND_CHARS_MAX, RATES_MAX, REQUEST_PARAM_BYTES_MAX, USAGE_MAX
from channel.methods.evm.method import EVM
from channel.tariff import Rate, Tariff
from channel.wire.tariff import parse_tariff, parse_usage, tariff_object
from tests.channel.tariff_model import VECTORS, product_tariff, refused_member
from tests.channel.vectors import Entry, name_of

GOLDEN = json.loads(VECTORS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", GOLDEN["tariffs"], ids=name_of)
def test_golden_tariffs_are_read_and_written(entry: Entry) -> None:
    """TARIFF-03, CHAL-04: tariff, wire form and request parameter, in both directions."""
    tariff = product_tariff(entry["tariff"])
    assert tariff_object(tariff) == entry["tariff"]
    assert parse_tariff(entry["tariff"]) == tariff
    request = EVM.parse_request(entry["request"])
    assert request.pricing == request.tariff == tariff
    assert (str(request.unit_price), request.unit_type) == (entry["amount"], entry["unitType"])
    assert EVM.format_request(request) == entry["request"]


@pytest.mark.parametrize("entry", GOLDEN["malformed"], ids=name_of)
def test_a_malformed_tariff_is_refused_by_the_name_of_its_member(entry: Entry) -> None:
    """TARIFF-05: a price that is not understood is not paid: no member is skipped or guessed."""
    wire = request_object()
    wire["tariff"] = entry["tariff"]
    with pytest.raises(WireError, match=f"^tariff: .*{entry['member']}|^tariff: not an object"):
        EVM.parse_request_object(wire)
    assert refused_member(entry["tariff"]) == entry["member"]


@given(
    st.recursive(
        st.sampled_from([None, 0, 1, -1, 2**53, "0", "1", "04", "row", "rates", True, 1.5, 10**15]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["rates", "minimum", "maximum", "kind", "amount", "per", "above", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
    | st.fixed_dictionaries(
        {
            "rates": st.lists(
                st.fixed_dictionaries(
                    {
                        "kind": st.sampled_from(["row", "image", "Row"]),
                        "amount": st.sampled_from(["0", "1", "7"]),
                    },
                    optional={
                        "per": st.sampled_from([0, 1, 3]),
                        "above": st.sampled_from([0, 5, 6]),
                    },
                ),
                max_size=3,
            )
        },
        optional={
            "minimum": st.sampled_from(["0", "4"]),
            "maximum": st.sampled_from(["0", "3", "4"]),
        },
    )
)
def test_both_implementations_take_the_same_tariffs(wire: Any) -> None:
    try:
        tariff = parse_tariff(wire)
    except WireError:
        assert refused_member(wire) is not None
    else:
        assert refused_member(wire) is None
        assert parse_tariff(tariff_object(tariff)) == tariff


def request_object() -> dict[str, Any]:
    """Return the golden request without a tariff."""
    request = EVM.parse_request(GOLDEN["tariffs"][0]["request"])
    wire = EVM.request_object(request)
    del wire["tariff"]
    return wire


def test_a_plain_price_stays_as_the_draft_has_it() -> None:
    """TARIFF-03, CHAL-02: no member, so clients without tariffs pay as before."""
    request = EVM.parse_request_object(request_object())
    assert request.tariff is None
    assert "tariff" not in EVM.request_object(request)
    assert request.pricing == Tariff.of("unit", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("amount", "3"), ("unitType", "20_input_tokens"), ("unitType", "output_token")],
)
def test_a_main_rate_that_is_not_the_shown_price_is_refused(name: str, value: str) -> None:
    """TARIFF-04: a reader of the draft and a reader of tariffs must find one price."""
    wire = request_object() | {"tariff": GOLDEN["tariffs"][0]["tariff"]}
    assert EVM.parse_request_object(wire).tariff is not None
    with pytest.raises(WireError, match="tariff: its main rate is 1 for each 50_output_tokens"):
        EVM.parse_request_object(wire | {name: value})
    del wire["unitType"]
    with pytest.raises(WireError, match="for each unit"):
        EVM.parse_request_object(wire)


def test_the_largest_tariff_fits_a_challenge() -> None:
    rates = tuple(
        Rate(f"{'k' * (KIND_CHARS_MAX - 2)}{n:02}", AMOUNT_MAX, 10**15 - 1)
        for n in range(RATES_MAX)
    )
    tariff = Tariff(rates, AMOUNT_MAX, AMOUNT_MAX)
    price, unit = tariff.unit()
    wire = request_object() | {"amount": str(price), "unitType": unit}
    text = EVM.format_request(EVM.parse_request_object(wire | {"tariff": tariff_object(tariff)}))
    assert len(text) < REQUEST_PARAM_BYTES_MAX
    assert EVM.parse_request(text).tariff == tariff


@given(st.dictionaries(st.sampled_from(["row", "image"]), st.integers(0, USAGE_MAX)))
def test_a_usage_is_read_as_it_was_written(usage: dict[str, int]) -> None:
    assert parse_usage(json.loads(json.dumps(usage))) == usage


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        ([], "not an object"),
        ({"Row": 1}, "'Row': not a kind"),
        ({"row": 1.0}, "row: not an integer"),
        ({"row": True}, "row: not an integer"),
        ({"row": USAGE_MAX + 1}, "row: not an integer"),
        ({f"k{n}": 1 for n in range(RATES_MAX + 1)}, "more than 32 kinds"),
    ],
)
def test_a_usage_that_is_none_is_refused_with_the_kind(usage: object, message: str) -> None:
    with pytest.raises(WireError, match=message):
        parse_usage(usage)
