"""What an action will do, and the form that confirms it (pure)."""

from channel.state.channel_state import ChannelState
from channel.state.ladder import closing_voucher, settling_voucher
from channel.types import TokenUnit
from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.layout import Frame
from mpp_session.dashboard.reading import Channels
from mpp_session.dashboard.show import amount, count, empty, figure, numbers, whole_id

__all__ = ["close_page", "pause_page", "reload_page", "resume_page", "settle_page"]


def settle_page(frame: Frame, found: Channels, unit: TokenUnit, *, has_settler: bool) -> Markup:
    """Return what settling now pays out."""
    due = [(s, v) for s in found.states if (v := _due(s))]
    if not due:
        why = "Everything that was delivered is settled already."
        if found.at_risk:
            why = (
                f"{unit.format(found.at_risk)} are delivered, and the payers' vouchers are for "
                "more: a channel that stays open is settled at no more than was delivered. Wait "
                "for more sales, or close the channel."
            )
        return join(empty("Nothing can be settled now.", why), _back("/"))
    total = sum(value for _, value in due)
    warning = None
    if not has_settler:
        text = "No settler runs now: the order waits until one does."
        warning = el("p", text, class_="banner warn")
    return join(
        warning,
        el(
            "dl",
            figure("Is paid out", amount(total, unit), "to the payee, on chain"),
            figure("From", count(len(due), "channel"), "they stay open"),
            class_="figures",
        ),
        el(
            "p",
            "The settler sends it within seconds, in as few transactions as it can, and pays the "
            "gas. It leaves out what is worth less than its gas. Payers notice nothing.",
        ),
        _form(frame, "/actions/settle", "Settle now", back="/settlements"),
    )


def _due(state: ChannelState) -> int:
    if state.is_finalized or state.is_stopped or state.is_closing:
        return 0
    voucher = settling_voucher(state)
    return 0 if voucher is None else voucher.cumulative_amount - state.settled


def close_page(frame: Frame, state: ChannelState, unit: TokenUnit) -> Markup:
    """Return what closing one channel pays out and gives back."""
    target = f"/channels/0x{state.key.channel_id.hex()}"
    paid = closing_voucher(state, None).cumulative_amount
    facts: list[tuple[str, Child]] = [
        ("Channel", whole_id(state.key.channel_id)),
        ("Payer", whole_id(state.terms.payer)),
        ("Paid out now", amount(paid - state.settled, unit)),
        ("Given back to the payer", amount(max(0, state.deposit - paid), unit)),
    ]
    running = len(state.reservations)
    note = "The payer must open another channel to buy again."
    if running:
        note = (
            f"{count(running, 'paid request')} run on it now: streams end, others get a while to "
            f"end, and the amounts above may rise by what they are charged. {note}"
        )
    return join(
        numbers(facts),
        el("p", note, class_="after"),
        el("p", "A close cannot be undone.", class_="banner warn"),
        _form(frame, f"{target}/close", "Close this channel", back=target),
    )


def pause_page(frame: Frame, live: int) -> Markup:
    """Return what a pause stops, and what goes on."""
    running = (
        f"{count(live, 'paid request')} that run now go on to their end."
        if live
        else "No paid request runs now."
    )
    return join(
        el(
            "ul",
            el(
                "li",
                "Clients that ask for something with a price get 503 ",
                el("code", "sales-paused"),
                " and are asked to try again after a minute. They pay nothing.",
            ),
            el("li", running),
            el("li", "Vouchers for running streams, closes and settlements work as before."),
            el("li", "The pause holds, also after a restart, until you resume sales."),
        ),
        _form(frame, "/actions/pause", "Pause sales", back="/"),
    )


def resume_page(frame: Frame) -> Markup:
    """Return what resuming does."""
    return join(
        el("p", "Clients can pay again, within a second on every worker."),
        _form(frame, "/actions/resume", "Resume sales", back="/"),
    )


def reload_page(frame: Frame) -> Markup:
    """Return what reloading prices does."""
    return join(
        el(
            "p",
            "The gateway reads its prices again and checks all of them first: with one fault, "
            "today's prices stay. Running streams keep the price they began with.",
        ),
        _form(frame, "/actions/reload", "Reload prices", back="/prices"),
    )


def _form(frame: Frame, target: str, name: str, *, back: str) -> Markup:
    return el(
        "form",
        el("input", type="hidden", name="form_token", value=frame.form_token),
        el("button", name, class_="main"),
        el("a", "Go back, change nothing", href=back),
        method="post",
        action=target,
        class_="confirm",
    )


def _back(target: str) -> Markup:
    return el("p", el("a", "Go back", href=target), class_="after")
