"""What is charged beside what the model server reports: differences are counted and shown."""

import logging

import pytest

from channel.limits import MODELS_COUNTED_MAX
from mpp_session.gateway.crosscheck import CrossCheck, Difference


def difference(output: int, reported: int | None, model: str = "m", read: int = 0) -> Difference:
    return Difference("chat.completions", model, output, reported, read, 50 if read else None)


def test_requests_and_differences_are_added_up_by_endpoint_and_model() -> None:
    seen: list[Difference] = []
    check = CrossCheck(seen.append)
    for output, reported in ((10, 10), (10, 7), (10, 12), (10, None)):
        check.note(difference(output, reported))
    check.note(difference(5, 5, "other"))
    totals = check.totals[("chat.completions", "m")]
    assert (totals.requests, totals.unreported, totals.more, totals.less) == (4, 1, 3, 2)
    assert check.totals[("chat.completions", "other")].requests == 1
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("found", "is_large"),
    [
        (difference(100, 100), False),
        (difference(100, 95), False),
        (difference(10, 2), False),
        (difference(100, 80), True),
        (difference(0, 30), True),
        (difference(100, None), False),
        (difference(100, 100, read=50), False),
        (difference(100, 100, read=90), True),
    ],
)
def test_a_difference_beyond_a_tenth_and_some_tokens_is_large(
    found: Difference, *, is_large: bool
) -> None:
    assert found.is_large == is_large


def test_a_large_difference_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    check = CrossCheck()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            check.note(difference(100, 10, "llama\n" * 50))
    (record,) = caplog.records
    assert "charged 100 output" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert check.totals[("chat.completions", "llama\n" * 50)].large == 3


def test_clients_cannot_fill_the_memory_with_names() -> None:
    """MODELS_COUNTED_MAX: further models are counted together."""
    check = CrossCheck()
    for number in range(MODELS_COUNTED_MAX + 50):
        check.note(difference(1, 1, f"model {number}"))
    assert len(check.totals) == MODELS_COUNTED_MAX + 1
    assert check.totals[("chat.completions", "(others)")].requests == 50
