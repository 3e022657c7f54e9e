"""Carries what a `PayingTransport` sends to an MCP server: the values of HTTP as plain JSON.

The payer knows requests with header fields, statuses and HEAD. Here a request is one call of an
operation, an error -32042 is a 402, and a receipt in `_meta` is a `Payment-Receipt`. What MCP has
no form for:

    a credential that buys nothing   sent with `MANAGEMENT` to servers that know it
    to other servers                 a top-up and a close run nothing there (MCP-13); an opening is
                                     sent with the call that it pays for, and a voucher alone is not
                                     sent at all
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import httpx
import msgspec
from mcp import Client, MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    REQUEST_TIMEOUT,
    CallToolRequest,
    CallToolRequestParams,
    GetPromptRequest,
    GetPromptRequestParams,
    ReadResourceRequest,
    ReadResourceRequestParams,
    Result,
)
from msgspec.structs import replace
from pydantic import TypeAdapter

from channel.errors import PaymentOutcomeUnknownError, PeerError, WireError
from channel.limits import CHALLENGES_PER_RESPONSE_MAX
from channel.methods.registry import DEFAULT
from channel.wire.challenge import PAYMENT_AUTHORIZATION, format_challenge
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    ClosePayload,
    OpenPayload,
    TopUpPayload,
    VoucherPayload,
)
from channel.wire.problem import PROBLEM_CONTENT_TYPE
from mpp_session.mcp.wire import (
    CREDENTIAL,
    IDEMPOTENCY_KEY,
    MANAGEMENT,
    PAYMENT_REQUIRED,
    PAYMENT_REQUIRED_CODE,
    RECEIPT,
    VERIFICATION_FAILED_CODE,
    credential_object,
    format_receipt_header,
    parse_challenge_object,
)

if TYPE_CHECKING:
    from channel.types import ChannelId

__all__ = ["CALL", "Call", "McpTransport"]

CALL: Final = "mpp_session.mcp.call"
"""The request's extension with its `Call`."""
_FIELDS: Final = ("Authorization", PAYMENT_AUTHORIZATION)
_NO_ANSWER: Final = frozenset({CONNECTION_CLOSED, REQUEST_TIMEOUT})
_MANAGING: Final = ClosePayload | TopUpPayload
"""Payloads that run nothing at any server."""
_ANY: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


class Call:
    """One call of an operation, as its caller asks for it, and what came back last."""

    def __init__(self, send: Callable[[Any], Awaitable[Result]]) -> None:
        """`send` sends the call with this `_meta`."""
        self.send = send
        self.result: Result | None = None
        self.error: MCPError | None = None


class McpTransport(httpx.AsyncBaseTransport):
    """Sends calls through a connected `mcp.Client`."""

    def __init__(self, client: Client, base: str) -> None:
        """`base` is the URL that stands for the server; see `url_of`."""
        self._client = client
        self.base = base.rstrip("/")
        self._offers: dict[str, list[str]] = {}
        """The last challenges of each operation."""
        self._openings: dict[ChannelId, OpenPayload] = {}
        """Openings on chain that the server has not been shown."""

    def url_of(self, method: str, name: str) -> str:
        """Return the URL that stands for an operation in the payer's records."""
        return f"{self.base}/{method}/{quote(name, safe='')}"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one call, or manage a channel.

        Raises:
            PaymentOutcomeUnknownError: The connection ended after a credential was sent.
            MCPError: It ended before.
        """
        text = _read_field(request.headers)
        credential = _read_session(text)
        if request.method == "HEAD":
            return await self._manage(request, credential)
        call: Call = request.extensions[CALL]
        meta = self._build_meta(request.headers, text, credential)
        try:
            call.result, call.error = await call.send(meta), None
        except MCPError as error:
            if error.code in _NO_ANSWER:
                if text is None:
                    raise
                key = request.headers.get("Idempotency-Key", "")
                raise PaymentOutcomeUnknownError(idempotency_key=key, reason=str(error)) from error
            call.result, call.error = None, error
            return self._answer_error(request, error)
        response = self._answer(request, call.result)
        if response.is_success and credential is not None:
            self._openings.pop(credential.payload.channel_id, None)
        return response

    def _build_meta(
        self, headers: httpx.Headers, text: str | None, credential: Credential | None
    ) -> dict[str, Any]:
        if text is None:
            return {}
        payload = None if credential is None else credential.payload
        if credential is not None and isinstance(payload, VoucherPayload):
            opening = self._openings.get(payload.channel_id)
            if opening is not None:
                opening = replace(opening, voucher=payload.voucher)
                text = format_credential(
                    Credential(credential.challenge, opening, credential.source)
                )
        meta: dict[str, Any] = {CREDENTIAL: credential_object(text)}
        if "Idempotency-Key" in headers:
            meta[IDEMPOTENCY_KEY] = headers["Idempotency-Key"]
        return meta

    def _answer(self, request: httpx.Request, result: Result) -> httpx.Response:
        """Return an answer for a result; one with `isError` is a success only if it was charged."""
        meta = result.meta or {}
        is_error = bool(getattr(result, "is_error", False))
        if is_error and isinstance(meta.get(PAYMENT_REQUIRED), Mapping):
            return self._demand(request, meta[PAYMENT_REQUIRED], 402)
        if is_error and RECEIPT not in meta:
            return httpx.Response(422)
        return httpx.Response(200, headers=_receipt_fields(meta))

    def _answer_error(self, request: httpx.Request, error: MCPError) -> httpx.Response:
        """Return an answer. -32042 with `elicitations` asks for no payment (MCP-15)."""
        data = error.data if isinstance(error.data, Mapping) else {}
        if error.code in (PAYMENT_REQUIRED_CODE, VERIFICATION_FAILED_CODE):
            return self._demand(request, data, 402 if data.get("challenges") else 500)
        return self._demand(request, data, 500)

    def _demand(
        self, request: httpx.Request, data: Mapping[str, Any], status: int
    ) -> httpx.Response:
        """Return an answer with the challenges, the problem and the status in an error's data."""
        stated = data.get("httpStatus")
        if type(stated) is int and 400 <= stated <= 599 and data.get("problem"):  # noqa: PLR2004
            status = stated
        lines = _read_challenges(data.get("challenges"))
        if lines:
            self._offers[str(request.url)] = lines
        fields = [("WWW-Authenticate", line) for line in lines]
        retry_after = data.get("retryAfter")
        if type(retry_after) is int and retry_after >= 0:
            fields.append(("Retry-After", str(retry_after)))
        problem = data.get("problem") or data.get("failure")
        if not isinstance(problem, Mapping):
            return httpx.Response(status, headers=fields)
        fields.append(("Content-Type", PROBLEM_CONTENT_TYPE))
        return httpx.Response(status, headers=fields, content=msgspec.json.encode(problem))

    async def _manage(
        self, request: httpx.Request, credential: Credential | None
    ) -> httpx.Response:
        """Send what HTTP sends as HEAD."""
        meta: dict[str, Any] = {MANAGEMENT: True} if self._knows_management() else {}
        if credential is None:
            known = self._offers.get(str(request.url))
            if known is not None:
                return httpx.Response(402, headers=[("WWW-Authenticate", line) for line in known])
        elif not meta and not isinstance(credential.payload, _MANAGING):
            if not isinstance(credential.payload, OpenPayload):
                return httpx.Response(402)
            self._openings[credential.payload.channel_id] = credential.payload
            return httpx.Response(200)
        else:
            meta[CREDENTIAL] = credential_object(format_credential(credential))
        try:
            result = await self._client.session.send_request(self._build(request, meta), _ANY)
        except MCPError as error:
            if error.code in _NO_ANSWER:
                raise httpx.ReadError(str(error), request=request) from error
            return self._answer_error(request, error)
        found = result.get("_meta")
        return httpx.Response(200, headers=_receipt_fields(found or {}))

    def _build(self, request: httpx.Request, meta: dict[str, Any]) -> Any:
        """Return a request of MCP without arguments, for an operation of this URL."""
        below = request.url.raw_path.decode("ascii").partition("?")[0]
        family, verb, name = below.rsplit("/", 2)[-3:]
        return _build_request(f"{family.rpartition('/')[2]}/{verb}", unquote(name), meta)

    def _knows_management(self) -> bool:
        capabilities = self._client.server_capabilities.experimental or {}
        methods = capabilities.get("payment", {}).get("methods")
        return isinstance(methods, Mapping) and any(
            isinstance(one, Mapping) and one.get("management") == MANAGEMENT
            for one in methods.values()
        )


def _build_request(method: str, name: str, meta: Any) -> Any:
    if method == "resources/read":
        return ReadResourceRequest(params=ReadResourceRequestParams(uri=name, _meta=meta))
    if method == "prompts/get":
        return GetPromptRequest(params=GetPromptRequestParams(name=name, _meta=meta))
    return CallToolRequest(params=CallToolRequestParams(name=name, arguments={}, _meta=meta))


def _read_field(headers: httpx.Headers) -> str | None:
    """Return the credential with which the payer answers, in either field."""
    return next((headers[name] for name in _FIELDS if name in headers), None)


def _read_session(text: str | None) -> Credential | None:
    """Return a session's credential; None for another intent's, which is sent as it is."""
    if text is None:
        return None
    try:
        return DEFAULT.parse_credential(text)
    except PeerError:
        return None


def _read_challenges(found: object) -> list[str]:
    """Return the challenges as fields of HTTP; what is not one is left out.

    Without descriptions, which no decision may use (CHAL-13).
    """
    lines = []
    for one in found[:CHALLENGES_PER_RESPONSE_MAX] if isinstance(found, list) else ():
        try:
            lines.append(format_challenge(replace(parse_challenge_object(one), description=None)))
        except (WireError, RecursionError):
            continue
    return lines


def _receipt_fields(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the receipt as a field; one that cannot be read is passed on as such."""
    if RECEIPT not in meta:
        return {}
    try:
        return {"Payment-Receipt": format_receipt_header(meta[RECEIPT])}
    except WireError:
        return {"Payment-Receipt": "unreadable"}
