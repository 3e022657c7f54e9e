"""What approvals add to the wallet's process: orders of its owner, pages, messages, waiting agents.

The owner's door has checked who calls before a route here is asked, and so has the agents' door.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from sqlite3 import Connection
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from channel.errors import WireError
from channel.limits import FORM_BYTES_MAX
from channel.tariff import parse_money
from mpp_session.admin.app import build_admin
from mpp_session.admin.serve import serve_admin
from mpp_session.agent.wallet_wire import ApprovalAnswer, ApprovalState, ShownApproval
from mpp_session.dashboard.access import Access
from mpp_session.wallet.approvals.record import ApprovalError, Decider, Record, State
from mpp_session.wallet.approvals.rules import ApprovalRules
from mpp_session.wallet.approvals.shown import headline, lines
from mpp_session.wallet.approvals.site import ApprovalSite
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.approvals.tokens import AnswerTokens
from mpp_session.wallet.approvals.webhook import Announcer, Transact, Webhook
from mpp_session.wallet.server.forwarding import read_body
from mpp_session.wallet.server.owner_door import as_endpoint

__all__ = ["OWNER", "ApprovalInbox", "show"]

T = TypeVar("T")
OWNER: Final = Decider("person", "owner")
_SHOWN: Final = 100


def show(record: Record, rules: ApprovalRules) -> ShownApproval:
    """Return a record as programs and the command line read it."""
    shown = lines(record, rules)
    return ShownApproval(
        id=record.id,
        state=record.state,
        question=headline(record.question, rules),
        agent=record.question.agent,
        amount=record.question.amount,
        approved=record.approved,
        used=record.used,
        scope=record.scope,
        expires_at=record.expires_at,
        facts=[(line.name, line.text) for line in shown if not line.is_agents],
        untrusted=[(line.name, line.text) for line in shown if line.is_agents],
    )


class ApprovalInbox:
    """The approvals of a wallet that runs."""

    def __init__(
        self,
        approvals: Approvals,
        transact: Transact,
        *,
        webhook: Webhook | None = None,
        page: socket.socket | None = None,
        people: Mapping[str, Access] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Add the approvals of `transact`'s file to a process.

        Args:
            approvals: The records, which the books' guard uses too.
            transact: Runs a change on them.
            webhook: Where new questions are announced.
            page: A socket of this machine for the pages; None serves none. The caller closes it.
            people: Who may log in to the pages.
            now: The time, Unix seconds.
        """
        self._approvals = approvals
        self._file = transact
        self._webhook = webhook
        self._page = page
        self._people = people or {}
        self._now = now
        self._changed = asyncio.Event()

    # What the process asks.

    def owner_routes(self) -> Sequence[BaseRoute]:
        """Return the owner's orders: list, look at one, answer one."""
        return [
            Route("/approvals", as_endpoint(self._list), methods=["GET"]),
            Route("/approvals/{id}", as_endpoint(self._show), methods=["GET"]),
            Route("/approvals/{id}", as_endpoint(self._order), methods=["POST"]),
        ]

    def background(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Return what runs beside the doors."""
        announcer = Announcer(
            self._approvals, self.transact, self._webhook, page_url=self.page_url, now=self._now
        )
        work: dict[str, Coroutine[Any, Any, None]] = {"announcing approvals": announcer.run()}
        if self._page is not None:
            secret = None if self._webhook is None else self._webhook.secret
            site = ApprovalSite(
                self._approvals,
                self.transact,
                self._people,
                tokens=None if secret is None else AnswerTokens(secret),
                now=self._now,
                cookie=f"mpp-session-wallet-{self.page_port}",
            )
            work["serving the approvals' pages"] = serve_admin(self._page, build_admin(site.routes))
        return work

    @property
    def page_port(self) -> int | None:
        """The port of the pages."""
        return None if self._page is None else int(self._page.getsockname()[1])

    @property
    def page_url(self) -> str:
        """Where the pages are, without a slash at the end; empty if there are none."""
        if self._page is None:
            return ""
        host, port = self._page.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def transact(self, change: Callable[[Connection], T], /) -> T:
        """Run a change, and wake those who wait for one."""
        result = await self._file(change)
        self._changed.set()
        self._changed = asyncio.Event()
        return result

    # What agents ask.

    async def state(self, agent: str, approval_id: str, *, wait_s: float) -> ApprovalState | None:
        """Return the state of an agent's own question; None if it asked none of this id.

        Waits at most `wait_s` for an answer while the question is pending.
        """
        until = asyncio.get_running_loop().time() + wait_s
        while True:
            changed = self._changed
            record = await self._find(approval_id)
            if record is None or record.question.agent != agent:
                return None
            left_s = until - asyncio.get_running_loop().time()
            open_s = record.expires_at - self._now()
            if record.state == State.PENDING and open_s <= 0:
                await self.transact(lambda db: self._approvals.expire(db, self._now()))
                continue
            if record.state != State.PENDING or left_s <= 0:
                return ApprovalState(
                    id=record.id,
                    state=record.state,
                    expires_at=record.expires_at,
                    comment=record.comment,
                )
            try:
                async with asyncio.timeout(min(left_s, open_s)):
                    await changed.wait()
            except TimeoutError:
                continue

    async def supervised(self, agent: str) -> list[ShownApproval]:
        """Return the questions that wait and that this agent may answer for others."""
        supervisor = self._approvals.rules.supervisors.get(agent)
        if supervisor is None:
            return []
        waiting = await self._file(self._approvals.pending)
        return [
            show(record, self._approvals.rules)
            for record in waiting
            if record.question.agent in supervisor.may_approve
        ]

    async def answer_as(
        self, agent: str, approval_id: str, answer: ApprovalAnswer
    ) -> ShownApproval:
        """Give an agent's answer, or take back its own question."""
        return await self.answer(Decider("agent", agent), approval_id, answer)

    async def answer(self, by: Decider, approval_id: str, answer: ApprovalAnswer) -> ShownApproval:
        """Give one answer, or withdraw a question or an approval.

        Raises:
            ApprovalError: It does not count.
            ConfigError: The amount cannot be read.
        """

        def change(db: Connection) -> Record:
            if answer.verdict == "withdraw":
                return self._approvals.withdraw(db, approval_id, by=by, now=self._now())
            return self._approvals.decide(
                db,
                approval_id,
                by=by,
                verdict=answer.verdict,
                amount=self._amount(self._approvals.get(db, approval_id), answer.amount),
                scope=answer.scope,
                comment=answer.comment,
                now=self._now(),
            )

        return show(await self.transact(change), self._approvals.rules)

    def _amount(self, record: Record, text: str | None) -> int | None:
        question = record.question
        unit = self._approvals.rules.unit(question.chain_id, question.token)
        return None if text is None else parse_money(text, unit)

    async def _find(self, approval_id: str) -> Record | None:
        try:
            return await self._file(lambda db: self._approvals.get(db, approval_id))
        except ApprovalError:
            return None

    # Orders of the owner.

    async def _list(self, request: Request) -> object:
        def read(db: Connection) -> list[Record]:
            self._approvals.expire(db, self._now())
            if request.query_params.get("all"):
                return self._approvals.recent(db, _SHOWN)
            return self._approvals.pending(db)

        found = await self.transact(read)
        return [show(record, self._approvals.rules) for record in found]

    async def _show(self, request: Request) -> object:
        name = request.path_params["id"]
        record = await self._file(lambda db: self._approvals.get(db, name))
        return show(record, self._approvals.rules)

    async def _order(self, request: Request) -> object:
        raw = await read_body(request.receive, FORM_BYTES_MAX)
        try:
            answer = msgspec.json.decode(raw or b"{}", type=ApprovalAnswer)
        except msgspec.MsgspecError as error:
            raise WireError(f"the answer cannot be read: {error}") from error
        return await self.answer(OWNER, request.path_params["id"], answer)
