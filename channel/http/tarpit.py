"""Delays refusals: a client that floods the server waits, and the others do not (F-99, F-100).

A forged voucher costs its sender nothing and the server a key recovery, and a sender with an
immediate answer sends the next one. Refusing before the signature check would let anyone with a
channel's id lock out its payer. So no request is refused for what others sent: only the refusal of
a bad request is delayed, and a client that sends good ones never waits.
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
    TARPIT_DELAY_S,
    TARPIT_WAITING_MAX,
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
    """Decides which refusals are delayed, and delays them. Bounded in number.

    Refusals of an exceeded rate are always delayed. Refusals of a credential that no honest client
    would have, and first offers, are delayed beyond a rate per client address.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        delay_s: float = TARPIT_DELAY_S,
        waiting_max: int = TARPIT_WAITING_MAX,
    ) -> None:
        self._delay_s = delay_s
        self._waiting_max = waiting_max
        self._waiting = 0
        self._bad = RateLimiter(BAD_CREDENTIALS_PER_SECOND_MAX, now)
        self._unpaid = RateLimiter(UNPAID_PER_SECOND_MAX, now)

    async def wait(self, refusal: ProblemError, scope: Scope) -> None:
        """Return when the refusal may be sent; immediately when too many wait already."""
        if not self._is_delayed(refusal, scope) or self._waiting >= self._waiting_max:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(self._delay_s)
        finally:
            self._waiting -= 1

    def _is_delayed(self, refusal: ProblemError, scope: Scope) -> bool:
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
