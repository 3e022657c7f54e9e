"""Serves the pages on which people answer: behind a log-in, or by a one-time token.

The routes belong behind `mpp_session.admin.app.build_admin`, which checks where a request comes
from. A GET changes nothing, so a program that follows links gives no answer.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from sqlite3 import Connection
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channel.errors import AgentError, BadRequestError, ConfigError, TooManyRequestsError
from channel.limits import FORM_BYTES_MAX
from channel.tariff import parse_money
from mpp_session.dashboard.access import LOGIN_TRIES_PERIOD_S, SESSION_S, Access
from mpp_session.dashboard.answers import FILES, HEADERS, read_form, redirect, send_page
from mpp_session.wallet.approvals import pages
from mpp_session.wallet.approvals.record import SCOPES, ApprovalError, Decider, Record, Scope
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.approvals.tokens import AnswerTokens
from mpp_session.wallet.approvals.webhook import Transact

__all__ = ["ApprovalSite"]

_SHOWN: Final = 20
_PERSON: Final = re.compile("[a-z0-9][a-z0-9._-]{0,63}")
_LINKED: Final = Decider("person", "webhook")
"""Who answers by a token of the message. Where several people must approve, none of them is."""

_FOREIGN: Final = "The form is not from this session: go back, reload the page, and try again."

_Page = Callable[[Request, str, str], Awaitable[Response]]
"""Answers a request of a person who has logged in, with the token of that person's forms."""


class ApprovalSite:
    """The pages of one wallet's approvals. `routes` goes to the owner's port."""

    def __init__(
        self,
        approvals: Approvals,
        transact: Transact,
        people: Mapping[str, Access],
        *,
        tokens: AnswerTokens | None = None,
        now: Callable[[], float] = time.time,
        cookie: str = "mpp-session-wallet",
    ) -> None:
        """Show the questions of `approvals`.

        Args:
            approvals: The records.
            transact: Runs a change on them.
            people: Who may log in, by name: each with a token of their own.
            tokens: Checks the tokens of messages; None if no messages are sent.
            now: The time, Unix seconds.
            cookie: Its name. Cookies do not tell ports apart, and a machine may have two wallets.

        Raises:
            ConfigError: A name cannot stand in a cookie.
        """
        for name in people:
            if not _PERSON.fullmatch(name):
                raise ConfigError(
                    f"expected a name of lower-case letters, digits, . _ and -, found {name!r}"
                )
        self._approvals = approvals
        self._transact = transact
        self._people = people
        self._tokens = tokens
        self._now = now
        self._cookie = cookie

    @property
    def routes(self) -> list[Route]:
        """The pages, for the owner's port."""
        one = "/approvals/{id}"
        return [
            Route("/login", self._login, methods=["GET", "POST"]),
            Route("/logout", self._guard(self._logout), methods=["POST"]),
            Route("/static/{name}", _file),
            Route("/", self._guard(self._list)),
            Route(one, self._guard(self._show)),
            Route(f"{one}/decide", self._decide_by_token, methods=["GET", "POST"]),
            *[
                Route(f"{one}/{verdict}", self._guard(answer), methods=["GET", "POST"])
                for verdict, answer in (("approve", self._approve), ("deny", self._deny))
            ],
        ]

    # Log-in.

    def _guard(self, page: _Page) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            name, _, session = request.cookies.get(self._cookie, "").partition(":")
            access = self._people.get(name)
            if access is None or not access.knows(session):
                return redirect("/login")
            try:
                if request.method == "POST":
                    form = await read_form(request)
                    if not access.is_form(session, form.get("form_token", "")):
                        return _refuse(400, _FOREIGN)
                    request.state.form = form
                return await page(request, name, access.form_token(session))
            except BadRequestError as error:
                return _refuse(error.status, error.detail)
            except (ApprovalError, AgentError) as error:
                return _refuse(409, str(error))

        return guarded

    async def _login(self, request: Request) -> Response:
        names = sorted(self._people)
        if request.method != "POST":
            return send_page(pages.login_page(names))
        try:
            form = await read_form(request)
            name = form.get("name", names[0])
            access = self._people.get(name)
            is_right = access is not None and access.admits(form.get("token", "").strip())
        except BadRequestError as error:
            return send_page(pages.login_page(names, error.detail), error.status)
        except TooManyRequestsError as error:
            page = pages.login_page(names, f"{error.detail} Wait a minute.")
            return send_page(page, error.status, retry_after=str(LOGIN_TRIES_PERIOD_S))
        if access is None or not is_right:
            return send_page(pages.login_page(names, "This is not the token."), 403)
        answer = redirect("/")
        answer.set_cookie(
            self._cookie,
            f"{name}:{access.begin()}",
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            path="/",
        )
        return answer

    async def _logout(self, _request: Request, _name: str, _form_token: str) -> Response:
        answer = redirect("/login")
        answer.delete_cookie(self._cookie, path="/", httponly=True, samesite="strict")
        return answer

    # Pages.

    async def _list(self, _request: Request, _name: str, form_token: str) -> Response:
        def read(db: Connection) -> tuple[list[Record], list[Record]]:
            self._approvals.expire(db, self._now())
            return self._approvals.pending(db), self._approvals.recent(db, _SHOWN)

        pending, recent = await self._transact(read)
        known = {record.id for record in pending}
        ended = [record for record in recent if record.id not in known]
        return send_page(pages.list_page(pending, ended, self._approvals.rules, form_token))

    async def _show(self, request: Request, _name: str, _form_token: str) -> Response:
        record = await self._get(request)
        return send_page(pages.record_page(record, self._approvals.rules))

    async def _approve(self, request: Request, name: str, form_token: str) -> Response:
        return await self._answer(request, name, form_token, "approve")

    async def _deny(self, request: Request, name: str, form_token: str) -> Response:
        return await self._answer(request, name, form_token, "deny")

    async def _answer(
        self, request: Request, name: str, form_token: str, verdict: pages.Verdict
    ) -> Response:
        record = await self._get(request)
        fault = ""
        if request.method == "POST":
            try:
                form: dict[str, str] = request.state.form
                await self._decide(record, Decider("person", name), verdict, form)
                return redirect("/")
            except (ApprovalError, ConfigError) as error:
                fault = str(error)
        page = pages.answer_page(
            record,
            verdict,
            self._approvals.rules,
            action=f"/approvals/{record.id}/{verdict}",
            hidden={"form_token": form_token},
            has_scope=True,
            fault=fault,
        )
        return send_page(page, 409 if fault else 200)

    async def _decide_by_token(self, request: Request) -> Response:
        """Take the answer of a message: a GET asks to confirm it, a POST gives it."""
        is_program = "json" in request.headers.get("content-type", "")
        try:
            given = await _read_answer(request)
            record = await self._get(request)
            verdict = _verdict(given)
            token = given.get("token", "")
            digest = self._require_token(record, verdict, token)
            if request.method != "POST":
                page = pages.answer_page(
                    record,
                    verdict,
                    self._approvals.rules,
                    action=request.url.path,
                    hidden={"token": token},
                    has_scope=False,
                )
                return send_page(page)
            given.pop("scope", None)  # a message's answer is for the one payment that it shows
            done = await self._decide(record, _LINKED, verdict, given, digest)
        except (ApprovalError, ConfigError, AgentError) as error:
            return _told(is_program, 409, str(error))
        except BadRequestError as error:
            return _told(is_program, error.status, error.detail)
        if is_program:
            return _json(200, {"id": done.id, "state": done.state})
        return send_page(pages.done_page(done, self._approvals.rules))

    def _require_token(self, record: Record, verdict: str, token: str) -> bytes:
        if self._tokens is None:
            raise ApprovalError("This wallet sends no messages, so it takes no answers to them.")
        if verdict == "approve" and self._approvals.rules.quorum > 1:
            raise ApprovalError(
                "Several people must approve this: each logs in, since a token names no person."
            )
        return self._tokens.require(record, verdict, token, self._now())

    async def _get(self, request: Request) -> Record:
        name = request.path_params["id"]
        return await self._transact(lambda db: self._approvals.get(db, name))

    async def _decide(
        self,
        record: Record,
        by: Decider,
        verdict: Literal["approve", "deny"],
        form: Mapping[str, str],
        token: bytes | None = None,
    ) -> Record:
        question = record.question
        unit = self._approvals.rules.unit(question.chain_id, question.token)
        text = form.get("amount") if verdict == "approve" else None
        amount = None if text is None else parse_money(text.strip(), unit)
        scope = _scope(form.get("scope", "once"))

        def change(db: Connection) -> Record:
            now = self._now()
            if token is not None and not self._approvals.take_token(db, token, now):
                raise ApprovalError("The token was used already.")
            return self._approvals.decide(
                db,
                record.id,
                by=by,
                verdict=verdict,
                amount=amount,
                scope=scope,
                comment=form.get("comment", ""),
                now=now,
            )

        return await self._transact(change)


async def _file(request: Request) -> Response:
    """Return a style or an icon: they say nothing about the wallet."""
    found = FILES.get(request.path_params["name"])
    if found is None:
        return _refuse(404, "There is no such file.")
    content, kind = found
    return Response(content, 200, HEADERS, kind)


async def _read_answer(request: Request) -> dict[str, str]:
    if request.method != "POST":
        return dict(request.query_params)
    if "json" not in request.headers.get("content-type", ""):
        return await read_form(request)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES_MAX:
            raise BadRequestError(f"Expected at most {FORM_BYTES_MAX} bytes.")
    try:
        return msgspec.json.decode(body, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise BadRequestError(f"Expected a JSON object of texts: {error}.") from None


def _verdict(given: Mapping[str, str]) -> Literal["approve", "deny"]:
    found = given.get("verdict")
    if found == "approve":
        return "approve"
    if found == "deny":
        return "deny"
    raise BadRequestError("Expected `verdict` as approve or deny.")


def _scope(text: str) -> Scope:
    for scope in SCOPES:
        if text == scope:
            return scope
    raise BadRequestError(f"Expected `scope` as one of {', '.join(SCOPES)}.")


def _refuse(status: int, text: str) -> Response:
    return send_page(pages.message_page("Not done", text), status)


def _told(is_program: bool, status: int, text: str) -> Response:  # noqa: FBT001 - one of two forms
    return _json(status, {"detail": text}) if is_program else _refuse(status, text)


def _json(status: int, value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), status, HEADERS, "application/json")
