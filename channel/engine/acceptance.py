"""The one way into the books: a proven voucher, and what a content request holds, in one go."""

import asyncio
from collections.abc import Callable, Sequence

from channel.engine.admission import Admission
from channel.engine.challenger import Authenticated
from channel.engine.lease_renewer import LeaseRenewer
from channel.engine.outcome import Hold, Outcome
from channel.engine.rate_limit import RateLimiter
from channel.engine.reservation import held_amount
from channel.errors import LedgerUnavailableError
from channel.ledger.interface import Applied, ClaimRequest, ConsumeProof, Ledger
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.commands import AcceptVoucher, Command, Reserve
from channel.state.transitions import proves_key
from channel.types import ChannelKey, VerifiedVoucher

__all__ = ["Acceptance", "shown_max"]

_PUBLIC = b"public"


class Acceptance:
    """Applies what was proven, within what the operator lets us be owed."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        admission: Admission,
        renewer: LeaseRenewer,
        rate: RateLimiter,
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._admission = admission
        self._renewer = renewer
        self._rate = rate
        self._now = now

    def now(self) -> int:
        """Return the time that goes into the books, in Unix seconds."""
        return int(self._now())

    def voucher(self, paid: Authenticated, verified: VerifiedVoucher) -> AcceptVoucher:
        """Return the command that accepts a voucher under its challenge's terms."""
        return AcceptVoucher(verified, paid.asked.min_voucher_delta, self.now())

    def require_rate(self, verified: VerifiedVoucher, state: ChannelState | None) -> None:
        """Count a proven voucher against its channel's rate.

        After the signature, not before: else anybody who knows a channel's id could use up its
        payer's rate. For the same reason a voucher that is public counts apart.
        """
        is_public = state is not None and verified.cumulative_amount <= state.published
        self._rate.require(verified.key.channel_id + (_PUBLIC if is_public else b""))

    def earn_rate(self, key: ChannelKey, units: int) -> None:
        """Let a channel send as many vouchers more as it has bought units (O-37).

        The rate is there against vouchers that buy nothing. One that pays is no flood.
        """
        self._rate.earn(key.channel_id, units)

    def require_promise(self, verified: VerifiedVoucher, known: ChannelState) -> None:
        """Check that the operator lets a channel owe us so much.

        Raises:
            ExposureLimitError: It does not.
        """
        self._admission.require_promise(verified, known)

    async def accept(
        self,
        paid: Authenticated,
        first: Sequence[Command],
        verified: VerifiedVoucher,
        hold: Hold | None,
        *,
        known: ChannelState,
        proof: ConsumeProof | None = None,
    ) -> Outcome:
        """Run `first` and the reservation of a content request, durably, in one transaction."""
        if hold is None:
            applied = await self._apply(verified, known, first, proof=proof)
            state = applied.require()
            return Outcome(state=state, shown_max=shown_max(state, verified))
        claim = None
        # A public voucher authorises nothing, not even an answer given before (decision 5).
        if hold.claim is not None and verified.cumulative_amount > known.published:
            claim = await hold.claim(hold.reservation_id)
        request = None if claim is None else ClaimRequest(claim)
        reserve = self._reserve(paid, hold, verified)
        room = _coverable(reserve, verified, known)
        self._admission.take_room(room)
        held = 0
        try:
            applied = await self._apply(
                verified, known, [*first, reserve], request=request, proof=proof
            )
            held = held_amount(applied.state, hold.reservation_id)
        except (asyncio.CancelledError, LedgerUnavailableError):
            # It may have been made: give it back, so that the payer need not wait for a lease.
            self._renewer.let_go(paid.key, hold.reservation_id, claim)
            raise
        finally:
            self._admission.give_back(room - held)
        state = applied.require()  # refused unless its voucher is above all that is public
        return Outcome(state=state, stored=applied.stored, claim=claim, shown_max=None)

    async def _apply(
        self,
        verified: VerifiedVoucher,
        known: ChannelState,
        commands: Sequence[Command],
        *,
        request: ClaimRequest | None = None,
        proof: ConsumeProof | None = None,
    ) -> Applied:
        """Apply within what the operator lets us be owed. Public vouchers promise nothing new."""
        self.require_promise(verified, known)
        return await self._ledger.apply(verified.key, commands, request=request, proof=proof)

    def _reserve(self, paid: Authenticated, hold: Hold, verified: VerifiedVoucher) -> Reserve:
        return Reserve(
            reservation_id=hold.reservation_id,
            kind=ReservationKind.REQUEST,
            unit_price=paid.asked.unit_price,
            units_min=hold.units_min,
            units_max=hold.units_max,
            presented=verified.cumulative_amount,
            min_voucher_delta=paid.asked.min_voucher_delta,
            lease_expires_at=self._renewer.lease(),
        )


def _coverable(reserve: Reserve, verified: VerifiedVoucher, known: ChannelState) -> int:
    """Return the most that a reservation can come to hold: what is asked for and covered."""
    covered = max(verified.cumulative_amount, known.accepted) - known.spent
    return min(reserve.units_max * reserve.unit_price, max(0, covered))


def shown_max(state: ChannelState, verified: VerifiedVoucher) -> int | None:
    """Return `Outcome.shown_max` for a proven voucher."""
    return None if proves_key(state, verified) else verified.cumulative_amount
