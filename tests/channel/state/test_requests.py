"""What a repeated idempotency key gets."""

import pytest
from msgspec.structs import replace

from channel.errors import IdempotencyConflictError, OutcomeUnknownError, RequestInFlightError
from channel.state.commands import Release
from channel.state.requests import RequestClaim, RequestRecord, StoredResponse, decide_request
from tests.channel.books import NOW, opening, reserving, run

CLAIM = RequestClaim("POST /v1/answers", "key", b"d" * 32, b"r", NOW, NOW + 100)
ANSWER = StoredResponse(200, ((b"content-type", b"text/plain"),), b"42")
RUNNING = run(opening(10), reserving(b"r", 1))
ENDED = run(Release(b"r"), state=RUNNING)


def test_a_key_that_was_never_used_is_served() -> None:
    assert decide_request(None, CLAIM, RUNNING) is None


def test_a_served_key_gets_the_stored_answer() -> None:
    """IDEM-02, F-26, F-27."""
    assert decide_request(RequestRecord(CLAIM, ANSWER), CLAIM, ENDED) is ANSWER


@pytest.mark.parametrize("late_s", [-1, 0, 1, 90_000])
def test_a_key_counts_until_it_is_forgotten(late_s: int) -> None:
    """O-90: the clock of who asks again may be a day ahead; what forgets keys checks its own."""
    late = replace(CLAIM, claimed_at=CLAIM.expires_at + late_s)
    assert decide_request(RequestRecord(CLAIM, ANSWER), late, ENDED) is ANSWER


@pytest.mark.parametrize("response", [None, ANSWER])
def test_the_same_key_with_another_body_is_refused(response: StoredResponse | None) -> None:
    """IDEM-03, F-26."""
    other = replace(CLAIM, request_digest=b"e" * 32)
    with pytest.raises(IdempotencyConflictError):
        decide_request(RequestRecord(CLAIM, response), other, RUNNING)


def test_a_key_that_is_being_served_asks_to_wait() -> None:
    """IDEM-03."""
    with pytest.raises(RequestInFlightError) as refused:
        decide_request(RequestRecord(CLAIM, None), CLAIM, RUNNING)
    assert refused.value.retry_after_s == 1


@pytest.mark.parametrize("state", [None, ENDED])
def test_a_key_whose_server_died_is_never_charged_again(state: object) -> None:
    """Decision 8: its outcome is unknown, and saying so is all that is honest."""
    with pytest.raises(OutcomeUnknownError):
        decide_request(RequestRecord(CLAIM, None), CLAIM, state)  # type: ignore[arg-type]
