"""What a chat completion may cost and what it did cost, from its bytes alone."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import BadRequestError
from channel.limits import JSON_WINDOW_BYTES, REQUEST_ELEMENTS_MAX
from service.gateway.chat import (
    ChatRequest,
    UnitCounter,
    parse_chat_request,
    parse_completion_tokens,
    scan_request,
)
from service.gateway.errors import UpstreamError


def parse(body: object, *, exact: bool = False, default: int = 0) -> ChatRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    list(scan_request(raw))
    return parse_chat_request(
        raw, max_tokens=100, default_max_tokens=default, wants_exact_counts=exact
    )


def sent(request: ChatRequest) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(request.body)
    return fields


def test_an_answer_in_one_piece_is_bounded_by_max_tokens() -> None:
    request = parse({"messages": [], "max_tokens": 7})
    assert (request.is_stream, request.units_max) == (False, 7)


def test_without_a_bound_it_is_refused_or_gets_the_default() -> None:
    with pytest.raises(BadRequestError, match="max_tokens"):
        parse({"messages": []})
    request = parse({"messages": []}, default=5)
    assert request.units_max == 5
    assert sent(request)["max_tokens"] == 5


def test_the_smaller_of_two_bounds_holds_and_both_are_sent_so() -> None:
    request = parse({"max_tokens": 9, "max_completion_tokens": 4})
    assert request.units_max == 4
    assert sent(request) == {"max_tokens": 4, "max_completion_tokens": 4}


def test_each_choice_may_use_the_whole_bound() -> None:
    assert parse({"max_tokens": 9, "n": 3}).units_max == 27


def test_the_servers_own_names_cannot_get_around_the_bound() -> None:
    assert sent(parse({"max_tokens": 9, "n_predict": 10**6, "n_cmpl": 50})) == {"max_tokens": 9}


def test_a_stream_needs_no_bound_but_never_has_none() -> None:
    request = parse({"stream": True})
    assert request.is_stream
    assert sent(request)["max_tokens"] == 100


def test_exact_counts_are_asked_for_in_streams_alone() -> None:
    assert sent(parse({"stream": True}, exact=True))["timings_per_token"] is True
    assert "timings_per_token" not in sent(parse({"max_tokens": 1}, exact=True))
    assert "timings_per_token" not in sent(parse({"stream": True}))


def test_a_name_written_twice_reaches_the_model_once() -> None:
    """What is priced is what is passed on, whichever of two the other parser would take."""
    request = parse(b'{"max_tokens": 1, "max_tokens": 50, "stream": true, "stream": false}')
    assert request.body.count(b"max_tokens") == 1
    assert sent(request) == {"max_tokens": request.units_max, "stream": request.is_stream}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 101},
        {"max_tokens": True},
        {"max_tokens": 1.0},
        {"max_tokens": "5"},
        {"max_completion_tokens": -1, "max_tokens": 5},
        {"max_tokens": 5, "n": 0},
        {"max_tokens": 5, "n": 129},
        {"stream": 1},
        {"stream": "true"},
    ],
)
def test_what_cannot_be_bounded_is_a_bad_request(body: object) -> None:
    """F-02: never a 500, whatever the bytes."""
    with pytest.raises(BadRequestError):
        parse(body)


MIB_4 = 4 * 1024 * 1024


def cpu_s(work: Callable[[], object]) -> float:
    """Return what it costs this thread: other programs on the machine do not count."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


@pytest.mark.parametrize(
    ("head", "piece", "tail"),
    [
        (b'{"messages":[', b"[],", b"0]}"),
        (b'{"messages":[', b"[" * 60 + b"]" * 60 + b",", b"0]}"),
        (b'{"messages":[', b'{"a":1},', b"0]}"),
        (b'{"messages":[', b'"",', b"0]}"),
        (b'{"messages":[', b"1,", b"0]}"),
        (b'{"logit_bias":{', b'"1":0,', b'"2":0}}'),
        (b"{", b'"a":0,', b'"b":0}'),
        (b'{"response_format":{"schema":{"enum":[', b'{"const":"a"},', b"0]}}}"),
        (b'["', b'["]', b'"'),
        (b'{"stop":', b'["', b""),
    ],
)
def test_a_body_of_too_many_elements_is_refused_before_it_is_decoded(
    head: bytes, piece: bytes, tail: bytes
) -> None:
    """O-22: 4 MiB that a parser would make millions of objects of, and block all for seconds."""
    body = head + piece * ((MIB_4 - len(head) - len(tail)) // len(piece)) + tail

    def refuse() -> None:
        with pytest.raises(BadRequestError, match=r"elements|deeper"):
            parse(body)

    assert cpu_s(refuse) < 0.2


@pytest.mark.parametrize(
    "value",
    [
        b'"' + b"hello, world: [x] {y} " * (MIB_4 // 22) + b'"',
        b'"' + b'\\"' * (MIB_4 // 2) + b'"',
        b'"' + b"\\\\" * (MIB_4 // 2) + b'"',
        b'"' + b"\\u0041" * (MIB_4 // 6) + b'"',
        b"1" * MIB_4,
        b"1." + b"1" * MIB_4,
        b" " * MIB_4 + b"1",
        b'{"' + b"k" * MIB_4 + b'":1}',
    ],
)
def test_a_long_body_of_few_elements_is_looked_at_in_short_turns(value: bytes) -> None:
    """O-22: long prompts are what is sold; between two windows the event loop does other work."""
    body = b'{"max_tokens":1,"messages":' + value + b"}"
    scan = scan_request(body)
    turns = [cpu_s(lambda: next(scan, None)) for _ in range(len(body) // JSON_WINDOW_BYTES + 1)]
    assert max(turns) < 0.05
    assert sum(1 for _ in scan_request(body)) == (len(body) - 1) // JSON_WINDOW_BYTES
    assert (
        cpu_s(
            lambda: parse_chat_request(
                body, max_tokens=100, default_max_tokens=0, wants_exact_counts=False
            )
        )
        < 0.2
    )


def test_what_a_request_holds_is_bounded_by_one_element() -> None:
    """O-22: the object, the two names, the comma between, and the array's values."""
    most = REQUEST_ELEMENTS_MAX - 4
    allowed = b'{"max_tokens":1,"messages":[' + b",".join([b"1"] * most) + b"]}"
    assert parse(allowed).units_max == 1
    with pytest.raises(BadRequestError, match=f"more than {REQUEST_ELEMENTS_MAX} elements"):
        parse(allowed.replace(b"[1,", b"[1,1,"))


def test_what_is_passed_on_is_what_came() -> None:
    """Values are not decoded and written anew: a number keeps its digits, a text its escapes."""
    request = parse(b'{"max_tokens":1, "seed":1.50e3, "user":"\\u00e9\\/"}')
    assert b"1.50e3" in request.body
    assert b'"\\u00e9\\/"' in request.body


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    try:
        parse(body)
    except BadRequestError:
        return


def event(**fields: Any) -> str:
    return json.dumps(fields)


def content(text: str | None, *, index: int = 0, **fields: Any) -> str:
    return event(choices=[{"index": index, "delta": {"content": text}}], **fields)


def test_each_chunk_with_content_is_one_unit() -> None:
    counter = UnitCounter(is_exact=False)
    chunks = [
        event(choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}]),
        content("Hello"),
        content(" there"),
        event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        event(choices=[], usage={"completion_tokens": 3}),
        "[DONE]",
    ]
    assert [counter.count(chunk) for chunk in chunks] == [0, 1, 1, 0, 0, 0]
    assert (counter.total, counter.reported) == (2, 3)


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0}]},
        {"refusal": "no"},
        {"something_new": "x"},
    ],
)
def test_output_of_any_kind_is_a_unit(delta: dict[str, Any]) -> None:
    assert UnitCounter(is_exact=False).count(event(choices=[{"delta": delta}])) == 1


def test_every_choice_of_a_chunk_counts() -> None:
    choices = [{"index": i, "delta": {"content": "x"}} for i in range(3)]
    assert UnitCounter(is_exact=False).count(event(choices=choices)) == 3


def test_exact_counts_follow_the_servers_running_count() -> None:
    """A chunk may hold several tokens, and the end token is in the last count (F-57)."""
    counter = UnitCounter(is_exact=True)
    chunks = [
        content("Hello", timings={"predicted_n": 1}),
        content(" big world", timings={"predicted_n": 4}),
        event(choices=[{"delta": {}, "finish_reason": "stop"}], timings={"predicted_n": 5}),
        event(choices=[], usage={"completion_tokens": 5}, timings={"predicted_n": 5}),
    ]
    assert [counter.count(chunk) for chunk in chunks] == [1, 3, 1, 0]
    assert counter.total == counter.reported == 5


def test_exact_counts_are_kept_for_each_choice() -> None:
    counter = UnitCounter(is_exact=True)
    for predicted in (1, 2):
        for index in (0, 1):
            counter.count(content("x", index=index, timings={"predicted_n": predicted}))
    assert counter.total == 4


def test_content_is_not_free_when_the_promised_count_is_missing() -> None:
    """F-56, F-57: neither a missing nor a late usage record makes a stream free."""
    counter = UnitCounter(is_exact=True)
    assert [counter.count(content("x")) for _ in range(3)] == [1, 1, 1]
    assert counter.count(event(choices=[], usage={"completion_tokens": 8})) == 5


def test_a_count_that_goes_back_charges_nothing_back() -> None:
    counter = UnitCounter(is_exact=True)
    assert counter.count(content("x", timings={"predicted_n": 9})) == 9
    assert counter.count(content("x", timings={"predicted_n": 2})) == 0
    assert counter.count(content("x", timings={"predicted_n": 10})) == 1


@pytest.mark.parametrize("data", ["", "no json", "[]", '{"choices": 3}', "[" * 100_000])
def test_what_is_no_chunk_is_the_model_servers_fault(data: str) -> None:
    with pytest.raises(UpstreamError):
        UnitCounter(is_exact=False).count(data)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"usage": {"completion_tokens": 12}}, 12),
        ({"usage": {"completion_tokens": 0}}, 0),
        ({"usage": {"completion_tokens": None}}, None),
        ({"usage": {}}, None),
        ({"usage": None}, None),
        ({}, None),
    ],
)
def test_an_explicit_zero_is_not_a_missing_count(body: object, tokens: int | None) -> None:
    """F-57: zero is a count, nothing is not."""
    assert parse_completion_tokens(json.dumps(body).encode()) == tokens


@pytest.mark.parametrize("body", [b"", b"[]", b'{"usage": {"completion_tokens": -1}}', b"\xff"])
def test_an_unreadable_answer_is_the_model_servers_fault(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        parse_completion_tokens(body)
