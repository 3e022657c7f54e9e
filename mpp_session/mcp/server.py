"""Sells the tools, resources and prompts of an MCP server.

    paid = sell_tools({"search": Price(unit_price=250, unit_type="request")})
    server = MCPServer("search", middleware=[paid], lifespan=paid.lifespan)

A priced request becomes a request to the payment gate, with the rest of the server as the gate's
application. So the order of the steps, the ledger, reservations, idempotency, bounds and hooks are
those of HTTP; only the names differ:

    _meta["org.paymentauth/credential"]     Authorization
    _meta["mpp-session/idempotency-key"]    Idempotency-Key
    _meta["org.paymentauth/receipt"]        Payment-Receipt
    error -32042 with `challenges`          402 with WWW-Authenticate

A result with `isError`, an exception and a cancelled call are answers without success: what was
reserved is given back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from channel.errors import ConfigError, WireError
from channel.http import Price, Route
from channel.http.asgi import ASGIApp, Headers, Message, Receive, Scope, Send
from channel.http.hooks import Hooks
from channel.http.metering import METER, Meter
from channel.wire.challenge import PAYMENT_AUTHORIZATION, parse_challenges
from channel.wire.problem import parse_problem
from mpp_session.mcp.lifespan import SharedLifespan
from mpp_session.mcp.operations import MEMBERS, METHOD, Operation, Operations, list_operations
from mpp_session.mcp.wire import (
    CAPABILITY,
    CREDENTIAL,
    IDEMPOTENCY_KEY,
    MANAGEMENT,
    PAYMENT_REQUIRED_CODE,
    RECEIPT,
    VERIFICATION_FAILED_CODE,
    challenge_object,
    format_credential_header,
    receipt_object,
)
from mpp_session.selling import sell

__all__ = ["PaidOperations", "current_meter", "sell_tools"]

_CALL: Final = "mpp_session.mcp.call"
"""The scope's entry with the call that the gate's application runs."""
_HANDLED: Final = (b"x-mcp", b"handled")
"""Marks an answer of the server itself, which the gate passes on."""
_NOT_DELIVERED: Final = 422
_INTERIM: Final = 428
_SERVER_ERROR: Final = 500
_PAYMENT_REQUIRED: Final = 402
_DESCRIBED: Final = frozenset({"initialize", "server/discover"})
_METER: ContextVar[Meter | None] = ContextVar("mpp_session.mcp.meter", default=None)

_Gate = Callable[[ASGIApp, Sequence[Route]], ASGIApp]


def sell_tools(
    tools: Mapping[str, Price] | None = None,
    *,
    resources: Mapping[str, Price] | None = None,
    prompts: Mapping[str, Price] | None = None,
    metered: Collection[str] = (),
    config: Path | str | None = None,
    devnet: Path | str | None = None,
    hooks: Hooks | None = None,
) -> "PaidOperations":
    """Return middleware that sells operations of an MCP server.

    Args:
        tools: The price of one call, by the tool's name. Operations without a price are free.
        resources: The price of one reading, by URI or by the template that the server registers.
        prompts: The price by the prompt's name.
        metered: Tools that count their own units; see `current_meter`.
        config: As for `mpp_session.sell`.
        devnet: As for `mpp_session.sell`.
        hooks: As for `mpp_session.sell`.

    Raises:
        ConfigError: Nothing has a price, or a price or template cannot be read.
    """
    return PaidOperations(
        list_operations(tools or {}, resources or {}, prompts or {}, metered),
        lambda app, routes: sell(app, routes, config=config, devnet=devnet, hooks=hooks),
    )


def current_meter() -> Meter:
    """Return the meter of the running call of a metered tool.

    Raises:
        ConfigError: No metered tool is running.
    """
    meter = _METER.get()
    if meter is None:
        raise ConfigError("no metered tool is running: name it in `metered`")
    return meter


class PaidOperations:
    """Middleware of an MCP server: `MCPServer(..., middleware=[paid], lifespan=paid.lifespan)`.

    Serves both protocol revisions, 2025-11-25 and 2026-07-28, on every transport. It runs under
    asyncio.
    """

    def __init__(self, operations: Sequence[Operation], gate: _Gate) -> None:
        """Build the gate around the server's own handlers.

        Args:
            operations: What has a price.
            gate: Returns a `PaymentGate`, or an application around one, for an application and its
                routes.

        Raises:
            ConfigError: See `Operations` and `RouteTable`.
        """
        self._operations = Operations(operations)
        self._gate = gate(_run_call, [one.route for one in operations])
        self._lifespan = SharedLifespan(self._gate)

    @asynccontextmanager
    async def lifespan(self, _: object = None) -> AsyncIterator[dict[str, Any]]:
        """Keep ledger and chain open while a server runs. Without it the first call opens them.

        Raises:
            CommandError: A check fails at the start; see `mpp_session.sell`.
        """
        async with self._lifespan.running():
            yield {}

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Handle one message of a client.

        Raises:
            MCPError: The call is not paid for, or the server's handler raised it.
        """
        if ctx.method in _DESCRIBED:
            return _advertise(await call_next(ctx))
        params = ctx.params or {}
        try:
            operation = self._operations.find(ctx.method, params)
        except ValueError as error:
            raise MCPError(INVALID_PARAMS, "Invalid params", {"detail": str(error)}) from None
        call = _Call(ctx, call_next)
        if operation is None:
            if call.is_management:
                raise MCPError(INVALID_PARAMS, "Invalid params", {"detail": "it has no price"})
            return await call_next(ctx)
        if ctx.request_id is None:
            return None  # a notification: there is nothing to answer with (MCP-08)
        if "task" in params:
            raise MCPError(
                INVALID_PARAMS,
                "Invalid params",
                {"detail": "a priced operation does not run as a task: call it without `task`"},
            )
        return await self._sell(operation, call)

    async def _sell(self, operation: Operation, call: "_Call") -> dict[str, Any]:
        fields = _read_meta(call.meta)
        answer = await self._exchange(operation, call, fields)
        if answer.status == 200:  # noqa: PLR2004
            return _deliver(operation, call, answer)
        if answer.is_handled and call.result is not None:
            return call.result
        has_paid = bool(fields)
        error = _read_refusal(answer, has_paid=has_paid)
        if error.code == VERIFICATION_FAILED_CODE and not error.data["challenges"]:
            fresh = await self._exchange(operation, call, [])
            error.data["challenges"] = _read_challenges(fresh)
        raise error

    async def _exchange(self, operation: Operation, call: "_Call", fields: Headers) -> "_Answer":
        """Send the call through the gate as a request of HTTP.

        The gate runs in a task of its own: anyio repeats a cancellation at every `await` inside the
        cancelled scope, and then no reservation could be given back.
        """
        answer = _Answer()
        scope = _build_scope(operation, call, fields)
        receive = _Body(call.content)
        exchange = asyncio.ensure_future(self._gate(scope, receive, answer.send))
        try:
            await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({exchange})
            raise
        return answer


class _Call:
    """One request of a client, and the result of its handler."""

    def __init__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> None:
        self.ctx = ctx
        self.call_next = call_next
        self.result: dict[str, Any] | None = None

    @property
    def meta(self) -> Mapping[str, Any]:
        """The request's `_meta`."""
        meta = (self.ctx.params or {}).get("_meta")
        return meta if isinstance(meta, Mapping) else {}

    @property
    def is_management(self) -> bool:
        """Whether the request manages a channel and must run nothing."""
        return self.ctx.method in MEMBERS and self.meta.get(MANAGEMENT) is True

    @property
    def content(self) -> bytes:
        """What the caller asks for: an idempotency key belongs to one such text.

        A body of no length makes a credential manage its channel (RESP-02).
        """
        if self.is_management:
            return b""
        params = {name: one for name, one in (self.ctx.params or {}).items() if name != "_meta"}
        return msgspec.json.encode(params, order="deterministic")


async def _run_call(scope: Scope, _: Receive, send: Send) -> None:
    """Run the server's handler as the gate's application."""
    if scope["type"] != "http":
        return
    call: _Call = scope[_CALL]
    meter: Meter | None = scope.get(METER)
    token = _METER.set(meter)
    try:
        result = await call.call_next(call.ctx)
    finally:
        _METER.reset(token)
    if not isinstance(result, dict):
        raise MCPError(INTERNAL_ERROR, "A priced operation returned no result")
    call.result = result
    body = msgspec.json.encode(result)
    headers = [_HANDLED, (b"content-length", str(len(body)).encode("ascii"))]
    status = _status_of(call.ctx.method, result, meter)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _status_of(method: str, result: Mapping[str, Any], meter: Meter | None) -> int:
    """Return the status by which the gate knows whether something was delivered.

    Raises:
        MCPError: The result is a promise of another one, such as a task's, which would be unpaid.
    """
    if result.get("isError"):
        # A server error lets the gate answer for a meter that refused, such as for a low voucher.
        has_refused = meter is not None and meter.refusal is not None
        return _SERVER_ERROR if has_refused else _NOT_DELIVERED
    if result.get("resultType") == "input_required":
        return _INTERIM
    if MEMBERS[method] not in result:
        raise MCPError(INTERNAL_ERROR, "A priced operation must answer with its content")
    return 200


class _Body:
    """The body of one request, and then silence: a call ends by its task's cancellation."""

    def __init__(self, content: bytes) -> None:
        self._ahead = [{"type": "http.request", "body": content, "more_body": False}]

    async def __call__(self) -> Message:
        if not self._ahead:
            await asyncio.Event().wait()
        return self._ahead.pop()


class _Answer:
    """An answer of the gate."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self._headers: Headers = ()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = [*message.get("headers", ())]
        else:
            self.body += message.get("body", b"")

    @property
    def is_handled(self) -> bool:
        return _HANDLED in self._headers

    def values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self._headers if key == name]

    def value(self, name: bytes) -> str | None:
        return next(iter(self.values(name)), None)


def _build_scope(operation: Operation, call: _Call, fields: Headers) -> Scope:
    client = getattr(call.ctx.request, "client", None)
    length = str(len(call.content)).encode("ascii")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": METHOD,
        "scheme": "https",
        "path": operation.path,
        "raw_path": operation.path.encode("ascii"),
        "query_string": b"",
        "root_path": "",
        "headers": [*fields, (b"content-length", length)],
        "client": None if client is None else (client[0], client[1]),
        "server": None,
        _CALL: call,
    }


def _read_meta(meta: Mapping[str, Any]) -> Headers:
    """Return a request's credential and key as fields of HTTP; none without a credential.

    Raises:
        MCPError: They are malformed (-32602).
    """
    if CREDENTIAL not in meta:
        return []
    key = meta.get(IDEMPOTENCY_KEY)
    try:
        credential = format_credential_header(meta[CREDENTIAL]).encode("latin-1")
    except WireError as error:
        detail = f"_meta[{CREDENTIAL!r}]: {error}"
        raise MCPError(INVALID_PARAMS, "Invalid params", {"detail": detail}) from None
    if key is not None and not (isinstance(key, str) and key.isascii()):
        detail = f"_meta[{IDEMPOTENCY_KEY!r}]: not a string of ASCII"
        raise MCPError(INVALID_PARAMS, "Invalid params", {"detail": detail})
    field = _field_of(meta[CREDENTIAL])
    fields = [(field, credential)]
    if key is not None:
        fields.append((b"idempotency-key", key.encode("ascii")))
    return fields


def _field_of(credential: Mapping[str, Any]) -> bytes:
    """Return the field that the echoed challenge selects: the gate refuses another one."""
    selected = credential["challenge"].get("header")
    name = PAYMENT_AUTHORIZATION if selected == PAYMENT_AUTHORIZATION else "Authorization"
    return name.lower().encode("ascii")


def _deliver(operation: Operation, call: _Call, answer: _Answer) -> dict[str, Any]:
    """Return a paid result with its receipt: this call's, an earlier one's, or an empty one."""
    if call.result is not None:
        result = call.result
    elif answer.body:
        result = msgspec.json.decode(answer.body)
    else:  # a top-up or a close, which runs nothing (MCP-13)
        result = {MEMBERS[operation.method]: []}
        if call.ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            result["resultType"] = "complete"
    if "cacheScope" in result:
        result = {**result, "cacheScope": "private"}  # a shared cache would serve it unpaid
    receipt = answer.value(b"payment-receipt")
    if receipt is None:
        raise MCPError(INTERNAL_ERROR, "The receipt is missing")
    meta = {**(result.get("_meta") or {}), RECEIPT: receipt_object(receipt)}
    return {**result, "_meta": meta}


def _read_refusal(answer: _Answer, *, has_paid: bool) -> MCPError:
    """Return the JSON-RPC error for a refusal of the gate (MCP-01, MCP-06)."""
    problem = parse_problem(answer.body)
    data: dict[str, Any] = {"httpStatus": answer.status}
    if problem is not None:
        data["problem"] = msgspec.json.decode(answer.body)
    retry_after = answer.value(b"retry-after")
    if retry_after is not None:
        data["retryAfter"] = int(retry_after)
    reason = "" if problem is None else problem.type
    detail = "" if problem is None else problem.detail
    if answer.status >= _SERVER_ERROR:
        return MCPError(INTERNAL_ERROR, "Internal payment error", data)
    if answer.status == _PAYMENT_REQUIRED and not has_paid:
        data["challenges"] = _read_challenges(answer)
        return MCPError(PAYMENT_REQUIRED_CODE, "Payment Required", data)
    if reason in ("malformed-credential", "bad-request"):
        return MCPError(INVALID_PARAMS, "Invalid params", {**data, "detail": detail})
    data["challenges"] = _read_challenges(answer)
    data["failure"] = {"reason": reason, "detail": detail}
    return MCPError(VERIFICATION_FAILED_CODE, "Payment Verification Failed", data)


def _read_challenges(answer: _Answer) -> list[dict[str, Any]]:
    found = parse_challenges(answer.values(b"www-authenticate"))
    return [challenge_object(challenge) for challenge in found]


def _advertise(result: HandlerResult) -> HandlerResult:
    """Return a server's description with `capabilities.experimental.payment` (MCP-10)."""
    if not isinstance(result, dict) or not isinstance(result.get("capabilities"), dict):
        return result
    capabilities = result["capabilities"]
    experimental = {**(capabilities.get("experimental") or {}), "payment": dict(CAPABILITY)}
    return {**result, "capabilities": {**capabilities, "experimental": experimental}}
