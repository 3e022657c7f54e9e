"""An agent's client whose requests a wallet makes and pays: no key and no voucher is here.

    async with open_client(wallet="unix:/run/wallet/scout/wallet.sock", token=TOKEN) as client:
        answer = await client.get("https://api.example/joke")

The wallet is a process of its own (`mpp-session wallet run`). It sends each request to its target,
pays within its owner's policy, and streams the answer back. Errors are those of a client that pays
by itself.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

import httpx
import msgspec

from channel.client.http.transport import (
    CHARGED,
    IDEMPOTENCY_KEY,
    ORIGIN,
    PayingTransport,
    origin_of,
)
from channel.client.http.websocket import PayingWebSocket
from channel.client.payment.retry import answer_refusal, is_from_sdk
from channel.client.payments import Payments, Summary
from channel.client.policy.context import PURPOSE
from channel.client.policy.quote import Quote
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.errors import AgentError, ConfigError, MppSessionError, WireError
from channel.limits import WALLET_WAIT_S_MAX
from channel.types import ChannelId, TxHash
from mpp_session.agent.client import TIMEOUT_S, PayingClient
from mpp_session.agent.purpose import Purpose, attached_purpose, merge_purpose
from mpp_session.agent.wallet_errors import decode_failure
from mpp_session.agent.wallet_wire import (
    APPROVALS,
    BUDGETS,
    FAILURE,
    FAILURES,
    HOP,
    PAYMENTS,
    PREFIX,
    PURPOSE_FIELD,
    REQUEST,
    TARGET,
    TIMEOUT,
    TOKEN,
    ApprovalAnswer,
    ApprovalState,
    BudgetLeft,
    Hop,
    QuoteRequest,
    ShownApproval,
    WalletAddress,
    WalletProblem,
    Which,
    format_hop,
    format_purpose,
    parse_hop,
    parse_wallet,
    unpack_channel,
)

__all__ = [
    "WalletClient",
    "WalletLine",
    "WalletPayments",
    "WalletTransport",
    "connect_wallet",
    "read_failure",
]

_PENDING: Final = "pending"
_PAYING_S: Final = 300.0
"""Seconds that the wallet may take beside the target: a deposit must be mined, for example."""
_ASK_S: Final = 120.0
"""Seconds for the wallet's answer about channels: a close waits for the server and the chain."""

_Answer = TypeVar("_Answer")


@asynccontextmanager
async def connect_wallet(
    wallet: str,
    *,
    token: str,
    task: str = "",
    on_behalf_of: str = "",
    base_url: str = "",
    timeout_s: float = TIMEOUT_S,
    answers_refusals: bool | None = None,
) -> AsyncIterator["WalletClient"]:
    """Open a client whose requests a wallet pays; arguments as `open_client`.

    A type checker then knows what `client.payments` has besides.

    Raises:
        ConfigError: The address or the token cannot be used.
    """
    line = WalletLine(parse_wallet(wallet), token)
    transport = WalletTransport(
        line,
        default=Purpose(task=task, on_behalf_of=on_behalf_of),
        answers_refusals=answers_refusals,
    )
    async with WalletClient(
        payments=WalletPayments(line), transport=transport, base_url=base_url, timeout=timeout_s
    ) as client:
        yield client


class WalletClient(PayingClient):
    """A `PayingClient` whose requests a wallet makes and pays."""

    payments: "WalletPayments"


class WalletLine:
    """The connection to a wallet, and what it answers."""

    def __init__(self, address: WalletAddress, token: str) -> None:
        if not token or not token.isascii() or not token.isprintable():
            raise ConfigError(
                "expected the agent's token, which `mpp-session wallet agent-add` shows once"
            )
        self.address = address
        self._token = token
        self._inner = httpx.AsyncHTTPTransport(
            uds=address.path, limits=httpx.Limits(max_connections=None)
        )

    def __repr__(self) -> str:
        return f"WalletLine({self.address!r}, token=...)"

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send one request to the wallet, with the agent's token."""
        request.headers[TOKEN] = self._token
        return await self._inner.handle_async_request(request)

    async def ask(
        self, method: str, path: str, kind: type[_Answer], body: object = None
    ) -> _Answer:
        """Ask the wallet something about itself, and return its answer.

        Raises:
            AgentError: What the wallet could not do, or a wallet that speaks another version.
            httpx.TransportError: The wallet cannot be reached.
        """
        content = b"" if body is None else msgspec.json.encode(body)
        request = httpx.Request(
            method,
            f"{self.address.url}{path}",
            content=content,
            extensions={"timeout": httpx.Timeout(_ASK_S).as_dict()},
        )
        response = await self.send(request)
        try:
            raw = await response.aread()
        finally:
            await response.aclose()
        if FAILURE in response.headers:
            raise read_failure(raw, request)
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.MsgspecError as error:
            raise AgentError(
                f"the wallet answers {response.status_code} and something else than expected "
                f"({error}): use the same version of mpp-session on both sides"
            ) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class WalletTransport(PayingTransport):
    """Sends each request to a wallet, which sends it to its target and pays."""

    def __init__(  # has no payer, and so nothing of the transport that pays by itself
        self,
        line: WalletLine,
        *,
        default: Purpose | None = None,
        answers_refusals: bool | None = None,
    ) -> None:
        """Send over `line`; `default` fills what a request's own purpose leaves empty."""
        self._line = line
        self._default = default
        self._answers_refusals = answers_refusals

    def over(self, inner: httpx.AsyncBaseTransport) -> PayingTransport:
        """Not through a wallet, which pays only for what it sends itself.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"a wallet pays only for requests that it sends itself, and not over {inner!r}: for "
            "MCP servers use `mpp-session proxy`, or a client with a key of its own"
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Let the wallet send a request.

        Raises:
            AgentError: The wallet refuses to pay, or paying did not help; see `PayingTransport`.
            httpx.TransportError: The wallet or the target cannot be reached.
        """
        answers = self._answers_refusals
        try:
            return await self._forward(request)
        except MppSessionError as error:
            if is_from_sdk(request) if answers is None else answers:
                return answer_refusal(error)
            raise

    async def aclose(self) -> None:
        """Close the connections to the wallet."""
        await self._line.aclose()

    async def _forward(self, request: httpx.Request) -> httpx.Response:
        sent = httpx.Request(
            request.method,
            f"{self._line.address.url}/",
            headers=_passed(request.headers),
            stream=request.stream,
        )
        patience = dict(request.extensions.get("timeout") or {})
        read_s = patience.get("read")
        if read_s is not None:
            sent.headers[TIMEOUT] = repr(float(read_s))
            patience["read"] = read_s + _PAYING_S
        sent.extensions["timeout"] = patience
        sent.headers["Host"] = "wallet"
        sent.headers[TARGET] = str(request.url.copy_with(fragment=None))
        purpose = merge_purpose(request.extensions.get(PURPOSE), attached_purpose(), self._default)
        if purpose != Purpose():
            sent.headers[PURPOSE_FIELD] = format_purpose(purpose)
        hop = _hop_of(request)
        if hop is not None:
            sent.headers[HOP] = format_hop(hop)
        response = await self._line.send(sent)
        if FAILURE in response.headers:
            try:
                raw = await response.aread()
            finally:
                await response.aclose()
            raise read_failure(raw, request)
        _keep_hop(request, response.headers.get(HOP))
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError("an asynchronous transport answers with asynchronous bodies")
        body = _Body(self._line, stream, response.headers.get(REQUEST, ""), request)
        return httpx.Response(
            response.status_code,
            headers=_passed(response.headers),
            stream=body,
            extensions={k: v for k, v in response.extensions.items() if k != "network_stream"},
        )


class WalletPayments(Payments):
    """The agent's channels in its wallet: what `Payments` does, asked of the wallet."""

    def __init__(self, line: WalletLine) -> None:  # has no payer of its own
        self._line = line

    def over(self, inner: httpx.AsyncBaseTransport) -> Payments:
        """Not through a wallet; see `WalletTransport.over`.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"a wallet manages channels by itself, and not over {inner!r}")

    def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, protocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[PayingWebSocket]:
        """Not through a wallet.

        Raises:
            ConfigError: Always.
        """
        del headers, protocols
        raise ConfigError(
            f"{url}: a wallet pays for requests, and not for the messages of a websocket: open "
            "it by a client with a key of its own"
        )

    async def channels(self) -> list[ChannelRecord]:
        """Return every channel of this agent, oldest first, without signatures."""
        return _channels(await self._line.ask("GET", f"{PAYMENTS}/channels", list[object]))

    async def charges(self) -> list[ChargeRecord]:
        """Return every payment for one request, oldest first, without signatures."""
        return await self._line.ask("GET", f"{PAYMENTS}/charges", list[ChargeRecord])

    async def summary(self) -> list[Summary]:
        """See `Payments.summary`."""
        return await self._line.ask("GET", f"{PAYMENTS}/summary", list[Summary])

    async def quote(self, request: httpx.Request) -> Quote:
        """See `Payments.quote`."""
        asked = QuoteRequest(
            method=request.method,
            url=str(request.url),
            headers=tuple(_passed(request.headers)),
            content=await request.aread(),
        )
        return await self._line.ask("POST", f"{PAYMENTS}/quote", Quote, asked)

    async def close(self, which: ChannelId | str | None = None) -> list[ChannelRecord]:
        """See `Payments.close`."""
        asked = Which(url=which) if isinstance(which, str) else Which(channel_id=which)
        return _channels(await self._line.ask("POST", f"{PAYMENTS}/close", list[object], asked))

    async def request_close(self, which: ChannelId) -> ChannelRecord:
        """See `Payments.request_close`."""
        return await self._ask_of("request-close", which)

    async def withdraw(self, which: ChannelId) -> ChannelRecord:
        """See `Payments.withdraw`."""
        return await self._ask_of("withdraw", which)

    async def find_opening(self, which: ChannelId) -> TxHash | None:
        """See `Payments.find_opening`."""
        asked = Which(channel_id=which)
        found = await self._line.ask("POST", f"{PAYMENTS}/opening", bytes | None, asked)  # type: ignore[arg-type]
        return None if found is None else TxHash(found)

    async def _ask_of(self, what: str, which: ChannelId) -> ChannelRecord:
        asked = Which(channel_id=which)
        found = await self._line.ask("POST", f"{PAYMENTS}/{what}", dict[str, object], asked)
        return _channels([found])[0]

    async def budgets(self) -> list[BudgetLeft]:
        """Return what bounds this agent's payments, and what is used of it."""
        return await self._line.ask("GET", BUDGETS, list[BudgetLeft])

    async def approval(self, approval_id: str, *, wait_s: int = 0) -> ApprovalState:
        """Return the state of a question that a payment of this agent raised.

        `wait_s`: how long the wallet may wait for an answer before it says `pending`.
        """
        path = f"{APPROVALS}/{approval_id}?wait={wait_s}"
        return await self._line.ask("GET", path, ApprovalState)

    async def supervised(self) -> list[ShownApproval]:
        """Return the questions of other agents that wait and that this one may answer."""
        return await self._line.ask("GET", APPROVALS, list[ShownApproval])

    async def answer(self, approval_id: str, answer: ApprovalAnswer) -> ShownApproval:
        """Answer a question of another agent, as `may_approve` of the policy allows.

        `withdraw` takes back a question of this agent's own.

        Raises:
            AgentError: The answer does not count; the question is as it was.
        """
        path = f"{APPROVALS}/{approval_id}"
        return await self._line.ask("POST", path, ShownApproval, answer)

    async def wait_for(self, approval_id: str, *, timeout_s: float = 3600.0) -> ApprovalState:
        """Wait until a question is answered, and return the answer; then send the request again.

        `ApprovalPendingError.approval_id` is the id.

        Raises:
            TimeoutError: No answer came within `timeout_s`.
            AgentError: The wallet knows no such question of this agent.
        """
        until = time.monotonic() + timeout_s
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"approval {approval_id} was not answered in {timeout_s:.0f} s")
            found = await self.approval(approval_id, wait_s=int(min(left, WALLET_WAIT_S_MAX)))
            if found.state != _PENDING:
                return found
            await asyncio.sleep(
                min(left, 0.2)
            )  # a wallet that does not wait is not asked in a loop


class _Body(httpx.AsyncByteStream):
    """An answer's body as the wallet passes it on."""

    def __init__(
        self,
        line: WalletLine,
        stream: httpx.AsyncByteStream,
        request_id: str,
        request: httpx.Request,
    ) -> None:
        self._line = line
        self._stream = stream
        self._request_id = request_id
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it as it comes.

        Raises:
            AgentError: The wallet stopped paying; it says why.
            httpx.TransportError: The connection broke.
        """
        try:
            async for piece in self._stream:
                yield piece
        except (httpx.RemoteProtocolError, httpx.ReadError) as broken:
            failure = await self._ask_why()
            if failure is None:
                raise
            raise failure from broken

    async def aclose(self) -> None:
        """Close the connection; the wallet counts what came."""
        await self._stream.aclose()

    async def _ask_why(self) -> MppSessionError | httpx.RequestError | None:
        """Return why the wallet broke off; None if it does not know, or has gone."""
        with contextlib.suppress(httpx.TransportError, AgentError, WireError):
            path = f"{FAILURES}/{self._request_id}"
            problem = await self._line.ask("GET", path, WalletProblem | None)  # type: ignore[arg-type]
            if problem is not None:
                return decode_failure(problem.failure, request=self._request)
        return None


def read_failure(raw: bytes, request: httpx.Request) -> MppSessionError | httpx.RequestError:
    """Return the error in a wallet's own answer, to be raised."""
    try:
        problem = msgspec.json.decode(raw, type=WalletProblem)
        return decode_failure(problem.failure, request=request)
    except (msgspec.MsgspecError, WireError) as error:
        return AgentError(
            f"the wallet refuses in words that this version does not know ({error}): use the same "
            "version of mpp-session on both sides"
        )


def _channels(packed: list[object]) -> list[ChannelRecord]:
    try:
        return [unpack_channel(one) for one in packed]
    except msgspec.MsgspecError as error:
        raise AgentError(
            f"the wallet's channels cannot be read ({error}): use the same version of mpp-session "
            "on both sides"
        ) from error


def _passed(headers: httpx.Headers) -> list[tuple[str, str]]:
    """Return the fields that pass through a wallet, in either direction."""
    return [
        (name, value)
        for name, value in headers.multi_items()
        if name.lower() != "host" and not name.lower().startswith(PREFIX)
    ]


def _hop_of(request: httpx.Request) -> Hop | None:
    """Return what this request must keep of the one that was redirected to it; None if first."""
    held = request.extensions
    if ORIGIN not in held:
        held[ORIGIN] = origin_of(request.url)
        return None
    return Hop(
        origin=held[ORIGIN], key=held.get(IDEMPOTENCY_KEY, ""), charged=held.get(CHARGED) or b""
    )


def _keep_hop(request: httpx.Request, text: str | None) -> None:
    """Keep what a redirected request must send; httpx copies the extensions to it."""
    if text is None:
        return
    with contextlib.suppress(WireError):
        hop = parse_hop(text)
        request.extensions[IDEMPOTENCY_KEY] = hop.key
        if hop.charged:
            request.extensions[CHARGED] = hop.charged
