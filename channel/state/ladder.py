"""Which voucher goes to the chain (decision 5, AMB-08).

The escrow pays a voucher's whole cumulative amount, whatever was delivered. So beside the
highest voucher the two next to `spent` are kept: a live channel settles what was delivered at
most, and a close takes from the payer as little above `spent` as the kept vouchers allow. The
upper of the two lies strictly above: one that equals `spent` is kept as the lower already, and
would cost the next step its place.
"""

from channel.state.channel_state import ChannelState, LadderVoucher
from channel.types import VerifiedVoucher

__all__ = ["bracketing_vouchers", "closing_voucher", "forced_settling_voucher", "settling_voucher"]


def bracketing_vouchers(
    spent: int, *kept: LadderVoucher | None
) -> tuple[LadderVoucher | None, LadderVoucher | None]:
    """Return the greatest of `kept` at or below `spent` and the lowest above it."""
    below: LadderVoucher | None = None
    above: LadderVoucher | None = None
    for voucher in kept:
        if voucher is None:
            continue
        amount = voucher.cumulative_amount
        if amount <= spent and (below is None or amount > below.cumulative_amount):
            below = voucher
        if amount > spent and (above is None or amount < above.cumulative_amount):
            above = voucher
    return below, above


def settling_voucher(state: ChannelState) -> LadderVoucher | None:
    """Return what a live channel settles with: never more than `spent`. None: nothing to settle."""
    return _if_it_pays(state, state.at_or_below_spent)


def forced_settling_voucher(state: ChannelState) -> LadderVoucher | None:
    """Return what a settle forced by a deadline uses: all of `spent`, as little above as kept.

    None when nothing is owed: what was promised and not delivered is the payer's (F-46).
    """
    return None if state.spent <= state.settled else _if_it_pays(state, _covering(state))


def _if_it_pays(state: ChannelState, voucher: LadderVoucher | None) -> LadderVoucher | None:
    if voucher is None or voucher.cumulative_amount <= state.settled:
        return None
    return voucher


def _covering(state: ChannelState) -> LadderVoucher:
    """Return the lowest kept voucher that covers `spent`, or the best when none does.

    None does only after an operator raised `spent` above every voucher kept (SETTLE-05).
    """
    return state.at_or_above_spent or state.highest


def closing_voucher(state: ChannelState, presented: VerifiedVoucher | None) -> LadderVoucher:
    """Return what the channel is closed with, for the payer's own close or for ours (`None`).

    The payer's amount is taken when it covers `spent`, except that an amount already public is
    taken only when it equals `spent`: anybody could have sent it (CLOSE-02). When all that was
    delivered is settled already, the forfeit path pays nobody and needs no signature
    (CLOSE-07, F-33).
    """
    if presented is not None:
        amount = presented.cumulative_amount
        covers = amount >= state.spent and amount > state.settled
        if covers and (amount > state.published or amount == state.spent):
            return LadderVoucher(amount, presented.signature)
    covering = _covering(state)
    if state.spent <= state.settled or covering.cumulative_amount <= state.settled:
        return LadderVoucher(state.settled, b"")
    return covering
