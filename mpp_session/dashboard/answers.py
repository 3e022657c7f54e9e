"""Answers of the dashboard: never cached, framed, or allowed to fetch from elsewhere."""

from importlib.resources import files
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from channel.errors import BadRequestError
from channel.limits import FORM_BYTES_MAX
from mpp_session.dashboard.html import Markup, el
from mpp_session.dashboard.layout import bare_page

__all__ = ["FILES", "HEADERS", "POLICY", "read_form", "redirect", "refuse", "send_page"]

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",  # with no-referrer a browser sends forms with `Origin: null`
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def send_page(page: Markup, status: int = 200, **headers: str) -> Response:
    """Return a page as an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(str(page), status, {**HEADERS, **named}, "text/html")


def refuse(status: int, text: str, *, title: str = "Not answered") -> Response:
    """Return a page that gives the reason of a refusal."""
    back = el("p", el("a", "Go to the overview", href="/"))
    return send_page(bare_page(title, el("p", text), back), status)


def redirect(target: str) -> Response:
    """Return the answer that leads to another page after a form."""
    return Response(status_code=303, headers={**HEADERS, "location": target})


def _read_files() -> dict[str, tuple[bytes, str]]:
    folder = files("mpp_session.dashboard").joinpath("static")
    return {
        each.name: (each.read_bytes(), _KINDS[each.name[each.name.rindex(".") :]])
        for each in folder.iterdir()
        if each.is_file()
    }


FILES: Final = _read_files()
"""Content and media type of each file beside the pages, by its name."""


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        BadRequestError: The body is not a form, exceeds the bound, or names a field twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise BadRequestError("Expected a form of this page.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES_MAX:
            raise BadRequestError(f"Expected a form of at most {FORM_BYTES_MAX} bytes.")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise BadRequestError("Expected a form of this page.") from None
    if any(len(values) != 1 for values in fields.values()):
        raise BadRequestError("Expected each field of the form once.")
    return {name: values[0] for name, values in fields.items()}
