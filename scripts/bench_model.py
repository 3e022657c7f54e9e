"""A model server that costs next to nothing, for what stands before it in scripts/bench.

    python bench_model.py PORT

`POST /v1/chat/completions` sends `max_tokens` tokens: as fast as it can for the model `fast`, 50 a
second for `paced`, or in one piece.
"""

import asyncio
import json
import re
import sys
from typing import Any, Final

import uvloop

RATE: Final = 50
WORD: Final = " token"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    event = f"data: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(model: str, choices: list[Any], **more: Any) -> dict[str, Any]:
    kind = "chat.completion.chunk"
    return {"id": "c", "object": kind, "created": 1, "model": model, "choices": choices, **more}


class Model(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._received = b""
        self._running: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop generating."""
        del exc
        if self._running is not None:
            self._running.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer once a request has arrived whole."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        if not head.startswith(b"POST /v1/chat/completions "):
            text = json.dumps({"object": "list", "data": [{"id": "fast", "object": "model"}]})
            self._transport.write(_HEAD % (len(text), text.encode()))
            return
        asked = json.loads(body)
        if asked.get("stream"):
            self._running = asyncio.get_running_loop().create_task(self._stream(asked))
        else:
            self._whole(asked)

    def _whole(self, asked: dict[str, Any]) -> None:
        count = asked["max_tokens"]
        message = {"role": "assistant", "content": WORD * count}
        answer = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count},
        }
        text = json.dumps(answer).encode()
        self._transport.write(_HEAD % (len(text), text))

    async def _stream(self, asked: dict[str, Any]) -> None:
        model, count = asked["model"], asked["max_tokens"]
        loop = asyncio.get_running_loop()
        began = loop.time()
        tokens = [  # different ones: LiteLLM takes a chunk that repeats for a fault
            _event(_chunk(model, [{"index": 0, "delta": {"content": f"{WORD}{digit}"}}]))
            for digit in range(10)
        ]
        self._transport.write(_STREAM)
        for number in range(count):
            self._transport.write(tokens[number % 10])
            if model == "paced":
                await asyncio.sleep(max(0.0, began + (number + 1) / RATE - loop.time()))
        end = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
        said = _event(_chunk(model, end)) + _event(_chunk(model, [], usage=usage))
        self._transport.write(said + _event("[DONE]") + b"0\r\n\r\n")


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Model, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
