"""A request that the document describes is one that the gateway takes."""

import msgspec
import pytest

from mpp_session.gateway.descriptions import describe_endpoint, describe_models
from mpp_session.gateway.endpoints import ENDPOINTS, GatewayEndpoint
from mpp_session.gateway.endpoints.fields import Bounds
from mpp_session.settings import Upstream

SETTINGS = Upstream(url="http://127.0.0.1:9", max_tokens=100, fields=("grammar",))
BOUNDS = Bounds(max_tokens=100, default_max_tokens=0, kind="usage")
EVERY = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)


@EVERY
def test_every_field_that_is_passed_on_is_described(endpoint: GatewayEndpoint) -> None:
    body = describe_endpoint(endpoint, SETTINGS).body
    assert body is not None
    fields = body["schema"]["properties"]
    assert {*fields} - {"stream_options"} == endpoint.fields | {"grammar"}
    bounds = [field["maximum"] for name, field in fields.items() if name.startswith("max_")]
    assert {*bounds} == ({100} if endpoint.has_output else set())


@EVERY
def test_the_example_is_a_request_within_the_bounds(endpoint: GatewayEndpoint) -> None:
    body = describe_endpoint(endpoint, SETTINGS).body
    assert body is not None
    request = endpoint.parse(msgspec.json.encode(body["example"]), BOUNDS)
    assert request.is_stream == endpoint.has_output
    assert request.tokens_max == (100 if endpoint.has_output else 0)


@EVERY
def test_an_answer_is_described_in_one_piece_and_as_a_stream(endpoint: GatewayEndpoint) -> None:
    """DISC-06: a schema of one media type says nothing of the other."""
    answers = describe_endpoint(endpoint, SETTINGS).answers
    assert answers is not None
    streamed = {"text/event-stream"} if endpoint.has_output else set()
    assert {*answers} == {"application/json"} | streamed
    for media in (*answers.values(), *(describe_models().answers or {}).values()):
        assert media["schema"]
        assert media["example"]
