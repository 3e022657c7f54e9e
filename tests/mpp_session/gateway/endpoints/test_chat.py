"""What a chat completion is asked for, from its bytes alone."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import BadRequestError
from channel.limits import (
    CHOICES_MAX,
    JSON_WINDOW_BYTES,
    PATTERN_CHARACTERS_MAX,
    PATTERN_COUNT_DIGITS_MAX,
    REQUEST_DEPTH_MAX,
    REQUEST_ELEMENTS_MAX,
    SCHEMA_VALUES_MAX,
    STOP_BYTES_MAX,
    STOPS_MAX,
    TOP_LOGPROBS_MAX,
)
from mpp_session.gateway.counting import ServerKind
from mpp_session.gateway.endpoints.chat import parse_chat_request
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest, scan_request


def parse(
    body: object, *, kind: ServerKind = "usage", default: int = 50, **options: Any
) -> ModelRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    list(scan_request(raw))
    bounds = Bounds(max_tokens=100, default_max_tokens=default, kind=kind, **options)
    return parse_chat_request(raw, bounds)


def sent(request: ModelRequest) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(request.body)
    return fields


def test_an_answer_in_one_piece_is_bounded_by_max_tokens() -> None:
    request = parse({"messages": [], "max_tokens": 7})
    assert (request.is_stream, request.units_max) == (False, 7)


def test_without_a_bound_an_answer_in_one_piece_gets_the_default() -> None:
    """O-44: every framework's call names none. The default never passes the greatest bound."""
    request = parse({"messages": []})
    assert request.units_max == sent(request)["max_tokens"] == 50
    assert parse({"messages": [], "max_tokens": None}).units_max == 50
    assert parse({"messages": []}, default=500).units_max == 100
    with pytest.raises(BadRequestError, match="max_tokens"):
        parse({"messages": []}, default=0)


@pytest.mark.parametrize(
    ("named", "passed_on"),
    [
        ({"max_completion_tokens": 4}, {"max_completion_tokens": 4}),
        ({"max_tokens": 4}, {"max_tokens": 4}),
        ({"max_tokens": None, "max_completion_tokens": 4}, {"max_completion_tokens": 4}),
        ({"max_tokens": 4, "max_completion_tokens": None}, {"max_tokens": 4}),
        (
            {"max_tokens": 9, "max_completion_tokens": 4},
            {"max_tokens": 4, "max_completion_tokens": 4},
        ),
        ({"max_tokens": None, "max_completion_tokens": None}, {"max_tokens": 50}),
    ],
)
def test_only_the_bound_that_the_client_used_is_sent(
    named: dict[str, Any], passed_on: dict[str, Any]
) -> None:
    """O-45: servers refuse both, or the one they do not know. The smaller of two holds."""
    assert sent(parse(named)) == passed_on


def test_each_choice_may_use_the_whole_bound() -> None:
    assert parse({"max_tokens": 9, "n": 3}).units_max == 27


@pytest.mark.parametrize(
    ("kind", "is_stream", "is_served"),
    [
        ("llama.cpp", True, True),
        ("llama.cpp", False, False),
        ("vllm", True, True),
        ("vllm", False, True),
        ("usage", False, True),
        ("chunks", True, False),
        ("chunks", False, False),
    ],
)
def test_several_choices_need_a_server_that_counts_them_all(
    kind: ServerKind, *, is_stream: bool, is_served: bool
) -> None:
    """O-02: refused before the model runs, if no report would give the total of all choices."""
    body = {"n": 2, "max_tokens": 5, "stream": is_stream}
    if is_served:
        assert parse(body, kind=kind).choices == 2
    else:
        with pytest.raises(BadRequestError, match="`n`"):
            parse(body, kind=kind)
    assert parse({**body, "n": 1}, kind=kind).choices == 1


UNKNOWN = [
    "n_predict",
    "n_cmpl",
    "best_of",
    "ignore_eos",
    "min_tokens",
    "stream_interval",
    "grammar",
    "MAX_TOKENS",
    "Max_Tokens",
    "max_tokens ",
    "max\u200b_tokens",
    "extra_body",
    "timings_per_token",
    "continuous_usage_stats",
    "previous_response_id",
    "cached_content",
    "speculative.n_max",
    "audio",
    "modalities",
    "",
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_field_that_is_not_listed_does_not_reach_the_model(name: str) -> None:
    """O-03: names are compared to the letter; a server may read them in another case."""
    assert sent(parse({"max_tokens": 9, name: {"n": 50}})) == {"max_tokens": 9}


def test_a_field_that_the_operator_lists_does() -> None:
    body = {"max_tokens": 9, "grammar": "root ::= [a]", "ignore_eos": True}
    assert sent(parse(body, more_fields=["grammar"])) == {
        "max_tokens": 9,
        "grammar": "root ::= [a]",
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"max_tokens": 1, "max_tokens": 50}',
        b'{"max_tokens": 1, "max_\\u0074okens": 50}',
        b'{"n": 1, "messages": [], "n": 4}',
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "text", "type": "image_url"}]}]}',
    ],
)
def test_a_name_written_twice_is_refused(body: bytes) -> None:
    """O-03: the gateway cannot know which of the two the model server uses."""
    with pytest.raises(BadRequestError, match="twice"):
        parse(body)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("chunks", {"stream_options": {"include_usage": True}}),
        ("usage", {"stream_options": {"include_usage": True}}),
        ("llama.cpp", {"stream_options": {"include_usage": True}, "timings_per_token": True}),
        ("vllm", {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ],
)
def test_a_server_is_asked_for_all_that_it_can_count(
    kind: ServerKind, asked: dict[str, Any]
) -> None:
    """O-03: for any value that the client sends."""
    for options in ({}, {"stream_options": {"include_usage": False, "x": 1}}):
        body = {"stream": True, "max_tokens": 3, **options}
        request = parse(body, kind=kind)
        assert sent(request) == {"stream": True, "max_tokens": 3, **asked}
        assert not request.wants_usage
    wanted = parse({"stream": True, "stream_options": {"include_usage": True}}, kind=kind)
    assert wanted.wants_usage
    assert asked.keys().isdisjoint(sent(parse({"max_tokens": 3}, kind=kind)))


def test_a_stop_sequence_holds_back_only_so_much() -> None:
    """O-03: what a server holds back for it is made before it is charged."""
    parse({"stop": ["a" * STOP_BYTES_MAX, "b"], "max_tokens": 1})
    parse({"stop": ["a"] * STOPS_MAX, "max_tokens": 1})
    wide = "\u00e9" * (STOP_BYTES_MAX // 2 + 1)
    for stop in ("a" * (STOP_BYTES_MAX + 1), ["a", wide], ["a"] * (STOPS_MAX + 1)):
        with pytest.raises(BadRequestError, match="stop"):
            parse({"stop": stop, "max_tokens": 1})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}},
        {"type": "input_audio", "input_audio": {"data": ""}},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": "video_url"},
        {"image_url": {"url": "x"}},
        {"type": ["text"]},
    ],
)
def test_what_is_not_text_is_not_read_unless_the_operator_says_so(part: dict[str, Any]) -> None:
    """O-04: a link of forty bytes may stand for any number of tokens."""
    text = {"type": "text", "text": "hello"}
    body = {"messages": [{"role": "user", "content": [text, part]}], "max_tokens": 1}
    with pytest.raises(BadRequestError, match="only text"):
        parse(body)
    assert parse(body, allows_media=True).units_max == 1
    body = {"messages": [{"role": "user", "content": [text]}], "max_tokens": 1}
    assert parse(body).units_max == 1


def test_a_stream_needs_no_bound_but_never_has_none() -> None:
    request = parse({"stream": True})
    assert request.is_stream
    assert sent(request)["max_tokens"] == 100


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
        {"max_tokens": 5, "n": CHOICES_MAX + 1},
        {"stream": 1},
        {"stream": "true"},
        b'{"temperature": NaN}',
        b'{"max_tokens": "5"} {}',
    ],
)
def test_what_cannot_be_bounded_is_a_bad_request(body: object) -> None:
    """F-02: never a 500, for any bytes."""
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
    bounds = Bounds(max_tokens=100, default_max_tokens=0, kind="chunks")
    assert cpu_s(lambda: parse_chat_request(body, bounds)) < 0.2


def test_what_a_request_holds_is_bounded_by_one_element() -> None:
    """O-22: the object, the two names, the comma between, and the array's values."""
    most = REQUEST_ELEMENTS_MAX - 4
    allowed = b'{"max_tokens":1,"messages":[' + b",".join([b"1"] * most) + b"]}"
    assert parse(allowed).units_max == 1
    with pytest.raises(BadRequestError, match=f"more than {REQUEST_ELEMENTS_MAX} elements"):
        parse(allowed.replace(b"[1,", b"[1,1,"))


@pytest.mark.parametrize("shown", [0, TOP_LOGPROBS_MAX, None])
def test_a_few_tokens_may_be_shown_beside_each(shown: int | None) -> None:
    request = parse({"messages": [], "logprobs": True, "top_logprobs": shown})
    assert sent(request)["top_logprobs"] == shown


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True, "top_logprobs": TOP_LOGPROBS_MAX + 1},
        {"logprobs": True, "top_logprobs": -1},
        {"logprobs": True, "top_logprobs": 1.0},
        {"logprobs": True, "top_logprobs": "50000"},
        {"logprobs": 50_000},
        {"logprobs": "50000"},
    ],
)
def test_the_vocabulary_is_not_shown_beside_each_token(fields: dict[str, Any]) -> None:
    """O-03: 18 MiB for four tokens; in a stream one event of it was too long, and all free."""
    with pytest.raises(BadRequestError, match="logprobs"):
        parse({"messages": [], **fields})


def schema_fields(schema: object) -> dict[str, dict[str, Any]]:
    """Every place where a request may hold a schema."""
    function = {"name": "f", "parameters": schema}
    return {
        "json_schema": {"response_format": {"type": "json_schema", "json_schema": {"s": schema}}},
        "json_object": {"response_format": {"type": "json_object", "schema": schema}},
        "tools": {"tools": [{"type": "function", "function": function}]},
        "functions": {"functions": [function]},
    }


PLACES = list(schema_fields(None))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ({"enum": ["a"] * SCHEMA_VALUES_MAX}, {"enum": ["a"] * (SCHEMA_VALUES_MAX + 1)}),
        (
            {"properties": {f"p{n}": {} for n in range(SCHEMA_VALUES_MAX)}},
            {"properties": {f"p{n}": {} for n in range(SCHEMA_VALUES_MAX + 1)}},
        ),
        (
            {"pattern": "a" * PATTERN_CHARACTERS_MAX},
            {"pattern": "a" * (PATTERN_CHARACTERS_MAX + 1)},
        ),
        (
            {"pattern": f"[a-z]{{0,{PATTERN_CHARACTERS_MAX}}}"},
            {"pattern": f"[a-z]{{0,{PATTERN_CHARACTERS_MAX + 1}}}"},
        ),
        ({"items": {"pattern": "(a{0,20}){0,20}"}}, {"items": {"pattern": "(a{0,99}){0,99}"}}),
        ({"pattern": r"(\{{9}){50}"}, {"pattern": r"(\{{9}){99}"}),
        ({"patternProperties": {"a{9}": {}}}, {"patternProperties": {"((a{9}){9}){9}": {}}}),
        ({"pattern": "([(]{9}[])]{2}){9}"}, {"pattern": "([(]{9}[])]{2}){99}"}),
        ({"pattern": "(?:a?){99}"}, {"pattern": "((?:a?){99}){99}"}),
    ],
)
def test_a_schema_is_small_wherever_it_stands(place: str, allowed: Any, refused: Any) -> None:
    """O-03: a schema of 30 bytes kept the model server busy for minutes, for one token."""
    assert parse({"messages": [], **schema_fields(allowed)[place]}).choices == 1
    with pytest.raises(BadRequestError, match=r"`(response_format|tools|functions)` has a"):
        parse({"messages": [], **schema_fields(refused)[place]})


@pytest.mark.parametrize(
    "pattern", ["((((", "))))", "[", "\\", "{5}", "a{,}", "x" * 9 + "{2}{3}{4}"]
)
def test_a_pattern_that_is_none_is_the_model_servers_to_refuse(pattern: str) -> None:
    assert parse({"messages": [], **schema_fields({"pattern": pattern})["tools"]}).choices == 1


def test_a_property_may_be_called_pattern_and_tools_may_be_many() -> None:
    tools = schema_fields({"properties": {"pattern": {"type": "string"}}})["tools"]["tools"]
    assert parse({"messages": [], "tools": tools * (SCHEMA_VALUES_MAX + 1)}).choices == 1


def test_a_schema_of_numbers_that_are_none_is_refused() -> None:
    with pytest.raises(BadRequestError, match="response_format"):
        parse(b'{"messages":[],"response_format":{"schema":{"minimum":1e999}}}')


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


def test_choices_and_brackets_have_a_bound() -> None:
    """O-22: the greatest is taken, one more is not."""
    assert parse({"n": CHOICES_MAX, "max_tokens": 1}).choices == CHOICES_MAX
    inner = REQUEST_DEPTH_MAX - 1  # the body is a bracket itself
    deep = '{"max_tokens": 1, "user": ' + "[" * inner + "]" * inner + "}"
    list(scan_request(deep.encode()))
    with pytest.raises(BadRequestError, match="deep"):
        list(scan_request(deep.replace("[]", "[[]]").encode()))


def test_a_count_in_a_pattern_is_read_so_far() -> None:
    """O-03: one of more digits is not read as less, and one of millions costs nothing."""
    for digits in (PATTERN_COUNT_DIGITS_MAX, PATTERN_COUNT_DIGITS_MAX + 1, 50_000):
        schema = {"type": "string", "pattern": "a{" + "9" * digits + "}"}
        with pytest.raises(BadRequestError, match="pattern"):
            parse({"max_tokens": 1, "response_format": {"type": "json_schema", "schema": schema}})
