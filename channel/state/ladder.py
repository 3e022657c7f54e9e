"""Chooses the voucher that goes to the chain (decision 5, AMB-08).

The escrow pays a voucher's whole cumulative amount, regardless of what was delivered. So the ledger
keeps the highest voucher and the two nearest to `spent`: a live channel settles at most what was
delivered, and a close takes from the payer as little above `spent` as the kept vouchers allow. The
upper of the two is strictly above `spent`, because a voucher equal to `spent` is already kept as
the lower one.
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
    """Return the voucher for settling a live channel: never above `spent`; None for nothing due."""
    return _if_it_pays(state, state.at_or_below_spent)


def forced_settling_voucher(state: ChannelState) -> LadderVoucher | None:
    """Return the voucher for a settle forced by a deadline: it covers `spent`, as low as possible.

    None when nothing is due: the payer keeps what was promised and not delivered (F-46).
    """
    return None if state.spent <= state.settled else _if_it_pays(state, _covering(state))


def _if_it_pays(state: ChannelState, voucher: LadderVoucher | None) -> LadderVoucher | None:
    if voucher is None or voucher.cumulative_amount <= state.settled:
        return None
    return voucher


def _covering(state: ChannelState) -> LadderVoucher:
    """Return the lowest kept voucher that covers `spent`, or the highest when none does.

    None covers it only after an operator raised `spent` above every kept voucher (SETTLE-05).
    """
    return state.at_or_above_spent or state.highest


def closing_voucher(state: ChannelState, presented: VerifiedVoucher | None) -> LadderVoucher:
    """Return the voucher for the payer's own close, or for the payee's (`presented` is None).

    The payer's amount is used when it covers `spent`. An amount that is already public is used only
    when it equals `spent`, because a third party could have sent it (CLOSE-02). When everything
    delivered is settled already, the forfeit path pays nothing and needs no signature
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
