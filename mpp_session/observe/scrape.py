"""Renders `/metrics`, added up over the processes of one gateway."""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import Response

from mpp_session.settings.config import counts_folder

__all__ = ["metrics_page", "scraped_registry"]


def scraped_registry(counted: CollectorRegistry) -> CollectorRegistry:
    """Return the registry to scrape: `counted`, or what all processes count together.

    With the variable `PROMETHEUS_MULTIPROC_DIR` each process counts in that folder.
    """
    folder = counts_folder()
    if folder is None:
        return counted
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return registry


def metrics_page(
    registry: CollectorRegistry, refresh: Callable[[], None]
) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of `/metrics`, in the format that the request accepts.

    `refresh` is called in the event loop before the registry is read in a thread.
    """

    async def answer(request: Request) -> Response:
        refresh()
        render, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await asyncio.to_thread(render, registry)
        return Response(body, media_type=None, headers={"content-type": content_type})

    return answer
