"""Which charges belong to a growth of `spent` (pure).

`spent` grows while a request runs, and a request is entered once, when its reservation ends. So for
each channel at each time

    spent = the sum of its charges + what its running reservations have spent

The ledger keeps the charges; `transitions` keeps what a reservation has spent.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from channel.state import commands as c
from channel.state.channel_state import ChannelState, Reservation, ReservationKind
from channel.state.charges import Charge, ChargeOutcome

__all__ = ["CHARGING", "charges_of"]


def charges_of(
    before: ChannelState | None, command: c.Command, after: ChannelState
) -> Sequence[Charge]:
    """Return what to enter because `command`, one of `CHARGING`, led from `before` to `after`."""
    return _RULES[type(command)](before, command, after)


def _released(before: ChannelState | None, command: c.Release, _: ChannelState) -> list[Charge]:
    held = None if before is None else before.find_reservation(command.reservation_id)
    if held is None:
        return []
    end = command.end
    if end is None:
        return [_charge(held, held.spent, ChargeOutcome.FAILED)] if held.spent else []
    if not held.spent and not end.usage:
        return []
    return [
        Charge(
            held.spent,
            end.outcome,
            held.reservation_id,
            held.kind is ReservationKind.STREAM,
            held.note,
            end.usage,
            end.response_id,
        )
    ]


def _expired(
    before: ChannelState | None, _: c.ExpireReservations, after: ChannelState
) -> list[Charge]:
    return _ended(before, after, ChargeOutcome.EXPIRED)


def _all_ended(
    before: ChannelState | None, command: c.EndReservations, after: ChannelState
) -> list[Charge]:
    outcome = ChargeOutcome.CLOSED if command.by_close else ChargeOutcome.EXPIRED
    return _ended(before, after, outcome)


def _ended(
    before: ChannelState | None, after: ChannelState, outcome: ChargeOutcome
) -> list[Charge]:
    charges = []
    for held in () if before is None else before.reservations:
        if after.find_reservation(held.reservation_id) is None:
            sent = held.amount if held.kind is ReservationKind.STREAM else 0
            if held.spent + sent:
                charges.append(_charge(held, held.spent + sent, outcome))
    return charges


def _repaired(before: ChannelState | None, _: c.Repair, after: ChannelState) -> list[Charge]:
    grown = after.spent - (0 if before is None else before.spent)
    return [Charge(grown, ChargeOutcome.REPAIRED)] if grown else []


def _added(before: ChannelState | None, _: c.Command, after: ChannelState) -> list[Charge]:
    """Enter what is spent when a channel comes into the ledger."""
    if before is not None:
        return []
    running = sum(held.spent for held in after.reservations)
    grown = after.spent - running
    return [Charge(grown, ChargeOutcome.BEFORE)] if grown else []


def _charge(held: Reservation, amount: int, outcome: ChargeOutcome) -> Charge:
    is_stream = held.kind is ReservationKind.STREAM
    return Charge(amount, outcome, held.reservation_id, is_stream, held.note)


_RULES: Final[dict[type, Callable[[ChannelState | None, Any, ChannelState], Sequence[Charge]]]] = {
    c.OpenChannel: _added,
    c.Restore: _added,
    c.Release: _released,
    c.ExpireReservations: _expired,
    c.EndReservations: _all_ended,
    c.Repair: _repaired,
}

CHARGING: Final = frozenset(_RULES)
"""The commands that can enter something. A voucher is none of them, and is not looked at."""
