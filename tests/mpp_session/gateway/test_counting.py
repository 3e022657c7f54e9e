"""What an answer is charged, from its bytes alone (O-02, O-03, O-47, F-57)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.limits import ANSWER_DEPTH_MAX
from mpp_session.gateway.counting import ServerKind, UnitCounter, is_error, read_whole
from mpp_session.gateway.errors import UpstreamError


def counter(kind: ServerKind = "chunks", *, choices: int = 1, tokens_max: int = 100) -> UnitCounter:
    return UnitCounter(kind, choices=choices, tokens_max=tokens_max)


def event(**fields: Any) -> str:
    return json.dumps(fields)


def content(text: str | None, *, index: int = 0, **fields: Any) -> str:
    return event(choices=[{"index": index, "delta": {"content": text}}], **fields)


def end(index: int = 0, **fields: Any) -> str:
    return event(choices=[{"index": index, "delta": {}, "finish_reason": "stop"}], **fields)


def usage(tokens: Any, **fields: Any) -> str:
    return event(choices=[], usage={"completion_tokens": tokens, **fields})


def count(one: UnitCounter, *chunks: str) -> list[int]:
    return [one.count(chunk) for chunk in chunks]


def test_each_chunk_with_content_is_a_unit_and_the_rest_comes_with_the_usage() -> None:
    one = counter()
    role = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}])
    chunks = [role, content("Hello"), content(" there"), end(), usage(3)]
    assert count(one, *chunks) == [0, 1, 1, 0, 1]
    assert one.is_usage_only
    assert one.is_complete


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"delta": {"refusal": "no"}},
        {"delta": {"something_new": "x"}},
        {"delta": "x"},
        {"text": "x"},
        {"message": {"content": "x"}},
        {"delta": {"content": ""}, "logprobs": {"content": [{"token": "x"}]}},
        {"delta": {}, "logprobs": {"refusal": [{"token": "x"}]}},
        {"index": None, "delta": {"content": "x"}, "finish_reason": 5},
        {"index": "0", "delta": {"content": "x"}, "logprobs": []},
    ],
)
def test_output_of_any_kind_is_a_unit(choice: dict[str, Any]) -> None:
    assert count(counter(), event(choices=[choice])) == [1]


def test_tokens_that_show_in_logprobs_alone_are_units() -> None:
    """O-03: text may be empty, or one piece for many tokens."""
    logprobs = {"content": [{"token": str(number)} for number in range(7)]}
    choice = {"index": 0, "delta": {"content": ""}, "logprobs": logprobs}
    assert count(counter(), event(choices=[choice])) == [7]


def test_every_choice_of_a_chunk_counts() -> None:
    choices = [{"index": i, "delta": {"content": "x"}} for i in range(3)]
    assert count(counter(choices=3), event(choices=choices)) == [3]


def test_counts_follow_the_servers_running_count() -> None:
    """A chunk may hold several tokens, and the end token is in the last count (F-57)."""
    chunks = [
        content("Hello", timings={"predicted_n": 1}),
        content(" big world", timings={"predicted_n": 4}),
        end(timings={"predicted_n": 5}),
        event(choices=[], usage={"completion_tokens": 5}, timings={"predicted_n": 5}),
    ]
    assert count(counter("llama.cpp"), *chunks) == [1, 3, 1, 0]


def test_running_counts_are_kept_for_each_choice() -> None:
    one = counter("llama.cpp", choices=2)
    for predicted in (1, 2):
        for index in (0, 1):
            one.count(content("x", index=index, timings={"predicted_n": predicted}))
    assert one.total == 4


def test_llama_cpps_usage_is_that_of_the_choice_that_ended() -> None:
    """O-02: one record behind each choice, each of that choice alone."""
    one = counter("llama.cpp", choices=2)
    chunks = [content("a", index=1), content("b"), end(1), usage(4), end(0), usage(6)]
    assert count(one, *chunks) == [1, 1, 0, 3, 0, 5]


def test_vllms_usage_is_that_of_its_chunks_choice_and_at_last_of_all() -> None:
    one = counter("vllm", choices=2)
    chunks = [
        content("abc", index=0, usage={"completion_tokens": 3}),
        content("de", index=1, usage={"completion_tokens": 2}),
        content("f", index=0, usage={"completion_tokens": 9}),
        usage(13),
    ]
    assert count(one, *chunks) == [3, 2, 6, 2]


def test_usage_in_the_last_chunk_of_a_choice_is_that_of_all() -> None:
    chunks = [content("a"), content("b", index=1), end(1, usage={"completion_tokens": 5})]
    assert count(counter("usage", choices=2), *chunks) == [1, 1, 3]


@pytest.mark.parametrize("kind", ["chunks", "usage", "vllm", "llama.cpp"])
def test_one_chunk_may_be_the_whole_answer(kind: ServerKind) -> None:
    """O-03: 1 of 4,096 was charged."""
    one = counter(kind, tokens_max=4096)
    text = "word " * 4096
    assert count(one, content(text)) == [1]
    assert count(one, usage(4096)) == [4095]
    assert one.finish() == 0


def test_a_lump_that_no_server_counts_is_charged_by_its_text_at_the_end() -> None:
    """O-03: held while the stream runs, since a record of usage may still come."""
    one = counter(tokens_max=4096)
    assert count(one, content("word " * 1000), content("x")) == [1, 1]
    assert one.uncounted == 1249
    assert one.finish() == 1249
    assert (one.total, one.finish(), one.uncounted) == (1251, 0, 0)


def test_hidden_reasoning_is_charged() -> None:
    """O-03: in `completion_tokens`, or only in the total."""
    assert count(counter(), content("42"), usage(90)) == [1, 89]
    hidden = usage(1, prompt_tokens=10, total_tokens=50)
    assert count(counter(), content("42"), hidden) == [1, 39]


def test_content_is_not_free_when_the_promised_count_is_missing_or_stands_still() -> None:
    """F-56, F-57, O-03: neither a missing, a late nor a stuck count makes a stream free."""
    assert count(counter("llama.cpp"), *[content("x")] * 3, usage(8)) == [1, 1, 1, 5]
    for stuck in (0, -5, 1):
        one = counter("llama.cpp")
        count(one, *[content("x", timings={"predicted_n": stuck})] * 9)
        assert one.total == 9


def test_a_count_that_goes_back_charges_nothing_back() -> None:
    chunks = [content("x", timings={"predicted_n": number}) for number in (9, 2, 10)]
    assert count(counter("llama.cpp"), *chunks) == [9, 0, 1]


@pytest.mark.parametrize(
    "tokens", [0, -1, None, "12", 1.5, True, [], {}, 10**30, -(10**30), "x" * 100]
)
def test_usage_that_cannot_be_right_is_not_believed(tokens: Any) -> None:
    """O-02: never less than was delivered, never more than was asked for."""
    one = counter(tokens_max=10)
    count(one, content("a"), content("b"), usage(tokens))
    assert one.total == 2
    assert count(counter(tokens_max=10), content("a"), usage(11)) == [1, 9]


def test_an_answer_longer_than_asked_for_is_cut() -> None:
    one = counter(tokens_max=1)
    with pytest.raises(UpstreamError, match="longer"):
        count(one, *[content("x")] * 100)
    assert one.total == 1


def test_more_choices_than_asked_for_are_cut() -> None:
    with pytest.raises(UpstreamError, match="more choices"):
        count(counter(), content("x"), content("y", index=1))


@pytest.mark.parametrize(
    "data",
    [
        '{"choices": null, "usage": {"completion_tokens": 0}}',
        '{"choices": null}',
        '{"choices": 3}',
        '{"choices": [null, 5]}',
        '{"choices": [{"delta": null, "index": null}]}',
        '{"usage": 5, "timings": "x"}',
        '{"usage": {"completion_tokens": null, "prompt_tokens": "x"}}',
        '{"error": {"message": "x"}}',
        '{"object": 5, "id": null, "created": "never"}',
        "{}",
    ],
)
def test_what_is_not_needed_is_not_judged(data: str) -> None:
    """O-47."""
    assert count(counter(), data) == [0]


def test_what_is_strange_beside_content_makes_it_not_free() -> None:
    strange = '{"choices": [{"delta": {"content": "x"}, "index": null}], "usage": "none"}'
    assert count(counter(), strange, strange) == [1, 1]


def test_a_chunk_may_be_nested_as_deep_as_the_bound() -> None:
    """CORE-14: its own brackets count, and one more is not read."""
    inner = ANSWER_DEPTH_MAX - 3  # the chunk, its choices and the one
    chunk = (
        '{"choices": [{"delta": {"content": "x"}, "logprobs": ' + "[" * inner + "]" * inner + "}]}"
    )
    assert count(counter(), chunk) == [1]
    with pytest.raises(UpstreamError, match="deeply"):
        counter().count(chunk.replace("[]", "[[]]"))


@pytest.mark.parametrize("data", ["", "no json", "[]", "5", "null", '"x"', "[" * 100_000])
def test_what_is_no_chunk_is_the_model_servers_fault(data: str) -> None:
    with pytest.raises(UpstreamError):
        counter().count(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_value_in_any_place_raises_anything_else(value: object) -> None:
    for place in ("choices", "usage", "timings"):
        text = json.dumps({"choices": [{"delta": {"content": "x"}}], place: value})
        try:
            counter().count(text)
            read_whole(text.encode(), units_max=9)
        except UpstreamError:
            continue


def whole(*texts: str, **fields: Any) -> bytes:
    choices = [{"index": i, "message": {"content": text}} for i, text in enumerate(texts)]
    return json.dumps({"choices": choices, **fields}).encode()


@pytest.mark.parametrize(
    ("reported", "units"),
    [
        ({"completion_tokens": 12}, 12),
        ({"completion_tokens": 2}, 2),
        ({"completion_tokens": 1, "prompt_tokens": 5, "total_tokens": 20}, 15),
        ({"completion_tokens": 0}, 2),
        ({"completion_tokens": -4}, 2),
        ({"completion_tokens": None}, None),
        ({"completion_tokens": "7"}, None),
        ({}, None),
        (None, None),
        ("x", None),
    ],
)
def test_a_whole_answer_is_charged_what_can_be_right(reported: Any, units: int | None) -> None:
    """O-02: not less than was delivered; what was not counted at all is not charged (F-57)."""
    answer = read_whole(whole("one", "two", usage=reported), units_max=50)
    assert answer.units == units
    is_made_up = units == 2 and reported != {"completion_tokens": 2}
    assert answer.is_believed == (units is not None and not is_made_up)


def test_an_explicit_zero_for_nothing_is_zero() -> None:
    """F-57: zero is a count, nothing is not."""
    answer = read_whole(whole("", usage={"completion_tokens": 0}), units_max=50)
    assert (answer.units, answer.is_believed) == (0, True)


def test_a_long_text_is_not_one_token() -> None:
    answer = read_whole(whole("word " * 400, usage={"completion_tokens": 1}), units_max=1000)
    assert (answer.units, answer.is_believed) == (500, False)
    answer = read_whole(whole("word " * 400, usage={"completion_tokens": 1}), units_max=100)
    assert answer.units == 100


def test_an_error_is_no_answer() -> None:
    """O-48."""
    assert read_whole(b'{"error": {"message": "x"}}', units_max=1).is_error
    assert is_error(b'{"error": "x", "choices": []}')
    assert not is_error(whole("x"))
    for body in (b"{}", b'{"choices": []}', b'{"error": null}', b'{"object": "x"}'):
        with pytest.raises(UpstreamError, match="no choice"):
            read_whole(body, units_max=1)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"<html>", b"[" * 100_000])
def test_an_unreadable_answer_is_the_model_servers_fault(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        read_whole(body, units_max=5)


def test_an_answer_longer_than_was_asked_for_is_not_sold() -> None:
    with pytest.raises(UpstreamError, match="longer"):
        read_whole(whole("x", usage={"completion_tokens": 6}), units_max=5)


def answer_of(message: dict[str, Any], **usage: Any) -> bytes:
    return json.dumps({"choices": [{"message": message}], "usage": usage}).encode()


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (usage(1, prompt_tokens=33), (33, None, None)),
        (
            usage(1, prompt_tokens=33, prompt_tokens_details={"cached_tokens": 32}),
            (33, 32, None),
        ),
        (
            usage(
                1,
                prompt_tokens=33,
                prompt_tokens_details={"cached_tokens": 0, "cache_write_tokens": 30},
            ),
            (33, 0, 30),
        ),
        (content("x", timings={"predicted_n": 1, "prompt_n": 1, "cache_n": 32}), (33, 32, None)),
        (content("x", timings={"predicted_n": 1}), (None, None, None)),
        (usage(1, prompt_tokens=-3, prompt_tokens_details="all"), (None, None, None)),
        (usage(1, prompt_tokens="33"), (None, None, None)),
        (usage(1, prompt_tokens=33, prompt_tokens_details={"cached_tokens": -1}), (33, None, None)),
    ],
)
def test_what_a_server_reports_of_the_prompt_is_read(chunk: str, said: tuple[Any, ...]) -> None:
    one = counter("llama.cpp")
    one.count(chunk)
    assert (one.prompt.tokens, one.prompt.cached, one.prompt.written) == said


def test_of_several_choices_the_first_read_the_prompt() -> None:
    """The others find it in the cache that the first one filled."""
    one = counter("llama.cpp", choices=2)
    for index, cached in enumerate((0, 32)):
        timings = {"predicted_n": 1, "prompt_n": 33 - cached, "cache_n": cached}
        one.count(content("x", index=index, timings=timings))
    assert (one.prompt.tokens, one.prompt.cached) == (33, 0)


def test_reasoning_is_counted_apart_when_sent_or_reported() -> None:
    one = counter("usage")
    thought = event(choices=[{"index": 0, "delta": {"reasoning_content": "hm"}}])
    said = []
    details = {"completion_tokens_details": {"reasoning_tokens": 6}}
    for chunk in (thought, thought, content("42"), end(), usage(9, **details)):
        one.count(chunk)
        said.append((one.total, one.reasoning))
    assert said == [(1, 1), (2, 2), (3, 2), (3, 2), (9, 6)]


def test_an_answer_has_started_once_a_choice_has() -> None:
    """O-04: its prompt was read, even if the answer stays empty; an error has no choice."""
    failed, empty = counter(), counter()
    failed.count(event(error={"message": "no GPU"}))
    empty.count(end())
    assert (failed.has_answered, empty.has_answered) == (False, True)


def test_an_answer_in_one_piece_reports_its_prompt_and_its_reasoning() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    body = answer_of({"content": "42"}, completion_tokens=6, prompt_tokens=20, **details)
    answer = read_whole(body, units_max=9)
    assert (answer.units, answer.reasoning) == (6, 5)
    assert (answer.prompt.tokens, answer.prompt.cached) == (20, 8)


@pytest.mark.parametrize("reported", [None, -4, 10**9])
def test_reasoning_is_never_more_than_the_output(reported: int | None) -> None:
    """Where the server does not tell, reasoning is its share of the text."""
    usage = {"completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": reported}}
    message = {"content": "four", "reasoning_content": "and twelve.."}
    expected = {None: 6, -4: 0, 10**9: 8}[reported]
    assert read_whole(answer_of(message, **usage), units_max=9).reasoning == expected
