"""What is normal for an agent, or for an agent at one origin: statistics of fixed size (pure).

A profile learns from what is allowed. What was unusual, and was not agreed to, is learned slowly
(a cut value a day), so that a lasting change is taken over after weeks, and a day of an attack
teaches next to nothing. What a person agreed to is normal from then on.
"""

import math
import struct
from operator import attrgetter
from typing import Final, Self

import msgspec

from mpp_session.wallet.watch.observation import Observation
from mpp_session.wallet.watch.sample import DAY_S, Sample

__all__ = ["FREE_DAYS", "HOUR_S", "SLOTS", "Profile", "slot_of"]

VERSION: Final = 1
HOUR_S: Final = 3_600.0
SLOTS: Final = 48
"""Hours of a working day, then of a day at the weekend, in UTC."""
FREE_DAYS: Final = 7
"""Days with payments until sums per hour and day are judged."""
PAYEES: Final = 64
"""Recipients that are remembered, the newest."""
KINDS: Final = 16
"""Units whose prices are remembered."""
SLOT_VISITS: Final = 20
"""A slot's mean is that of so many last visits, more or less."""
VISITS_NEEDED: Final = 4
"""So many visits of an hour until it is known whether the agent rests in it."""
AROUND: Final = 1
"""Hours before and after one that count as work if it does."""
IDLE_HOURS: Final = 336
"""After so many hours without a payment, no further idle hour is learned."""
PRICE_DAYS: Final = 30
"""In so many days, a normal price grows by at most a tenth."""
SLACK: Final = 0.5
"""Spend above the usual that is not counted as excess, in standard deviations of a day."""
SIGMA_LEAST: Final = 0.15
"""The least standard deviation of a day's spend, as a share of the median day."""
AGREED: Final = 1.5
"""A sum that grows may become so many times what a person agreed to, for they are asked in its
midst."""
EXCESS_DEVIATIONS: Final = 3.0
"""Excess above so many standard deviations of a day's spend is unusual."""
EXCESS_DAYS: Final = 21
"""After so many days of it, one after the other, it is what is usual, although no person agreed."""
_SIZES: Final = {"amounts": 48, "gaps": 32, "deposits": 16, "peaks": 48, "days": 28, "fresh": 28}
_SLOT: Final = struct.Struct(f"<{SLOTS}d{SLOTS}B")


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    version: int
    numbers: tuple[int | float, ...]
    samples: tuple[bytes, ...]
    slots: bytes
    prices: dict[str, tuple[float, float]]
    payees: tuple[bytes, ...]
    last_request: bytes


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_Stored).decode
_NUMBERS: Final = (
    "requests",
    "first_at",
    "last_at",
    "rate",
    "rate_at",
    "hour",
    "hour_peak",
    "hour_spend",
    "hour_flagged",
    "day",
    "day_spend",
    "day_fresh",
    "day_agreed",
    "day_flagged",
    "excess",
    "excess_at_midnight",
    "excess_days",
)

_numbers = attrgetter(*_NUMBERS)
_samples = attrgetter(*_SIZES)


def slot_of(hour: int) -> int:
    """Return the slot of an hour since 1970."""
    day, of_day = divmod(hour, 24)
    return of_day + (24 if (day + 3) % 7 >= 5 else 0)  # noqa: PLR2004 -- 1970 began on a Thursday


class Profile:
    """Mutable; `copy` it through `to_bytes` where the change may be rolled back."""

    def __init__(self) -> None:
        self.requests = 0
        self.first_at = self.last_at = 0.0
        self.last_request = b""
        self.amounts = Sample(_SIZES["amounts"])
        self.gaps = Sample(_SIZES["gaps"])
        self.deposits = Sample(_SIZES["deposits"])
        self.peaks = Sample(_SIZES["peaks"])
        """Of each hour with payments, the highest spend rate."""
        self.days = Sample(_SIZES["days"])
        """Spend of days with payments."""
        self.fresh = Sample(_SIZES["fresh"])
        """What a day committed to new origins, of days that did."""
        self.rate = 0.0
        """Spend per hour: exponentially weighted, the weight falls to 1/e in an hour."""
        self.rate_at = 0.0
        self.hour = self.day = 0
        self.hour_peak = self.hour_spend = self.day_spend = self.day_fresh = self.day_agreed = 0.0
        self.hour_flagged = self.day_flagged = 0
        self.excess = self.excess_at_midnight = 0.0
        """Spend above what is usual for the hours: a one-sided CUSUM, in base units."""
        self.excess_days = 0
        self.slot_means = [0.0] * SLOTS
        self.slot_visits = [0] * SLOTS
        self._packed_slots: bytes | None = None
        self.prices: dict[str, tuple[float, float]] = {}
        """By kind: the highest normal price, and when it last grew."""
        self.payees: list[bytes] = []

    # -- what follows from it

    def rate_with(self, amount: float, at: float) -> float:
        """Return spend per hour if the amount is added now."""
        return self.rate * math.exp(-max(0.0, at - self.rate_at) / HOUR_S) + amount

    def day_with(self, amount: float, at: float) -> float:
        """Return this day's spend if the amount is added now."""
        return amount + (self.day_spend if int(at // DAY_S) == self.day else 0.0)

    def fresh_with(self, amount: float, at: float) -> float:
        """Return what this day commits to new origins, with the amount."""
        return amount + (self.day_fresh if int(at // DAY_S) == self.day else 0.0)

    def fresh_agreed(self, at: float) -> float:
        """Return what a person agreed that this day commits to new origins."""
        return self.day_agreed if int(at // DAY_S) == self.day else 0.0

    def day_deviation(self) -> float:
        """Return the standard deviation of a day's spend, in base units."""
        return self.days.median * max(SIGMA_LEAST, min(1.0, self.days.summary().sigma))

    def excess_limit(self) -> float:
        """Return the greatest excess that is not unusual."""
        return EXCESS_DEVIATIONS * self.day_deviation()

    def excess_with(self, amount: float, at: float) -> tuple[float, float]:
        """Return the excess if the amount is added now, and that of the last midnight."""
        excess, midnight = self.excess, self.excess_at_midnight
        hour, spend = int(at // HOUR_S), self.hour_spend
        if hour != self.hour:
            excess, midnight = self._pass_hours(hour)
            spend = 0.0
        return max(0.0, excess + self._beyond(hour, spend + amount)), midnight

    def activity(self, hour: int) -> float:
        """Return what the hours around an hour usually cost, as a share of a usual day.

        Working days and weekends count alike, whichever is more; 1 as long as it is not known.
        """
        median = self.days.median
        around: set[int] = set()
        for beside in range(hour - AROUND, hour + AROUND + 1):
            around |= {beside % 24, 24 + beside % 24}
        if median <= 0 or min(self.slot_visits[slot] for slot in around) < VISITS_NEEDED:
            return 1.0
        return max(self.slot_means[slot] for slot in around) / median

    # -- learning

    def learn(self, seen: Observation, *, is_fresh: bool, is_free: bool, is_unusual: bool) -> None:
        """Learn an observation that was allowed.

        Args:
            seen: It. Observations come in the order of their times, more or less.
            is_fresh: Whether the agent is new at the origin.
            is_free: Whether it warms up: then everything is normal.
            is_unusual: Whether there was a finding that no person agreed to.
        """
        at = max(seen.at, self.last_at)
        self._roll(int(at // HOUR_S))
        if seen.payee not in self.payees and not is_unusual:
            self.payees = [*self.payees, seen.payee][-PAYEES:]
        self._learn_prices(seen, at, is_free=is_free, is_unusual=is_unusual)
        if is_unusual:
            self.hour_flagged = self.day_flagged = 1
        if is_fresh and (seen.is_deposit or seen.is_charge):
            self.day_fresh += seen.amount
        if seen.is_deposit:
            learn = self.deposits.add_unusual if is_unusual else self.deposits.add
            learn(seen.total, at)
        else:
            self._learn_spend(seen, at, is_free=is_free, is_unusual=is_unusual)
        self.first_at = self.first_at or at
        self.last_at = at

    def _learn_spend(
        self, seen: Observation, at: float, *, is_free: bool, is_unusual: bool
    ) -> None:
        self.rate, self.rate_at = self.rate_with(seen.amount, at), at
        self.hour_peak = max(self.hour_peak, self.rate)
        self.hour_spend += seen.amount
        self.day_spend += seen.amount
        if seen.is_first:
            self.requests += 1
            if self.requests > 1:
                self.gaps.add(max(at - self.last_at, 0.001), at, is_free=True)
        if is_unusual:
            self.amounts.add_unusual(seen.total, at)
        elif seen.is_first:
            self.amounts.add(seen.total, at, is_free=is_free)
        elif seen.request == self.last_request:
            self.amounts.replace_last(seen.total, at, is_free=is_free)
        self.last_request = seen.request

    def _learn_prices(
        self, seen: Observation, at: float, *, is_free: bool, is_unusual: bool
    ) -> None:
        for kind, price in seen.prices:
            known = self.prices.get(kind)
            if known is None or (is_free and price > known[0]):
                if len(self.prices) < KINDS:
                    self.prices[kind] = (price, at)
                continue
            days = (at - known[1]) / DAY_S
            if price > known[0] and days >= 1 and not is_unusual:
                grown = known[0] * 1.1 ** (min(days, PRICE_DAYS) / PRICE_DAYS)
                self.prices[kind] = (min(price, grown), at)

    def accept(self, statistic: str, seen: Observation, value: float) -> None:
        """A person agreed: what was unusual is normal from now on."""
        at = max(seen.at, self.last_at)
        self._roll(int(at // HOUR_S))
        accepting = {
            "amount": self.amounts,
            "deposit": self.deposits,
            "rate": self.peaks,
            "day": self.days,
        }
        if statistic in accepting:
            more = AGREED if statistic in ("rate", "day") else 1.0
            accepting[statistic].accept(more * value, at)
        elif statistic == "newcomer":
            self.day_agreed = AGREED * value
        elif statistic == "price":
            self.prices |= {kind: (price, at) for kind, price in seen.prices}
        elif statistic == "payee":
            self.payees = [*self.payees, seen.payee][-PAYEES:]
        elif statistic == "hours":
            for hour in range(int(at // HOUR_S) - AROUND, int(at // HOUR_S) + AROUND + 1):
                self.slot_visits[slot_of(hour)] = 0
        elif statistic == "excess":
            self._take_over()
        self.hour_flagged = self.day_flagged = 0
        self._packed_slots = None

    def _roll(self, hour: int) -> None:
        """Close the hours and days before this one."""
        if hour <= self.hour:
            return
        day = hour // 24
        if self.hour:
            self.excess, self.excess_at_midnight = self._pass_hours(hour, is_learning=True)
            self._close_hour()
            if day > self.day:
                self._close_day()
        self.hour, self.day = hour, day
        self.hour_peak = self.rate_with(0, hour * HOUR_S)

    def _close_hour(self) -> None:
        at, is_free = (self.hour + 1) * HOUR_S, len(self.days) < FREE_DAYS
        if self.hour_spend > 0:
            if self.hour_flagged:
                self.peaks.add_unusual(self.hour_peak, at)
            else:
                self.peaks.add(self.hour_peak, at, is_free=is_free)
        self.hour_spend, self.hour_flagged = 0.0, 0

    def _close_day(self) -> None:
        at, is_free = (self.day + 1) * DAY_S, len(self.days) < FREE_DAYS
        is_beyond = self.excess_at_midnight > self.excess_limit() > 0
        self.excess_days = self.excess_days + 1 if is_beyond else 0
        if self.excess_days >= EXCESS_DAYS:
            self._take_over()
        if self.day_flagged:
            self.days.add_unusual(self.day_spend, at)
        else:
            self.days.add(self.day_spend, at, is_free=is_free)
            if not is_free:  # in the first days every origin is new
                self.fresh.add(self.day_fresh, at)
        self.day_spend = self.day_fresh = self.day_agreed = 0.0
        self.day_flagged = 0

    def _pass_hours(self, until: int, *, is_learning: bool = False) -> tuple[float, float]:
        """Return the excess at the start of an hour, and that of the last midnight before it."""
        excess, midnight, spend = self.excess, self.excess_at_midnight, self.hour_spend
        for hour in range(self.hour, min(until, self.hour + IDLE_HOURS)):
            excess = max(0.0, excess + self._beyond(hour, spend))
            if (hour + 1) % 24 == 0:
                midnight = excess
            if is_learning:
                self._learn_slot(slot_of(hour), spend)
            spend = 0.0
        return excess, midnight

    def _take_over(self) -> None:
        """Learn what hours usually cost anew."""
        self.excess = self.excess_at_midnight = 0.0
        self.excess_days = 0
        self.slot_visits = [0] * SLOTS
        self._packed_slots = None

    def _beyond(self, hour: int, spend: float) -> float:
        if len(self.days) < FREE_DAYS:
            return 0.0
        slot = slot_of(hour)
        usual = self.slot_means[slot]
        if self.slot_visits[slot] < VISITS_NEEDED:  # such as the first weekend
            usual = max(usual, self.slot_means[(slot + 24) % SLOTS])
        return spend - usual - SLACK * self.day_deviation() / 24

    def _learn_slot(self, slot: int, spend: float) -> None:
        visits = min(self.slot_visits[slot] + 1, SLOT_VISITS)
        known = self.slot_means[slot]
        if visits == SLOT_VISITS and len(self.days) >= FREE_DAYS:
            # One hour, however dear, moves what is usual by little.
            spend = min(spend, known + self.day_deviation())
        self.slot_means[slot] = known + (spend - known) / visits
        self.slot_visits[slot] = visits
        self._packed_slots = None

    # -- storing

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads: at most about 3 KiB."""
        return _ENCODE(
            _Stored(
                VERSION,
                _numbers(self),
                tuple(sample.pack() for sample in _samples(self)),
                self._pack_slots(),
                self.prices,
                tuple(self.payees),
                self.last_request,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the profile; a new one for another version's bytes, which warms up again.

        Raises:
            msgspec.DecodeError, struct.error: These are other bytes.
        """
        stored = _DECODE(data)
        profile = cls()
        if stored.version != VERSION:
            return profile
        for name, number in zip(_NUMBERS, stored.numbers, strict=True):
            setattr(profile, name, number)
        for (name, size), packed in zip(_SIZES.items(), stored.samples, strict=True):
            setattr(profile, name, Sample.unpack(size, packed))
        if stored.slots:
            slots = _SLOT.unpack(stored.slots)
            profile.slot_means = list(slots[:SLOTS])
            profile.slot_visits = list(slots[SLOTS:])
        profile.prices = stored.prices
        profile.payees = list(stored.payees)
        profile.last_request = stored.last_request
        return profile

    def _pack_slots(self) -> bytes:
        if self._packed_slots is None:
            visited = any(self.slot_visits)
            packed = _SLOT.pack(*self.slot_means, *self.slot_visits) if visited else b""
            self._packed_slots = packed
        return self._packed_slots

    def copy(self) -> Self:
        """Return an equal profile that is learned into apart from this one."""
        return self.from_bytes(self.to_bytes())
