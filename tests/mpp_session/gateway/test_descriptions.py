"""A request that the document describes is one that the gateway takes."""

import msgspec

from mpp_session.gateway.chat import FIELDS, parse_chat_request
from mpp_session.gateway.descriptions import describe_completions, describe_models
from mpp_session.settings import Upstream

SETTINGS = Upstream(url="http://127.0.0.1:9", max_tokens=100, fields=("grammar",))


def test_every_field_that_is_passed_on_is_described() -> None:
    body = describe_completions(SETTINGS).body
    assert body is not None
    fields = body["schema"]["properties"]
    assert {*fields} == FIELDS | {"grammar", "stream_options"}
    assert fields["max_tokens"]["maximum"] == 100


def test_the_example_is_a_request_within_the_bounds() -> None:
    body = describe_completions(SETTINGS).body
    assert body is not None
    request = parse_chat_request(
        msgspec.json.encode(body["example"]), max_tokens=100, default_max_tokens=0, kind="usage"
    )
    assert request.is_stream
    assert request.tokens_max == 100


def test_an_answer_is_described_in_one_piece_and_as_a_stream() -> None:
    """DISC-06: a schema of one media type says nothing of the other."""
    answers = describe_completions(SETTINGS).answers
    assert answers is not None
    assert {*answers} == {"application/json", "text/event-stream"}
    for media in (*answers.values(), *(describe_models().answers or {}).values()):
        assert media["schema"]
        assert media["example"]
