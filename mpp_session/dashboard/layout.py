"""The frame around every page: head, navigation, notice (pure)."""

from typing import Final

import msgspec

from mpp_session.dashboard.html import Child, Markup, el, join

__all__ = ["PAGES", "Frame", "bare_page", "document", "page"]

PAGES: Final = (
    ("/", "Overview"),
    ("/channels", "Channels"),
    ("/settlements", "Settlements"),
    ("/refusals", "Refusals"),
    ("/prices", "Prices"),
    ("/cycles", "Cycles"),
)


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What every page shows beside its own content."""

    realm: str
    form_token: str
    is_paused: bool = False


def page(frame: Frame, path: str, title: str, *content: Child, notice: str = "") -> Markup:
    """Return a page of a session; `notice` says what the last action did."""
    links = [
        el("li", el("a", name, href=target, aria_current="page" if target == path else None))
        for target, name in PAGES
    ]
    log_out = el(
        "form",
        _token(frame),
        el("button", "Log out", class_="quiet"),
        method="post",
        action="/logout",
    )
    head = el(
        "header",
        el("a", el("span", frame.realm), href="/", class_="brand"),
        el("nav", el("ul", links), aria_label="Pages"),
        log_out,
        class_="top",
    )
    paused = el(
        "p",
        "Sales are paused: clients get 503 and pay nothing. ",
        el("a", "Resume sales", href="/actions/resume"),
        class_="banner warn",
        role="status",
    )
    return document(
        f"{title} · {frame.realm}",
        el("a", "Skip to content", href="#content", class_="skip"),
        head,
        el(
            "main",
            paused if frame.is_paused else None,
            el("p", notice, class_="banner good", role="status") if notice else None,
            el("h1", title),
            *content,
            id="content",
            tabindex="-1",
        ),
        el(
            "footer",
            el("p", "mpp-session", el("span", "", class_="live", data_live=True, role="status")),
        ),
    )


def bare_page(title: str, *content: Child) -> Markup:
    """Return a page outside a session."""
    return document(title, el("main", el("h1", title), *content, id="content", class_="bare"))


def _token(frame: Frame) -> Markup:
    return el("input", type="hidden", name="form_token", value=frame.form_token)


def document(title: str, *body: Child, has_script: bool = True) -> Markup:
    """Return a whole page around `body`."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="robots", content="noindex"),
        el("title", title),
        el("link", rel="stylesheet", href="/static/style.css"),
        el("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
        el("script", src="/static/live.js", defer=True) if has_script else None,
    )
    return join(Markup("<!doctype html>\n"), el("html", head, el("body", *body), lang="en"))
