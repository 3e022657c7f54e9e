"""The rules that hold under every endpoint."""

import json
from typing import Any

import pytest

from channel.errors import BadRequestError
from channel.tariff import Rate, Tariff
from mpp_session.gateway.endpoints import EMBEDDINGS, ENDPOINTS, GatewayEndpoint
from mpp_session.gateway.endpoints.fields import Bounds

EVERY = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
OUTPUT, INPUT = Rate("output_token", 4), Rate("input_token", 1)
PROMPTS: dict[str, dict[str, Any]] = {
    "chat.completions": {"messages": []},
    "completions": {"prompt": "x"},
    "responses": {"input": "x"},
    "embeddings": {"input": "x"},
}
READ = {
    "n": 5,
    "max_tokens": 9,
    "max_completion_tokens": 9,
    "max_output_tokens": 9,
    "store": True,
    "stream": False,
}


def parse(endpoint: GatewayEndpoint, fields: Any, **bounds: Any) -> Any:
    given = {"max_tokens": 100, "default_max_tokens": 50, "kind": "usage", **bounds}
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return endpoint.parse(body, Bounds(**given))


@EVERY
def test_no_listed_field_evades_what_another_endpoint_reads(endpoint: GatewayEndpoint) -> None:
    """O-03: an operator lists fields for all endpoints; those that bound an answer never pass."""
    asked = {**PROMPTS[endpoint.name], **READ, "grammar": "x"}
    sent = json.loads(parse(endpoint, asked, more_fields=("grammar", *READ)).body)
    assert {name for name in READ if sent.get(name) == READ[name]} <= endpoint.fields
    assert sent["grammar"] == "x"


@EVERY
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"input": NaN}', b'{"model":"a","model":"b"}'],
)
def test_what_is_no_request_is_a_bad_one(endpoint: GatewayEndpoint, body: bytes) -> None:
    """F-02: never a 500."""
    with pytest.raises(BadRequestError):
        parse(endpoint, body)


@EVERY
def test_nothing_is_sold_without_a_price_for_it(endpoint: GatewayEndpoint) -> None:
    is_embedding = endpoint is EMBEDDINGS
    assert endpoint.is_sold_by(Tariff((OUTPUT, INPUT)))
    assert endpoint.is_sold_by(Tariff((OUTPUT,))) != is_embedding
    assert endpoint.is_sold_by(Tariff((INPUT,))) == is_embedding
    assert endpoint.is_sold_by(Tariff.of("llm_token", 25)) != is_embedding


def test_each_endpoint_has_a_name_and_a_path_of_its_own() -> None:
    assert len({one.name for one in ENDPOINTS}) == len({one.path for one in ENDPOINTS}) == 4
