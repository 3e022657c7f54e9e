"""Whether an approval covers an ask (pure)."""

from msgspec.structs import replace

from mpp_session.wallet.approvals.record import Record, State
from mpp_session.wallet.approvals.terms import Terms, terms_of
from mpp_session.wallet.types import Ask

__all__ = ["amount_left", "covers", "goes_on", "is_deposit_of"]


def covers(record: Record, ask: Ask, terms: Terms) -> bool:
    """Whether the terms are those that were approved, and enough is left for the whole ask.

    The caller checks the time and the policy.
    """
    is_over = record.state == State.EXPIRED and not goes_on(record, ask)
    if is_over or ask.amount > amount_left(record, ask):
        return False
    if is_deposit_of(record, ask):
        return _is_paid_from(record, ask)
    is_used_up = record.state == State.USED and not _is_of_request(record, ask)
    adds_nothing = ask.kind != "sign" and not ask.amount
    if record.question.ask != ask.kind or is_used_up or adds_nothing:
        return False
    if record.scope == "channel":
        return _is_on_channel(record, ask, terms)
    if record.scope == "window":
        return record.terms.window == terms.window
    return record.terms.subject == terms.subject


def goes_on(record: Record, ask: Ask) -> bool:
    """Whether a voucher belongs to a request that was paid in time, so that time ends nothing."""
    return not ask.is_first and _is_of_request(record, ask)


def is_deposit_of(record: Record, ask: Ask) -> bool:
    """Whether the approval is of a deposit, and the ask is a voucher, which uses none of it."""
    return record.question.ask == "deposit" and ask.kind == "sign"


def amount_left(record: Record, ask: Ask) -> int:
    """Return the most that an ask may be for, in base units.

    The request that a deposit was approved for may spend that much, or what the question said that
    it costs at most: a top-up may be a part of it. Other requests may while what is signed of the
    channel in all is not more than was approved: it may hold deposits without a question.
    """
    if not is_deposit_of(record, ask):
        return record.left
    if not _is_of_request(record, ask):
        return record.approved - (ask.total - ask.amount)
    is_full = record.approved >= record.question.amount
    most = max(record.approved, record.question.request_max) if is_full else record.approved
    return most - (ask.request_total - ask.amount)


def _is_of_request(record: Record, ask: Ask) -> bool:
    """Whether a voucher is of the request that used the approval last."""
    is_used = record.used_at is not None
    return is_used and ask.kind == "sign" and ask.request_id == record.used_by_request


def _is_paid_from(record: Record, ask: Ask) -> bool:
    """Whether the voucher is on the channel of the deposit, for the terms that were shown.

    For `once` also for the very request: one purchase is one question. A request that
    is sent again takes its place while nothing was paid from the channel that was opened for it.
    """
    if record.used_by_channel is None or record.used_by_channel != ask.channel_id:
        return False
    is_unpaid = record.question.channel_id is None and ask.amount == ask.total > 0
    if record.scope == "once" and not (is_unpaid or _is_of_request(record, ask)):
        return False
    return record.terms.window == terms_of(replace(ask, kind="deposit")).window


def _is_on_channel(record: Record, ask: Ask, terms: Terms) -> bool:
    """The first use is for the very subject; later ones are on the channel of that use.

    Deposits may be for another path of it, and vouchers may not: they are what is paid there.
    """
    if record.used_by_channel is None:
        of_question = record.question.channel_id
        is_its_own = of_question is None or of_question == ask.channel_id
        return is_its_own and ask.channel_id is not None and record.terms.subject == terms.subject
    if ask.kind == "sign" and record.terms.window != terms.window:
        return False
    return record.used_by_channel == ask.channel_id and record.terms.channel == terms.channel
