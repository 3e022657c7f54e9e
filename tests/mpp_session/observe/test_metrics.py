"""No client adds a time series: labels come from the seller and from this project."""

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from channel.http.hooks import ReceiptEvent, RefusalEvent
from mpp_session.observe.metrics import PrometheusHooks

RECEIPT = ReceiptEvent(
    at=0.0,
    monotonic=13.0,
    received=10.0,
    request_id="00" * 16,
    route="POST /v1/chat/completions",
    variant="small",
    action="request",
    outcome="done",
    status=200,
    cost=70,
    usage={"output_token": 5, "input_token": 20},
    reported={"output_token": 6},
    accepted=100,
    spent=70,
    deposit=1000,
    handled=10.5,
    first_sent=11.0,
)


class Counted:
    """Hooks and what they count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.hooks = PrometheusHooks(self.registry, variants=["small"])

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_a_variant_that_the_seller_does_not_list_is_another() -> None:
    counted = Counted()
    for variant in ("small", "a client's model", "another"):
        counted.hooks.on_receipt(msgspec.structs.replace(RECEIPT, variant=variant))
    assert counted.value("mpp_session_requests_total", model="small", outcome="done") == 1
    assert counted.value("mpp_session_requests_total", model="other", outcome="done") == 2
    assert b"a client's" not in generate_latest(counted.registry)


def test_problem_types_are_those_of_this_project() -> None:
    counted = Counted()
    event = RefusalEvent(
        at=0.0,
        monotonic=0.0,
        received=0.0,
        request_id="",
        route="",
        status=402,
        problem_type="payment-expired",
    )
    counted.hooks.on_refusal(event)
    counted.hooks.on_refusal(msgspec.structs.replace(event, problem_type=""))
    counted.hooks.on_refusal(msgspec.structs.replace(event, problem_type="sold-out"))
    for problem in ("payment-expired", "application", "other"):
        assert counted.value("mpp_session_refusals_total", problem=problem) == 1


def test_billed_stands_beside_reported() -> None:
    counted = Counted()
    counted.hooks.on_receipt(RECEIPT)
    counted.hooks.on_receipt(msgspec.structs.replace(RECEIPT, reported=None))
    labels = {"model": "small", "kind": "output_token"}
    name = "mpp_session_checked_units_total"
    assert counted.value(name, **labels, source="billed") == 5
    assert counted.value(name, **labels, source="reported") == 6
    assert counted.value("mpp_session_units_total", **labels) == 10


def test_an_answer_that_cost_nothing_is_counted() -> None:
    counted = Counted()
    free = msgspec.structs.replace(RECEIPT, cost=0, usage={})
    counted.hooks.on_receipt(free)
    counted.hooks.on_receipt(msgspec.structs.replace(free, outcome="left"))
    counted.hooks.on_receipt(msgspec.structs.replace(free, action="voucher"))
    assert counted.value("mpp_session_zero_cost_requests_total", model="small") == 1
    assert counted.value("mpp_session_credentials_total", action="voucher") == 1


def test_times_have_the_names_of_opentelemetry() -> None:
    counted = Counted()
    counted.hooks.on_receipt(RECEIPT)
    chat = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "small"}
    for name, seconds in (
        ("request_duration", 3.0),
        ("time_to_first_token", 1.0),
        ("time_per_output_token", 2.0 / 4),
    ):
        assert counted.value(f"gen_ai_server_{name}_seconds_sum", **chat) == seconds
    tokens = "gen_ai_client_token_usage_sum"
    for kind, units in (("input", 20), ("output", 5)):
        assert counted.value(tokens, **chat, gen_ai_token_type=kind) == units
    assert counted.value("mpp_session_payment_seconds_sum") == 0.5
    assert counted.value("mpp_session_model_seconds_sum", model="small") == 2.5


def test_a_route_that_is_no_models_has_no_token_times() -> None:
    counted = Counted()
    counted.hooks.on_receipt(msgspec.structs.replace(RECEIPT, route="GET /joke"))
    assert b"gen_ai_request_model=" not in generate_latest(counted.registry)
    assert counted.value("mpp_session_requests_total", model="small", outcome="done") == 1


def test_prometheus_client_is_asked_once_for_each_time_series(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finding a series takes it longer than counting in it."""
    asked: list[tuple[object, ...]] = []
    find = Counter.labels

    def labels(counter: Counter, *values: object) -> Counter:
        asked.append(values)
        return find(counter, *values)

    monkeypatch.setattr(Counter, "labels", labels)
    counted = Counted()
    for _ in range(3):
        counted.hooks.on_receipt(RECEIPT)
    assert len(asked) == len(set(asked)) > 0
    assert counted.value("mpp_session_units_total", model="small", kind="output_token") == 15
