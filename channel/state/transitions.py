"""The only rules: (state, command) -> state, or a typed refusal that changes nothing.

Rule 1: every decision about a channel's money is in this file or in `ladder`.
Rule 2: this file knows no headers, rows, clock or caller.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from channel.errors import (
    AmountExceedsDepositError,
    ChannelFinalizedError,
    ChannelNotFoundError,
    ChannelStoppedError,
    DeltaTooSmallError,
    InsufficientBalanceError,
    InvariantError,
    PublicVoucherError,
    RequestInFlightError,
    ReservationEndedError,
    StreamActiveError,
    StreamReplacedError,
    TooManyRequestsError,
)
from channel.limits import GRACE_PERIOD_S_MIN, RESERVATIONS_PER_CHANNEL_MAX
from channel.state import commands as c
from channel.state.channel_state import (
    ChannelState,
    LadderVoucher,
    Reservation,
    ReservationKind,
    require_invariants,
)
from channel.state.ladder import bracketing_vouchers
from channel.types import ChannelFact, ChannelKey, VerifiedVoucher

__all__ = [
    "as_public",
    "is_for_settler",
    "is_known",
    "proves_key",
    "require_consent",
    "require_open",
    "required_cumulative",
    "transition",
]


def transition(state: ChannelState | None, command: c.Command) -> ChannelState:
    """Return the channel after `command`.

    Raises:
        PeerError: The command is refused; the state is unchanged.
        ChannelStoppedError: Ledger and chain disagree; nothing may be accepted or served.
        InvariantError: A bug: the new state contradicts itself.
    """
    if state is not None:
        after = _RULES[type(command)](state, command)
    elif isinstance(command, c.OpenChannel):
        after = _open_channel(state, command)
    elif isinstance(command, c.Restore):
        after = _restore(state, command)
    else:
        raise ChannelNotFoundError("The channel is not known here.")
    require_invariants(after)
    return after


def require_open(state: ChannelState) -> None:
    """Refuse to accept or serve on a channel that has ended, is ending, or is stopped.

    Raises:
        ChannelFinalizedError: Finalized, closing, or with a close request of the payer.
        ChannelStoppedError: Ledger and chain disagree.
    """
    if state.is_finalized:
        raise ChannelFinalizedError("The channel is finalized.")
    if state.close_requested_at:
        raise ChannelFinalizedError("The channel has a pending close requested by its payer.")
    if state.is_closing:
        raise ChannelFinalizedError("The channel is being closed.")
    if state.is_stopped:
        raise ChannelStoppedError("The channel is stopped until the ledger and the chain agree.")


def proves_key(state: ChannelState, voucher: VerifiedVoucher) -> bool:
    """Whether only the holder of the voucher key can have sent this voucher (O-20, O-21).

    An amount above `published` was never shown. At or below it, the chain may have seen the voucher
    that the ledger keeps for that amount; another signature over the same amount needs the key. A
    contract may accept several forms of one signature, so another form proves nothing.
    """
    amount = voucher.cumulative_amount
    if amount > state.published or amount == state.spent == 0:  # zero is never put on chain
        return True
    if voucher.by_contract or state.foreign_block:  # others may have published other signatures
        return False
    steps = (state.at_or_below_spent, state.above_spent, state.highest)
    kept = [step for step in steps if step is not None and step.cumulative_amount == amount]
    if not kept:  # this ledger never published the amount, but another program may have
        return amount == state.spent and amount > state.settled
    return all(step.signature != voucher.signature for step in kept)


def as_public(state: ChannelState, presented: int) -> ChannelState:
    """Return the channel as a holder of only a public voucher may see it (O-20).

    No amount in it exceeds what the chain or that voucher shows.
    """
    known = max(presented, state.settled)
    return replace(state, accepted=known, spent=known, published=known, reservations=())


def require_consent(state: ChannelState, voucher: VerifiedVoucher) -> None:
    """Refuse a close by a voucher that a third party may have sent (O-21, CLOSE-02).

    It would end a live channel, at the payee's gas, with the kept voucher that covers `spent`. A
    close that was already decided is only repeated.

    Raises:
        PublicVoucherError: The voucher proves nothing; the message says what would.
    """
    if state.closing_with is None and not proves_key(state, voucher):
        raise _public_voucher(state, voucher.cumulative_amount, 0, 0)


def required_cumulative(state: ChannelState, cost: int, min_voucher_delta: int) -> int:
    """Return the least cumulative amount that lets `cost` be served (SSE-02, AMB-17).

    The minimum delta does not apply beyond the deposit when the cost itself still fits, so that
    the end of a deposit can be spent (F-53). A public amount pays for nothing, so the result
    exceeds `published` (decision 5). A result above the deposit asks for a top-up.
    """
    need = state.spent + state.reserved + cost
    required = max(need, state.accepted + max(1, min_voucher_delta))
    if need <= state.deposit and state.accepted < state.deposit:
        required = min(required, state.deposit)
    return max(required, state.published + 1)


def _open_channel(state: ChannelState | None, command: c.OpenChannel) -> ChannelState:
    """Insert if absent; for a known channel only raise `accepted` (OPEN-08, OPEN-10, F-25)."""
    fact, voucher = command.fact, command.voucher
    _require_same_channel(fact.key, voucher.key)
    if state is not None:
        observed = _observe_fact(state, fact, is_rollback=False)
        return _raise_accepted(observed, voucher, min_voucher_delta=0, at=command.at)
    first = LadderVoucher(voucher.cumulative_amount, voucher.signature)
    below, above = bracketing_vouchers(fact.settled, first)
    opened = ChannelState(
        key=fact.key,
        terms=fact.terms,
        deposit=fact.deposit,
        settled=fact.settled,
        accepted=max(voucher.cumulative_amount, fact.settled),
        spent=fact.settled,
        published=fact.settled,
        close_requested_at=fact.close_requested_at,
        is_finalized=fact.is_finalized,
        fact_block=fact.block_number,
        highest=first,
        at_or_below_spent=below,
        above_spent=above,
        active_at=command.at,
        foreign_block=fact.block_number if fact.settled else 0,
    )
    if voucher.cumulative_amount > fact.deposit:
        raise AmountExceedsDepositError(
            cumulative_amount=voucher.cumulative_amount, deposit=fact.deposit
        )
    require_open(opened)
    return opened


def _accept_voucher(state: ChannelState, command: c.AcceptVoucher) -> ChannelState:
    return _raise_accepted(
        state, command.voucher, min_voucher_delta=command.min_voucher_delta, at=command.at
    )


def _raise_accepted(
    state: ChannelState, voucher: VerifiedVoucher, *, min_voucher_delta: int, at: int
) -> ChannelState:
    """Raise `accepted` to the voucher's cumulative amount.

    A voucher at or below `accepted` is a replay and returns the same state (VCH-04). The checks
    have the order of the evm-session draft, "Voucher Verification" (VCH-02). The minimum delta
    does not apply to a voucher that reaches the deposit exactly (AMB-17).
    """
    _require_same_channel(state.key, voucher.key)
    require_open(state)
    amount = voucher.cumulative_amount
    increase = amount - state.accepted
    if increase <= 0:
        return state
    if increase < min_voucher_delta and amount != state.deposit:
        raise DeltaTooSmallError(
            increase=increase, min_voucher_delta=min_voucher_delta, accepted=state.accepted
        )
    if amount > state.deposit:
        raise AmountExceedsDepositError(cumulative_amount=amount, deposit=state.deposit)
    highest = LadderVoucher(amount, voucher.signature)
    below, above = bracketing_vouchers(
        state.spent, state.at_or_below_spent, state.above_spent, highest
    )
    return replace(
        state,
        accepted=amount,
        highest=highest,
        at_or_below_spent=below,
        above_spent=above,
        active_at=at,
    )


def _reserve(state: ChannelState, command: c.Reserve) -> ChannelState:
    """Hold an amount before service (F-24, F-44, F-45). A repeat changes nothing."""
    if not 0 <= command.amount_min <= command.amount_max:
        raise InvariantError(
            f"expected a least amount of 0 to {command.amount_max}, found {command.amount_min}"
        )
    require_open(state)
    known = state.find_reservation(command.reservation_id)
    if known is not None:
        if not command.replaces:
            return state
        state = _without_reservation(state, known)
    if command.presented <= state.published:
        raise _public_voucher(
            state, command.presented, command.amount_min, command.min_voucher_delta
        )
    is_stream = command.kind is ReservationKind.STREAM
    if is_stream and command.stream_policy is c.StreamPolicy.REJECT and state.has_stream:
        raise StreamActiveError("The channel has a live stream.")
    if len(state.reservations) >= RESERVATIONS_PER_CHANNEL_MAX:
        raise TooManyRequestsError("Too many requests are running on this channel.")
    amount = min(command.amount_max, state.available)
    if amount < command.amount_min:
        raise _insufficient(state, command.amount_min, command.min_voucher_delta)
    held = Reservation(
        command.reservation_id,
        command.kind,
        amount,
        command.lease_expires_at,
        spent=0 if known is None else known.spent,
        note=command.note if known is None else known.note,
    )
    running = state.reservations
    if is_stream and command.stream_policy is c.StreamPolicy.REPLACE:
        running = tuple([_replaced(other) for other in running])
    return replace(state, reservations=(*running, held))


def _extend(state: ChannelState, command: c.Extend) -> ChannelState:
    require_open(state)
    held = _require_reservation(state, command.reservation_id)
    if held.is_replaced:
        raise StreamReplacedError("A newer stream on this channel replaced this one.")
    amount = max(held.amount, min(command.amount_max, held.amount + state.available))
    if amount < command.amount_min:
        missing = command.amount_min - held.amount
        raise _insufficient(state, missing, command.min_voucher_delta)
    filled = replace(held, amount=amount, lease_expires_at=command.lease_expires_at)
    return _with_reservation(state, filled)


def _renew(state: ChannelState, command: c.Renew) -> ChannelState:
    held = _require_reservation(state, command.reservation_id)
    return _with_reservation(state, replace(held, lease_expires_at=command.lease_expires_at))


def _spend(state: ChannelState, command: c.Spend) -> ChannelState:
    """Turn a reserved amount into a spent one. Allowed while closing: it was held before."""
    held = _require_reservation(state, command.reservation_id)
    if not 0 <= command.amount <= held.amount:
        msg = f"cannot spend {command.amount} of a reservation of {held.amount}"
        raise InvariantError(msg)
    left, spent = held.amount - command.amount, held.spent + command.amount
    after = _with_reservation(state, replace(held, amount=left, spent=spent))
    return _set_spent(after, state.spent + command.amount)


def _release(state: ChannelState, command: c.Release) -> ChannelState:
    held = state.find_reservation(command.reservation_id)
    return state if held is None else _without_reservation(state, held)


def _expire_reservations(state: ChannelState, command: c.ExpireReservations) -> ChannelState:
    expired = [
        held
        for held in state.reservations
        if held.lease_expires_at <= command.now
        or (held.reservation_id, held.lease_expires_at) in command.unrenewed
    ]
    return _end(state, expired)


def _end_reservations(state: ChannelState, _: c.EndReservations) -> ChannelState:
    return _end(state, state.reservations)


def _end(state: ChannelState, ended: Sequence[Reservation]) -> ChannelState:
    """End reservations: a stream's may have been sent, a request's was not answered."""
    if not ended:
        return state
    spent = state.spent
    for held in ended:
        state = _without_reservation(state, held)
        if held.kind is ReservationKind.STREAM:
            spent += held.amount
    return _set_spent(state, spent)


def _observe(state: ChannelState, command: c.Observe) -> ChannelState:
    return _observe_fact(state, command.fact, is_rollback=command.is_rollback, at=command.at)


def _observe_fact(
    state: ChannelState, fact: ChannelFact, *, is_rollback: bool, at: int = 0
) -> ChannelState:
    """Record absolute values; a late read of an older block changes nothing (F-29, F-72)."""
    _require_same_channel(state.key, fact.key)
    if not is_rollback and (fact.block_number < state.fact_block or is_known(state, fact)):
        return state
    return replace(
        state,
        deposit=fact.deposit,
        settled=fact.settled,
        published=max(state.published, fact.settled),
        close_requested_at=fact.close_requested_at,
        is_finalized=fact.is_finalized,
        fact_block=fact.block_number,
        foreign_block=state.foreign_block
        or (fact.block_number if _is_foreign(state, fact, at=at) else 0),
    )


def _is_foreign(state: ChannelState, fact: ChannelFact, *, at: int) -> bool:
    """Whether the payee's key did this without this ledger (O-05, O-89).

    This ledger records everything it settles or closes with as `published` before it sends it. A
    channel also ends when its payer withdraws: only after a close request, and not before the
    minimum grace period has passed.
    """
    if fact.settled > state.published:
        return True
    if not fact.is_finalized or state.is_finalized:
        return False
    if state.closing_with is not None and fact.settled >= state.closing_with.cumulative_amount:
        return False
    asked_at = fact.close_requested_at
    return asked_at == 0 or 0 < at < asked_at + GRACE_PERIOD_S_MIN


def is_known(state: ChannelState, fact: ChannelFact) -> bool:
    """Whether a fact says what the books say already: a sweep then writes no row."""
    return (
        fact.deposit == state.deposit
        and fact.settled == state.settled
        and fact.close_requested_at == state.close_requested_at
        and fact.is_finalized == state.is_finalized
    )


def is_for_settler(state: ChannelState, fact: ChannelFact) -> bool:
    """Whether a fact shows the end of a channel whose close was decided and is not recorded.

    The settler records that end together with its transaction. Without the transaction, the
    payer's repeat could not be answered, and the settler would no longer find the close (CLOSE-05).
    """
    return fact.is_finalized and not state.is_finalized and state.closing_with is not None


def _publish(state: ChannelState, command: c.Publish) -> ChannelState:
    if command.cumulative_amount <= state.published:
        return state
    return replace(state, published=command.cumulative_amount)


def _begin_close(state: ChannelState, command: c.BeginClose) -> ChannelState:
    """A payer's pending close does not prevent the payee's (CLOSE-03); an ended channel does."""
    if state.is_finalized:
        raise ChannelFinalizedError("The channel is finalized.")
    if command.presented is not None:
        require_consent(state, command.presented)
    idle = command.only_if_idle
    if idle is not None and (
        state.reservations or (state.active_at, state.spent) != (idle.active_at, idle.spent)
    ):
        raise RequestInFlightError("The channel was used meanwhile, so it is not idle.")
    return state if state.is_closing else replace(state, is_closing=True)


def _commit_close(state: ChannelState, command: c.CommitClose) -> ChannelState:
    """Decide the voucher of the close, once; a repeat keeps the first decision (F-40).

    The caller chose the amount from an earlier state. Since then another close may have failed
    and the channel continued; then the caller must ask again.
    """
    if state.is_finalized:
        raise ChannelFinalizedError("The channel is finalized.")
    if state.closing_with is not None:
        return state
    if not state.is_closing or state.reservations:
        raise RequestInFlightError("A request still runs on this channel; close it again.")
    amount = command.voucher.cumulative_amount
    if amount > state.deposit:
        raise AmountExceedsDepositError(cumulative_amount=amount, deposit=state.deposit)
    best = max(state.settled, state.highest.cumulative_amount)
    if amount < min(state.spent, best):
        raise RequestInFlightError("More was delivered meanwhile; close the channel again.")
    return replace(state, closing_with=command.voucher, published=max(state.published, amount))


def _abort_close(state: ChannelState, command: c.AbortClose) -> ChannelState:
    is_owed = command.undecided_only and state.closing_with is not None
    if is_owed or not state.is_closing:
        return state
    return replace(state, is_closing=False, closing_with=None)


def _record_close(state: ChannelState, command: c.RecordClose) -> ChannelState:
    after = _observe_fact(state, command.fact, is_rollback=False)
    return replace(after, close_tx=command.tx_hash)


def _repair(state: ChannelState, command: c.Repair) -> ChannelState:
    """Raise, never lower (SETTLE-05). Impossible amounts are refused, not stored."""
    accepted = max(state.accepted, command.accepted)
    spent = max(state.spent, command.spent)
    if not spent + state.reserved <= accepted <= max(state.accepted, state.deposit):
        raise ChannelStoppedError(
            f"expected spent {spent} + reserved {state.reserved} <= accepted {accepted} <= "
            f"deposit {state.deposit} after a repair; give amounts for which that holds"
        )
    return _set_spent(replace(state, accepted=accepted, foreign_block=0), spent)


def _restore(state: ChannelState | None, command: c.Restore) -> ChannelState:
    """Insert if absent: this ledger is newer than any export (F-25, F-52)."""
    if state is None:
        return command.state
    _require_same_channel(state.key, command.state.key)
    return state


def _set_spent(state: ChannelState, spent: int) -> ChannelState:
    """Set `spent` and update the two kept vouchers around it."""
    below, above = bracketing_vouchers(
        spent, state.at_or_below_spent, state.above_spent, state.highest
    )
    return replace(state, spent=spent, at_or_below_spent=below, above_spent=above)


def _insufficient(
    state: ChannelState, cost: int, min_voucher_delta: int
) -> InsufficientBalanceError:
    return InsufficientBalanceError(
        required_cumulative=required_cumulative(state, cost, min_voucher_delta),
        accepted=state.accepted,
        spent=state.spent,
        deposit=state.deposit,
    )


def _public_voucher(
    state: ChannelState, presented: int, cost: int, min_voucher_delta: int
) -> PublicVoucherError:
    shown = as_public(state, presented)
    return PublicVoucherError(
        required_cumulative=required_cumulative(shown, cost, min_voucher_delta),
        accepted=shown.accepted,
        spent=shown.spent,
        deposit=shown.deposit,
    )


def _require_same_channel(ours: ChannelKey, theirs: ChannelKey) -> None:
    if ours != theirs:
        raise InvariantError(f"expected channel {ours}, found {theirs}")


def _require_reservation(state: ChannelState, reservation_id: bytes) -> Reservation:
    held = state.find_reservation(reservation_id)
    if held is None:
        raise ReservationEndedError("The reservation of this request has ended; send it again.")
    return held


def _replaced(held: Reservation) -> Reservation:
    """A replaced stream stays replaced, even after its successor has ended (ACC-06)."""
    is_stream = held.kind is ReservationKind.STREAM
    return replace(held, is_replaced=True) if is_stream else held


def _with_reservation(state: ChannelState, changed: Reservation) -> ChannelState:
    return replace(
        state,
        reservations=tuple(
            [
                changed if held.reservation_id == changed.reservation_id else held
                for held in state.reservations
            ]
        ),
    )


def _without_reservation(state: ChannelState, ended: Reservation) -> ChannelState:
    kept = [held for held in state.reservations if held is not ended]
    return replace(state, reservations=tuple(kept))


# Keyed by the command's type: a command without a rule is a KeyError in the first test.
_RULES: Final[dict[type, Callable[[ChannelState, Any], ChannelState]]] = {
    c.OpenChannel: _open_channel,
    c.Restore: _restore,
    c.AcceptVoucher: _accept_voucher,
    c.Reserve: _reserve,
    c.Extend: _extend,
    c.Renew: _renew,
    c.Spend: _spend,
    c.Release: _release,
    c.ExpireReservations: _expire_reservations,
    c.EndReservations: _end_reservations,
    c.Observe: _observe,
    c.Publish: _publish,
    c.BeginClose: _begin_close,
    c.CommitClose: _commit_close,
    c.AbortClose: _abort_close,
    c.RecordClose: _record_close,
    c.Repair: _repair,
}
