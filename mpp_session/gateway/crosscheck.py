"""Compares what is charged with what the model server reports, by model (pure).

The bill is the gateway's own count of what was delivered (F-57). The server's usage is a
cross-check: a difference means that one of both counts wrongly, and the operator should know.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from channel.limits import MODELS_COUNTED_MAX

__all__ = ["CrossCheck", "Difference", "Totals"]

_log: Final = logging.getLogger(__name__)

_UNITS_SPARE: Final = 8
"""A difference that ends of texts and templates explain."""
_SHARE: Final = 10
"""A difference of less than a tenth is not worth a warning."""
_LOG_INTERVAL_S: Final = 60.0
_OTHERS: Final = "(others)"


class Difference(msgspec.Struct, frozen=True):
    """One request: tokens that were charged, and those that the server reported."""

    endpoint: str
    model: str
    """As the client called it."""
    output: int
    output_reported: int | None
    """None: the server said nothing of it."""
    input: int
    """0 where input has no price."""
    input_reported: int | None

    @property
    def is_large(self) -> bool:
        """Whether the counts differ beyond what is usual."""
        pairs = [(self.output, self.output_reported)]
        if self.input:
            pairs.append((self.input, self.input_reported))
        return any(
            reported is not None
            and abs(own - reported) > _UNITS_SPARE
            and abs(own - reported) * _SHARE > max(own, reported)
            for own, reported in pairs
        )


class Totals(msgspec.Struct):
    """The requests of one endpoint and model so far."""

    requests: int = 0
    unreported: int = 0
    """Requests of which the server reported no output."""
    large: int = 0
    """Requests with a difference that was worth a warning."""
    more: int = 0
    """Output tokens charged beyond those reported."""
    less: int = 0
    """Output tokens reported beyond those charged."""


class CrossCheck:
    """Adds up differences, and warns of large ones at most once a minute."""

    def __init__(self, on_request: Callable[[Difference], None] | None = None) -> None:
        """Start with nothing. `on_request` is called with each request, to make metrics of it."""
        self.totals: dict[tuple[str, str], Totals] = {}
        """By endpoint and model. Clients name models, so only so many are counted apart."""
        self.on_request = on_request
        self._logged_at = -_LOG_INTERVAL_S

    def note(self, found: Difference) -> None:
        """Count one request."""
        key = (found.endpoint, found.model)
        if key not in self.totals and len(self.totals) >= MODELS_COUNTED_MAX:
            key = (found.endpoint, _OTHERS)
        totals = self.totals.setdefault(key, Totals())
        totals.requests += 1
        if found.output_reported is None:
            totals.unreported += 1
        else:
            totals.more += max(0, found.output - found.output_reported)
            totals.less += max(0, found.output_reported - found.output)
        if found.is_large:
            totals.large += 1
            self._warn(found)
        if self.on_request is not None:
            self.on_request(found)

    def _warn(self, found: Difference) -> None:
        now = time.monotonic()
        if now - self._logged_at < _LOG_INTERVAL_S:
            return
        self._logged_at = now
        _log.warning(
            "the model server's usage differs from what it delivered: %s of %.64r charged %d "
            "output and %d input tokens, reported %s and %s; check upstream.counts",
            found.endpoint,
            found.model,
            found.output,
            found.input,
            found.output_reported,
            found.input_reported,
        )
