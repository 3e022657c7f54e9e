"""Between httpx2, which a caller uses, and httpx, under which payments are made: values copied."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import httpx2

__all__ = ["AsyncTransport", "SyncTransport"]


class AsyncTransport(httpx2.AsyncBaseTransport):
    """Sends what an `httpx2.AsyncClient` asks for through a transport of httpx."""

    def __init__(self, paying: httpx.AsyncBaseTransport) -> None:
        self._paying = paying

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; errors of httpx become those of httpx2, others stay as they are."""
        body = request.stream
        if not isinstance(body, httpx2.AsyncByteStream):
            raise TypeError("an asynchronous client sends asynchronous bodies")
        sent = _request(request, _AsyncRequestBody(body))
        with _errors_of_httpx2(request):
            response = await self._paying.handle_async_request(sent)
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError("an asynchronous transport answers with asynchronous bodies")
        return _response(response, _AsyncAnswer(stream, request))


class SyncTransport(httpx2.BaseTransport):
    """Sends what an `httpx2.Client` asks for through a transport of httpx."""

    def __init__(self, paying: httpx.BaseTransport) -> None:
        self._paying = paying

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; errors of httpx become those of httpx2, others stay as they are."""
        body = request.stream
        if not isinstance(body, httpx2.SyncByteStream):
            raise TypeError("a synchronous client sends synchronous bodies")
        sent = _request(request, _SyncRequestBody(body))
        with _errors_of_httpx2(request):
            response = self._paying.handle_request(sent)
        stream = response.stream
        if not isinstance(stream, httpx.SyncByteStream):
            raise TypeError("a synchronous transport answers with synchronous bodies")
        return _response(response, _SyncAnswer(stream, request))


def _request(
    request: httpx2.Request, body: httpx.AsyncByteStream | httpx.SyncByteStream
) -> httpx.Request:
    in_memory = request.stream
    if isinstance(in_memory, httpx2.ByteStream):  # of any length, and can be sent again
        body = httpx.ByteStream(b"".join(in_memory))
    sent = httpx.Request(request.method, str(request.url), headers=request.headers.raw, stream=body)
    sent.extensions = request.extensions  # the same: what is noted there outlives a redirect
    return sent


def _response(
    response: httpx.Response, body: httpx2.AsyncByteStream | httpx2.SyncByteStream
) -> httpx2.Response:
    return httpx2.Response(
        response.status_code,
        headers=response.headers.raw,
        stream=body,
        extensions=response.extensions,
    )


@contextmanager
def _errors_of_httpx2(request: httpx2.Request) -> Iterator[None]:
    """Raise an error of httpx as the one of httpx2 that has its name."""
    try:
        yield
    except httpx.RequestError as error:
        kind = getattr(httpx2, type(error).__name__, httpx2.TransportError)
        raise kind(str(error), request=request) from error


class _AsyncRequestBody(httpx.AsyncByteStream):
    """A body that a caller of httpx2 sends."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it as it comes."""
        async for piece in self._body:
            yield piece


class _SyncRequestBody(httpx.SyncByteStream):
    """A body that a caller of httpx2 sends, who blocks."""

    def __init__(self, body: httpx2.SyncByteStream) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        """Yield it as it comes."""
        yield from self._body


class _AsyncAnswer(httpx2.AsyncByteStream):
    """An answer's body for a caller of httpx2."""

    def __init__(self, body: httpx.AsyncByteStream, request: httpx2.Request) -> None:
        self._body = body
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it as it comes."""
        with _errors_of_httpx2(self._request):
            async for piece in self._body:
                yield piece

    async def aclose(self) -> None:
        """Close the connection; what came is counted."""
        with _errors_of_httpx2(self._request):
            await self._body.aclose()


class _SyncAnswer(httpx2.SyncByteStream):
    """An answer's body for a caller of httpx2 who blocks."""

    def __init__(self, body: httpx.SyncByteStream, request: httpx2.Request) -> None:
        self._body = body
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        """Yield it as it comes."""
        with _errors_of_httpx2(self._request):
            yield from self._body

    def close(self) -> None:
        """Close the connection; what came is counted."""
        with _errors_of_httpx2(self._request):
            self._body.close()
