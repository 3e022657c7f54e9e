"""Bounds paid requests: how many run at a time, and how many begin a second (O-24).

A stream costs a connection to the model, memory and commits for as long as it runs. The total and
the client's address are checked before the signature, and the payer after it: otherwise a stranger
who knows a channel's id could take its payer's places. Vouchers, closes and offers are not counted:
running streams need them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

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
_ALL: Final[_Key] = ("all", b"")


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
        self._running: dict[_Key, int] = {}
        what = "paid requests a second"
        self._by_address = RateLimiter(limits.per_second_per_address, now, what=what)
        self._by_payer = RateLimiter(limits.per_second_per_payer, now, what=what)

    def of_client(self, source: bytes) -> AbstractContextManager[None]:
        """Count a request of a client while it runs. `source` is empty when unknown.

        Raises:
            ServerBusyError: As many run as may; nothing was charged.
            TooManyRequestsError: The client's address has as many as it may.
        """
        running = self._running.get(_ALL, 0)
        if running >= self._limits.running_max:
            raise ServerBusyError(
                f"{running} paid requests run, the most allowed; nothing was charged."
            )
        if not source:
            return _Place(self._running, _ALL)
        self._by_address.require(source)
        key = ("address", source)
        self._require_place(key, self._limits.running_per_address)
        return _Place(self._running, _ALL, key)

    def of_payer(self, payer: Address) -> AbstractContextManager[None]:
        """Count a request of a payer whose voucher is verified, on any of its channels.

        Raises:
            TooManyRequestsError: The payer has as many as it may.
        """
        self._by_payer.require(payer)
        key = ("payer", payer)
        self._require_place(key, self._limits.running_per_payer)
        return _Place(self._running, key)

    def _require_place(self, key: _Key, most: int) -> None:
        if self._running.get(key, 0) >= most:
            raise TooManyRequestsError(
                f"{most} paid requests of this {key[0]} run, the most allowed; nothing was "
                "charged. Wait for one to end."
            )


class _Place(AbstractContextManager[None]):
    """Counts one request under its keys for the length of a block. No generator: it is cheaper."""

    __slots__ = ("_keys", "_running")

    def __init__(self, running: dict[_Key, int], *keys: _Key) -> None:
        self._running = running
        self._keys = keys

    def __enter__(self) -> None:
        for key in self._keys:
            self._running[key] = self._running.get(key, 0) + 1

    def __exit__(self, *_: object) -> None:
        for key in self._keys:
            left = self._running[key] - 1
            if left:
                self._running[key] = left
            else:
                del self._running[key]
