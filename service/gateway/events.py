"""The events of a model server's stream, as whole units of text, whatever packets they came in."""

from collections.abc import AsyncIterator

import httpx

from channel.errors import WireError
from channel.wire.sse import CONTENT_TYPE, EventSplitter, parse_event
from service.gateway.chat import DONE
from service.gateway.errors import UpstreamError

__all__ = ["read_events", "require_event_stream"]


def require_event_stream(response: httpx.Response) -> None:
    """Check what kind of answer it is, before a stream is begun with it.

    Raises:
        UpstreamError: It is no event stream.
    """
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != CONTENT_TYPE:
        raise UpstreamError("The model server did not answer with an event stream.")


async def read_events(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the data of each event up to and including `[DONE]`.

    Event names are not passed on: a chat completion has none, and one of ours must never come
    from a model server (F-55). Comments, such as keep-alives, are dropped.

    Raises:
        UpstreamError: An event is too long, or the stream ended without `[DONE]`.
    """
    splitter = EventSplitter()
    async for piece in response.aiter_bytes():
        for block in _split(splitter, piece):
            event = parse_event(block)
            if event is None:
                continue
            yield event[1]
            if event[1] == DONE:
                return
    raise UpstreamError("The model server broke off its stream.")


def _split(splitter: EventSplitter, piece: bytes) -> list[bytes]:
    try:
        return splitter.feed(piece)
    except WireError as error:
        raise UpstreamError("The model server sent an event that is too long.") from error
