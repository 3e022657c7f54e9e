"""Counts what a gate sells, for Prometheus.

    sell(app, routes, hooks=PrometheusHooks())

Labels come from the seller alone: routes, price variants and kinds of units of its own prices, and
the problem types of this project. A client can add no time series.

With the variable `PROMETHEUS_MULTIPROC_DIR` several processes add up, as prometheus-client
documents it; what a process counted stays when it is killed.
"""

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Final, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from channel.errors import ProblemError
from channel.http.hooks import (
    ChallengeEvent,
    Hooks,
    OpenEvent,
    ReceiptEvent,
    RefusalEvent,
    SettleEvent,
    SpendEvent,
)

__all__ = ["PrometheusHooks", "operation_of", "problem_types", "token_type_of"]

_Metric = TypeVar("_Metric", Counter, Histogram)

OTHER: Final = "other"
APPLICATION: Final = "application"
_ALL: Final = "*"
"""The row of a price table that is for every model: it needs no label."""

_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0),
)
_FAST_SECONDS: Final = (0.0001, 0.00025, 0.0005, *_SECONDS[:12])
_TOKENS: Final = tuple(float(4**power) for power in range(14))
"""The buckets that OpenTelemetry states for `gen_ai.client.token.usage`."""
_OPERATIONS: Final = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/messages": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}
_TOKEN_TYPES: Final = {
    "llm_token": "output",
    "output_token": "output",
    "reasoning_token": "reasoning",
    "input_token": "input",
    "cached_input_token": "cached_input",
    "cache_write_token": "cache_creation_input",
}


def problem_types() -> frozenset[str]:
    """Return every problem type that an answer of the modules loaded so far can have."""
    return frozenset(_types_of(ProblemError))


def _types_of(kind: type[ProblemError]) -> Iterator[str]:
    name = getattr(kind, "problem_type", None)
    if isinstance(name, str):
        yield name
    for below in kind.__subclasses__():
        yield from _types_of(below)


class _Series(dict[str | tuple[str, ...], _Metric]):
    """The time series of one metric by their labels, each asked for once.

    prometheus-client finds a series under a lock, after it has checked each label.
    """

    def __init__(self, metric: _Metric) -> None:
        super().__init__()
        self._metric: _Metric = metric

    def __missing__(self, labels: str | tuple[str, ...]) -> _Metric:
        values = (labels,) if isinstance(labels, str) else labels
        series: _Metric = self._metric.labels(*values)
        self[labels] = series
        return series


class PrometheusHooks(Hooks):
    """Counts requests, units and amounts. Amounts are in base units of the token."""

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, variants: Collection[str] = ()
    ) -> None:
        """Register the metrics, once for a registry.

        `variants` are the price variants, such as models, that have time series of their own; all
        others count together as `other`.
        """
        known = frozenset(variants)
        self.name_of: Callable[[str], str | None] = lambda each: each if each in known else None
        """Returns the label of a variant, from a bounded set; None for others."""
        self._problems = problem_types()
        name = "mpp_session_"
        self.challenges = _Series(
            Counter(
                name + "challenges",
                "Requests answered with a challenge.",
                ["route"],
                registry=registry,
            )
        )
        self.refusals = _Series(
            Counter(
                name + "refusals",
                "Refused requests, by the type of the problem.",
                ["problem"],
                registry=registry,
            )
        )
        self.credentials = _Series(
            Counter(
                name + "credentials",
                "Credentials accepted, each with a voucher or a deposit, by what they did.",
                ["action"],
                registry=registry,
            )
        )
        self.deposits = _Series(
            Counter(name + "deposits", "Deposits accepted.", ["action"], registry=registry)
        )
        self.requests = _Series(
            Counter(
                name + "requests",
                "Paid requests that ended.",
                ["model", "outcome"],
                registry=registry,
            )
        )
        self.zero_cost = _Series(
            Counter(
                name + "zero_cost_requests",
                "Requests answered to their end that cost nothing.",
                ["model"],
                registry=registry,
            )
        )
        self.revenue = _Series(
            Counter(
                name + "revenue_base_units",
                "Amounts spent by payers for what was delivered, durable.",
                ["model"],
                registry=registry,
            )
        )
        self.units = _Series(
            Counter(
                name + "units", "Units delivered and billed.", ["model", "kind"], registry=registry
            )
        )
        self.checked = _Series(
            Counter(
                name + "checked_units",
                "Units of requests whose source reported a usage: as billed, and as reported.",
                ["model", "kind", "source"],
                registry=registry,
            )
        )
        self.unreported = Counter(
            name + "unreported_usage",
            "Answers of a sold path without the usage that its price row says they state.",
            ["path", "kind"],
            registry=registry,
        )
        self.settled = Counter(
            name + "settled_base_units", "Amounts paid out by the escrow.", registry=registry
        )
        self.settlements = _Series(
            Counter(
                name + "settlements",
                "Settlements and closes that the chain shows.",
                ["final"],
                registry=registry,
            )
        )
        self.commits = Histogram(
            name + "commit_seconds",
            "One durable commit of the ledger, of everything that waited for it.",
            buckets=_FAST_SECONDS,
            registry=registry,
        )
        self.changes = Counter(
            name + "ledger_changes", "Changes in those commits.", registry=registry
        )
        self.payment = Histogram(
            name + "payment_seconds",
            "From the request to its durable payment, before the handler runs.",
            buckets=_FAST_SECONDS,
            registry=registry,
        )
        self.handling = _Series(
            Histogram(
                name + "model_seconds",
                "From the payment to the end of the answer.",
                ["model"],
                buckets=_SECONDS,
                registry=registry,
            )
        )
        # The names of OpenTelemetry's semantic conventions, as Prometheus writes them.
        labels = ["gen_ai_operation_name", "gen_ai_request_model"]
        self.duration = _Series(
            Histogram(
                "gen_ai_server_request_duration_seconds",
                "From the request to the end of its answer.",
                labels,
                buckets=_SECONDS,
                registry=registry,
            )
        )
        self.first_token = _Series(
            Histogram(
                "gen_ai_server_time_to_first_token_seconds",
                "From the request to the first content of its answer.",
                labels,
                buckets=_SECONDS,
                registry=registry,
            )
        )
        self.per_token = _Series(
            Histogram(
                "gen_ai_server_time_per_output_token_seconds",
                "Time of each output token after the first.",
                labels,
                buckets=_FAST_SECONDS,
                registry=registry,
            )
        )
        self.token_usage = _Series(
            Histogram(
                "gen_ai_client_token_usage",
                "Tokens of one request.",
                [*labels, "gen_ai_token_type"],
                buckets=_TOKENS,
                registry=registry,
            )
        )

    def on_challenge(self, event: ChallengeEvent) -> None:
        """Count a challenge."""
        self.challenges[event.route or OTHER].inc()

    def on_refusal(self, event: RefusalEvent) -> None:
        """Count a refusal."""
        kind = event.problem_type or APPLICATION
        known = kind in self._problems or kind == APPLICATION
        self.refusals[kind if known else OTHER].inc()

    def on_open(self, event: OpenEvent) -> None:
        """Count a deposit."""
        self.deposits[event.action].inc()

    def on_spend(self, event: SpendEvent) -> None:
        """Count what became durable."""
        self.revenue[self._model(event.variant)].inc(event.amount)

    def on_settle(self, event: SettleEvent) -> None:
        """Count what was paid out."""
        self.settlements["yes" if event.is_final else "no"].inc()
        self.settled.inc(event.amount)

    def on_receipt(self, event: ReceiptEvent) -> None:
        """Count what a request used, and how long it took."""
        self.credentials[event.action].inc()
        if event.action != "request":
            return
        model = self._model(event.variant)
        self.requests[model, event.outcome].inc()
        if event.outcome == "done" and not event.cost:
            self.zero_cost[model].inc()
        for kind, units in event.usage.items():
            self.units[model, kind].inc(units)
        for kind, units in (event.reported or {}).items():
            self.count_reported(event.variant, kind, event.usage.get(kind, 0), units)
        self._time(event, model)

    def count_reported(self, variant: str, kind: str, billed: int, reported: int) -> None:
        """Count units of a request as billed, and as its source reports them."""
        model = self._model(variant)
        self.checked[model, kind, "billed"].inc(billed)
        self.checked[model, kind, "reported"].inc(reported)

    def count_unreported(self, sold: str, kind: str) -> None:
        """Count an answer that does not state a kind that its row says it states."""
        self.unreported.labels(sold, kind).inc()

    def count_commit(self, jobs: int, seconds: float) -> None:
        """Count a commit of the ledger: for `Ledger.report_commits`."""
        self.commits.observe(seconds)
        self.changes.inc(jobs)

    def _time(self, event: ReceiptEvent, model: str) -> None:
        if event.handled is not None:
            self.payment.observe(event.handled - event.received)
            self.handling[model].observe(event.monotonic - event.handled)
        operation = operation_of(event.route)
        if operation is None:
            return
        self.duration[operation, model].observe(event.monotonic - event.received)
        tokens = 0
        for kind, units in event.usage.items():
            kind_of = token_type_of(kind)
            if kind_of is not None:
                self.token_usage[operation, model, kind_of].observe(units)
                tokens += units if kind_of in {"output", "reasoning"} else 0
        if event.first_sent is not None:
            first_s = event.first_sent - event.received
            self.first_token[operation, model].observe(first_s)
            if tokens > 1:
                rest_s = event.monotonic - event.first_sent
                self.per_token[operation, model].observe(rest_s / (tokens - 1))

    def _model(self, variant: str) -> str:
        name = self.name_of(variant) if variant else ""
        if name is None:
            return OTHER
        return "" if name == _ALL else name


@lru_cache(maxsize=1024)
def operation_of(route: str) -> str | None:
    """Return OpenTelemetry's name of what a route does; None if it is no model's."""
    path = route.partition(" ")[2]
    for end, name in _OPERATIONS.items():
        if path.endswith(end):
            return name
    return None


def token_type_of(kind: str) -> str | None:
    """Return OpenTelemetry's name of a kind of tokens; None for other units."""
    return _TOKEN_TYPES.get(kind)
