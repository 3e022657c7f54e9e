"""What a request to any server used: each unit once, and only what is stated as a whole number."""

from typing import Any

import pytest

from channel.limits import USAGE_MAX
from mpp_session.gateway.measuring import Measure, read_count
from mpp_session.settings.price_rows import read_price_rows


def measure(rates: dict[str, int], usage: dict[str, str] | None = None, **more: Any) -> Measure:
    fields = {"method": "GET", "path": "/a", "rates": rates, "usage": usage or {}, **more}
    (row,) = read_price_rows([fields])
    return Measure(row, row.tariff(None), asked_at=100.0)


@pytest.mark.parametrize("value", [0, 1, USAGE_MAX, "7", "007"])
def test_whole_numbers_count(value: Any) -> None:
    assert read_count(value) == int(value)


@pytest.mark.parametrize(
    "value",
    [None, -1, 1.0, True, USAGE_MAX + 1, [], {}, "", "-1", "+1", "1.0", " 1", "1_0", "٣", "9" * 17],
)
def test_nothing_else_counts(value: Any) -> None:
    assert read_count(value) is None


def test_a_request_counts_once_and_begun_seconds_and_bytes_as_they_come() -> None:
    found = measure({"request": 1, "second": 1, "byte": 1})
    assert found.piece(10, 100.0) == {"request": 1, "second": 1, "byte": 10}
    assert found.piece(5, 100.9) == {"byte": 5}
    assert found.piece(0, 102.1) == {"second": 2}
    assert found.left(102.5) == {}
    assert found.left(103.5) == {"second": 1}


def test_only_kinds_with_a_price_are_returned() -> None:
    assert measure({"byte": 1}).piece(3, 200.0) == {"byte": 3}
    assert measure({"request": 1}).event("x", 200.0) == {"request": 1}


@pytest.mark.parametrize(
    ("source", "body", "count"),
    [
        ("json rows", '{"rows": 3}', 3),
        ("json data.0.count", '{"data": [{"count": 4}]}', 4),
        ("json 1", "[1, 2]", 2),
        ("json a.b", '{"a": {"b": null}}', None),
        ("json a.b", '{"a": 3}', None),
        ("json data.5", '{"data": [1]}', None),
        ("json rows", '{"rows": 3} ', 3),
        ("json rows", '{"rows": 3', None),
    ],
)
def test_a_member_is_found_by_its_path(source: str, body: str, count: int | None) -> None:
    found = measure({"row": 1}, {"row": source})
    found.read_body(body.encode())
    assert found.reported.get("row") == count
    assert found.unreported == ([] if count is not None else ["row"])


def test_a_header_states_a_kind_and_replaces_the_gateway_s_own_count() -> None:
    found = measure({"second": 1, "row": 1}, {"second": "header X-Took", "row": "header x-rows"})
    found.read_headers({"x-took": "12", "x-rows": "-1"})
    assert found.unreported == ["row"]
    assert found.piece(1, 5000.0) == {"second": 12}


def test_an_event_counts_one_of_what_is_stated_and_then_what_the_statement_adds() -> None:
    found = measure({"row": 1}, {"row": "json rows"})
    assert found.event("x", 100.0) == {"row": 1}
    assert found.event('{"rows": 9}', 100.0) == {"row": 8}
    assert found.event('{"rows": 5}', 100.0) == {}
    assert found.event("[DONE]", 100.0) == {}


@pytest.mark.parametrize(
    ("fields", "is_bounded"),
    [
        ({"rates": {"request": 1}}, True),
        ({"rates": {"byte": 1}}, False),
        ({"rates": {"request": 1, "second": 1}}, False),
    ],
)
def test_only_a_request_s_price_is_bounded_without_a_maximum(
    fields: dict[str, Any], *, is_bounded: bool
) -> None:
    found = measure(**fields)
    assert found.is_bounded == is_bounded
    assert found.tariff.cost(found.greatest()) > 0


def test_another_tariff_with_a_kind_that_the_row_does_not_count_is_noticed() -> None:
    old, new = measure({"row": 1}, {"row": "json rows"}), measure({"request": 1})
    (row,) = read_price_rows([{"method": "GET", "path": "/a", "rates": {"request": 1}}])
    assert old.is_whole
    assert new.is_whole
    assert not Measure(row, old.tariff, asked_at=0.0).is_whole
