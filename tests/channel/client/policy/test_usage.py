"""The client counts a request's usage by what arrived, and prices it as the server does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.client.policy.meter import Expectation
from channel.client.policy.usage import RequestCost
from channel.errors import ReceiptViolationError
from channel.tariff import Rate, Tariff
from tests.channel.client.policy.tariffs import tariffs

MODEL = Tariff(
    (
        Rate("output_token", 400_000, 10**6),
        Rate("input_token", 100_000, 10**6),
        Rate("cached_input_token", 10_000, 10**6),
        Rate("reasoning_token", 600_000, 10**6),
        Rate("request", 5),
        Rate("image", 100),
    )
)
UNITS_MAX = 4096


def stream(tariff: Tariff = MODEL, *, named: int | None = None, prompt: int = 936) -> RequestCost:
    expectation = Expectation(is_stream=True, units_max=named, prompt_bytes=prompt)
    return RequestCost(tariff, expectation, units_max=UNITS_MAX)


def answer(tariff: Tariff = MODEL, *, named: int | None = None, prompt: int = 936) -> RequestCost:
    expectation = Expectation(is_stream=False, units_max=named, prompt_bytes=prompt)
    return RequestCost(tariff, expectation, units_max=UNITS_MAX)


def text(words: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": words}}]})


# -- events


def test_an_event_without_a_statement_is_one_unit_of_the_main_kind() -> None:
    cost = stream()
    for _ in range(5):
        cost.take_event(text("a"))
    assert cost.usage == {"output_token": 5}
    assert cost.charged == 2


def test_an_event_is_counted_as_it_states() -> None:
    cost = stream()
    counted = cost.take_event(text("a"), {"input_token": 200, "output_token": 1, "request": 1})
    assert cost.usage == {"input_token": 200, "output_token": 1, "request": 1}
    assert counted == (26, 1, 1)
    assert cost.take_event(text("one two three"), 3) == (1, 3, 1)
    assert cost.take_event("[DONE]", 0) is None
    assert cost.charged == MODEL.cost({"input_token": 200, "output_token": 4, "request": 1})


def test_input_is_never_more_than_the_prompt_bears() -> None:
    """F-94: 936 bytes, and 64 tokens that a model's template may add."""
    cost = stream()
    cost.take_event(text("a"), {"input_token": 600, "output_token": 1})
    cost.take_event(text("a"), {"cached_input_token": 10**6, "output_token": 1})
    cost.take_event(text("a"), {"input_token": 10**6, "output_token": 1})
    assert cost.usage == {"input_token": 600, "cached_input_token": 400, "output_token": 3}


def test_a_request_is_one_request() -> None:
    cost = stream()
    for _ in range(3):
        cost.take_event(text("a"), {"request": 10**9, "output_token": 1})
    assert cost.usage == {"request": 1, "output_token": 3}


def test_what_is_no_input_is_counted_as_far_as_the_text_bears_it() -> None:
    """F-94, O-09: kinds of one event share its text; a unit is at least a byte long."""
    cost = stream()
    said = {"output_token": 10**9, "reasoning_token": 10**9, "image": 10**9}
    counted = cost.take_event("12345", said)
    assert cost.usage == {"output_token": 5}
    assert counted == (2, 5, 2)
    cost.take_event("12345", {"image": 2, "output_token": 9})
    assert cost.usage == {"output_token": 8, "image": 2}


def test_a_kind_that_nothing_bounds_is_bounded_by_the_policy() -> None:
    cost = stream()
    cost.take_event("x" * 10**5, {"image": 10**5})
    assert cost.usage == {"image": UNITS_MAX}


def test_a_stream_has_at_most_twice_the_output_that_its_request_names() -> None:
    """F-94, F-95."""
    cost = stream(named=10)
    for _ in range(50):
        cost.take_event(text("a"))
        cost.take_event("ab", {"reasoning_token": 2})
    assert sum(cost.usage.values()) == 20
    assert cost.units_left == 0


@pytest.mark.parametrize("kind", ["video", "Output_token", ""])
def test_a_kind_that_was_not_offered_is_refused_by_name(kind: str) -> None:
    words = f"usage of {kind} 1; expected only what the offer prices: output_token, input_token"
    with pytest.raises(ReceiptViolationError, match=words):
        stream().take_event("x", {kind: 1})
    with pytest.raises(ReceiptViolationError, match=words):
        answer().take_answer(None, {kind: 1})
    with pytest.raises(ReceiptViolationError, match=words):
        stream().take_rest({kind: 1})


def test_a_stream_of_one_kind_of_any_name_counts_events() -> None:
    """O-09: rows in batches, and a stream priced by what is called a request."""
    for kind in ("row", "request", "input_token"):
        cost = stream(Tariff.of(kind, 7), prompt=0)
        cost.take_event("x" * 500)
        cost.take_event("x" * 500, 499)
        cost.take_event("x" * 10, {kind: 11})
        assert cost.usage == {kind: 510}
        assert (cost.charged, cost.in_flight) == (3570, 0)


# -- receipts


def test_an_answer_in_one_piece_is_counted_by_its_receipt() -> None:
    cost = answer(named=100)
    counted = cost.take_answer(None, {"input_token": 57, "output_token": 35, "request": 1})
    assert counted == (25, 35, 14)
    assert answer().take_answer(None, None) == (1, 1, 1)
    assert answer().take_answer(7, None) == (3, 7, 3)


def test_an_answer_in_one_piece_is_counted_within_the_bounds() -> None:
    """F-94."""
    cost = answer(named=100)
    lies = dict.fromkeys(MODEL.kinds, 10**15)
    cost.take_answer(None, lies)
    assert cost.usage == {"output_token": 100, "input_token": 1000, "request": 1, "image": 4096}
    assert cost.charged <= cost.greatest
    cost = answer()
    cost.take_answer(10**15, None)
    assert cost.usage == {"output_token": UNITS_MAX}


def test_the_receipt_of_a_stream_states_what_no_event_did() -> None:
    """Output is counted as it arrives, and never by the receipt."""
    cost = stream()
    cost.take_event(text("a"), {"input_token": 50, "output_token": 1})
    cost.take_rest({"input_token": 57, "output_token": 900, "request": 1, "image": 10**9})
    assert cost.usage == {"output_token": 1, "input_token": 57, "request": 1, "image": UNITS_MAX}


# -- usage that is paid before it is counted


def test_a_plain_price_costs_what_it_did() -> None:
    """A stream begins with one unit, an answer with its greatest length, a request with one."""
    price = Tariff.of("llm_token", 10)
    for cost, costs in (
        (stream(price, prompt=10**6), (10, 10, 10)),
        (answer(price, prompt=10**6), (10, 10, 40_960)),
        (answer(price, named=20), (200, 200, 200)),
        (answer(price, named=10**9), (40_960, 40_960, 40_960)),
        (answer(Tariff.of("request", 10), named=20), (10, 10, 10)),
    ):
        assert (cost.first, cost.first_known, cost.greatest) == costs
        assert cost.in_flight == 0


def test_input_is_in_flight_until_it_is_stated() -> None:
    """1,000 tokens of input at 0.1, and 5 for the request."""
    cost = stream()
    assert cost.first == 1
    assert cost.first_known == cost.greatest == 106
    assert cost.in_flight == 105
    cost.take_event(text("a"))
    assert cost.charged + cost.in_flight == 106
    cost.take_event(text("a"), {"input_token": 1000, "request": 1})
    assert cost.in_flight == 0
    assert cost.charged == 106


@given(tariffs(), st.data())
def test_no_statement_makes_a_request_dearer_than_its_bounds(
    tariff: Tariff, data: st.DataObject
) -> None:
    """F-94: what is counted, and what may still be claimed, follow from prompt and text."""
    named = data.draw(st.none() | st.integers(1, 300))
    prompt = data.draw(st.integers(0, 300))
    usages = st.lists(
        st.dictionaries(st.sampled_from(tariff.kinds), st.integers(0, 2000), max_size=4), max_size=6
    )
    whole = answer(tariff, named=named, prompt=prompt)
    greatest = whole.greatest
    assert whole.first <= whole.first_known <= greatest
    for usage in data.draw(usages):
        whole.take_answer(None, usage)
        assert whole.charged == tariff.cost(whole.usage) <= greatest

    running = stream(tariff, named=named, prompt=prompt)
    for usage in data.draw(usages):
        before = running.charged, running.charged + running.in_flight
        counted = running.take_event("x" * data.draw(st.integers(0, 400)), usage)
        value, _, delivered = counted or (0, 0, 0)
        assert running.charged == before[0] + value == tariff.cost(running.usage)
        assert running.in_flight >= 0
        # What was in flight pays for the stated input, besides anything else that arrived.
        assert running.charged + running.in_flight >= before[1]
        assert 0 <= delivered <= value


@given(tariffs(), st.data())
def test_an_honest_server_is_counted_exactly(tariff: Tariff, data: st.DataObject) -> None:
    """Both sides charge the same for the same events, cut in any way."""
    prompt = data.draw(st.integers(0, 300))
    cost = stream(tariff, prompt=prompt)
    spent: dict[str, int] = {}
    left = {"input": prompt + 64, "request": 1}
    for _ in range(data.draw(st.integers(1, 8))):
        usage: dict[str, int] = {}
        for kind in data.draw(st.lists(st.sampled_from(tariff.kinds), unique=True)):
            pool = _pool(kind, tariff.kinds)
            units = data.draw(st.integers(0, min(100, left.get(pool, 100))))
            if pool in left:
                left[pool] -= units
            usage[kind] = units
        cost.take_event("x" * 1000, usage)
        for kind, units in usage.items():
            spent[kind] = spent.get(kind, 0) + units
    assert cost.usage == {kind: units for kind, units in spent.items() if units}
    assert cost.charged == tariff.cost(spent)


def _pool(kind: str, kinds: tuple[str, ...]) -> str:
    if len(kinds) == 1:
        return ""
    return "input" if "input" in kind or "cache" in kind else kind


def test_what_a_request_can_use_at_most_is_known_by_kind() -> None:
    assert stream(named=100).greatest_by_kind() == {
        "output_token": 200,
        "input_token": 1000,
        "cached_input_token": 1000,
        "reasoning_token": 200,
        "request": 1,
        "image": None,
    }
    assert answer().greatest_by_kind()["image"] == UNITS_MAX
    assert stream().greatest_total() is None
    whole = Tariff(MODEL.rates, maximum=50)
    assert stream(whole).greatest_total() == 50
    two = Tariff(MODEL.rates[:2])
    assert stream(two, named=100).greatest_total() == 180
    assert answer(two, named=100).greatest_total() == 140
