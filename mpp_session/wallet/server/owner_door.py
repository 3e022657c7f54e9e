"""The owner's door: status, stops, reload, budgets, closing; and what other parts add.

Only processes of the wallet's own user can connect, and they must know the owner's token too: an
agent that runs as the same user cannot read that file's content from its socket alone.
"""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from channel.errors import AgentError, InvariantError, MppSessionError, WireError
from channel.limits import FORM_BYTES_MAX
from mpp_session.agent.wallet_wire import TOKEN, pack_channel
from mpp_session.settings import Secret
from mpp_session.wallet.server.answers import answer_failure, answer_json
from mpp_session.wallet.server.forwarding import find_field, read_body
from mpp_session.wallet.server.running import RunningWallet

__all__ = ["OwnerDoor", "ScopeOrder", "WalletStatus", "as_endpoint"]

_OWNER: Final = "owner"

_Order = TypeVar("_Order")


class ScopeOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order about `all`, or `agent NAME`, `envelope NAME`, `origin ORIGIN`, `rule NAME`."""

    scope: str
    reason: str = ""


class WalletStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the wallet is doing."""

    revision: int
    policy_hash: str
    accounts: dict[str, str]
    """The paying account of each chain."""
    running: dict[str, int]
    """Requests that run now, by agent."""
    frozen: list[str]
    revoked: list[str]


class OwnerDoor:
    """Answers the owner's commands."""

    def __init__(
        self,
        wallet: RunningWallet,
        token: Secret,
        *,
        more: Sequence[BaseRoute] = (),
        on_bug: Callable[[BaseException], None],
    ) -> None:
        """`more` are the routes of other parts; the door's own come first."""
        self._wallet = wallet
        self._token = token.reveal().encode()
        self._on_bug = on_bug
        handlers: list[tuple[str, str, Callable[[Request], Awaitable[object]]]] = [
            ("GET", "/status", self._status),
            ("GET", "/agents", self._agents),
            ("GET", "/budgets", self._budgets),
            ("POST", "/freeze", self._freeze),
            ("POST", "/unfreeze", self._unfreeze),
            ("POST", "/revoke", self._revoke),
            ("POST", "/reload", self._reload),
            ("POST", "/close", self._close),
        ]
        own = [Route(path, as_endpoint(work), methods=[method]) for method, path, work in handlers]
        self._router = Router([*own, *more], redirect_slashes=False, default=_not_found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        try:
            given = find_field(scope["headers"], TOKEN).encode("latin-1")
        except WireError:
            given = b""
        if not hmac.compare_digest(given, self._token):
            error = AgentError("expected the owner's token, which lies in owner.token")
            await answer_failure(error, 401)(scope, receive, send)
            return
        try:
            await self._router(scope, receive, send)
        except InvariantError as error:
            self._on_bug(error)
            raise

    async def _status(self, _: Request) -> object:
        wallet = self._wallet
        stops = await wallet.books.stops()
        return WalletStatus(
            revision=wallet.policy.revision,
            policy_hash=wallet.policy.hash,
            accounts={
                str(number): f"0x{chain.account.hex()}" for number, chain in wallet.chains.items()
            },
            running={name: agent.running for name, agent in wallet.running_agents.items()},
            frozen=[stop.scope for stop in stops if stop.kind == "freeze"],
            revoked=[stop.scope for stop in stops if stop.kind == "revoke"],
        )

    async def _agents(self, _: Request) -> object:
        return await self._wallet.books.agents()

    async def _budgets(self, _: Request) -> object:
        before = self._wallet.policy.tokens
        found = await self._wallet.books.budgets()
        tokens = {**before, **self._wallet.policy.tokens}  # a reload may have come between
        return [
            {**msgspec.to_builtins(one), "decimals": tokens[one.token].unit.decimals}
            for one in found
        ]

    async def _freeze(self, request: Request) -> object:
        order = await _read(request, ScopeOrder)
        await self._wallet.books.freeze(order.scope, reason=order.reason, by=_OWNER)
        return order

    async def _unfreeze(self, request: Request) -> object:
        order = await _read(request, ScopeOrder)
        was = await self._wallet.books.unfreeze(order.scope, reason=order.reason, by=_OWNER)
        return {"scope": order.scope, "was_frozen": was}

    async def _revoke(self, request: Request) -> object:
        order = await _read(request, ScopeOrder)
        await self._wallet.revoke(order.scope, reason=order.reason, by=_OWNER)
        return order

    async def _reload(self, _: Request) -> object:
        policy = await self._wallet.reload()
        return {"revision": policy.revision, "policy_hash": policy.hash}

    async def _close(self, _: Request) -> object:
        closed = await self._wallet.close_stopped()
        return [
            {
                "agent": one.agent,
                "channel": None if one.record is None else pack_channel(one.record),
                "error": one.error,
            }
            for one in closed
        ]


def as_endpoint(
    work: Callable[[Request], Awaitable[object]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return a route's endpoint that answers with what `work` returns, or with its failure."""

    async def answer(request: Request) -> Response:
        try:
            return answer_json(await work(request))
        except InvariantError:
            raise
        except WireError as error:
            return answer_failure(error, 400)
        except MppSessionError as error:
            return answer_failure(error)

    return answer


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await answer_failure(AgentError("the owner's door has no such page"), 404)(scope, receive, send)


async def _read(request: Request, kind: type[_Order]) -> _Order:
    raw = await read_body(request.receive, FORM_BYTES_MAX)
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise WireError(f"the order cannot be read: {error}") from error
