"""Whether a commitment is unusual, by the profiles of its agent and of its origin (pure).

A finding costs a person's attention, so it needs money: an amount that is unusual, yet a small part
of what the agent spends in a day, is none. An agent that warms up has no findings: its caps alone
bound it. The finding that says most comes first: the recipient, the price, then sums.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mpp_session.wallet.watch.observation import Finding, Observation
from mpp_session.wallet.watch.profile import FREE_DAYS, HOUR_S, Profile
from mpp_session.wallet.watch.sample import Sample

__all__ = ["Case", "Money", "judge", "learn"]

MANY_PAYEES: Final = 8
"""An origin that names so many recipients names new ones as well, and none of them is unusual."""
PRICE_FACTOR: Final = 1.4
"""A price above so many times the highest normal one is unusual."""
MATERIAL: Final = 0.1
"""An amount below this share of a usual day is never unusual."""
NEW_ORIGIN_SHARE: Final = 0.3
"""New origins may always take this share of a usual day."""
RATE_SHARE: Final = 0.3
"""A rate below this share of a usual day, per hour, is never unusual."""
UNUSED_HOUR: Final = 0.002
"""An hour with less than this share of a usual day's spend is one in which the agent rests."""
RESTING_SHARE: Final = 0.5
"""What may be spent in such an hour, as a share of the usual limit."""
DEPOSITS: Final = 3
"""So many deposits are made before the next is judged."""
FEW_AMOUNTS: Final = 20
"""Before there are usual days, so many usual amounts stand for one."""


Money = Callable[[float], str]
"""Writes base units for people."""
Found = Iterator[Finding]


class Case(NamedTuple):
    """An observation with what is known of those whom it is about."""

    agent: Profile
    """Of the agent over all origins."""
    origin: Profile
    """Of the agent at this origin."""
    seen: Observation
    money: Money
    name: str = "this origin"
    """The origin, as texts name it."""


def judge(case: Case, warm_up: int) -> Finding | None:
    """Return what is most unusual about an observation, or None.

    Args:
        case: It, and what is known.
        warm_up: Requests of an agent, and of an agent at an origin, until they are judged.
    """
    if case.agent.requests < warm_up or case.seen.amount <= 0:
        return None
    is_known = case.origin.requests >= warm_up
    checks: tuple[Callable[[Case], Found], ...] = (
        *((_payee, _price) if is_known else (_newcomer,)),
        _deposit if case.seen.is_deposit else _amount,
        *(_rate, _day, _hours, _excess),
    )
    for check in checks:
        for finding in check(case):
            return finding
    return None


def learn(case: Case, warm_up: int, finding: Finding | None, *, is_approved: bool = False) -> None:
    """Learn an observation that was allowed, in both profiles, which change.

    Args:
        case: What was allowed.
        warm_up: As for `judge`.
        finding: What `judge` says about it.
        is_approved: Whether a person agreed to it, so that it is normal from now on.
    """
    agent, origin, seen = case.agent, case.origin, case.seen
    if finding is not None and is_approved:
        for profile in (agent, origin):
            profile.accept(finding.statistic, seen, finding.seen)
    is_unusual = finding is not None and not is_approved
    is_fresh = origin.requests < warm_up
    is_free = agent.requests < warm_up
    agent.learn(seen, is_fresh=is_fresh, is_free=is_free, is_unusual=is_unusual)
    origin.learn(seen, is_fresh=is_fresh, is_free=is_fresh, is_unusual=is_unusual)


def _usual_day(agent: Profile) -> float:
    """Return what a day costs usually: an estimate as long as there is no whole day."""
    return agent.days.median or max(agent.day_spend, FEW_AMOUNTS * agent.amounts.median)


def _payee(case: Case) -> Found:
    origin, seen, money, name = case.origin, case.seen, case.money, case.name
    if len(origin.payees) < MANY_PAYEES and seen.payee not in origin.payees:
        yield Finding(
            statistic="payee",
            is_origin=True,
            seen=seen.total,
            limit=0,
            text=f"{name} asks for {money(seen.total)} to a recipient that this agent never paid "
            f"there, after {origin.requests:,} requests to {_recipients(origin)}",
        )


def _recipients(origin: Profile) -> str:
    return "another one" if len(origin.payees) == 1 else f"{len(origin.payees)} others"


def _price(case: Case) -> Found:
    origin, seen, money, name = case.origin, case.seen, case.money, case.name
    for kind, price in seen.prices:
        usual = origin.prices.get(kind, (math.inf, 0.0))[0]
        if price > PRICE_FACTOR * usual and usual > 0:
            yield Finding(
                statistic="price",
                is_origin=True,
                seen=price,
                limit=PRICE_FACTOR * usual,
                text=f"{name} asks {price / usual:.2g} times the usual price of {kind}: "
                f"{money(price)}; usual is at most {money(usual)}",
            )


def _newcomer(case: Case) -> Found:
    agent, seen, money, name = case.agent, case.seen, case.money, case.name
    if not (seen.is_deposit or seen.is_charge) or not len(agent.days):
        return  # on the first day every origin is new
    day, value = _usual_day(agent), agent.fresh_with(seen.amount, seen.at)
    limit = day * (NEW_ORIGIN_SHARE if len(agent.days) >= FREE_DAYS else 1.0)
    if len(agent.fresh):
        limit = max(limit, min(day, agent.fresh.limit()))
    limit = max(limit, agent.fresh_agreed(seen.at))
    if value > limit:
        yield Finding(
            statistic="newcomer",
            is_origin=False,
            seen=value,
            limit=limit,
            text=f"{name} is new to this agent, and with {money(seen.amount)} for it new origins "
            f"take {money(value)} today; usual is at most {money(limit)}",
        )


def _deposit(case: Case) -> Found:
    agent, origin, seen, money, name = case.agent, case.origin, case.seen, case.money, case.name
    sample = origin.deposits if len(origin.deposits) >= DEPOSITS else agent.deposits
    if len(sample) < DEPOSITS or sample.is_usual(seen.total):
        return
    limit = max(sample.limit(), MATERIAL * _usual_day(agent))
    if seen.total > limit:
        yield Finding(
            statistic="deposit",
            is_origin=sample is origin.deposits,
            seen=seen.total,
            limit=limit,
            text=f"a deposit of {money(seen.total)} at {name}; usual are {_range(sample, money)}",
        )


def _amount(case: Case) -> Found:
    agent, origin, seen, money, name = case.agent, case.origin, case.seen, case.money, case.name
    sample = origin.amounts if len(origin.amounts) >= FEW_AMOUNTS else agent.amounts
    if sample.is_usual(seen.total):
        return
    limit = max(sample.limit(), MATERIAL * _usual_day(agent))
    if seen.total > limit:
        yield Finding(
            statistic="amount",
            is_origin=sample is origin.amounts,
            seen=seen.total,
            limit=limit,
            text=f"a request to {name} costs {money(seen.total)}; "
            f"usual are {_range(sample, money)}",
        )


def _rate(case: Case) -> Found:
    agent, origin, seen, money, name = case.agent, case.origin, case.seen, case.money, case.name
    for profile, whose in ((agent, "this agent spends"), (origin, f"{name} takes")):
        value = profile.rate_with(seen.spent, seen.at)
        if len(profile.days) < FREE_DAYS or profile.peaks.is_usual(value):
            continue
        limit = max(profile.peaks.limit(), RATE_SHARE * _usual_day(agent))
        if value > limit:
            yield Finding(
                statistic="rate",
                is_origin=profile is origin,
                seen=value,
                limit=limit,
                text=f"{whose} {money(value)} an hour; in hours of work the most is "
                f"{_range(profile.peaks, money)} usually",
            )


def _day(case: Case) -> Found:
    agent, seen, money = case.agent, case.seen, case.money
    value = agent.day_with(seen.spent, seen.at)
    if len(agent.days) >= FREE_DAYS and not agent.days.is_usual(value):
        yield Finding(
            statistic="day",
            is_origin=False,
            seen=value,
            limit=agent.days.limit(),
            text=f"this agent has spent {money(value)} today; "
            f"usual days cost {_range(agent.days, money)}",
        )


def _hours(case: Case) -> Found:
    agent, seen, money = case.agent, case.seen, case.money
    value, hour = agent.rate_with(seen.spent, seen.at), int(seen.at // HOUR_S)
    limit = max(RESTING_SHARE * agent.peaks.top, MATERIAL * _usual_day(agent))
    if agent.activity(hour) < UNUSED_HOUR and value > limit:
        yield Finding(
            statistic="hours",
            is_origin=False,
            seen=value,
            limit=limit,
            text=f"this agent spends {money(value)} an hour at {hour % 24:02d}:00 UTC, "
            "when it usually rests",
        )


def _excess(case: Case) -> Found:
    agent, seen, money = case.agent, case.seen, case.money
    if len(agent.days) < FREE_DAYS:
        return
    excess, midnight = agent.excess_with(seen.spent, seen.at)
    limit = agent.excess_limit()
    if midnight > limit or excess > limit + agent.days.median:
        yield Finding(
            statistic="excess",
            is_origin=False,
            seen=max(excess, midnight),
            limit=limit,
            text=f"this agent has spent {money(max(excess, midnight))} more than is usual for the "
            f"hours, little by little; a usual day costs {money(agent.days.median)}",
        )


def _range(sample: Sample, money: Money) -> str:
    least, most = sample.usual()
    return f"{money(least)} to {money(most)}"
