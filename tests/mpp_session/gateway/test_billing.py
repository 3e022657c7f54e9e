"""What a request is charged, by the kinds that its tariff prices: each token once, when due."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.limits import PROMPT_TOKENS_BESIDE
from channel.tariff import Rate, Tariff
from mpp_session.gateway.billing import Bill, Kinds
from mpp_session.gateway.counting import PromptReport
from mpp_session.gateway.prompt import PromptCount

BYTES = 400
MOST = BYTES + PROMPT_TOKENS_BESIDE
OUTPUT = Rate("output_token", 400_000, 10**6)
INPUT = Rate("input_token", 100_000, 10**6)
CACHED = Rate("cached_input_token", 25_000, 10**6)
WRITTEN = Rate("cache_write_token", 125_000, 10**6)
REASONING = Rate("reasoning_token", 600_000, 10**6)


def bill(*rates: Rate, tokens: int = 30, is_exact: bool = True) -> Bill:
    kinds = Kinds.of(Tariff((OUTPUT, *rates)))
    return Bill(kinds, PromptCount(tokens, is_exact=is_exact), bytes_received=BYTES)


def report(*numbers: int | None) -> PromptReport:
    return PromptReport(*numbers)


def test_a_counted_prompt_is_due_immediately_and_only_once() -> None:
    one = bill(INPUT)
    assert one.prompt(report()) == {"input_token": 30}
    assert one.prompt(report(30), is_over=True) == {}


def test_what_the_server_reports_beyond_the_count_is_due_with_its_report() -> None:
    """The larger of both counts is charged, and neither twice."""
    one = bill(INPUT)
    assert one.prompt(report()) == {"input_token": 30}
    assert one.prompt(report(34), is_over=True) == {"input_token": 4}
    assert bill(INPUT).prompt(report(34)) == {"input_token": 34}
    assert bill(INPUT).prompt(report(7)) == {"input_token": 30}


def test_an_estimate_is_held_and_the_report_is_charged() -> None:
    one = bill(INPUT, tokens=MOST, is_exact=False)
    assert one.most(32) == {"output_token": 32, "input_token": MOST}
    assert one.prompt(report()) == {}
    assert one.prompt(report(50)) == {"input_token": 50}


def test_an_uncounted_prompt_is_charged_by_its_bytes_at_the_end() -> None:
    """Four bytes a token, as the text of an answer that no server counted."""
    one = bill(INPUT, tokens=MOST, is_exact=False)
    assert one.prompt(report()) == {}
    assert one.prompt(report(), is_over=True) == {"input_token": BYTES // 4}


def test_no_report_makes_a_prompt_longer_than_a_payer_can_believe() -> None:
    one = bill(INPUT)
    assert one.prompt(report(10**9)) == {"input_token": MOST}


def test_without_a_price_for_input_a_prompt_is_free() -> None:
    one = bill()
    assert one.most(32) == {"output_token": 32}
    assert one.prompt(report(30), is_over=True) == {}


def test_shares_of_a_cache_wait_for_the_report() -> None:
    one = bill(INPUT, CACHED, WRITTEN)
    assert one.prompt(report(30, 20, None)) == {}
    assert one.prompt(report(30, 20, 4)) == {
        "input_token": 6,
        "cached_input_token": 20,
        "cache_write_token": 4,
    }


def test_a_server_that_reports_no_cache_has_none() -> None:
    one = bill(INPUT, CACHED)
    assert one.prompt(report(30)) == {}
    assert one.prompt(report(30), is_over=True) == {"input_token": 30}


def test_a_client_that_leaves_before_the_report_pays_the_lower_rate() -> None:
    """O-04: the prompt was read; no report says how much of it came from the cache."""
    assert bill(INPUT, CACHED).prompt(report(), is_left=True) == {"cached_input_token": 30}
    assert bill(INPUT, WRITTEN).prompt(report(), is_left=True) == {"input_token": 30}
    assert bill(INPUT).prompt(report(), is_left=True) == {"input_token": 30}


def test_a_cache_without_a_price_of_its_own_is_input() -> None:
    assert bill(INPUT).prompt(report(30, 20, 4)) == {"input_token": 30}


def test_what_is_held_is_the_dearest_that_the_tokens_can_be() -> None:
    one = bill(INPUT, CACHED, WRITTEN, REASONING)
    assert one.most(32) == {"reasoning_token": 32, "cache_write_token": 30}


def test_reasoning_is_charged_at_its_own_rate_and_never_twice() -> None:
    one = bill(REASONING)
    assert one.output(5, 5) == {"reasoning_token": 5}
    assert one.output(3, 5) == {"output_token": 3}
    assert one.output(10, 12) == {"output_token": 3, "reasoning_token": 7}
    assert one.output(0, 12) == {}
    assert bill().output(5, 5) == {"output_token": 5}


@pytest.mark.parametrize("name", ["llm_token", "output_token"])
def test_a_price_for_output_alone_has_one_kind(name: str) -> None:
    kinds = Kinds.of(Tariff.of(name, 25))
    assert kinds.is_plain
    assert kinds.made({name: 7}) == 7
    assert Bill(kinds, PromptCount(0, is_exact=True), bytes_received=9).most(4) == {name: 4}


NUMBERS = st.none() | st.integers(0, 2 * BYTES)


@given(
    rates=st.lists(st.sampled_from([CACHED, WRITTEN, REASONING]), unique=True),
    counted=st.integers(1, BYTES),
    is_exact=st.booleans(),
    reports=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=4),
    ends=st.sampled_from(["is_over", "is_left"]),
)
def test_however_it_is_reported_a_prompt_is_charged_once_within_what_was_held(
    rates: list[Rate],
    counted: int,
    is_exact: bool,  # noqa: FBT001 -- drawn
    reports: list[tuple[int | None, ...]],
    ends: Any,
) -> None:
    """No order of reports charges more tokens than the prompt can have, or fewer than are known."""
    one = bill(INPUT, *rates, tokens=counted, is_exact=is_exact)
    seen, charged = PromptReport(), 0
    for numbers in reports:
        seen.note(report(*numbers))
        charged += sum(one.prompt(seen).values())
        assert charged in (0, one.tokens(seen))
    charged += sum(one.prompt(seen, **{ends: True}).values())
    assert charged == one.tokens(seen) <= MOST
    assert sum(one.prompt(seen, is_over=True).values()) == 0
