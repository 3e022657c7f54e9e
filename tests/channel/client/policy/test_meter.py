"""What arrived is counted by ourselves; a server's own count is believed as far as text bears."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from channel.client.policy.meter import Expectation, UnitMeter, read_expectation

STREAM = Expectation(is_stream=True, units_max=None)
USAGE = {"usage": {"completion_tokens": 9}}
GUESS = Expectation(is_stream=True, units_max=None, is_guess=True)
WHOLE = Expectation(is_stream=False, units_max=None)


def chunk(*contents: str, **more: Any) -> str:
    choices = [{"index": i, "delta": {"content": text}} for i, text in enumerate(contents)]
    return json.dumps({"choices": choices} | more)


def counted(*events: str) -> int:
    meter = UnitMeter()
    return sum(meter.count(event) for event in events)


def test_one_event_with_content_is_one_unit() -> None:
    assert counted(chunk("Hello"), chunk(" world"), "[DONE]") == 2


def test_an_event_that_is_no_completion_is_one_unit() -> None:
    assert counted("tick", "{}", "[1, 2]", "") == 4


def test_each_choice_with_content_is_one_unit() -> None:
    assert counted(chunk("a", "b", "c")) == 3


def test_role_usage_and_end_are_no_units() -> None:
    role = json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    end = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    assert counted(role, chunk("a"), end, json.dumps({"choices": []})) == 1


def test_nesting_without_end_is_counted_not_parsed() -> None:
    """F-02: a parser that recurses never sees it."""
    deep = "[" * 200_000
    assert counted(deep, '{"choices": ' + deep) == 2
    body = b'{"n": ' + deep.encode()
    assert read_expectation(body, "") == replace(WHOLE, prompt_bytes=len(body))


@pytest.mark.parametrize("name", ["reasoning_content", "refusal", "tool_calls"])
def test_output_of_any_kind_counts(name: str) -> None:
    value = [{"index": 0}] if name == "tool_calls" else "text"
    assert counted(json.dumps({"choices": [{"delta": {name: value}}]})) == 1


def test_an_exact_count_is_believed_as_far_as_the_text_is_long() -> None:
    """F-94: a count that no text could hold is not."""
    assert counted(chunk("abc", timings={"predicted_n": 3})) == 3
    assert counted(chunk("abc", timings={"predicted_n": 10**6})) == 4
    assert (
        counted(chunk("abc"), json.dumps({"choices": [], "usage": {"completion_tokens": 2}})) == 2
    )
    assert (
        counted(chunk("abc"), json.dumps({"choices": [], "usage": {"completion_tokens": 99}})) == 4
    )


def test_the_text_of_a_plain_completion_is_output() -> None:
    """O-09: `/v1/completions` sends no delta; it was counted as nothing, and paid for as one."""
    chunks = [json.dumps({"choices": [{"index": 0, "text": text}]}) for text in ("a", "", "bc")]
    assert counted(*chunks) == 2


def test_tokens_that_only_their_probabilities_show_are_output() -> None:
    """O-09: what a stop sequence holds back is charged as it is made."""
    token = {"token": "a", "logprob": -0.1}
    for name in ("content", "refusal"):
        choice = {"index": 0, "delta": {}, "logprobs": {name: [token, token]}}
        assert counted(json.dumps({"choices": [choice]})) == 2
    assert counted(json.dumps({"choices": [{"delta": {"content": "ab"}, "logprobs": {}}]})) == 1


def one(index: int, text: str, **more: Any) -> str:
    """A chunk of one of several choices."""
    return json.dumps({"choices": [{"index": index, "delta": {"content": text}}]} | more)


@pytest.mark.parametrize("name", ["timings", "usage"])
def test_each_choice_has_a_count_of_its_own(name: str) -> None:
    """O-09: three tokens a chunk in each of two choices; the second's were counted as none."""

    def said(count: int) -> dict[str, Any]:
        return {name: {"predicted_n": count, "completion_tokens": count}}

    events = [one(index, "abcd", **said(3 * step)) for step in (1, 2, 3) for index in (0, 1)]
    meter = UnitMeter()
    assert [meter.count(event) for event in events] == [3] * 6
    assert meter.count(json.dumps({"choices": [], "usage": {"completion_tokens": 9}})) == 0
    assert meter.count(json.dumps({"choices": [], "usage": {"completion_tokens": 20}})) == 2
    assert meter.count(json.dumps({"choices": [], "usage": {"completion_tokens": 99}})) == 6


def test_a_count_of_one_choice_is_held_against_the_text_of_that_choice() -> None:
    """F-94: a short choice is no licence for another one's text."""
    assert counted(one(0, "a" * 50), one(1, "b", timings={"predicted_n": 40})) == 1 + 2
    assert counted(*[one(index, "") for index in range(10**4)]) == 0
    assert counted(*[one(index, "x") for index in range(200)]) == 200
    assert counted(json.dumps({"choices": [], "usage": {"completion_tokens": -5}})) == 0


def test_where_the_chunk_is_the_unit_a_count_of_tokens_is_another_thing() -> None:
    """F-94: llama.cpp counts the token that ends the text, which is no chunk."""
    meter = UnitMeter(believes_counts=False)
    events = (chunk("abc", timings={"predicted_n": 3}), json.dumps({"choices": [], **USAGE}))
    assert [meter.count(event) for event in events] == [1, 0]


@pytest.mark.parametrize(
    ("body", "accept", "expected"),
    [
        (b'{"stream": true}', "", STREAM),
        (b' {"stream": false, "max_tokens": 7}', "", Expectation(is_stream=False, units_max=7)),
        (
            b'{"max_tokens": 7, "max_completion_tokens": 5, "n": 3}',
            "",
            Expectation(is_stream=False, units_max=15),
        ),
        (b'{"max_output_tokens": 7}', "", Expectation(is_stream=False, units_max=7)),
        (
            b'{"max_tokens": 7, "n": 2, "prompt": ["a", [1, 2], "c"]}',
            "",
            Expectation(is_stream=False, units_max=42),
        ),
        (b'{"max_tokens": 7, "prompt": [1, 2]}', "", Expectation(is_stream=False, units_max=7)),
        (b'{"max_tokens": 7, "prompt": []}', "", Expectation(is_stream=False, units_max=7)),
        (b'{"max_tokens": 0}', "", WHOLE),
        (b'{"n": 100000, "max_tokens": 1}', "", Expectation(is_stream=False, units_max=1)),
        (b'{"stream": "yes"}', "", WHOLE),
        (b"{broken", "", WHOLE),
        (b"plain text", "text/event-stream", STREAM),
        (None, "Text/Event-Stream", STREAM),
        (None, "Text/Event-Stream, */*", GUESS),
        (b'{"max_tokens": 0}', "application/json, text/event-stream", GUESS),
        (b'{"stream": false}', "application/json, text/event-stream", WHOLE),  # O-11
        (b'{"stream": true}', "application/json, text/event-stream", STREAM),
        (b"", "application/json", WHOLE),
    ],
)
def test_a_request_says_what_to_expect(
    body: bytes | None, accept: str, expected: Expectation
) -> None:
    assert read_expectation(body, accept) == replace(expected, prompt_bytes=len(body or b""))


def test_output_and_usage_of_a_response_are_counted_and_its_other_events_are_one_unit() -> None:
    """A count is accepted as far as the text of all deltas allows."""

    def event(kind: str, **fields: Any) -> str:
        return json.dumps({"type": f"response.{kind}", **fields})

    def completed(made: int) -> str:
        return event("completed", response={"usage": {"output_tokens": made}})

    meter = UnitMeter()
    assert meter.count(event("output_text.delta", delta="word word")) == 1
    assert meter.count(completed(8)) == 7
    assert UnitMeter().count(completed(8)) == 1
    assert meter.count(completed(10**6)) == 2
    assert meter.count(event("created", response={})) == 1
    assert UnitMeter().count(json.dumps({"type": "response.x", "response": 3})) == 1


def test_a_prompt_is_as_long_as_its_body() -> None:
    """No token is shorter than a byte, also in a body that is too long to be kept."""
    assert read_expectation(b'{"stream": true}', "").prompt_bytes == 16
    assert read_expectation(b"plain", "").prompt_bytes == 5
    assert read_expectation(None, "", long_bytes=100).prompt_bytes == 100
