"""What an agent may ask its wallet about itself: channels, quotes, budgets, approvals."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from channel.errors import ChannelUnusableError, WireError
from channel.limits import WALLET_QUESTION_BYTES_MAX, WALLET_WAIT_S_MAX
from channel.types import ChannelId
from mpp_session.agent.client import PayingClient
from mpp_session.agent.wallet_wire import (
    APPROVALS,
    BUDGETS,
    FAILURES,
    PAYMENTS,
    ApprovalAnswer,
    BudgetLeft,
    QuoteRequest,
    Which,
    hide_credential,
    pack_channel,
)
from mpp_session.wallet.server.answers import answer_json
from mpp_session.wallet.server.forwarding import Forwarder, read_body
from mpp_session.wallet.server.outgoing import passed_fields
from mpp_session.wallet.server.parts import ApprovalQuestions, unknown_approval
from mpp_session.wallet.server.running_agent import RunningAgent

__all__ = ["Questions"]

_CHANNEL_ID_BYTES: Final = 32

_Value = TypeVar("_Value")
_Handler = Callable[[RunningAgent, Request], Awaitable[object]]


class Questions:
    """Answers every agent about its own payments, and about nothing else."""

    def __init__(
        self,
        forwarder: Forwarder,
        budgets: Callable[[str], Awaitable[list[BudgetLeft]]],
        approvals: ApprovalQuestions,
    ) -> None:
        self._forwarder = forwarder
        self._budgets_of = budgets
        self._approvals = approvals
        self._exact: Mapping[tuple[str, str], _Handler] = {
            ("GET", f"{PAYMENTS}/channels"): self._channels,
            ("GET", f"{PAYMENTS}/charges"): self._charges,
            ("GET", f"{PAYMENTS}/summary"): self._summary,
            ("POST", f"{PAYMENTS}/quote"): self._quote,
            ("POST", f"{PAYMENTS}/close"): self._close,
            ("POST", f"{PAYMENTS}/request-close"): self._request_close,
            ("POST", f"{PAYMENTS}/withdraw"): self._withdraw,
            ("POST", f"{PAYMENTS}/opening"): self._opening,
            ("GET", BUDGETS): self._budgets,
            ("GET", APPROVALS): self._supervised,
        }
        self._below: Mapping[tuple[str, str], _Handler] = {
            ("GET", APPROVALS): self._approval,
            ("POST", APPROVALS): self._answer_question,
            ("GET", FAILURES): self._failure,
        }

    async def answer(self, agent: RunningAgent, request: Request) -> Response | None:
        """Return the answer; None where there is no such question.

        Raises:
            MppSessionError: What was asked for cannot be done.
            httpx.RequestError: A server that it needs cannot be reached.
        """
        path = request.url.path
        handler = self._exact.get((request.method, path))
        if handler is None:
            parent, _, last = path.rpartition("/")
            handler = self._below.get((request.method, parent)) if last else None
        return None if handler is None else answer_json(await handler(agent, request))

    async def _channels(self, agent: RunningAgent, _: Request) -> object:
        return [pack_channel(one) for one in await agent.store.records()]

    async def _charges(self, agent: RunningAgent, _: Request) -> object:
        return [hide_credential(one) for one in await agent.store.charges()]

    async def _summary(self, agent: RunningAgent, _: Request) -> object:
        return await agent.run(lambda client: client.payments.summary())

    async def _quote(self, agent: RunningAgent, request: Request) -> object:
        asked = await _read(request, QuoteRequest)
        url = self._forwarder.target(asked.url)
        try:
            raw = [
                (name.encode("latin-1"), value.encode("latin-1")) for name, value in asked.headers
            ]
            fields = [pair for pair in passed_fields(raw) if pair[0] != "content-length"]
            made = httpx.Request(asked.method, url, headers=fields, content=asked.content or None)
        except ValueError as error:
            raise WireError(f"the request cannot be made: {error}") from error
        await self._forwarder.admit(agent.name, made)
        return await agent.run(lambda client: client.payments.quote(made))

    async def _close(self, agent: RunningAgent, request: Request) -> object:
        asked = await _read(request, Which)
        which = _channel_id(asked) if asked.url is None and asked.channel_id else asked.url
        try:
            closed = await agent.run(lambda client: client.payments.close(which))
        except httpx.InvalidURL as error:
            raise WireError(f"expected a server's URL: {error}") from error
        return [pack_channel(one) for one in closed]

    async def _request_close(self, agent: RunningAgent, request: Request) -> object:
        which = _channel_id(await _read(request, Which))
        return pack_channel(await agent.run(lambda client: client.payments.request_close(which)))

    async def _withdraw(self, agent: RunningAgent, request: Request) -> object:
        which = _channel_id(await _read(request, Which))
        return pack_channel(await agent.run(lambda client: client.payments.withdraw(which)))

    async def _opening(self, agent: RunningAgent, request: Request) -> object:
        which = _channel_id(await _read(request, Which))

        async def find(client: PayingClient) -> object:
            return await client.payments.find_opening(which)

        return await agent.run(find)

    async def _budgets(self, agent: RunningAgent, _: Request) -> object:
        return await self._budgets_of(agent.name)

    async def _approval(self, agent: RunningAgent, request: Request) -> object:
        approval_id = request.url.path.rpartition("/")[2]
        asked = request.query_params.get("wait", "0")
        is_number = asked.isascii() and asked.isdigit() and len(asked) <= 6  # noqa: PLR2004
        wait_s = min(int(asked), WALLET_WAIT_S_MAX) if is_number else 0
        found = await self._approvals.state(agent.name, approval_id, wait_s=wait_s)
        if found is None:
            raise unknown_approval(approval_id)
        return found

    async def _supervised(self, agent: RunningAgent, _: Request) -> object:
        return await self._approvals.supervised(agent.name)

    async def _answer_question(self, agent: RunningAgent, request: Request) -> object:
        answer = await _read(request, ApprovalAnswer)
        approval_id = request.url.path.rpartition("/")[2]
        return await self._approvals.answer_as(agent.name, approval_id, answer)

    async def _failure(self, agent: RunningAgent, request: Request) -> object:
        return agent.failure(request.url.path.rpartition("/")[2])


async def _read(request: Request, kind: type[_Value]) -> _Value:
    """Return a question's body.

    Raises:
        WireError: It is too long, or cannot be read.
    """
    raw = await read_body(request.receive, WALLET_QUESTION_BYTES_MAX)
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise WireError(f"the question cannot be read: {error}") from error


def _channel_id(asked: Which) -> ChannelId:
    found = asked.channel_id
    if found is None or len(found) != _CHANNEL_ID_BYTES:
        raise ChannelUnusableError("expected a channel's id of 32 bytes")
    return found
