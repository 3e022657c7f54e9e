"""The events of a model server's stream, as whole units of text, whatever packets they came in."""

from collections.abc import AsyncIterator

import httpx

from channel.errors import WireError
from channel.wire.sse import CONTENT_TYPE, EventSplitter, parse_event
from mpp_session.gateway.counting import DONE
from mpp_session.gateway.errors import UpstreamError
from mpp_session.gateway.upstream import read_pieces

__all__ = ["is_event_stream", "read_events"]


def is_event_stream(response: httpx.Response) -> bool:
    """Say whether an answer is a stream of events."""
    kind: str = response.headers.get("content-type", "").partition(";")[0]
    return kind.strip().lower() == CONTENT_TYPE


async def read_events(response: httpx.Response) -> AsyncIterator[str | None]:
    """Yield the data of each event up to and including `[DONE]`, and None for one without.

    Event names are not passed on: a chat completion has none, and one of ours must never come
    from a model server (F-55). A last event that no blank line ends counts like any other.

    Raises:
        UpstreamError: An event is too long, or the connection broke off.
    """
    splitter = EventSplitter()
    async for piece in read_pieces(response):
        for block in _split(splitter, piece):
            data = _read_data(block)
            yield data
            if data == DONE:
                return
    data = _read_data(splitter.flush())
    if data is not None:
        yield data


def _read_data(block: bytes) -> str | None:
    event = parse_event(block)
    return (event[1] or None) if event is not None else None


def _split(splitter: EventSplitter, piece: bytes) -> list[bytes]:
    try:
        return splitter.feed(piece)
    except WireError as error:
        raise UpstreamError("The model server sent an event that is too long.") from error
