"""Renews the leases of running requests, and ends abandoned ones (decision 8, F-43)."""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from channel.errors import LedgerUnavailableError, OperatorError, PeerError, ProblemError
from channel.ledger.interface import ForgetRequest, Ledger
from channel.state.commands import Release, Renew
from channel.state.requests import RequestClaim
from channel.tasks import Tasks, log_failure
from channel.types import ChannelKey

__all__ = ["LeaseRenewer"]

_log = logging.getLogger(__name__)

_RETRY_S = 0.1
_RETRY_S_MAX = 2.0
_CLOSE_S_MAX = 1.0


class _Kept(msgspec.Struct):
    key: ChannelKey
    lease_expires_at: int
    given: set[int]
    """Leases that the ledger may show: one, and more after changes with an unknown outcome."""
    stop: Callable[[ProblemError], None] | None = None


class LeaseRenewer:
    """Renews the leases of this process's reservations, and ends expired ones of any process.

    One task serves all of them: a request costs a dict entry. A stream registers a callback that
    stops it, so that a close or a newer stream in this process need not wait for its next
    reservation step.
    """

    def __init__(self, *, ledger: Ledger, now: Callable[[], float], lease_s: int) -> None:
        self._ledger = ledger
        self._now = now
        self._lease_s = lease_s
        self._kept: dict[bytes, _Kept] = {}
        self._streams: dict[ChannelKey, set[bytes]] = {}
        self._renewing = Tasks(report=log_failure)
        self._ending: OperatorError | None = None
        self._seen: dict[tuple[ChannelKey, bytes, int], float] = {}
        """When a reservation of any process was first seen with its lease, by the loop's clock."""
        self._letting_go = Tasks(report=log_failure)

    def lease(self, reservation_id: bytes = b"") -> int:
        """Return the lease for a reservation made or renewed now, in Unix seconds.

        For a kept reservation it differs from every lease that the ledger may show. So an owner
        that got no answer to a change can see from the lease whether the change was made.
        """
        lease = int(self._now()) + self._lease_s
        kept = self._kept.get(reservation_id)
        if kept is not None:
            kept.given = {one for one in kept.given if one >= lease}
            while lease in kept.given:
                lease += 1
            kept.given.add(lease)
        return lease

    def keep(self, key: ChannelKey, reservation_id: bytes, lease_expires_at: int) -> None:
        """Renew this reservation, held until `lease_expires_at`, until it is dropped."""
        self._kept[reservation_id] = _Kept(key, lease_expires_at, {lease_expires_at})
        self._renewing.share(None, self._run)

    def keep_stream(
        self,
        key: ChannelKey,
        reservation_id: bytes,
        lease_expires_at: int,
        stop: Callable[[ProblemError], None],
    ) -> None:
        """Keep a stream's reservation, and remember how to stop the stream."""
        self.keep(key, reservation_id, lease_expires_at)
        self._kept[reservation_id].stop = stop
        self._streams.setdefault(key, set()).add(reservation_id)
        if self._ending is not None:
            stop(self._ending)

    def renewed(self, reservation_id: bytes, lease_expires_at: int) -> None:
        """Record that an owner's command has just written this lease to the ledger."""
        kept = self._kept.get(reservation_id)
        if kept is not None:
            kept.lease_expires_at = lease_expires_at
            kept.given = {lease_expires_at}

    def drop(self, reservation_id: bytes) -> None:
        """Stop renewing this reservation."""
        kept = self._kept.pop(reservation_id, None)
        if kept is None:
            return
        streams = self._streams.get(kept.key)
        if streams is not None:
            streams.discard(reservation_id)
            if not streams:
                del self._streams[kept.key]

    def let_go(self, key: ChannelKey, reservation_id: bytes, claim: RequestClaim | None) -> None:
        """End a request's reservation and free its idempotency key, once the ledger answers.

        For a change with an unknown outcome: a change that was made stays made. Without this the
        payer would get "request in flight" until the lease expires (O-91).
        """
        self.drop(reservation_id)
        self._letting_go.start(self._let_go(key, reservation_id, claim))

    async def _let_go(
        self, key: ChannelKey, reservation_id: bytes, claim: RequestClaim | None
    ) -> None:
        forget = None if claim is None else ForgetRequest(claim)
        pause_s = _RETRY_S
        while True:
            try:
                state = (await self._ledger.apply(key, [])).state
                if state is not None and state.find_reservation(reservation_id) is not None:
                    await self._ledger.apply(key, [Release(reservation_id)], request=forget)
            except LedgerUnavailableError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S_MAX)
            else:
                return

    def stop_streams(self, key: ChannelKey, reason: ProblemError, *, spare: bytes = b"") -> None:
        """Make this process's streams on a channel end now."""
        for reservation_id in [*self._streams.get(key, ())]:
            kept = self._kept[reservation_id]
            if reservation_id != spare and kept.stop is not None:
                kept.stop(reason)

    def end_streams(self, reason: OperatorError) -> None:
        """Make every stream of this process end now, and each that begins later (O-32)."""
        self._ending = reason
        for key in [*self._streams]:
            self.stop_streams(key, reason)

    async def close(self) -> None:
        """Stop renewing. Every held reservation ends with its lease."""
        await self._letting_go.drain(_CLOSE_S_MAX)
        await self._letting_go.aclose()
        await self._renewing.aclose()

    async def sweep(self) -> int:
        """Renew the kept reservations that are due, then end the unrenewed ones of any process.

        In this order, because after a jump of the clock this process's own leases look expired.
        After a clock went back, a dead owner's lease would last as much longer. So a lease that
        stays the same for the length of a lease counts as unrenewed. Returns on how many channels
        something was ended.

        Raises:
            LedgerUnavailableError: It is not complete; the next round continues.
        """
        await self._renew_due()
        ended = await self._ledger.expire_reservations(int(self._now()))
        return ended + await self._end_unrenewed()

    async def _end_unrenewed(self) -> int:
        leased = await self._ledger.list_leased()
        # No `await` before everything is recorded: sweeps may run concurrently.
        clock, before, self._seen = asyncio.get_running_loop().time(), self._seen, {}
        unrenewed: dict[ChannelKey, list[tuple[bytes, int]]] = {}
        for state in leased:
            for held in state.reservations:
                one = (state.key, held.reservation_id, held.lease_expires_at)
                since = self._seen[one] = before.get(one, clock)
                if clock - since > self._lease_s:
                    unrenewed.setdefault(state.key, []).append(one[1:])
        for key, ones in unrenewed.items():
            await self._ledger.end_unrenewed(key, ones)
        return len(unrenewed)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            try:
                await self.sweep()
            except LedgerUnavailableError as error:
                _log.warning("leases could not be renewed: %s", error)

    async def _renew_due(self) -> None:
        now = self._now()
        young = now + self._lease_s * 3 / 4
        too_late = now + self._lease_s * 5 / 4  # written before this clock went back
        for reservation_id, kept in [*self._kept.items()]:
            is_young = young < kept.lease_expires_at < too_late
            if is_young or reservation_id not in self._kept:
                continue
            renew = Renew(reservation_id, self.lease(reservation_id))
            applied = await self._ledger.apply(kept.key, [renew])
            kept.lease_expires_at = renew.lease_expires_at
            if isinstance(applied.refusal, PeerError):
                self.drop(reservation_id)
                if kept.stop is not None:
                    kept.stop(applied.refusal)
