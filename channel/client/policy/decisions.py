"""Decides what to do about an answer that is not a success: one table (pure).

It recognises a payment problem by its type, not by its status alone: an application's own 410 or
503 goes to the caller. Every way back to the server is counted, so that no server can keep an agent
in a loop (F-97).
"""

from enum import Enum

import msgspec

from channel.wire.problem import Problem

__all__ = ["RetryState", "Step", "decide", "deposit_pause_s"]

RAISES_MAX = 6
SETTLE_TRIES_MAX = 6
SETTLE_WAIT_S_STEP = 0.2
"""Four seconds in total: servers take up to two to notice that a client left a stream."""
WAITS_MAX = 6
RATE_WAITS_MAX = 30
DEPOSIT_WAITS_MAX = 30
DEPOSIT_WAIT_S_STEP = 0.25
DEPOSIT_WAIT_S_MAX = 120.0
RETRY_AFTER_S_MAX = 30.0

_UNKNOWN_CHALLENGE = frozenset(
    {"session/challenge-not-found", "invalid-challenge", "payment-expired"}
)
_COME_AGAIN = frozenset(
    {
        "verification-failed",
        "request-in-flight",
        "stream-active",
        "internal-payment-error",
        "payment-unavailable",
        "exposure-limit",
        "server-busy",
    }
)
_PAUSED = frozenset({"sponsoring-paused", "openings-paused"})
_NO_GAS = frozenset({"sponsoring-paused", "rate-limited"})
"""Why the server pays no gas for a deposit, in general or for this payer; nothing was broadcast."""
_GONE = frozenset({"session/channel-not-found", "session/channel-finalized"})


class Step(Enum):
    """What to do next."""

    PAY = "answer the challenge"
    REFRESH = "answer the fresh challenge once"
    RAISE = "sign a higher voucher, topping up first if the deposit is too small"
    RECHECK = "read the channel on chain and follow that"
    DEPOSIT_MORE = "sign for the least deposit that is worth the server's gas"
    DEPOSIT_ALONE = "pay the gas of the opening, if the server accepts that and the account has it"
    REOPEN = "the server does not know the channel or has ended it: present or open one"
    WAIT = "send the same credential again after a pause"
    PENDING = "a signed deposit is under way for longer than the client waits"
    HAND_ON = "not about payment, or nothing more to do: return it to the caller"
    UNKNOWN = "it is unknown whether the request was served: report that"
    STOP = "the server refuses a valid payment"


class RetryState(msgspec.Struct):
    """How often each way was tried for one request."""

    has_paid: bool = False
    refreshes: int = 0
    raises: int = 0
    shared_raises: int = 0
    """Raises while concurrent requests may have used what was signed for this one."""
    rechecks: int = 0
    reopens: int = 0
    deposits: int = 0
    deposits_alone: int = 0
    settles: int = 0
    """How often the client waited for other requests of the same channel."""
    waits: int = 0
    waited_s: float = 0.0
    is_funding: bool = False
    """Whether the last credential carries a signed deposit, which takes a block or two."""


def decide(
    status: int, problem: Problem | None, retry: RetryState, *, retry_after_s: float | None = None
) -> Step:
    """Return the next step for an answer with this status and problem (CLIENT-08).

    After a deposit was sent, a `Retry-After` above `RETRY_AFTER_S_MAX` means that the server pays
    for no more deposits now, so the client does not wait.
    """
    kind = "" if problem is None else problem.type
    step = _decide(status, kind, retry, retry_after_s)
    if not retry.is_funding:
        return step
    is_long = (retry_after_s or 0.0) > RETRY_AFTER_S_MAX
    if step is Step.WAIT and is_long:
        step = Step.PENDING if _is_mining(status, retry) else Step.HAND_ON
    if step is Step.HAND_ON and kind in _NO_GAS:
        if retry.deposits_alone < 1:
            return Step.DEPOSIT_ALONE
        if retry_after_s is not None and not is_long and retry.waits < WAITS_MAX:
            return Step.WAIT
    return step


def _decide(status: int, kind: str, retry: RetryState, retry_after_s: float | None) -> Step:
    if status == 402:  # noqa: PLR2004
        return _decide_402(kind, retry)
    if kind in _GONE:
        return Step.REOPEN if retry.has_paid and retry.reopens < 1 else Step.STOP
    if kind == "session/transaction-reverted":
        return Step.RECHECK if retry.rechecks < 1 else Step.STOP
    if kind == "outcome-unknown":
        return Step.UNKNOWN
    if _is_mining(status, retry) and kind not in _PAUSED and retry_after_s is not None:
        is_patient = retry.waited_s < DEPOSIT_WAIT_S_MAX and retry.waits < DEPOSIT_WAITS_MAX
        return Step.WAIT if is_patient else Step.PENDING
    return Step.WAIT if _may_wait(kind, retry) else Step.HAND_ON


def deposit_pause_s(waits: int, wait_s: float) -> float:
    """Return how long to wait for a deposit this time: at least `wait_s`, and longer each time."""
    return max(wait_s, (waits + 1) * DEPOSIT_WAIT_S_STEP)


def _is_mining(status: int, retry: RetryState) -> bool:
    """Return whether a 503 may mean that a deposit is under way to the chain (F-75)."""
    return retry.is_funding and status == 503  # noqa: PLR2004


def _may_wait(kind: str, retry: RetryState) -> bool:
    """Return whether to wait: a burst ends by itself, so it may be retried more often."""
    if kind == "rate-limited":
        return retry.waits < RATE_WAITS_MAX
    return kind in _COME_AGAIN and retry.waits < WAITS_MAX


def _decide_402(kind: str, retry: RetryState) -> Step:
    if not retry.has_paid:
        return Step.PAY
    if kind in _UNKNOWN_CHALLENGE and retry.refreshes < 1:
        return Step.REFRESH
    if kind in ("session/insufficient-balance", "session/delta-too-small"):
        return Step.RAISE if retry.raises < RAISES_MAX else Step.STOP
    if kind == "deposit-too-small":
        return Step.DEPOSIT_MORE if retry.deposits < 1 else Step.STOP
    if kind == "session/amount-exceeds-deposit" and retry.rechecks < 1:
        return Step.RECHECK
    return Step.WAIT if _may_wait(kind, retry) else Step.STOP
