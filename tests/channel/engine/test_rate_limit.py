"""So many a second per key, in bounded memory."""

import pytest

from channel.engine.rate_limit import RateLimiter
from channel.errors import TooManyDepositsError, TooManyRequestsError
from channel.limits import RATE_KEYS_MAX


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_steady_rate() -> None:
    """VCH-09: ten together, then one every tenth of a second."""
    clock = Clock()
    limiter = RateLimiter(10, clock)
    for _ in range(10):
        limiter.require(b"a")
    with pytest.raises(TooManyRequestsError):
        limiter.require(b"a")
    limiter.require(b"b")
    for _ in range(20):
        clock.now += 0.1001
        limiter.require(b"a")
        with pytest.raises(TooManyRequestsError):
            limiter.require(b"a")


def test_a_clock_that_goes_back_gives_and_takes_nothing() -> None:
    """F-111."""
    clock = Clock()
    limiter = RateLimiter(1, clock)
    limiter.require(b"a")
    clock.now -= 500
    with pytest.raises(TooManyRequestsError):
        limiter.require(b"a")
    clock.now += 1
    limiter.require(b"a")


def test_memory_is_bounded_by_forgetting_the_longest_unseen() -> None:
    """F-100."""
    limiter = RateLimiter(1, Clock())
    limiter.require(b"first")
    for number in range(RATE_KEYS_MAX):
        limiter.require(number.to_bytes(4, "big"))
    limiter.require(b"first")
    with pytest.raises(TooManyRequestsError):
        limiter.require((RATE_KEYS_MAX - 1).to_bytes(4, "big"))


def test_an_hours_worth_comes_back_over_the_hour() -> None:
    """F-98: three deposits an hour, with an error of their own."""
    clock = Clock()
    limiter = RateLimiter(3, clock, period_s=3600, refusal=TooManyDepositsError, what="an hour")
    for _ in range(3):
        limiter.require(b"a")
    clock.now += 1199
    with pytest.raises(TooManyDepositsError):
        limiter.require(b"a")
    clock.now += 2
    limiter.require(b"a")
    with pytest.raises(TooManyDepositsError):
        limiter.require(b"a")
