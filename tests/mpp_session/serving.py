"""Real servers on a free port of this machine, in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

__all__ = ["serve"]


class _Server(uvicorn.Server):
    """Leaves pytest's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serve(
    app: ASGIApp,
    *,
    head_bytes_max: int | None = None,
    ws: Literal["auto", "wsproto"] = "auto",
    certificate: Path | None = None,
) -> AsyncIterator[str]:
    """Serve `app` under uvicorn and yield its base URL.

    `certificate`: a PEM file with a key and the certificate of `localhost`, for https.
    """
    # The parser that the gateway uses; httptools, which comes with a framework, is another.
    config = uvicorn.Config(
        app,
        port=0,
        http="h11",
        ws=ws,
        log_level="warning",
        timeout_graceful_shutdown=2,
        ssl_certfile=certificate,
        h11_max_incomplete_event_size=head_bytes_max,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            if task.done():
                task.result()
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}" if certificate is None else f"https://localhost:{port}"
    finally:
        server.should_exit = True
        await task
