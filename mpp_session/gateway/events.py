"""Splits a model server's stream into events, independent of packet boundaries."""

from collections.abc import AsyncIterator
from typing import Final

from channel.errors import WireError
from channel.wire.sse import CONTENT_TYPE, DONE, EventSplitter, parse_event
from mpp_session.gateway.errors import UpstreamError
from mpp_session.gateway.upstream import UpstreamAnswer, read_pieces

__all__ = ["is_event_stream", "read_events"]

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""Dropped before a stream's first event, as the HTML standard says."""


def is_event_stream(response: UpstreamAnswer) -> bool:
    """Whether an answer is a stream of events."""
    kind: str = response.headers.get("content-type", "").partition(";")[0]
    return kind.strip().lower() == CONTENT_TYPE


async def read_events(response: UpstreamAnswer) -> AsyncIterator[str | None]:
    """Yield the data of each event up to and including `[DONE]`; None for an event without data.

    Event names are dropped: a chat completion has none, and a model server must not be able to send
    a payment event (F-55). A last event without a blank line after it counts.

    Raises:
        UpstreamError: An event is too long, or the connection broke off.
    """
    splitter, mark = EventSplitter(), _BYTE_ORDER_MARK
    async for piece in read_pieces(response):
        for block in _split(splitter, piece):
            data = _read_data(block.removeprefix(mark))
            mark = b""
            yield data
            if data == DONE:
                return
    data = _read_data(splitter.flush().removeprefix(mark))
    if data is not None:
        yield data


def _read_data(block: bytes) -> str | None:
    """Return an event's data; None for none, or for a `null` that llama.cpp sends (b6800)."""
    event = parse_event(block)
    return (event[1] or None) if event is not None and event[1] != "null" else None


def _split(splitter: EventSplitter, piece: bytes) -> list[bytes]:
    try:
        return splitter.feed(piece)
    except WireError as error:
        raise UpstreamError("The model server sent an event that is too long.") from error
