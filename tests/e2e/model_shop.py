"""A server that sells what a model says, in OpenAI's words and in Anthropic's."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route as Endpoint

from channel.http import Event, PaidEventStream, Price, Route, metered

__all__ = ["JOKE_PRICE", "TOKEN_PRICE", "ModelShop"]

TOKEN_PRICE = 10
JOKE_PRICE = 250


class ModelShop:
    """What it sells, and what it was asked for."""

    def __init__(self) -> None:
        self.words = [f"t{number} " for number in range(40)]
        self.hold_after: int | None = None
        """After so many words a stream says nothing more."""
        self.ended = 0
        """Streams whose end the server has noticed."""
        self.bodies: list[bytes] = []
        self.elsewhere = ""
        """Where `/moved` leads."""

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def routes(self) -> list[Route]:
        by_token = Price(unit_price=TOKEN_PRICE, unit_type="llm_token")
        by_request = Price(unit_price=JOKE_PRICE, unit_type="request")
        return [
            Route(method="POST", path="/v1/chat/completions", price=by_token, metered=True),
            Route(method="POST", path="/v1/messages", price=by_token, metered=True),
            Route(method="GET", path="/joke", price=by_request),
            Route(method="POST", path="/joke", price=by_request),
        ]

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Endpoint("/v1/chat/completions", self._complete, methods=["POST"]),
                Endpoint("/v1/messages", self._message, methods=["POST"]),
                Endpoint("/joke", self._joke, methods=["GET", "POST"]),
                Endpoint("/moved", self._move),
            ]
        )

    async def _joke(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        return PlainTextResponse("A payer walks into a channel.")

    async def _move(self, _: Request) -> Response:
        return RedirectResponse(self.elsewhere)

    async def _complete(self, request: Request) -> Response:
        if (await request.json()).get("stream"):
            return PaidEventStream(self._chunks())
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": self.text},
        }
        return await self._whole(
            request,
            {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            | {"choices": [choice]},
        )

    async def _message(self, request: Request) -> Response:
        message: dict[str, Any] = {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        if (await request.json()).get("stream"):
            return PaidEventStream(self._events(message | {"content": []}))
        content = [{"type": "text", "text": self.text}]
        return await self._whole(request, message | {"content": content})

    async def _whole(self, request: Request, answer: dict[str, Any]) -> Response:
        async with metered(request.scope) as meter:
            await meter.hold(len(self.words))
            await meter.spend(len(self.words))
        return JSONResponse(answer)

    async def _chunks(self) -> AsyncIterator[Event]:
        async for word in self._said():
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            yield Event(json.dumps(chunk | {"choices": [choice]}))
        yield Event("[DONE]", units=0)

    async def _events(self, message: dict[str, Any]) -> AsyncIterator[Event]:
        def event(kind: str, units: int = 0, **fields: Any) -> Event:
            return Event(json.dumps({"type": kind} | fields), event=kind, units=units)

        yield event("message_start", message=message)
        yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        async for word in self._said():
            delta = {"type": "text_delta", "text": word}
            yield event("content_block_delta", units=1, index=0, delta=delta)
        yield event("content_block_stop", index=0)
        yield event(
            "message_delta",
            delta={"stop_reason": "end_turn", "stop_sequence": None},
            usage={"output_tokens": len(self.words)},
        )
        yield event("message_stop")

    async def _said(self) -> AsyncIterator[str]:
        try:
            for number, word in enumerate(self.words):
                if number == self.hold_after:
                    await asyncio.Event().wait()
                yield word
        finally:
            self.ended += 1
