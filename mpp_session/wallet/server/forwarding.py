"""Makes an agent's request, pays for it, and streams the answer back as it comes."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from hashlib import sha256
from typing import Any, Final

import httpx
import msgspec
from starlette.types import Message, Receive, Scope, Send

from channel.client.http.transport import CHARGED, IDEMPOTENCY_KEY, ORIGIN, origin_of
from channel.client.policy.context import PURPOSE
from channel.errors import (
    AgentError,
    BudgetExceededError,
    CannotFundError,
    InvariantError,
    MppSessionError,
    OfferRefusedError,
    OverclaimError,
    PaymentRefusedError,
    PolicyRefusedError,
    ReceiptViolationError,
    UnsettledClaimError,
    WireError,
)
from channel.limits import WALLET_BODY_BYTES_MAX
from mpp_session.agent.client import PayingClient
from mpp_session.agent.wallet_wire import (
    HOP,
    PURPOSE_FIELD,
    REQUEST,
    TARGET,
    TIMEOUT,
    Hop,
    format_hop,
    parse_hop,
    parse_purpose,
    parse_timeout,
)
from mpp_session.wallet.server.answers import answer_failure, problem_of
from mpp_session.wallet.server.doors import BREAK_OFF
from mpp_session.wallet.server.outgoing import parse_target, passed_fields, require_one_length
from mpp_session.wallet.server.running_agent import RunningAgent
from mpp_session.wallet.types import Purpose, WalletRequest

__all__ = ["BodyTooLongError", "Ended", "Forwarder", "find_field", "read_body"]

_log: Final = logging.getLogger(__name__)

_ID_BYTES: Final = 12
_REFUSALS: Final = (
    BudgetExceededError,
    CannotFundError,
    OfferRefusedError,
    OverclaimError,
    PolicyRefusedError,
    ReceiptViolationError,
    UnsettledClaimError,
)
"""Why a request is not paid, or not paid any more."""
_CONNECT_S: Final = 30.0
_WRITE_S: Final = 60.0


class BodyTooLongError(WireError):
    """A body is longer than is read."""


class Forwarder:
    """Makes the requests of all agents."""

    def __init__(
        self,
        *,
        allows_loopback: Callable[[], bool],
        own_ports: Collection[int],
        admit: Callable[[str, httpx.Request], Awaitable[None]],
        note_end: Callable[["Ended"], Awaitable[None]],
        note_refusal: Callable[[str, str, httpx.Request | None, AgentError], Awaitable[None]],
    ) -> None:
        """Make requests.

        Args:
            allows_loopback: Whether this machine itself may be a target, by the policy in force.
            own_ports: Where the wallet itself listens.
            admit: Returns if an agent may send a request, by its name; raises why not.
            note_end: Is called with each request that pays nothing more.
            note_refusal: Is called with each refusal: whose it is, the request's id, the request if
                it could be made, and why.
        """
        self._allows_loopback = allows_loopback
        self._own_ports = own_ports
        self._note_end = note_end
        self._note_refusal = note_refusal
        self.admit = admit

    def target(self, text: str) -> httpx.URL:
        """Return the URL that a request is for; see `parse_target`."""
        return parse_target(text, allow_loopback=self._allows_loopback(), own_ports=self._own_ports)

    async def forward(
        self, agent: RunningAgent, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Make one request of an agent, and answer it.

        A failure before the answer's first byte is an answer of the wallet's own. Later the
        connection ends without the answer's end, and the agent asks the wallet why.
        """
        with agent.holding() as hold:
            await self._forward(agent, scope, receive, send, hold)

    async def _forward(
        self,
        agent: RunningAgent,
        scope: Scope,
        receive: Receive,
        send: Send,
        hold: Callable[[int], None],
    ) -> None:
        answer = _Answer(send, secrets.token_urlsafe(_ID_BYTES))
        request: httpx.Request | None = None
        failure: MppSessionError | httpx.RequestError | None = None
        try:
            request = await self._read(agent, scope, receive, answer.request_id, hold)
        except MppSessionError as error:
            failure = error
        if request is not None:
            try:
                failure = await _serve(agent, request, receive, answer)
            finally:
                await self._note_end(_ended(agent, request, answer, failure))
        if failure is None:
            return
        if isinstance(failure, _REFUSALS):
            await self._note_refusal(agent.name, answer.request_id, request, failure)
        if answer.has_begun:
            agent.remember(answer.request_id, problem_of(failure))
            _log.info("an answer to %s broke off: %s", agent.name, failure)
            scope[BREAK_OFF]()
            await _wait_for_leaving(receive)
            return
        status = None
        if isinstance(failure, WireError):
            status = 413 if isinstance(failure, BodyTooLongError) else 400
        await answer_failure(failure, status)(scope, receive, send)

    async def _read(
        self,
        agent: RunningAgent,
        scope: Scope,
        receive: Receive,
        request_id: str,
        hold: Callable[[int], None],
    ) -> httpx.Request | None:
        """Return the request to make; None if the agent left before it was complete.

        Raises:
            ChannelBusyError: The bodies of this agent's requests take too much memory.
            PolicyRefusedError: The agent may not send it.
            WireError: It cannot be read, or made.
        """
        raw = scope["headers"]
        require_one_length(raw)
        url = self.target(find_field(raw, TARGET))
        said = find_field(raw, PURPOSE_FIELD)
        purpose = parse_purpose(said) if said else Purpose()
        read_s = parse_timeout(find_field(raw, TIMEOUT))
        timeout = httpx.Timeout(_WRITE_S, connect=_CONNECT_S, read=read_s)
        extensions: dict[str, object] = {
            "timeout": timeout.as_dict(),
            PURPOSE: WalletRequest(request_id=request_id, purpose=purpose),
        }
        hop = find_field(raw, HOP)
        if hop:
            kept = parse_hop(hop)
            extensions[ORIGIN] = kept.origin
            if kept.key:
                extensions[IDEMPOTENCY_KEY] = kept.key
            if kept.charged:
                extensions[CHARGED] = kept.charged
        body = await read_body(receive, WALLET_BODY_BYTES_MAX, hold)
        if body is None:
            return None
        fields = [pair for pair in passed_fields(raw) if pair[0] != "content-length"]
        try:
            request = httpx.Request(
                scope["method"],
                url,
                headers=fields,
                content=body or None,
                extensions=extensions,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise WireError(f"the request cannot be made: {error}") from error
        await self.admit(agent.name, request)
        return request


class _Answer:
    """The answer to an agent, as far as it was sent."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.has_begun = False
        self.status = 0
        self._send = send

    async def begin(self, response: httpx.Response, request: httpx.Request) -> None:
        """Send the head. The fields between agent and wallet are the wallet's own."""
        held = request.extensions
        hop = Hop(
            origin=str(held.get(ORIGIN) or origin_of(request.url)),
            key=str(held.get(IDEMPOTENCY_KEY) or ""),
            charged=held.get(CHARGED) or b"",
        )
        fields = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in passed_fields(response.headers.raw)
        ]
        own = {REQUEST: self.request_id, HOP: format_hop(hop)}
        fields += [(name.lower().encode(), value.encode()) for name, value in own.items()]
        self.has_begun = True
        self.status = response.status_code
        await self._send(
            {"type": "http.response.start", "status": response.status_code, "headers": fields}
        )

    async def add(self, piece: bytes, *, is_last: bool = False) -> None:
        """Send a piece of the body."""
        body: Message = {"type": "http.response.body", "body": piece, "more_body": not is_last}
        await self._send(body)


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A request that pays nothing more."""

    request_id: str
    agent: str
    origin: str
    digest: bytes
    """Equal for equal requests: of method, URL and body."""
    status: int
    """Of the target's answer; 0 where there was none."""


def _ended(
    agent: RunningAgent,
    request: httpx.Request,
    answer: _Answer,
    failure: MppSessionError | httpx.RequestError | None,
) -> Ended:
    parts = (request.method.encode(), str(request.url).encode(), request.content)
    status = failure.status if isinstance(failure, PaymentRefusedError) else answer.status
    return Ended(
        request_id=answer.request_id,
        agent=agent.name,
        origin=origin_of(request.url),
        digest=sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest(),
        status=status,
    )


async def _serve(
    agent: RunningAgent, request: httpx.Request, receive: Receive, answer: _Answer
) -> MppSessionError | httpx.RequestError | None:
    """Make the request and pass its answer on; return why that did not succeed."""
    try:
        await _while_there(receive, agent.run(lambda client: _pay(client, request, answer)))
    except InvariantError:
        raise
    except (MppSessionError, httpx.RequestError) as error:
        return error
    return None


async def _pay(client: PayingClient, request: httpx.Request, answer: _Answer) -> None:
    """Send a request by the transport that pays, which follows no redirect; pass its answer on.

    Raises:
        MppSessionError: As `PayingTransport`.
        httpx.RequestError: The target cannot be reached, or its answer broke off.
    """
    response = await client.transport.handle_async_request(request)
    try:
        await answer.begin(response, request)
        async for piece in _pieces(response):
            await answer.add(piece)
        await answer.add(b"", is_last=True)
    finally:
        with contextlib.suppress(httpx.TransportError):  # the connection is gone already
            await response.aclose()


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    stream = response.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError("an asynchronous transport answers with asynchronous bodies")
    async for piece in stream:
        if piece:
            yield piece


async def _while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and cancel it when the agent leaves: what came until then is counted."""
    leaving = asyncio.ensure_future(_wait_for_leaving(receive))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait([leaving, working])
    if not working.cancelled():
        working.result()


async def _wait_for_leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(
    receive: Receive, bytes_max: int, hold: Callable[[int], None] = lambda _: None
) -> bytes | None:
    """Return a request's body; None if the client left before its end.

    `hold` is called with the length of each piece, and may refuse it.

    Raises:
        BodyTooLongError: It is longer than `bytes_max`.
    """
    held = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        if len(held) + len(piece) > bytes_max:
            raise BodyTooLongError(f"expected a body of at most {bytes_max} bytes")
        hold(len(piece))
        held += piece
        if not message.get("more_body", False):
            return bytes(held)


def find_field(raw: list[tuple[bytes, bytes]], name: str) -> str:
    """Return the value of a field that a request may have once; empty without one.

    Raises:
        WireError: It has several.
    """
    found = [value for key, value in raw if key.lower() == name.lower().encode()]
    if len(found) > 1:
        raise WireError(f"expected {name} once, found {len(found)}")
    return found[0].decode("latin-1") if found else ""
