"""Responses: what may be asked, and what each event adds to the count."""

import json
from typing import Any

import pytest

from channel.errors import BadRequestError
from mpp_session.gateway.counting import ServerKind, UnitCounter, read_whole
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest
from mpp_session.gateway.endpoints.responses import ResponseReader, parse_response_request

TOOL = {"type": "function", "name": "greet", "parameters": {"type": "object"}}


def parse(kind: ServerKind = "usage", *, media: bool = False, **fields: Any) -> ModelRequest:
    bounds = Bounds(max_tokens=100, default_max_tokens=50, kind=kind, allows_media=media)
    return parse_response_request(json.dumps({"input": "x", **fields}).encode(), bounds)


def test_a_request_is_bounded_written_anew_and_not_stored() -> None:
    request = parse(max_output_tokens=7, store=True, include=["x"], tools=[TOOL], n=4)
    sent = {"input": "x", "max_output_tokens": 7, "tools": [TOOL], "store": False}
    assert json.loads(request.body) == sent
    assert request.units_max == 7
    assert json.loads(parse().body)["max_output_tokens"] == 50
    assert "timings_per_token" in json.loads(parse("llama.cpp", stream=True).body)


@pytest.mark.parametrize(
    "fields",
    [
        {"background": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [TOOL, {"type": "mcp", "server_url": "http://10.0.0.1"}]},
        {"tools": [{"name": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]},
        {"max_output_tokens": 101},
        {"text": {"format": {"schema": {"pattern": "^(a{0,99}){0,99}$"}}}},
    ],
)
def test_what_the_server_would_keep_run_or_fetch_is_refused(fields: dict[str, Any]) -> None:
    """O-03, O-04: none of it is counted, and a stored response may be another client's."""
    with pytest.raises(BadRequestError):
        parse(**fields)


def test_a_conversation_of_text_and_calls_is_sold() -> None:
    items = [
        {"role": "user", "content": "hello"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
        {"type": "function_call", "call_id": "1", "name": "greet", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
    ]
    assert json.loads(parse(input=items).body)["input"] == items
    assert parse(background=False, previous_response_id=None, conversation=None)
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    assert parse(media=True, input=image)


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def delta(text: str, kind: str = "output_text", **fields: Any) -> str:
    return event(f"response.{kind}.delta", output_index=0, delta=text, **fields)


def item(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def completed(*items: dict[str, Any], made: int | None = None) -> str:
    usage = None if made is None else {"output_tokens": made, "input_tokens": 3}
    return event("response.completed", response={"output": [*items], "usage": usage})


def count(*events: str, kind: ServerKind = "chunks") -> UnitCounter:
    counter = UnitCounter(kind, choices=1, tokens_max=500, read=ResponseReader())
    for one in events:
        counter.count(one)
    return counter


LONG = "word " * 40

STREAMS: dict[str, tuple[list[str], int]] = {
    "text": ([delta("a"), delta("b"), completed(item("ab"))], 2),
    "text, counted": ([delta("a"), completed(item("a"), made=9)], 9),
    "repeated at the end": (
        [
            delta(LONG),
            event("response.output_text.done", output_index=0, text=LONG),
            event("response.output_item.done", output_index=0, item=item(LONG)),
            completed(item(LONG)),
        ],
        50,
    ),
    "only at the end": ([completed(item(LONG))], 50),
    "only with its item": (
        [event("response.output_item.done", output_index=0, item=item(LONG)), completed()],
        50,
    ),
    "a call": (
        [
            event("response.output_item.added", item={"type": "function_call", "name": "greet"}),
            delta('{"a":', "function_call_arguments"),
            delta("1}", "function_call_arguments"),
            completed({"type": "function_call", "arguments": '{"a":1}'}),
        ],
        3,
    ),
    "nothing": ([event("response.created", response={}), completed()], 0),
}


@pytest.mark.parametrize("name", STREAMS)
def test_each_output_is_counted_once(name: str) -> None:
    events, units = STREAMS[name]
    counter = count(*events)
    assert counter.is_end
    counter.finish()
    assert counter.total == units


def test_the_counts_of_llama_cpp_in_each_event_are_exact() -> None:
    counter = count(delta("\U0001f331", timings={"predicted_n": 3}), kind="llama.cpp")
    assert counter.total == 3
    counter.count(completed(item("\U0001f331"), made=4))
    assert (counter.total, counter.reported) == (4, 4)


def test_reasoning_is_counted_apart() -> None:
    counter = count(delta("hm", "reasoning_text"), delta("hm", "reasoning_summary_text"))
    assert counter.reasoning == counter.total == 2
    counter.count(delta("a"))
    assert (counter.reasoning, counter.total) == (2, 3)
    usage = {"output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 7}}
    counter.count(event("response.completed", response={"output": [], "usage": usage}))
    assert (counter.reasoning, counter.total) == (7, 9)


@pytest.mark.parametrize("name", ["payment-receipt", "a\nb", "", "x" * 65, "Ärger"])
def test_an_event_gets_no_name_that_could_forge_another(name: str) -> None:
    """F-55"""
    assert count(event(name)).event is None
    assert count(event("response.created", response={})).event == "response.created"


def test_a_whole_response_is_read_by_its_usage_or_its_text() -> None:
    usage = {
        "output_tokens": 3,
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 1},
    }
    body = {"status": "completed", "output": [item("a b")], "usage": usage}
    answer = read_whole(json.dumps(body).encode(), units_max=9, read=ResponseReader())
    assert (answer.units, answer.reasoning) == (3, 1)
    assert (answer.prompt.tokens, answer.prompt.cached) == (9, 4)
    failed = {"status": "failed", "output": [], "error": {"code": "server_error"}}
    assert read_whole(json.dumps(failed).encode(), units_max=9, read=ResponseReader()).is_error
