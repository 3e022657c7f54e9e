"""The page that asks for the log-in token (pure)."""

from mpp_session.dashboard.html import Markup, el
from mpp_session.dashboard.layout import bare_page

__all__ = ["login_page"]


def login_page(fault: str = "") -> Markup:
    """Return it, with what was wrong with the last try."""
    return bare_page(
        "Log in",
        el("p", fault, class_="banner bad", role="alert") if fault else None,
        el(
            "form",
            el("label", "Token of this gateway's dashboard", for_="token"),
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
        el(
            "p",
            "The gateway keeps the token in the file ",
            el("code", "dashboard.token"),
            " of its state directory and names that file when it starts.",
            class_="note",
        ),
    )
