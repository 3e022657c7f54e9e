"""Pay under clients of httpx2, the library that the `anthropic` package is built on (O-54).

    async with open_client(...) as client:
        http_client = httpx2.AsyncClient(transport=httpx2_transport(client))
        model = anthropic.AsyncAnthropic(http_client=http_client, base_url=..., api_key="unused")

With `open_sync_client` and `httpx2.Client` the same for `anthropic.Anthropic`.
"""

from typing import TYPE_CHECKING, overload

from channel.errors import ConfigError
from mpp_session.agent.client import PayingClient
from mpp_session.agent.sync_client import SyncPayingClient

if TYPE_CHECKING:
    import httpx2

__all__ = ["httpx2_transport"]


@overload
def httpx2_transport(client: PayingClient) -> "httpx2.AsyncBaseTransport": ...
@overload
def httpx2_transport(client: SyncPayingClient) -> "httpx2.BaseTransport": ...
def httpx2_transport(
    client: PayingClient | SyncPayingClient,
) -> "httpx2.AsyncBaseTransport | httpx2.BaseTransport":
    """Return a transport for an httpx2 client that pays as `client` does.

    The paying client stays open when the httpx2 client is closed.

    Raises:
        ConfigError: httpx2 is not installed.
    """
    try:
        # httpx2 is not required
        from mpp_session.agent.httpx2_bridge import AsyncTransport, SyncTransport  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        raise ConfigError("httpx2 is not installed: `pip install httpx2`") from error
    if isinstance(client, SyncPayingClient):
        return SyncTransport(client.transport)
    return AsyncTransport(client.transport)
