"""Lets sessions in: log-in, log-out, and the check before every page."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channel.errors import BadRequestError, ProblemError, TooManyRequestsError
from mpp_session.dashboard.access import LOGIN_TRIES_PERIOD_S, SESSION_S, Access
from mpp_session.dashboard.answers import FILES, HEADERS, read_form, redirect, refuse, send_page
from mpp_session.dashboard.layout import Frame
from mpp_session.dashboard.pages.login import login_page

__all__ = ["Doors", "Handler"]

Handler: TypeAlias = Callable[[Request, Frame], Awaitable[Response]]


class Doors:
    """Wraps handlers so that only sessions reach them."""

    def __init__(self, access: Access, *, cookie: str, frame: Callable[[str], Frame]) -> None:
        """Check by `access`; `frame` makes the frame of a page from a session's form token."""
        self._access = access
        self._cookie = cookie
        self._frame = frame

    @property
    def routes(self) -> list[Route]:
        """What is answered without a session."""
        return [
            Route("/login", self._login, methods=["GET", "POST"]),
            Route("/logout", self.guard(self._logout), methods=["POST"]),
            Route("/static/{name}", _file),
        ]

    def guard(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return `handler` behind the checks of its session, and of a form's token."""

        async def guarded(request: Request) -> Response:
            session = request.cookies.get(self._cookie, "")
            if not self._access.knows(session):
                if request.url.path == "/events":
                    return refuse(401, "Log in first.")
                return redirect("/login")
            try:
                if request.method == "POST":
                    form = await read_form(request)
                    if not self._access.is_form(session, form.get("form_token", "")):
                        raise BadRequestError(
                            "The form is not from this session: go back, reload the page, and try "
                            "again."
                        )
                return await handler(request, self._frame(self._access.form_token(session)))
            except ProblemError as error:
                return refuse(error.status, error.detail, title=error.title)

        return guarded

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return send_page(login_page())
        try:
            form = await read_form(request)
            is_right = self._access.admits(form.get("token", "").strip())
        except BadRequestError as error:
            return send_page(login_page(error.detail), error.status)
        except TooManyRequestsError as error:
            page = login_page(f"{error.detail} Wait a minute.")
            return send_page(page, error.status, retry_after=str(LOGIN_TRIES_PERIOD_S))
        if not is_right:
            return send_page(login_page("This is not the token."), 403)
        answer = redirect("/")
        answer.set_cookie(
            self._cookie,
            self._access.begin(),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            path="/",
        )
        return answer

    async def _logout(self, _request: Request, _frame: Frame) -> Response:
        answer = redirect("/login")
        answer.delete_cookie(self._cookie, path="/", httponly=True, samesite="strict")
        return answer


async def _file(request: Request) -> Response:
    """Return a style or a script: they say nothing about the business."""
    found = FILES.get(request.path_params["name"])
    if found is None:
        return refuse(404, "The dashboard has no such file.")
    content, kind = found
    return Response(content, 200, HEADERS, kind)
