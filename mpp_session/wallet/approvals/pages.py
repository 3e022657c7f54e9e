"""The pages on which people answer: forms without a script (pure)."""

from collections.abc import Sequence
from typing import Final, Literal

from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.layout import document
from mpp_session.dashboard.show import badge, count, empty
from mpp_session.wallet.approvals.record import SCOPES, Record, State
from mpp_session.wallet.approvals.rules import ApprovalRules
from mpp_session.wallet.approvals.shown import Line, headline, lines, visible

__all__ = ["answer_page", "done_page", "list_page", "login_page", "message_page", "record_page"]

Verdict = Literal["approve", "deny"]

_TITLE: Final = "Approvals"
_SCOPES: Final = {
    "once": "this payment only",
    "channel": "this channel, up to the amount in all",
    "window": "the same terms until it expires, up to the amount in all",
}
_NAMES: Final = {"approve": "Approve", "deny": "Deny"}
_KINDS: Final = {State.PENDING: "warn", State.APPROVED: "good", State.USED: "good"}
_SHORT: Final = ("Amount", "To do what", "Why you are asked", "Request", "Reason", "Answer by")


def list_page(
    pending: Sequence[Record], ended: Sequence[Record], rules: ApprovalRules, form_token: str
) -> Markup:
    """Return what waits, as cards, and what was answered lately."""
    cards = [_card(record, rules) for record in pending]
    older = [
        el(
            "li",
            el("a", headline(record.question, rules), href=f"/approvals/{record.id}"),
            " ",
            badge(record.state, _KINDS.get(record.state, "")),
        )
        for record in ended
    ]
    return _page(
        f"{count(len(pending), 'question')} to answer" if pending else "Nothing to answer",
        el("ul", cards, class_="cycles")
        if cards
        else empty("No question waits.", "New ones stand here; reload the page to see them."),
        el("section", el("header", el("h2", "Before")), el("ul", older)) if older else None,
        el(
            "form",
            _hidden(form_token=form_token),
            el("button", "Log out", class_="quiet"),
            method="post",
            action="/logout",
            class_="confirm",
        ),
    )


def record_page(record: Record, rules: ApprovalRules) -> Markup:
    """Return everything about one record."""
    return _page(
        headline(record.question, rules),
        el("p", badge(record.state, _KINDS.get(record.state, ""))),
        _facts(lines(record, rules)),
        _choices(record) if record.state == State.PENDING else None,
        _back(),
    )


def answer_page(
    record: Record,
    verdict: Verdict,
    rules: ApprovalRules,
    *,
    action: str,
    hidden: dict[str, str],
    has_scope: bool,
    fault: str = "",
) -> Markup:
    """Return the page that asks whether to give one answer.

    Args:
        record: The question.
        verdict: The answer.
        rules: Of the policy in force.
        action: Where the form goes.
        hidden: What it carries along: the proof that its sender may.
        has_scope: Whether the answer may be for more than this payment.
        fault: What was wrong with the form that was sent.
    """
    question = record.question
    unit = rules.unit(question.chain_id, question.token)
    scopes = SCOPES[: SCOPES.index(rules.scope_max) + 1] if has_scope else SCOPES[:1]
    number = unit.format(question.amount).partition(" ")[0].replace(",", "")
    fields: list[Child] = [
        el("label", f"Amount, at most, in {unit.symbol}", for_="amount"),
        el("input", id="amount", name="amount", value=number, inputmode="decimal", required=True),
        el("label", "It is for", for_="scope"),
        el(
            "select",
            [el("option", _SCOPES[scope], value=scope) for scope in scopes],
            id="scope",
            name="scope",
        ),
    ]
    return _page(
        f"{_NAMES[verdict]} this?",
        el("p", fault, class_="banner bad", role="alert") if fault else None,
        el("p", el("strong", headline(question, rules))),
        _facts(lines(record, rules)),
        el(
            "form",
            _hidden(verdict=verdict, **hidden),
            fields if verdict == "approve" else None,
            el("label", "Comment, which the agent reads", for_="comment"),
            el("input", id="comment", name="comment", maxlength=300, autocomplete="off"),
            el("button", _NAMES[verdict], class_="main"),
            method="post",
            action=action,
            class_="wide after",
        ),
        _back(),
    )


def done_page(record: Record, rules: ApprovalRules) -> Markup:
    """Return what an answer by a link has done."""
    return _page(
        f"The question is {record.state}",
        el("p", headline(record.question, rules)),
        el("p", "More answers are needed.") if record.state == State.PENDING else None,
    )


def login_page(names: Sequence[str], fault: str = "") -> Markup:
    """Return the page that asks for a log-in token, and for a name where there are several."""
    who = [
        el("label", "Your name", for_="name"),
        el("select", [el("option", each) for each in names], id="name", name="name"),
    ]
    return document(
        "Log in",
        el(
            "main",
            el("h1", "Log in"),
            el("p", fault, class_="banner bad", role="alert") if fault else None,
            el(
                "form",
                who if len(names) > 1 else None,
                el("label", "Token of this wallet's owner", for_="token"),
                el(
                    "input",
                    type="password",
                    id="token",
                    name="token",
                    autocomplete="current-password",
                    required=True,
                    autofocus=True,
                ),
                el("button", "Log in", class_="main"),
                method="post",
                action="/login",
                class_="wide",
            ),
            id="content",
            class_="bare",
        ),
        has_script=False,
    )


def message_page(title: str, text: str) -> Markup:
    """Return a page with one sentence."""
    return _page(title, el("p", visible(text)), _back())


def _card(record: Record, rules: ApprovalRules) -> Markup:
    shown = [line for line in lines(record, rules) if line.name in _SHORT]
    link = el("a", headline(record.question, rules), href=f"/approvals/{record.id}")
    return el("li", el("h3", link), _facts(shown), _choices(record))


def _choices(record: Record) -> Markup:
    return el(
        "p",
        [
            el(
                "a",
                name,
                el("span", f" {record.id}", class_="note"),
                href=f"/approvals/{record.id}/{verdict}",
                class_="button",
            )
            for verdict, name in _NAMES.items()
        ],
        class_="actions after",
    )


def _facts(shown: Sequence[Line]) -> Markup:
    return el(
        "dl",
        [
            el(
                "div",
                el("dt", line.name, " (the agent's own words)" if line.is_agents else None),
                el("dd", el("q", line.text) if line.is_agents else line.text),
            )
            for line in shown
        ],
        class_="pairs",
    )


def _page(title: str, *content: Child) -> Markup:
    main = el("main", el("h1", title), *content, id="content", tabindex="-1")
    skip = el("a", "Skip to content", href="#content", class_="skip")
    head = el("header", el("a", el("span", _TITLE), href="/", class_="brand"), class_="top")
    return document(f"{title} · {_TITLE}", skip, head, main, has_script=False)


def _hidden(**values: str) -> Markup:
    return join(
        [el("input", type="hidden", name=name, value=value) for name, value in values.items()]
    )


def _back() -> Markup:
    return el("p", el("a", "Go to the list, change nothing", href="/"), class_="after")
