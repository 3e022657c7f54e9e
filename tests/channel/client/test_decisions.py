"""The table of answers: what each means for a request that was paid or not."""

from typing import Any

import pytest

from channel.client.decisions import Step, Tried, decide
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
        (402, "session/insufficient-balance", PAID | {"raises": 3}, Step.STOP),
        (402, "session/amount-exceeds-deposit", PAID, Step.RECHECK),
        (402, "session/amount-exceeds-deposit", PAID | {"rechecks": 1}, Step.STOP),
        (402, "verification-failed", PAID, Step.WAIT),
        (402, "verification-failed", PAID | {"waits": 6}, Step.STOP),
        (402, "session/invalid-signature", PAID, Step.STOP),
        (402, "session/signer-mismatch", PAID, Step.STOP),
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
    assert decide(status, problem, Tried(**tried)) is step


@pytest.mark.parametrize("kind", ["session/challenge-not-found", "verification-failed", ""])
def test_no_answer_can_be_given_for_ever(kind: str) -> None:
    """F-97: a server that always says the same is left."""
    tried = Tried(has_paid=True)
    for _ in range(100):
        step = decide(402, Problem(type=kind), tried)
        if step is Step.STOP:
            return
        tried.refreshes += step is Step.REFRESH
        tried.waits += step is Step.WAIT
    pytest.fail("no end")
