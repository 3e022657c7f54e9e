"""For any input, every reader answers with a value or with its own typed refusal.

20,000 inputs in the test command, over all readers; `PARSER_INPUTS=1000000` asks for more. Inputs
are both arbitrary and nearly right: texts that a reader takes, damaged in a place or two.
"""

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.errors import (
    BadRequestError,
    MalformedCredentialError,
    MalformedPayloadError,
    MppSessionError,
    WireError,
)
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    parse_payload,
)
from channel.wire.accept_payment import parse_accept_payment, rank_offers
from channel.wire.auth_params import parse_auth_challenges
from channel.wire.challenge import (
    parse_challenges,
    parse_opaque,
)
from channel.wire.credential import select_credential
from channel.wire.encoding import (
    decode_base64url,
    encode_base64url,
    parse_address,
    parse_amount,
    parse_hex_bytes,
    parse_json,
    parse_safe_integer,
    parse_source,
    parse_timestamp,
    parse_uint256,
)
from channel.wire.problem import parse_problem
from channel.wire.receipt import parse_receipt, parse_receipt_json
from channel.wire.sse import EventSplitter, parse_event, parse_need_voucher
from tests.channel.methods.evm.payloads import DEPOSITS, PAYLOADS
from tests.channel.vectors import WIRE

INPUTS = int(os.environ.get("PARSER_INPUTS", "20000"))

Refusals = tuple[type[MppSessionError], ...]
Reader = tuple[Callable[[Any], object], st.SearchStrategy[Any], Refusals]

CREDENTIALS = [entry["wire"] for entry in WIRE["credentials"]]
ENVELOPES = [decode_base64url(wire.removeprefix("Payment ")).decode() for wire in CREDENTIALS]
CHALLENGES = [entry["wire"] for entry in WIRE["challenges"] + WIRE["multi"]]
REQUESTS = [entry["requestB64"] for entry in WIRE["challenges"]]
RECEIPTS = [entry["wire"] for entry in WIRE["receipts"]]
RIDES = [{**PAYLOADS["voucher"], "deposit": deposit} for deposit in DEPOSITS.values()]
ODD = "\0\t\n\r \x7f\x85\u00a0\u00b2\u0661\u2028\ufeff\ud800\U0001f600\"'\\,;=|+-_/.:%{}[]0129aAzZ"


@st.composite
def damaged(draw: st.DrawFn, good: list[str]) -> str:
    """Draw a good text with a few characters replaced, inserted, removed or repeated."""
    text = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        width = draw(st.integers(0, 4))
        new = draw(st.text(ODD, max_size=3) | st.just(text[at : at + width] * 2))
        text = text[:at] + new + text[at + width :]
    return text


def texts(*good: str) -> st.SearchStrategy[str]:
    return damaged(list(good)) | st.text(ODD, max_size=40) | st.text(max_size=40)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(ODD, max_size=8)
    | st.sampled_from(["open", "topUp", "voucher", "close", "hash", "permit2", "0x", "0", "1"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, good: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw a good object with a member or two, at any depth, replaced, removed or added."""
    wire: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(good))))
    for _ in range(draw(st.integers(1, 2))):
        inner = wire
        while nested := [v for v in inner.values() if isinstance(v, dict)]:
            if draw(st.booleans()):
                break
            inner = draw(st.sampled_from(nested))
        name = draw(st.sampled_from([*inner, "x"]))
        if draw(st.integers(0, 3)):
            inner[name] = draw(VALUES)
        else:
            inner.pop(name, None)
    return wire


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def as_header(envelope: str) -> str:
    return "Payment " + encode_base64url(to_bytes(envelope))


def feed_in_pieces(stream: bytes) -> object:
    splitter = EventSplitter(bytes_max=64)
    return [splitter.feed(stream[:9]), splitter.feed(stream[9:]), splitter.flush()]


BYTES = st.binary(max_size=60)
WIRE_ONLY: Refusals = (WireError,)
CREDENTIAL: Refusals = (MalformedCredentialError, MalformedPayloadError)
NEVER: Refusals = ()
SCALAR_TEXTS = texts("0x" + "ab" * 20, "340282366920938463463374607431768211455", "0", "1e5")

READERS: dict[str, Reader] = {
    "credential": (EVM.parse_credential, texts(*CREDENTIALS), CREDENTIAL),
    "credential's JSON": (EVM.parse_credential, texts(*ENVELOPES).map(as_header), CREDENTIAL),
    "credentials selected": (
        select_credential,
        st.lists(texts(*CREDENTIALS[:2], "Bearer x, Payment y"), max_size=3),
        (BadRequestError, MalformedCredentialError),
    ),
    "payload": (
        parse_payload,
        altered([*PAYLOADS.values(), *RIDES]),
        (MalformedPayloadError,),
    ),
    "challenges": (parse_challenges, st.lists(texts(*CHALLENGES), max_size=2), WIRE_ONLY),
    "auth-params": (parse_auth_challenges, texts(*CHALLENGES, "A b=c, D"), WIRE_ONLY),
    "request": (EVM.parse_request, texts(*REQUESTS), WIRE_ONLY),
    "request object": (
        EVM.parse_request_object,
        altered([entry["request"] for entry in WIRE["challenges"]]),
        WIRE_ONLY,
    ),
    "opaque": (parse_opaque, texts("eyJub25jZSI6IjAwIn0", "e30"), WIRE_ONLY),
    "receipt": (parse_receipt, texts(*RECEIPTS), WIRE_ONLY),
    "receipt's JSON": (
        lambda wire: parse_receipt_json(json.dumps(wire)),
        altered([entry["receipt"] for entry in WIRE["receipts"]]),
        WIRE_ONLY,
    ),
    "voucher request": (
        parse_need_voucher,
        texts(json.dumps(WIRE["sse"][0]["data"])),
        WIRE_ONLY,
    ),
    "event": (parse_event, BYTES | texts("event: a\ndata: b\n\n").map(to_bytes), NEVER),
    "event stream": (feed_in_pieces, st.binary(max_size=100), WIRE_ONLY),
    "problem": (parse_problem, BYTES | texts('{"type":"a","spent":"1"}').map(to_bytes), NEVER),
    "JSON": (parse_json, BYTES | texts(*ENVELOPES) | VALUES.map(json.dumps), WIRE_ONLY),
    "base64url": (decode_base64url, texts(*REQUESTS), WIRE_ONLY),
    "amount": (parse_amount, SCALAR_TEXTS | VALUES, WIRE_ONLY),
    "uint256": (parse_uint256, SCALAR_TEXTS | VALUES, WIRE_ONLY),
    "integer": (parse_safe_integer, VALUES, WIRE_ONLY),
    "hex": (lambda value: parse_hex_bytes(value, size_max=65), SCALAR_TEXTS | VALUES, WIRE_ONLY),
    "address": (parse_address, SCALAR_TEXTS | VALUES, WIRE_ONLY),
    "source": (parse_source, texts("did:pkh:eip155:1:0x" + "ab" * 20) | VALUES, WIRE_ONLY),
    "timestamp": (parse_timestamp, texts("2026-04-01T12:05:00.5+02:00") | VALUES, WIRE_ONLY),
    "preferences": (parse_accept_payment, texts("evm/session;q=0.5, */*"), NEVER),
    "ranking": (
        lambda value: rank_offers(value, [("evm", "session")]),
        texts("evm/session;q=0.5, */*"),
        NEVER,
    ),
}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_answers_or_refuses_in_its_own_way(name: str) -> None:
    """CRED-06, CORE-03, F-01 to F-05, F-08, F-11: never a 500, never another exception."""
    read, inputs, refusals = READERS[name]

    @settings(max_examples=INPUTS // len(READERS) + 1)
    @given(inputs)
    def check(value: object) -> None:
        with contextlib.suppress(*refusals):
            read(value)

    check()
