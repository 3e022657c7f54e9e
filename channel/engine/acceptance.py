"""Applies a verified voucher, and a content request's reservation, in one transaction."""

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
from channel.state.commands import AcceptVoucher, Command, OpenChannel, Reserve
from channel.state.transitions import proves_key
from channel.types import ChannelKey, VerifiedVoucher

__all__ = ["Acceptance", "shown_max"]

_PUBLIC = b"public"


class Acceptance:
    """Applies verified vouchers within the operator's limits."""

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
        """Return the time for the ledger, in Unix seconds."""
        return int(self._now())

    def require_rate(self, verified: VerifiedVoucher, state: ChannelState | None) -> None:
        """Count a verified voucher against the rate of its channel.

        After the signature check, not before: otherwise anyone with a channel's id could use up
        its payer's rate. For the same reason a public voucher has a rate of its own.
        """
        is_public = state is not None and verified.cumulative_amount <= state.published
        self._rate.require(verified.key.channel_id + (_PUBLIC if is_public else b""))

    def earn_rate(self, key: ChannelKey, units: int) -> None:
        """Allow a channel as many more vouchers as it has bought units (O-37).

        The rate limits vouchers that buy nothing; a voucher that pays is no flood.
        """
        self._rate.earn(key.channel_id, units)

    def require_promise(self, verified: VerifiedVoucher, known: ChannelState) -> None:
        """Check the operator's limit on what a channel may owe.

        Raises:
            ExposureLimitError: The voucher would exceed it.
        """
        self._admission.require_promise(verified, known)

    async def accept(
        self,
        paid: Authenticated,
        verified: VerifiedVoucher,
        hold: Hold | None,
        *,
        known: ChannelState,
        first: Sequence[Command] = (),
        proof: ConsumeProof | None = None,
    ) -> Outcome:
        """Apply `first`, the voucher and a content request's reservation in one transaction.

        The voucher is accepted under the terms of its challenge, unless `first` opens the channel
        with it. The transaction is durable when this returns.
        """
        commands = [*first]
        if not any(isinstance(command, OpenChannel) for command in first):
            commands.append(AcceptVoucher(verified, paid.asked.min_voucher_delta, self.now()))
        if hold is None:
            applied = await self._apply(verified, known, commands, proof=proof)
            state = applied.require()
            return Outcome(state=state, shown_max=shown_max(state, verified))
        claim = None
        # A public voucher authorises nothing, not even a stored answer (decision 5: no proof).
        if hold.claim is not None and verified.cumulative_amount > known.published:
            claim = await hold.claim(hold.reservation_id)
        request = None if claim is None else ClaimRequest(claim)
        reserve = self._reserve(paid, hold, verified)
        room = _coverable(reserve, verified, known)
        self._admission.take_room(room)
        held = 0
        try:
            applied = await self._apply(
                verified, known, [*commands, reserve], request=request, proof=proof
            )
            held = held_amount(applied.state, hold.reservation_id)
        except (asyncio.CancelledError, LedgerUnavailableError):
            # The reservation may exist. Release it, so that the payer need not wait for its lease.
            self._renewer.let_go(paid.key, hold.reservation_id, claim)
            raise
        finally:
            self._admission.give_back(room - held)
        state = applied.require()  # refused unless its voucher is above every public amount
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
        """Apply within the operator's limits; a public voucher adds nothing to them."""
        self.require_promise(verified, known)
        return await self._ledger.apply(verified.key, commands, request=request, proof=proof)

    def _reserve(self, paid: Authenticated, hold: Hold, verified: VerifiedVoucher) -> Reserve:
        return Reserve(
            reservation_id=hold.reservation_id,
            kind=ReservationKind.REQUEST,
            amount_min=hold.amount_min,
            amount_max=hold.amount_max,
            presented=verified.cumulative_amount,
            min_voucher_delta=paid.asked.min_voucher_delta,
            lease_expires_at=self._renewer.lease(),
            note=hold.note,
        )


def _coverable(reserve: Reserve, verified: VerifiedVoucher, known: ChannelState) -> int:
    """Return the most that a reservation can hold: what it asks for, as far as it is covered."""
    covered = max(verified.cumulative_amount, known.accepted) - known.spent
    return min(reserve.amount_max, max(0, covered))


def shown_max(state: ChannelState, verified: VerifiedVoucher) -> int | None:
    """Return `Outcome.shown_max` for a verified voucher."""
    return None if proves_key(state, verified) else verified.cumulative_amount
