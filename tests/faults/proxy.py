"""A node that lies: an HTTP proxy in front of a real one, with the faults of real ones.

Each question goes to the real chain unless a fault says otherwise, so that every answer is one
that some node could give. Chance comes from a seeded generator: a run can be repeated.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, web

if TYPE_CHECKING:
    from tests.faults.odd_answers import OddAnswer

__all__ = ["LyingNode", "lying_node"]

_BODY_BYTES_MAX = 64 * 1024 * 1024
_HEADS = {"eth_blockNumber", "eth_getBlockByNumber"}
_UNKNOWN = {"code": -32000, "message": "unknown block"}


class LyingNode:
    """One node's faults; each may be changed at any time."""

    def __init__(self, upstream: str, *, seed: int = 1) -> None:
        self.url = ""
        self.chance = random.Random(seed)  # noqa: S311 -- to be repeated, not to be secret
        self.is_down = False
        """Connections are cut before anything is read."""
        self.loss = 0.0
        """Share of requests whose connection is cut before the node sees them."""
        self.swallow = 0.0
        """Share of requests that the node sees, and whose answer is cut."""
        self.twice = 0.0
        """Share of requests that reach the node twice."""
        self.delay_s = (0.0, 0.0)
        """Least and greatest delay: concurrent requests overtake each other."""
        self.stale_at: int | None = None
        """A head this node stays at; newer blocks are unknown to it."""
        self.keeps_transactions = False
        """The node accepts transactions, and forwards none."""
        self.has_no_logs = False
        """Every search for events finds nothing."""
        self.lies: dict[str, Callable[[list[Any], Any], Any]] = {}
        """By method: from parameters and the true result to what is said."""
        self.odd: OddAnswer | None = None
        """The answer in place of the true one (`tests.faults.odd_answers`)."""
        self.odd_methods: set[str] = set()
        """To which methods alone, also in a batch with others; to every one if empty."""
        self.odd_times = 10**9
        """To how many requests."""
        self.calls = 0
        """Calls answered, those of a batch one by one: what a node is paid for."""
        self.requests = 0
        """Requests over HTTP."""
        self._upstream = upstream

    def heal(self) -> None:
        """Become an honest node."""
        self.is_down, self.has_no_logs, self.stale_at = False, False, None
        self.keeps_transactions = False
        self.loss = self.swallow = self.twice = 0.0
        self.delay_s = (0.0, 0.0)
        self.lies.clear()
        self.odd, self.odd_times = None, 10**9
        self.odd_methods.clear()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests += 1
        if self.is_down or self.chance.random() < self.loss:
            return _cut(request)
        await asyncio.sleep(self.chance.uniform(*self.delay_s))
        asked = json.loads(body)
        if self.chance.random() < self.twice:
            await self._ask(asked)
        said = await self._ask(asked)
        if self.is_down or self.chance.random() < self.swallow:
            return _cut(request)
        return self._odd(asked, said) or web.json_response(said)

    def _odd(self, asked: Any, said: Any) -> web.Response | None:
        methods = {call["method"] for call in (asked if isinstance(asked, list) else [asked])}
        is_meant = not self.odd_methods or self.odd_methods & methods
        if self.odd is None or not is_meant or self.odd_times <= 0:
            return None
        self.odd_times -= 1
        odd = self.odd(asked, said)
        status, headers, body = odd if isinstance(odd, tuple) else (200, {}, odd)
        return web.Response(status=status, headers=headers, body=body)

    async def _ask(self, asked: Any) -> Any:
        calls = asked if isinstance(asked, list) else [asked]
        self.calls += len(calls)
        if self.keeps_transactions and calls[0]["method"] == "eth_sendRawTransaction":
            return {"jsonrpc": "2.0", "id": calls[0]["id"], "result": "0x" + 32 * "00"}
        if self.stale_at is not None:
            calls = [self._as_of_the_past(call) for call in calls]
        async with self._session.post(self._upstream, json=calls) as response:
            answers = json.loads(await response.read())
        said = [self._lie(*pair) for pair in zip(calls, answers, strict=True)]
        return said if isinstance(asked, list) else said[0]

    def _as_of_the_past(self, call: dict[str, Any]) -> dict[str, Any]:
        """Ask what this node, left behind, would be asked."""
        past = hex(self.stale_at or 0)
        params = [past if param == "latest" else param for param in call.get("params", [])]
        return {**call, "params": params}

    def _lie(self, call: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        method, params = call["method"], call.get("params", [])
        if self.stale_at is not None:
            if method == "eth_blockNumber":
                return {**answer, "result": hex(self.stale_at)}
            if self._is_ahead(params, answer):
                answer.pop("result", None)
                return {**answer, "error": _UNKNOWN}
        if self.has_no_logs and method == "eth_getLogs":
            return {**answer, "result": []}
        if method in self.lies and "result" in answer:
            return {**answer, "result": self.lies[method](params, answer["result"])}
        return answer

    def _is_ahead(self, params: list[Any], answer: dict[str, Any]) -> bool:
        """Whether the answer is of a block that this node does not have."""
        result = answer.get("result")
        numbers = [p for p in params if isinstance(p, str) and p.startswith("0x") and len(p) < 12]
        if isinstance(result, dict) and result.get("number"):
            numbers.append(result["number"])
        if isinstance(result, dict) and result.get("blockNumber"):
            numbers.append(result["blockNumber"])
        return any(int(number, 16) > (self.stale_at or 0) for number in numbers)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["LyingNode"]:
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_post("/", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        async with ClientSession() as self._session:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            try:
                yield self
            finally:
                with suppress(asyncio.CancelledError):
                    await runner.cleanup()


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@asynccontextmanager
async def lying_node(url: str, *, seed: int = 1) -> AsyncIterator[LyingNode]:
    """Serve a node that lies in front of the one at `url`; honest until a test changes it."""
    async with LyingNode(url, seed=seed).serve() as node:
        yield node
