"""The provider's state for Prometheus: exposure, settlements, gas, alarms, health.

Every value was read before, by the watcher or at intervals: a scrape asks neither database nor
chain.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from channel.types import TokenUnit
from mpp_session.observe.books import BooksView
from mpp_session.observe.health import Health
from mpp_session.observe.journal import JournalReader
from settlement.alarms import AlarmKind
from settlement.watch.watcher import ChannelWatcher

__all__ = ["ProviderGauges"]

_PREFIX = "mpp_session_"


class ProviderGauges(Collector):
    """Yields what is known now; a value that is not known yet has no sample."""

    def __init__(
        self,
        *,
        books: BooksView,
        journal: JournalReader,
        watcher: ChannelWatcher,
        health: Health,
        unit: TokenUnit | None,
        total_max: int | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Show these. `total_max` is the bound on the value at risk, if there is one."""
        self._books = books
        self._journal = journal
        self._watcher = watcher
        self._health = health
        self._unit = unit
        self._total_max = total_max
        self._now = now
        self._read: list[GaugeMetricFamily | InfoMetricFamily] = []

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Declare nothing: the registry then does not collect at registration."""
        yield from ()

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        """Return every gauge as it was at the last `refresh`, in any thread."""
        yield from self._read

    def refresh(self) -> None:
        """Read every gauge now, in the event loop."""
        self._read = list(self._collect())

    def _collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        yield from self._channels()
        yield from self._settling()
        yield from self._chain()
        yield _labelled("alarm", "Whether an alarm rings.", "name", self._alarms())
        up = {name: float(part.is_ok) for name, part in self._health.last.items()}
        yield _labelled("part_up", "Whether a part works, as /readyz says.", "part", up)
        if self._unit is not None:
            token = InfoMetricFamily(_PREFIX + "token", "The token that prices are in.")
            token.add_metric([], {"symbol": self._unit.symbol})
            yield token
            yield _gauge(
                "token_base_units", "Base units of one whole token.", 10**self._unit.decimals
            )

    def _channels(self) -> Iterator[GaugeMetricFamily]:
        sums = self._books.sums
        if sums is None:
            return
        states = {"open": sums.open, "closing": sums.closing, "stopped": sums.stopped}
        yield _labelled("channels", "Channels that have not ended, by state.", "state", states)
        yield _gauge("running_requests", "Requests that hold an amount.", sums.running)
        yield _gauge(
            "value_at_risk_base_units",
            "Delivered or reserved, and not settled.",
            sums.at_risk,
        )
        if self._total_max is not None:
            yield _gauge(
                "value_at_risk_limit_base_units", "The setting exposure.total_max.", self._total_max
            )
        yield _gauge("unsettled_base_units", "Accepted and not settled.", sums.unsettled)
        yield _gauge("undelivered_base_units", "Accepted and not delivered.", sums.undelivered)
        yield _gauge("deposited_base_units", "Deposits, less what is settled.", sums.deposited)
        yield _gauge(
            "settlement_lag_seconds",
            "How long the oldest delivered amount waits for its settlement.",
            self._books.settlement_lag_s,
        )

    def _settling(self) -> Iterator[GaugeMetricFamily]:
        last = self._journal.last
        if last is None:
            return
        yield _gauge("settler_up", "Whether a settler holds the payee's lease.", last.has_settler)
        yield _gauge("transactions_pending", "Transactions under way.", last.pending)
        yield _gauge("channels_quarantined", "Channels that the chain refuses.", last.quarantined)
        windows = {"hour": last.hour_wei, "day": last.day_wei}
        yield _labelled("gas_spent_wei", "Gas of settles and closes.", "window", windows)
        if last.look is not None:
            age_s = max(0.0, self._now() - last.look.looked_at)
            yield _gauge("settler_look_age_seconds", "Since the settler saw the chain.", age_s)

    def _chain(self) -> Iterator[GaugeMetricFamily]:
        health, head = self._watcher.health, self._watcher.head
        if health is not None and health.balance_wei is not None:
            yield _gauge("gas_balance_wei", "Ether of the gas account.", health.balance_wei)
            yield _gauge("gas_reserve_wei", "Ether that it needs.", health.reserve_wei or 0)
        looked_s_ago = self._watcher.looked_s_ago
        if looked_s_ago is not None:
            yield _gauge(
                "chain_look_age_seconds", "Since this process saw the chain.", looked_s_ago
            )
        if head is not None:
            yield _gauge("chain_head_block", "The newest block seen.", head.number)

    def _alarms(self) -> dict[str, float]:
        ringing = {alarm.kind for alarm in self._watcher.alarms.ringing}
        return {kind.value: float(kind in ringing) for kind in AlarmKind}


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, value=float(value))


def _labelled(
    name: str, text: str, label: str, values: "dict[str, float] | dict[str, int]"
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
