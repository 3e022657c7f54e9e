"""What is normal for an agent, in lines that its owner reads (pure)."""

import math
from collections.abc import Iterator

from mpp_session.wallet.watch.judge import Money
from mpp_session.wallet.watch.profile import FREE_DAYS, Profile
from mpp_session.wallet.watch.sample import Sample

__all__ = ["describe"]

WORKING_SHARE = 0.01
"""An hour that takes this share of a usual day is one of work."""


def describe(profile: Profile, money: Money, warm_up: int) -> Iterator[tuple[str, str]]:
    """Yield what is usual, as names with values.

    Args:
        profile: Of an agent, or of an agent at one origin.
        money: Writes base units of the profile's token.
        warm_up: Requests until it is judged.
    """
    left = warm_up - profile.requests
    state = f"{profile.requests:,} requests"
    yield "learned from", f"{state}, {left:,} more until it is judged" if left > 0 else state
    if len(profile.amounts):
        yield "a request costs", _range(profile.amounts, money)
    if len(profile.gaps):
        yield "between requests", _gap(profile.gaps)
    if len(profile.deposits):
        yield "a deposit is", _range(profile.deposits, money)
    for kind, (price, _) in sorted(profile.prices.items()):
        yield f"price of {kind}", f"at most {money(price)}"
    if len(profile.days):
        yield "an hour of work costs", _range(profile.peaks, money)
        yield "a day costs", _range(profile.days, money)
        hours = _hours(profile)
        if hours:
            yield "hours of work, UTC", hours
        yield "above the usual now", f"{money(profile.excess)}; {_until(profile, money)}"
    if profile.payees:
        yield "recipients", f"{len(profile.payees)}"


def _until(profile: Profile, money: Money) -> str:
    if len(profile.days) < FREE_DAYS:
        return f"judged after {FREE_DAYS} days with payments, {len(profile.days)} so far"
    return f"unusual from {money(profile.excess_limit())} on"


def _range(sample: Sample, money: Money) -> str:
    least, most = sample.usual()
    return (
        f"{money(sample.median)} ({money(least)} to {money(most)}), "
        f"unusual above {money(sample.limit())}"
    )


def _gap(sample: Sample) -> str:
    least, most = sample.usual()
    return f"{_seconds(sample.median)} ({_seconds(least)} to {_seconds(most)})"


def _seconds(value: float) -> str:
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{round(value, 3):g} s"


def _hours(profile: Profile) -> str:
    """Return the hours of work on working days and at weekends, as ranges."""
    usual = profile.days.median
    found = []
    for name, first in (("", 0), ("weekends ", 24)):
        works = [
            profile.slot_means[first + hour] >= WORKING_SHARE * usual and usual > 0
            for hour in range(24)
        ]
        ranges = ", ".join(f"{begin:02d} to {end:02d}" for begin, end in _ranges(works))
        if ranges:
            found.append(name + ranges)
    return "; ".join(found)


def _ranges(works: list[bool]) -> Iterator[tuple[int, int]]:
    begin = math.inf
    for hour, does in enumerate([*works, False]):
        if does and math.isinf(begin):
            begin = hour
        elif not does and not math.isinf(begin):
            yield int(begin), hour
            begin = math.inf
