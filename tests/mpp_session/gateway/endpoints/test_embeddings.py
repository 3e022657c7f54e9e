"""Embedding requests and answers: input alone is counted."""

import json
from typing import Any

import pytest

from channel.errors import BadRequestError
from channel.limits import EMBEDDED_TEXTS_MAX
from mpp_session.gateway.counting import read_whole
from mpp_session.gateway.endpoints.embeddings import parse_embedding_request, read_embeddings
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest
from mpp_session.gateway.errors import UpstreamError

BOUNDS = Bounds(max_tokens=100, default_max_tokens=50, kind="usage")


def parse(**fields: Any) -> ModelRequest:
    return parse_embedding_request(json.dumps(fields).encode(), BOUNDS)


def test_a_request_has_no_output_and_only_known_fields() -> None:
    request = parse(input=["a", "b"], dimensions=8, model="m", stream=True, truncate=1)
    assert json.loads(request.body) == {"input": ["a", "b"], "dimensions": 8, "model": "m"}
    assert (request.units_max, request.is_stream, request.texts) == (0, False, ["a", "b"])


@pytest.mark.parametrize("given", [None, [], {}, [1, "a"], ["x"] * (EMBEDDED_TEXTS_MAX + 1)])
def test_what_is_no_input_is_refused(given: Any) -> None:
    with pytest.raises(BadRequestError, match="input"):
        parse(input=given)


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 7, "total_tokens": 7}, 7),
        ({"total_tokens": 7}, 7),
        ({"prompt_tokens": 0, "total_tokens": 7}, 7),
        ({"prompt_tokens": -1}, None),
        (None, None),
        ([], None),
    ],
)
def test_an_answer_reports_what_was_read(usage: Any, read: int | None) -> None:
    body = json.dumps({"data": [{"embedding": [1]}], "usage": usage}).encode()
    answer = read_whole(body, units_max=0, read=read_embeddings)
    assert (answer.units, answer.prompt.tokens) == (0, read)


def test_an_answer_without_embeddings_is_an_error_or_none() -> None:
    error = b'{"error": {"message": "no GPU"}}'
    assert read_whole(error, units_max=0, read=read_embeddings).is_error
    for body in (b"{}", b'{"data": []}', b'{"data": 3}', b"[]", b"x"):
        with pytest.raises(UpstreamError):
            read_whole(body, units_max=0, read=read_embeddings)
