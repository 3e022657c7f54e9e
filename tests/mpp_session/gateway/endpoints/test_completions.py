"""Completion requests: prompts in every form, and only what is delivered is sold."""

import json
from typing import Any

import pytest

from channel.errors import BadRequestError
from channel.limits import CHOICES_MAX, LOGPROBS_MAX, STOPS_MAX
from mpp_session.gateway.counting import ServerKind
from mpp_session.gateway.endpoints.completions import parse_completion_request
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest


def parse(kind: ServerKind = "usage", **fields: Any) -> ModelRequest:
    bounds = Bounds(max_tokens=100, default_max_tokens=50, kind=kind)
    return parse_completion_request(json.dumps({"prompt": "x", **fields}).encode(), bounds)


def test_a_request_is_bounded_and_written_anew() -> None:
    request = parse(max_tokens=7, best_of=1, echo=False, n_predict=900, suffix="y")
    assert json.loads(request.body) == {"prompt": "x", "max_tokens": 7, "suffix": "y"}
    assert (request.units_max, request.is_stream) == (7, False)
    assert json.loads(parse().body)["max_tokens"] == 50


@pytest.mark.parametrize(
    ("prompt", "count", "texts", "tokens"),
    [
        ("hello", 1, ["hello"], 0),
        (["a", "b"], 2, ["a", "b"], 0),
        ([1, 2, 3], 1, [], 3),
        ([[1, 2], [3]], 2, [], 3),
        (["a", [3, 4]], 2, ["a"], 2),
    ],
)
def test_prompts_are_texts_and_tokens(
    prompt: Any, count: int, texts: list[str], tokens: int
) -> None:
    """Each has `n` answers of its own, of at most `max_tokens`."""
    request = parse(prompt=prompt, n=3, max_tokens=5)
    assert request.choices == 3 * count
    assert request.units_max == 3 * count * 5
    assert ([*(request.texts or ())], request.tokens) == (texts, tokens)


@pytest.mark.parametrize("prompt", [None, [], {}, 3, [1, "a"], ["a", 1], [[["a"]]], [1.5], [[1.5]]])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    """Some servers join a mixed list to one prompt, others do not."""
    with pytest.raises(BadRequestError, match="prompt"):
        parse(prompt=prompt)


def test_a_suffix_is_not_counted_exactly() -> None:
    """The server adds tokens around both texts that only its usage tells of."""
    assert parse(suffix="end").texts is None
    assert parse(suffix="").texts == ["x"]


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 3},
        {"best_of": 3, "n": 2},
        {"best_of": 0},
        {"echo": True},
        {"echo": 1},
        {"logprobs": LOGPROBS_MAX + 1},
        {"logprobs": -1},
        {"logprobs": True},
        {"n": CHOICES_MAX + 1},
        {"n": 65, "prompt": ["a", "b"]},
        {"stop": ["a"] * (STOPS_MAX + 1)},
        {"max_tokens": 101},
    ],
)
def test_output_that_is_not_delivered_or_not_bounded_is_refused(fields: dict[str, Any]) -> None:
    """O-03: `best_of` makes answers that nothing counts, `echo` sends the prompt as an answer."""
    with pytest.raises(BadRequestError):
        parse(**fields)


def test_several_prompts_need_a_server_that_counts_them_all() -> None:
    """O-02: llama.cpp's usage of an answer in one piece is that of one choice."""
    with pytest.raises(BadRequestError, match="stream"):
        parse("llama.cpp", prompt=["a", "b"])
    assert parse("llama.cpp", prompt=["a", "b"], stream=True).choices == 2
    with pytest.raises(BadRequestError, match="n"):
        parse("chunks", prompt=["a", "b"], stream=True)


def test_what_ends_the_model_server_does_not_reach_it() -> None:
    """llama.cpp's process ends at `logprobs` of a completion in one piece."""
    for kind in ("llama.cpp", "chunks"):
        with pytest.raises(BadRequestError, match="stream"):
            parse(kind, logprobs=2)
        assert parse(kind, logprobs=2, stream=True).is_stream
        assert parse(kind, logprobs=None)
    assert parse("vllm", logprobs=2)
