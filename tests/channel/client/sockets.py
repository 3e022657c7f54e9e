"""The provider on paper behind a real socket, so that what it says is read from one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.types import Receive, Scope, Send

from tests.channel.client.provider import Provider
from tests.mpp_session.serving import serve


@asynccontextmanager
async def serve_provider(provider: Provider) -> AsyncIterator[str]:
    """Serve a provider and yield its base URL."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _live(receive, send)
            return
        response = await provider.handle_async_request(await _read_request(scope, receive))
        headers = [
            (name.lower(), value)
            for name, value in response.headers.raw
            if name.lower() != b"content-length"
        ]
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for chunk in response.stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    async with serve(app) as url:
        yield url


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


async def _read_request(scope: Scope, receive: Receive) -> httpx.Request:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    host = dict(scope["headers"])[b"host"].decode("ascii")
    return httpx.Request(
        scope["method"],
        f"http://{host}{scope['path']}",
        headers=scope["headers"],
        stream=httpx.ByteStream(body),
    )
