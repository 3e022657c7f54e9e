"""A small server of the OpenAI protocol whose answers a test decides to the last byte.

It stands for a model in the edge cases a real one cannot be made to show on demand; the demo's
test speaks to a real model.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.mpp_session.serving import serve

__all__ = ["ModelServer", "Seen", "chunk", "model_server", "sse"]


class Seen(msgspec.Struct):
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ModelServer:
    """What the server answers, and what it saw."""

    def __init__(self) -> None:
        self.url = ""
        self.words = ["one", " two", " three"]
        self.delay_s = 0.0
        """Pause before each piece of a stream, or before an answer in one piece."""
        self.pieces: list[str] | None = None
        """Raw text of a whole stream, instead of the words."""
        self.answer: Response | None = None
        """Sent instead of everything else."""
        self.usage: dict[str, Any] | None = None
        """Usage of an answer in one piece, instead of the number of words."""
        self.whole: dict[str, Any] | None = None
        """An answer in one piece, instead of the words."""
        self.tokens: int | None = None
        """What its tokenizer counts; None: it has none."""
        self.tokenized = 0
        self.models_served = ["tiny"]
        self.models_answer: Response | None = None
        """Sent instead of that list."""
        self.breaks_off = False
        self.seen: list[Seen] = []
        self.sent = 0
        self.emitted: Counter[str] = Counter()
        """Chunks with content, or words of answers in one piece, by the request's `user`."""
        self.cancelled = asyncio.Event()
        self.may_answer = asyncio.Event()
        """Clear it, and an answer waits, a stream before its head."""
        self.may_answer.set()
        self.held: set[str] = set()
        """Users whose streams wait behind their first content."""

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(Seen(request.url.path, dict(request.headers), body))
        if self.answer is not None:
            return self.answer
        is_stream = body.get("stream", False)
        until = asyncio.get_running_loop().time() + (0 if is_stream else self.delay_s)
        while asyncio.get_running_loop().time() < until or not self.may_answer.is_set():
            await asyncio.sleep(0.01)
            if await request.is_disconnected():
                self.cancelled.set()
                return Response(status_code=499)
        if is_stream:
            return StreamingResponse(
                self._stream(str(body.get("user"))), media_type="text/event-stream"
            )
        self.emitted[str(body.get("user"))] += len(self.words)
        if self.whole is not None:
            return JSONResponse(self.whole)
        usage = {"completion_tokens": len(self.words)} if self.usage is None else self.usage
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(self.words)}}
        return JSONResponse({"object": "chat.completion", "choices": [choice], "usage": usage})

    async def _stream(self, user: str) -> AsyncIterator[str]:
        pieces = self.pieces
        if pieces is None:
            pieces = [chunk(role="assistant"), *[chunk(content=word) for word in self.words]]
            pieces += [sse("[DONE]")]
        try:
            for piece in pieces:
                await asyncio.sleep(self.delay_s)
                while user in self.held and self.emitted[user]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                self.sent += 1
                self.emitted[user] += '"content"' in piece
                yield piece
            if self.breaks_off:
                raise ConnectionError("the test breaks the stream off")
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def tokenize(self, request: Request) -> Response:
        self.tokenized += 1
        if self.tokens is None or "messages" not in await request.json():
            return Response(status_code=404)
        return JSONResponse({"count": self.tokens})

    async def models(self, request: Request) -> Response:
        self.seen.append(Seen(request.url.path, dict(request.headers), {}))
        if self.models_answer is not None:
            return self.models_answer
        served = [{"id": name} for name in self.models_served]
        return JSONResponse({"object": "list", "data": served})


def sse(data: str) -> str:
    """One event as a model server writes it."""
    return f"data: {data}\n\n"


def chunk(*, index: int = 0, timings: int | None = None, **delta: Any) -> str:
    """One chunk of a stream with this delta."""
    value: dict[str, Any] = {
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": delta, "finish_reason": None}],
    }
    if timings is not None:
        value["timings"] = {"predicted_n": timings}
    return sse(json.dumps(value))


@contextlib.asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    """Run one on a free port."""
    server = ModelServer()
    routes = [
        *[
            Route(f"/v1/{name}", server.complete, methods=["POST"])
            for name in ("chat/completions", "completions", "responses", "embeddings")
        ],
        Route("/v1/models", server.models),
        Route("/tokenize", server.tokenize, methods=["POST"]),
    ]
    async with serve(Starlette(routes=routes)) as url:
        server.url = url
        yield server
