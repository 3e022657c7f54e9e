"""Durations and hours of the day, as the policy file writes them (pure)."""

import re
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from channel.errors import ConfigError

__all__ = ["Hours", "describe_duration", "describe_time", "parse_duration", "parse_hours"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_HOURS: Final = re.compile(
    r"([0-2][0-9]):([0-5][0-9])-([0-2][0-9]):([0-5][0-9]) ([A-Za-z0-9_/+-]+)"
)
YEAR_S: Final = 366 * 86_400
_DAY_END: Final = 24 * 60
_DAYS_AHEAD: Final = 3


class Hours(msgspec.Struct, frozen=True):
    """A part of each day in a time zone; the end may lie on the next day."""

    start: int
    """Minutes after midnight."""
    end: int
    zone: str

    def holds(self, at: float) -> bool:
        """Whether this time lies within. One that no calendar has lies outside."""
        try:
            local = datetime.fromtimestamp(at, _zone(self.zone))
        except (ValueError, OverflowError, OSError):
            return False
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def next_start(self, at: float) -> float | None:
        """Return when the hours begin again after a time outside of them."""
        try:
            zone = _zone(self.zone)
            local = datetime.fromtimestamp(at, zone)
            for days in range(_DAYS_AHEAD):
                day = local.date() + timedelta(days=days)
                hour, minute = divmod(self.start, 60)
                start = datetime.combine(day, time(hour, minute), zone).timestamp()
                if start > at:
                    return start
        except (ValueError, OverflowError, OSError):
            pass
        return None

    def __str__(self) -> str:
        """Return them as the file writes them."""
        ends = (divmod(self.start, 60), divmod(self.end, 60))
        return "-".join(f"{hour:02}:{minute:02}" for hour, minute in ends) + f" {self.zone}"


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def parse_hours(text: str) -> Hours:
    """Return the hours that `08:00-20:00 Europe/Berlin` names.

    Raises:
        ConfigError: It is no such text, the zone is not known, or the hours are empty.
    """
    found = _HOURS.fullmatch(text)
    complaint = f"expected hours such as 08:00-20:00 Europe/Berlin, found {text!r}"
    if found is None:
        raise ConfigError(complaint)
    numbers = [int(number) for number in found.groups()[:4]]
    start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if start >= _DAY_END or end > _DAY_END or start == end:
        raise ConfigError(f"{complaint} (from 00:00 to 24:00, not from a time to the same)")
    try:
        _zone(found[5])
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ConfigError(
            f"expected a time zone that this machine knows, such as Europe/Berlin or UTC, "
            f"found {found[5]!r}"
        ) from None
    return Hours(start, end, found[5])


def parse_duration(text: str) -> int:
    """Return the seconds of `90s`, `15m`, `2h`, `7d` or `4w`.

    Raises:
        ConfigError: It is no such text, or longer than 366 days.
    """
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= YEAR_S:
        raise ConfigError(
            f"expected a duration such as 90s, 15m, 2h, 7d or 4w, up to 366d, found {text!r}"
        )
    return seconds


def describe_duration(seconds: int | None) -> str:
    """Return a duration as the file writes it; `total` for None."""
    if seconds is None:
        return "total"
    unit = next(unit for unit in "wdhms" if seconds % _UNITS[unit] == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def describe_time(at: float) -> str:
    """Return a time in UTC to the second; the number itself where no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return str(at)
