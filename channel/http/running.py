"""Bounds paid requests: how many run at a time, and how many begin a second (O-24).

A stream costs a connection to the model, memory and commits for as long as it runs. The total and
the client's address are checked before the signature, and the payer after it: otherwise a stranger
who knows a channel's id could take its payer's places. Vouchers, closes and offers are not counted:
running streams need them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import msgspec

from channel.engine import RateLimiter
from channel.errors import ServerBusyError, TooManyRequestsError
from channel.limits import (
    REQUESTS_PER_PAYER_AND_SECOND_MAX,
    REQUESTS_PER_SOURCE_AND_SECOND_MAX,
    RUNNING_PER_PAYER_MAX,
    RUNNING_PER_SOURCE_MAX,
    RUNNING_REQUESTS_MAX,
)
from channel.types import Address

__all__ = ["RequestLimits", "RunningRequests"]

_Key: TypeAlias = tuple[str, bytes]


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on the paid requests of one process."""

    running_max: int = RUNNING_REQUESTS_MAX
    """Most that run at a time, in all."""
    running_per_address: int = RUNNING_PER_SOURCE_MAX
    running_per_payer: int = RUNNING_PER_PAYER_MAX
    per_second_per_address: int = REQUESTS_PER_SOURCE_AND_SECOND_MAX
    """Most that begin in a second."""
    per_second_per_payer: int = REQUESTS_PER_PAYER_AND_SECOND_MAX


class RunningRequests:
    """Counts the paid requests that run, and those that begin."""

    def __init__(self, limits: RequestLimits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._running: Counter[_Key] = Counter()
        self._all = 0
        what = "paid requests a second"
        self._by_address = RateLimiter(limits.per_second_per_address, now, what=what)
        self._by_payer = RateLimiter(limits.per_second_per_payer, now, what=what)

    @contextmanager
    def of_client(self, source: bytes) -> Iterator[None]:
        """Count a request of a client while it runs. `source` is empty when unknown.

        Raises:
            ServerBusyError: As many run as may; nothing was charged.
            TooManyRequestsError: The client's address has as many as it may.
        """
        if self._all >= self._limits.running_max:
            raise ServerBusyError(
                f"{self._all} paid requests run, the most allowed; nothing was charged."
            )
        self._all += 1
        try:
            if not source:
                yield
                return
            self._by_address.require(source)
            with self._held(("address", source), self._limits.running_per_address):
                yield
        finally:
            self._all -= 1

    @contextmanager
    def of_payer(self, payer: Address) -> Iterator[None]:
        """Count a request of a payer whose voucher is verified, on any of its channels.

        Raises:
            TooManyRequestsError: The payer has as many as it may.
        """
        self._by_payer.require(payer)
        with self._held(("payer", payer), self._limits.running_per_payer):
            yield

    @contextmanager
    def _held(self, key: _Key, most: int) -> Iterator[None]:
        if self._running[key] >= most:
            raise TooManyRequestsError(
                f"{most} paid requests of this {key[0]} run, the most allowed; nothing was "
                "charged. Wait for one to end."
            )
        self._running[key] += 1
        try:
            yield
        finally:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]
