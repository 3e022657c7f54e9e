"""The clock of a serving process: checked at the start, and not set afterwards.

Leases, challenges and idempotency keys expire by it. An operator or NTP may set a machine's clock
at any time, and then each of those would end early or late. After the start, time is therefore
counted by a monotonic clock. If the machine's clock comes to differ from it, the timestamps of new
blocks decide which is right.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from channel.errors import ConfigError
from channel.limits import CLOCK_SKEW_S_MAX
from mpp_session.settings import DEVELOPMENT_CHAINS

__all__ = ["ServiceClock", "require_clock"]

_log: Final = logging.getLogger(__name__)

_BEHIND_S_MAX: Final = 120
_AHEAD_S_MAX: Final = 3600
_DEVELOPMENT_S_MAX: Final = 3600
"""A development chain may be advanced by its tests, and may make no block for days."""


def _count_up() -> float:
    """Return seconds that only grow, on most systems also while the machine sleeps."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def require_clock(block_time: int, *, chain_id: int, wall: float) -> None:
    """Refuse to serve by a clock that the chain contradicts.

    Args:
        block_time: Timestamp of the newest block on the chain or in the ledger, in Unix seconds.
        chain_id: The chain of that block.
        wall: The machine's time, in Unix seconds.

    Raises:
        ConfigError: The machine's time is far from that block's.
    """
    is_development = chain_id in DEVELOPMENT_CHAINS
    ahead_s = wall - block_time
    if -ahead_s > (_DEVELOPMENT_S_MAX if is_development else _BEHIND_S_MAX):
        raise ConfigError(
            f"this machine's clock is {-ahead_s:.0f} s behind the chain's newest block: "
            "set it (NTP) and start again"
        )
    if ahead_s > _AHEAD_S_MAX and not is_development:
        raise ConfigError(
            f"the newest block is {ahead_s:.0f} s old by this machine's clock: set the clock "
            "(NTP), or name a node that follows the chain, and start again"
        )


class ServiceClock:
    """Wall-clock time that does not jump when the machine's clock is set."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        count: Callable[[], float] = _count_up,
    ) -> None:
        """Start at the time of `wall`; `count` must only grow, by a second each second."""
        self._wall = wall
        self._count = count
        self._began = wall() - count()

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return self._began + self._count()

    def saw(self, block_time: int) -> None:
        """Compare a block that has just come with this clock and the machine's."""
        now, wall = self.now(), self._wall()
        if abs(wall - now) <= CLOCK_SKEW_S_MAX:
            return
        if abs(wall - block_time) < abs(now - block_time):
            _log.warning("the clock was set by %+.0f s, and blocks confirm it", wall - now)
            self._began += wall - now
