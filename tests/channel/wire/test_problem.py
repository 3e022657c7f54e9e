"""`application/problem+json`: written from an error, read with tolerance."""

import inspect
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel import errors
from channel.errors import (
    AmountExceedsDepositError,
    DeltaTooSmallError,
    DepositTooSmallError,
    InsufficientBalanceError,
    MalformedCredentialError,
    MethodNotSoldError,
    OperatorError,
    PeerError,
    ProblemError,
    PublicVoucherError,
)
from channel.limits import DESCRIPTION_CHARS_MAX, PROBLEM_BYTES_MAX
from channel.types import ChannelId
from channel.wire.problem import (
    OWN_BASE,
    PROBLEM_BASE,
    PROBLEM_CONTENT_TYPE,
    REGISTERED,
    Problem,
    format_problem,
    parse_problem,
)

CHANNEL_ID = ChannelId(bytes(range(32)))
MAKE: dict[type[ProblemError], Callable[[], ProblemError]] = {
    AmountExceedsDepositError: lambda: AmountExceedsDepositError(cumulative_amount=9, deposit=5),
    DeltaTooSmallError: lambda: DeltaTooSmallError(increase=1, min_voucher_delta=10, accepted=3),
    DepositTooSmallError: lambda: DepositTooSmallError(deposit=5, deposit_min=10),
    InsufficientBalanceError: lambda: InsufficientBalanceError(
        required_cumulative=20, accepted=10, spent=9, deposit=30
    ),
    MethodNotSoldError: lambda: MethodNotSoldError("PUT", ("GET",)),
    PublicVoucherError: lambda: PublicVoucherError(
        required_cumulative=20, accepted=10, spent=10, deposit=30
    ),
}
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ProblemError) and kind not in (ProblemError, PeerError)
]


def make(kind: type[ProblemError]) -> ProblemError:
    return MAKE.get(kind, lambda: kind("What went wrong."))()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_a_problem_that_comes_back(kind: type[ProblemError]) -> None:
    """ERR-01, ERR-03: type, title, status and detail, the status being the response's."""
    error = make(kind)
    body = json.loads(format_problem(error, challenge_id="i", channel_id=CHANNEL_ID))
    is_registered = kind.problem_type in REGISTERED
    assert body["type"] == (PROBLEM_BASE if is_registered else OWN_BASE) + kind.problem_type
    assert (body["title"], body["status"]) == (kind.title, kind.status)
    assert body["detail"] == str(error) != ""
    assert (body["challengeId"], body["channelId"]) == ("i", "0x" + bytes(range(32)).hex())
    assert all(isinstance(v, str) for name, v in body.items() if name != "status")
    problem = parse_problem(format_problem(error, challenge_id="i", channel_id=CHANNEL_ID))
    assert problem is not None
    assert (problem.type, problem.status) == (kind.problem_type, kind.status)
    assert (problem.challenge_id, problem.channel_id) == ("i", CHANNEL_ID)


STATUSES = {
    "bad-request": 400,
    "method-unsupported": 400,
    "internal-payment-error": 500,
    "session/channel-not-found": 410,
    "session/channel-finalized": 410,
    "session/transaction-reverted": 409,
}
"""What the drafts register beside 402."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_registered_type_has_its_registered_status(kind: type[ProblemError]) -> None:
    """O-56, ERR-02: a type that no draft registers is under this project's own URI."""
    if kind.problem_type in REGISTERED and kind is not errors.MalformedPayloadError:  # AMB-12
        assert kind.status == STATUSES.get(kind.problem_type, 402)
    body = json.loads(format_problem(make(kind)))
    assert body["type"].startswith(OWN_BASE) == (kind.problem_type not in REGISTERED)


@pytest.mark.parametrize("base", [PROBLEM_BASE, OWN_BASE])
def test_a_type_is_read_under_either_prefix(base: str) -> None:
    """O-56: older servers put all of them under the registry's."""
    problem = parse_problem(json.dumps({"type": base + "deposit-too-small"}).encode())
    assert problem is not None
    assert problem.type == "deposit-too-small"


def test_an_insufficient_balance_says_what_to_sign() -> None:
    """ERR-01: decimal strings, so that no reader rounds them."""
    error = make(InsufficientBalanceError)
    body = json.loads(format_problem(error))
    names = ("requiredCumulative", "acceptedCumulative", "spent", "deposit")
    assert [body[name] for name in names] == ["20", "10", "9", "30"]
    problem = parse_problem(format_problem(error))
    assert problem is not None
    assert (problem.required_cumulative, problem.accepted) == (20, 10)
    assert (problem.spent, problem.deposit) == (9, 30)


def test_ids_are_left_out_when_there_are_none() -> None:
    body = json.loads(format_problem(MalformedCredentialError("x")))
    assert set(body) == {"type", "title", "status", "detail"}


def test_the_content_type_is_rfc_9457s() -> None:
    assert PROBLEM_CONTENT_TYPE == "application/problem+json"
    assert OperatorError.status == 503


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"null", b"\xff", b'"' + b"a" * PROBLEM_BYTES_MAX + b'"']
)
def test_a_body_that_is_no_object_explains_nothing(body: bytes) -> None:
    assert parse_problem(body) is None


def test_what_is_malformed_in_a_problem_is_left_out() -> None:
    """CLIENT-08: the status alone decides; the body only explains it."""
    body = {
        "type": 5,
        "title": ["x"],
        "detail": None,
        "status": "402",
        "challengeId": 5,
        "channelId": "0x12",
        "requiredCumulative": 20,
        "acceptedCumulative": "0x1",
        "spent": None,
        "deposit": "-1",
        "minVoucherDelta": "1e3",
    }
    assert parse_problem(json.dumps(body).encode()) == Problem(type="about:blank")
    assert parse_problem(b'{"status":true}') == Problem(type="about:blank")


def test_a_problem_of_others_keeps_its_type_and_texts_are_cut() -> None:
    problem = parse_problem(
        json.dumps({"type": "https://example.com/p", "detail": "x" * 5000}).encode()
    )
    assert problem is not None
    assert problem.type == "https://example.com/p"
    assert len(problem.detail) == DESCRIPTION_CHARS_MAX


@given(st.binary(max_size=200))
def test_reading_a_problem_never_raises(body: bytes) -> None:
    parse_problem(body)
