"""Answers that come late: who floods waits, so that the others need not (F-99, F-100).

A forged voucher costs its sender nothing and the server a recovery, and a sender who is answered
at once sends the next. Refusing before the signature would let anybody who knows a channel's id
lock its payer out. So nothing is refused for what others did: only the refusal of what was bad
comes late, and whoever sends what is good never meets it.
"""

import asyncio
from collections.abc import Callable

from channel.engine import RateLimiter
from channel.errors import (
    InvalidSignatureError,
    MalformedCredentialError,
    MalformedPayloadError,
    PaymentRequiredError,
    ProblemError,
    SignerMismatchError,
    TooManyRequestsError,
)
from channel.http.asgi import Scope
from channel.http.request import read_client
from channel.limits import (
    BAD_CREDENTIALS_PER_SECOND_MAX,
    LATE_ANSWER_S,
    LATE_ANSWERS_MAX,
    UNPAID_PER_SECOND_MAX,
)

__all__ = ["Tarpit"]

_BAD = (
    InvalidSignatureError,
    MalformedCredentialError,
    MalformedPayloadError,
    SignerMismatchError,
)


class Tarpit:
    """Decides which refusals wait before they are sent, and lets them wait. Bounded in number.

    Those of a rate that was passed always do; those of a credential that nobody could have come
    by honestly, and first offers, do beyond so many a second from one client's address.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        late_s: float = LATE_ANSWER_S,
        waiting_max: int = LATE_ANSWERS_MAX,
    ) -> None:
        self._late_s = late_s
        self._waiting_max = waiting_max
        self._waiting = 0
        self._bad = RateLimiter(BAD_CREDENTIALS_PER_SECOND_MAX, now)
        self._unpaid = RateLimiter(UNPAID_PER_SECOND_MAX, now)

    async def wait(self, refusal: ProblemError, scope: Scope) -> None:
        """Return when the refusal may be sent; at once when too many wait already."""
        if not self._is_late(refusal, scope) or self._waiting >= self._waiting_max:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(self._late_s)
        finally:
            self._waiting -= 1

    def _is_late(self, refusal: ProblemError, scope: Scope) -> bool:
        if isinstance(refusal, TooManyRequestsError):
            return True
        if isinstance(refusal, PaymentRequiredError):
            rate = self._unpaid
        elif isinstance(refusal, _BAD):
            rate = self._bad
        else:
            return False
        try:
            rate.require(read_client(scope))
        except TooManyRequestsError:
            return True
        return False
