"""Management requests over httpx: HEAD, concurrent with any stream (VCH-08, CLIENT-07)."""

from collections.abc import Mapping
from typing import Any, Final

import httpx

from channel.client.http.bodies import build_reply
from channel.client.payment.management import Header, Reply
from channel.errors import ChannelBusyError
from channel.methods.registry import DEFAULT
from channel.wire.challenge import INTENT

__all__ = ["ACCEPT_PAYMENT", "MODEL_FIELD", "HeadManagementClient"]

ACCEPT_PAYMENT: Final = f"{DEFAULT.name}/{INTENT}"
MODEL_FIELD: Final = "Payment-Model"
"""Names the model of a HEAD that asks for an offer: it has no body that would."""
ATTEMPTS_MAX: Final = 3
TIMEOUT_S: Final = {"connect": 10.0, "read": 60.0, "write": 10.0, "pool": 10.0}

# Headers about a body, or about the content request only.
_LEFT_OUT: Final = frozenset(
    {
        "accept-encoding",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "idempotency-key",
        "range",
        "transfer-encoding",
    }
)


class HeadManagementClient:
    """Sends HEAD requests to one address, with the headers of the content request."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        url: httpx.URL,
        *,
        headers: httpx.Headers | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        self._inner = inner
        self._url = url
        kept = (headers or httpx.Headers({"Host": url.netloc.decode("ascii")})).multi_items()
        self._headers = httpx.Headers(
            [(name, value) for name, value in kept if name not in _LEFT_OUT]
        )
        self._extensions = {**(extensions or {}), "timeout": TIMEOUT_S}

    async def head(self, credential: Header | None) -> Reply:
        """Send one; a broken connection is retried, because nothing here counts twice.

        Raises:
            httpx.TransportError: The connection broke every time.
            ChannelBusyError: All connections of the client are in use, perhaps by the stream that
                waits for this voucher, so more time would not help.
        """
        headers = self._headers.copy()
        headers["Accept-Payment"] = ACCEPT_PAYMENT
        if credential is not None:
            name, value = credential
            headers[name] = value
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                return await self._head_once(headers)
            except httpx.PoolTimeout as error:
                raise ChannelBusyError(
                    f"No connection was free for a voucher to {self._url.host} within "
                    f"{TIMEOUT_S['pool']:g} s: streams use all of them. A stream needs a further "
                    "connection for its vouchers: raise `max_connections`, or give `management=`, "
                    "a separate transport for vouchers."
                ) from error
            except httpx.TransportError:
                continue
        return await self._head_once(headers)

    async def _head_once(self, headers: httpx.Headers) -> Reply:
        response = await self._inner.handle_async_request(
            httpx.Request("HEAD", self._url, headers=headers, extensions=self._extensions)
        )
        await response.aclose()
        return build_reply(response)
