"""A node that fails as real ones do, in front of one that works: a small HTTP proxy."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

Fault = Literal[
    "none",
    "hang",
    "drop",
    "swallow",
    "error",
    "refuse",
    "full",
    "gap",
    "reverts",
    "garbage",
    "huge",
    "not rpc",
    "a list",
    "too many",
]
"""What happens to a request: nothing; no answer ever; the connection is cut before the node sees
it, or after it did; HTTP 503; a bid too low; any other JSON-RPC error; a nonce that it does not
like; a transaction that it has tried out; bytes that are not JSON; too many of them; JSON that is
not RPC, or a list of it; more questions in a batch than it takes."""

_BODIES: dict[Fault, bytes] = {
    "garbage": b"<html>busy</html>",
    "huge": b"[" * 200_000,
    "not rpc": b'{"jsonrpc":"2.0","id":0}',
    "a list": b'["not", "rpc"]',
    "refuse": b'{"jsonrpc":"2.0","id":0,"error":{"code":-32000,"message":"underpriced"}}',
    "gap": b'{"jsonrpc":"2.0","id":0,"error":{"code":-32000,"message":"invalid nonce; got 1"}}',
    "reverts": b'{"jsonrpc":"2.0","id":0,"error":{"code":3,"message":"execution reverted"}}',
    "too many": b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch too large"}}',
    "full": b'{"jsonrpc":"2.0","id":0,"error":{"code":-32000,"message":"txpool is full"}}',
}


class FlakyNode:
    """`fault` strikes requests for `method` (any if empty), `times` of them."""

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self._target = target
        self.url = f"http://127.0.0.1:{port}"
        self.fault: Fault = "none"
        self.method = ""
        self.times = 10**9
        self.lies: dict[str, Any] = {}
        """Results by method, in place of the node's own: a value or a function of parameters."""
        self.errors: dict[str, Any] = {}
        """Errors by method, in place of results."""
        self.gas_max: int | None = None
        """The most gas that it estimates for a transaction; None for as much as it takes."""
        self.log_blocks_max: int | None = None
        """Most blocks that one search for events may span; None for any number."""
        self.batch_max: int | None = None
        """Most questions that it takes in a batch; None for any number."""
        self.go_on = asyncio.Event()
        """Ends what hangs: then the node answers as if it had not."""
        self.seen: list[str] = []
        """Methods asked for, in order; those of a batch one by one."""

    def fail(self, fault: Fault, *, method: str = "", times: int = 10**9) -> None:
        self.fault, self.method, self.times = fault, method, times

    def _strike(self, methods: list[str]) -> Fault:
        self.seen += methods
        if self.batch_max is not None and len(methods) > self.batch_max:
            return "too many"
        if self.fault == "none" or self.times == 0 or (self.method and self.method not in methods):
            return "none"
        self.times -= 1
        return self.fault

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_message(reader)
        asked = json.loads(request.split(b"\r\n\r\n", 1)[1])
        methods = [call["method"] for call in _listed(asked)]
        fault = self._strike(methods)
        if fault == "drop":
            return False
        if fault == "hang":
            await self.go_on.wait()
        if fault == "error":
            await _answer(writer, b"busy", status=b"503 Busy")
            return True
        if fault in _BODIES:
            await _answer(writer, _BODIES[fault].replace(b'"id":0', b'"id":%d' % _first_id(asked)))
            return True
        upstream_reader, upstream = await asyncio.open_connection(*self._target)
        try:
            upstream.write(request)
            answer = await _read_message(upstream_reader)
        finally:
            upstream.close()
        if fault == "swallow":
            return False
        bounded = {"eth_estimateGas": self.gas_max, "eth_getLogs": self.log_blocks_max}
        altered = self.lies.keys() | self.errors.keys()
        altered |= {method for method, bound in bounded.items() if bound is not None}
        if altered & set(methods):
            await _answer(writer, self._lie(asked, answer.split(b"\r\n\r\n", 1)[1]))
            return True
        writer.write(answer)
        await writer.drain()
        return True

    def _lie(self, asked: Any, body: bytes) -> bytes:
        truth = json.loads(body)
        for call, said in zip(_listed(asked), _listed(truth), strict=True):
            if call["method"] in self.lies:
                lie = self.lies[call["method"]]
                said["result"] = lie(call["params"]) if callable(lie) else lie
            if call["method"] in self.errors:
                said["error"] = self.errors[call["method"]]
            if (refusal := self._bound(call, said)) is not None:
                said.pop("result", None)
                said["error"] = {"code": -32000, "message": refusal}
        return json.dumps(truth).encode()

    def _bound(self, call: Any, said: Any) -> str | None:
        if call["method"] == "eth_estimateGas" and self.gas_max is not None:
            is_too_much = int(said.get("result", "0x0"), 16) > self.gas_max
            return f"gas required exceeds allowance ({self.gas_max})" if is_too_much else None
        if call["method"] == "eth_getLogs" and self.log_blocks_max is not None:
            first, last = (int(call["params"][0][name], 16) for name in ("fromBlock", "toBlock"))
            is_too_much = last - first + 1 > self.log_blocks_max
            return f"block range is limited to {self.log_blocks_max}" if is_too_much else None
        return None


def only_up_to(block: Any) -> Callable[[list[Any]], Any]:
    """Return what `eth_getBlockByNumber` says at a node whose newest block this is."""
    return lambda params: block if params[0] in ("latest", block["number"]) else None


def _first_id(asked: Any) -> int:
    return int(_listed(asked)[0]["id"])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    return head + await reader.readexactly(length)


async def _answer(writer: asyncio.StreamWriter, body: bytes, *, status: bytes = b"200 OK") -> None:
    writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
    await writer.drain()


@asynccontextmanager
async def flaky_node(url: str) -> AsyncIterator[FlakyNode]:
    """Serve a flaky node in front of the one at `url`."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    node = FlakyNode(0, (host, int(port)))
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(node.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    node.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield node
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
