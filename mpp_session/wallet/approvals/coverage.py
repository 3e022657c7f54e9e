"""Whether an approval covers an ask (pure)."""

from mpp_session.wallet.approvals.record import Record, State
from mpp_session.wallet.approvals.terms import Terms
from mpp_session.wallet.types import Ask

__all__ = ["covers"]


def covers(record: Record, ask: Ask, terms: Terms) -> bool:
    """Whether the terms are those that were approved, and enough is left for the whole ask.

    The caller checks the time and the policy.
    """
    if record.question.ask != ask.kind or not 0 < ask.amount <= record.left:
        return False
    if record.scope == "window":
        return record.terms.window == terms.window
    if record.scope == "channel":
        return _is_on_channel(record, ask, terms)
    if record.state == State.USED:  # vouchers of the one request that a raise was used for
        same_request = ask.kind == "sign" and ask.request_id == record.used_by_request
        return same_request and record.terms.subject == terms.subject
    return record.terms.subject == terms.subject


def _is_on_channel(record: Record, ask: Ask, terms: Terms) -> bool:
    """The first use is for the very subject; later ones are on the channel of that use."""
    if record.used_by_channel is None:
        of_question = record.question.channel_id
        is_its_own = of_question is None or of_question == ask.channel_id
        return is_its_own and ask.channel_id is not None and record.terms.subject == terms.subject
    return record.used_by_channel == ask.channel_id and record.terms.channel == terms.channel
