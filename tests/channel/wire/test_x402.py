"""What an x402 server offers and answers, read strictly."""

import base64
import json
from typing import Any

import pytest

from channel.errors import WireError
from channel.limits import CHALLENGES_PER_RESPONSE_MAX, REQUEST_PARAM_BYTES_MAX
from channel.wire.x402 import (
    parse_exact_request,
    parse_payment_required,
    parse_payment_response,
)

OFFER: dict[str, Any] = {
    "scheme": "exact",
    "network": "eip155:8453",
    "amount": "10000",
    "asset": "0x" + 20 * "11",
    "payTo": "0x" + 20 * "22",
    "maxTimeoutSeconds": 300,
    "extra": {"name": "USD Coin", "version": "2"},
}


def encode(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def required(**changes: Any) -> str:
    return encode({"x402Version": 2, "accepts": [OFFER], **changes})


def test_an_offer_is_read() -> None:
    (terms,) = parse_payment_required(required(resource={"url": "https://a.example"}))
    request = parse_exact_request(terms)
    assert (request.amount, request.chain_id, request.timeout_s) == (10_000, 8453, 300)
    assert terms.resource == {"url": "https://a.example"}


@pytest.mark.parametrize(
    "header",
    [
        "not base64!",
        "A" * (2 * REQUEST_PARAM_BYTES_MAX + 1),
        encode([]),
        required(x402Version=1),
        required(accepts=[]),
        required(accepts={}),
        required(accepts=[OFFER] * (CHALLENGES_PER_RESPONSE_MAX + 1)),
        required(accepts=["exact"]),
        required(resource="https://a.example"),
        required(extensions=[]),
    ],
    ids=range(10),
)
def test_a_header_of_another_form_is_refused(header: str) -> None:
    """CHAL-01: each is said to be wrong, and none is guessed at."""
    with pytest.raises(WireError):
        parse_payment_required(header)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "upto"},
        {"network": "base"},
        {"network": "eip155:0x1"},
        {"extra": {"assetTransferMethod": "permit2"}},
        {"amount": "-1"},
        {"amount": 10_000},
        {"payTo": "0x22"},
        {"maxTimeoutSeconds": 1.5},
    ],
    ids=str,
)
def test_an_offer_of_another_kind_is_refused(changes: dict[str, Any]) -> None:
    (terms,) = parse_payment_required(required(accepts=[OFFER | changes]))
    with pytest.raises(WireError):
        parse_exact_request(terms)


def test_only_a_settlement_that_succeeded_has_a_transaction() -> None:
    assert parse_payment_response(encode({"success": True, "transaction": "0x01"})) == "0x01"
    assert parse_payment_response(encode({"success": False, "errorReason": "no"})) is None
    with pytest.raises(WireError):
        parse_payment_response(encode({"success": "yes"}))
