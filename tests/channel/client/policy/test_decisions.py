"""The table of answers: what each means for a request that was paid or not."""

from typing import Any

import pytest

from channel.client.policy.decisions import RetryState, Step, decide, deposit_pause_s
from channel.wire.problem import Problem

PAID = {"has_paid": True}


@pytest.mark.parametrize(
    ("status", "kind", "tried", "step"),
    [
        (402, "payment-required", {}, Step.PAY),
        (402, "", {}, Step.PAY),
        (402, "payment-required", PAID, Step.STOP),
        (402, "", PAID, Step.STOP),
        (402, "session/challenge-not-found", PAID, Step.REFRESH),
        (402, "invalid-challenge", PAID, Step.REFRESH),
        (402, "payment-expired", PAID, Step.REFRESH),
        (402, "session/challenge-not-found", PAID | {"refreshes": 1}, Step.STOP),
        (402, "session/insufficient-balance", PAID, Step.RAISE),
        (402, "session/delta-too-small", PAID, Step.RAISE),
        (402, "session/insufficient-balance", PAID | {"raises": 6}, Step.STOP),
        (402, "session/amount-exceeds-deposit", PAID, Step.RECHECK),
        (402, "session/amount-exceeds-deposit", PAID | {"rechecks": 1}, Step.STOP),
        (402, "verification-failed", PAID, Step.WAIT),
        (402, "verification-failed", PAID | {"waits": 6}, Step.STOP),
        (402, "session/invalid-signature", PAID, Step.STOP),
        (402, "session/signer-mismatch", PAID, Step.STOP),
        (402, "deposit-too-small", PAID, Step.DEPOSIT_MORE),
        (402, "deposit-too-small", PAID | {"deposits": 1}, Step.STOP),
        (410, "session/channel-not-found", PAID, Step.REOPEN),
        (410, "session/channel-finalized", PAID, Step.REOPEN),
        (410, "session/channel-finalized", PAID | {"reopens": 1}, Step.STOP),
        (410, "session/channel-finalized", {}, Step.STOP),
        (410, "", PAID, Step.HAND_ON),
        (409, "session/transaction-reverted", PAID, Step.RECHECK),
        (409, "session/transaction-reverted", PAID | {"rechecks": 1}, Step.STOP),
        (409, "request-in-flight", PAID, Step.WAIT),
        (409, "stream-active", PAID, Step.WAIT),
        (409, "stream-active", PAID | {"waits": 6}, Step.HAND_ON),
        (409, "outcome-unknown", PAID, Step.UNKNOWN),
        (409, "stream-replaced", PAID, Step.HAND_ON),
        (422, "idempotency-conflict", PAID, Step.HAND_ON),
        (429, "rate-limited", PAID, Step.WAIT),
        (429, "rate-limited", PAID | {"waits": 29}, Step.WAIT),
        (429, "rate-limited", PAID | {"waits": 30}, Step.HAND_ON),
        (429, "", PAID, Step.HAND_ON),
        (503, "internal-payment-error", PAID, Step.WAIT),
        (503, "server-busy", PAID, Step.WAIT),
        (503, "", PAID, Step.HAND_ON),
        (500, "", PAID, Step.HAND_ON),
        (404, "", {}, Step.HAND_ON),
        (302, "", PAID, Step.HAND_ON),
    ],
)
def test_each_answer_has_one_next_step(
    status: int, kind: str, tried: dict[str, Any], step: Step
) -> None:
    """CLIENT-08, F-97."""
    problem = Problem(type=kind) if kind else None
    assert decide(status, problem, RetryState(**tried)) is step


@pytest.mark.parametrize("kind", ["session/challenge-not-found", "verification-failed", ""])
def test_no_answer_can_be_given_for_ever(kind: str) -> None:
    """F-97: a server that always says the same is left."""
    tried = RetryState(has_paid=True)
    for _ in range(100):
        step = decide(402, Problem(type=kind), tried)
        if step is Step.STOP:
            return
        tried.refreshes += step is Step.REFRESH
        tried.waits += step is Step.WAIT
    pytest.fail("no end")


FUNDING = PAID | {"is_funding": True}


@pytest.mark.parametrize(
    ("status", "kind", "tried", "retry_after_s", "step"),
    [
        (503, "internal-payment-error", {}, 5, Step.WAIT),
        (503, "", {}, 1, Step.WAIT),
        (503, "", {}, None, Step.HAND_ON),
        (503, "", {"waits": 29, "waited_s": 119.0}, 1, Step.WAIT),
        (503, "", {"waits": 30}, 1, Step.PENDING),
        (503, "", {"waited_s": 120.0}, 1, Step.PENDING),
        (503, "internal-payment-error", {}, 31, Step.PENDING),
        (503, "sponsoring-paused", {}, 60, Step.DEPOSIT_ALONE),
        (503, "sponsoring-paused", {"deposits_alone": 1}, 60, Step.HAND_ON),
        (503, "sponsoring-paused", {"deposits_alone": 1}, 30, Step.WAIT),
        (503, "sponsoring-paused", {"deposits_alone": 1, "waits": 6}, 30, Step.HAND_ON),
        (503, "sponsoring-paused", {"deposits_alone": 1}, None, Step.HAND_ON),
        (503, "openings-paused", {}, 1, Step.HAND_ON),
        (429, "rate-limited", {}, 1, Step.WAIT),
        (429, "rate-limited", {}, 600, Step.DEPOSIT_ALONE),
        (429, "rate-limited", {"deposits_alone": 1}, 600, Step.HAND_ON),
        (500, "", {}, 1, Step.HAND_ON),
    ],
)
def test_a_deposit_that_is_being_mined_is_waited_for_and_a_pause_is_not(
    status: int, kind: str, tried: dict[str, Any], retry_after_s: float | None, step: Step
) -> None:
    """F-75: for any 503, with a problem or without; bounded in time and number."""
    problem = Problem(type=kind) if kind else None
    known = RetryState(**(FUNDING | tried))
    assert decide(status, problem, known, retry_after_s=retry_after_s) is step


def test_each_wait_for_a_deposit_is_longer_until_two_minutes_are_over() -> None:
    """F-75: also when the server asks for none."""
    pauses = [deposit_pause_s(waits, 0.0) for waits in range(30)]
    assert pauses == sorted(pauses)
    assert 100 < sum(pauses) < 120
    assert deposit_pause_s(0, 7.0) == 7.0
