"""`POST /v1/chat/completions`, paid for: what is held, asked, counted, charged and passed on.

held       one unit by the gate; of an answer in one piece all that it may cost
asked      the model server: never before that is durable
charged    each chunk before it is passed on; an answer in one piece when its count is known
not ours   everything that goes wrong at the model server: nothing is charged
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import httpx
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from channel.http import Event, PaidEventStream
from channel.http.metering import metered
from service.gateway.chat import (
    ChatRequest,
    UnitCounter,
    parse_chat_request,
    parse_completion_tokens,
    scan_request,
)
from service.gateway.errors import RequestTooLargeError, UpstreamError
from service.gateway.events import read_events, require_event_stream
from service.gateway.upstream import Upstream, read_body, returned_headers
from service.settings import Upstream as UpstreamSettings

__all__ = ["PATH", "ChatCompletions"]

PATH: Final = "/v1/chat/completions"

_log: Final = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class ChatCompletions:
    """The endpoint, and the streams it is serving."""

    def __init__(self, upstream: Upstream, settings: UpstreamSettings) -> None:
        self._upstream = upstream
        self._settings = settings

    async def answer(self, request: Request) -> Response:
        """Answer one paid request.

        Raises:
            PeerError: The request cannot be read or priced; nothing is charged.
            UpstreamError: The model server failed; nothing is charged.
        """
        chat = parse_chat_request(
            await _read_request(request, self._settings.body_bytes_max),
            max_tokens=self._settings.max_tokens,
            default_max_tokens=self._settings.default_max_tokens,
            wants_exact_counts=self._settings.counts == "llama.cpp",
        )
        if chat.is_stream:
            return await self._stream(request, chat)
        return await self._whole(request, chat)

    async def _whole(self, request: Request, chat: ChatRequest) -> Response:
        async with metered(request.scope) as meter:
            # Durable after this: the dearest answer the model may give is paid for.
            await meter.hold(chat.units_max)
            response, body = await _unless_gone(request, self._fetch(request, chat))
            headers = returned_headers(response)
            if response.is_success:
                await meter.spend(_count_tokens(body, chat.units_max))
            return Response(body, response.status_code, headers)

    async def _fetch(self, request: Request, chat: ChatRequest) -> tuple[httpx.Response, bytes]:
        async with self._upstream.request("POST", PATH, request.headers, chat.body) as response:
            return response, await read_body(response)

    async def _stream(self, request: Request, chat: ChatRequest) -> Response:
        async with AsyncExitStack() as opening:
            response = await _unless_gone(
                request,
                opening.enter_async_context(
                    self._upstream.request("POST", PATH, request.headers, chat.body)
                ),
            )
            if not response.is_success:
                body = await read_body(response)
                return Response(body, response.status_code, returned_headers(response))
            require_event_stream(response)
            counter = UnitCounter(is_exact=self._settings.counts == "llama.cpp")
            chunks = _Chunks(response, counter, opening.pop_all())
        headers = {
            name: value
            for name, value in returned_headers(response).items()
            if name != "content-type"
        }
        return _Stream(chunks, headers=headers)


class _Chunks:
    """The chunks of one answer, each with its price in units. Closing it frees the model server."""

    def __init__(
        self, response: httpx.Response, counter: UnitCounter, connection: AsyncExitStack
    ) -> None:
        self._events = read_events(response)
        self._counter = counter
        self._connection = connection
        self._has_failed = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._has_failed:
            raise StopAsyncIteration
        try:
            data = await anext(self._events)
            return Event(data, units=self._counter.count(data))
        except UpstreamError as error:
            # What was delivered is paid for; the client learns that this is not the whole answer.
            _log.warning("after %d units: %s", self._counter.total, error)
            self._has_failed = True
            return Event(_format_error(error), units=0)

    async def aclose(self) -> None:
        """Cancel what is still being generated. A second time does nothing."""
        await self._connection.aclose()
        reported, counted = self._counter.reported, self._counter.total
        if reported is not None and abs(reported - counted) > 1:
            _log.info("charged %d units; the model server reports %d tokens", counted, reported)


class _Stream(PaidEventStream):
    """A paid stream that frees the model server in any case."""

    def __init__(self, chunks: _Chunks, *, headers: dict[str, str]) -> None:
        super().__init__(chunks, headers=headers)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()


async def _read_request(request: Request, bytes_max: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > bytes_max:
            raise RequestTooLargeError(f"The body has more than {bytes_max} bytes.")
    whole = bytes(body)
    for _ in scan_request(whole):
        await asyncio.sleep(0)  # others have their turn between two windows of a long body
    return whole


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Do the work, or cancel it when the client leaves.

    Raises:
        ClientDisconnect: The client left; nobody is there to be answered.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait({working, gone})


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _count_tokens(body: bytes, units_max: int) -> int:
    """Return what an answer in one piece is charged (F-57).

    Raises:
        UpstreamError: It says nothing of its length, or is longer than was asked for: charging
            would be a guess, or more than what was promised.
    """
    tokens = parse_completion_tokens(body)
    if tokens is None:
        raise UpstreamError("The model server did not say how many tokens its answer has.")
    if tokens > units_max:
        raise UpstreamError("The model server's answer is longer than `max_tokens` allows.")
    return tokens


def _format_error(error: UpstreamError) -> str:
    """Return the event by which the protocol of chat completions reports a failure."""
    body = {"error": {"message": error.detail, "type": error.problem_type, "code": error.status}}
    return msgspec.json.encode(body).decode()
