"""A free event stream with pauses, by which `doctor` sees what proxies make of paid ones.

A proxy that holds events back ends every paid stream: the client sees nothing, signs nothing, and
the gateway stops. Only a request through the public address shows it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

__all__ = ["PACED_PATH", "Outside", "look_from_outside", "paced_route"]

PACED_PATH: Final = "/mpp-session/paced"

_EVENTS: Final = 4
_PAUSE_S: Final = 0.25
_TRIES: Final = 3
"""A busy machine may read two events late; a proxy that buffers does so each time."""
_TIMEOUT_S: Final = 10.0
_CLAIMED: Final = "203.0.113.77"
"""An address that no client has: it is reserved for documentation."""
_HEADERS: Final = {"cache-control": "private, no-cache, no-transform", "x-accel-buffering": "no"}
"""As a paid stream has them."""


class _Paced(msgspec.Struct):
    """One event."""

    realm: str
    client: str
    """The client's address, as the gateway sees it."""


class Outside(msgspec.Struct, frozen=True):
    """What a request through the public address has shown."""

    fault: str = ""
    """Why paid streams would fail; empty if they would not."""
    remedy: str = ""
    is_reached: bool = True
    """Whether anything answered."""


def paced_route(realm: str) -> Route:
    """Return the route of the event stream."""

    async def answer(request: Request) -> Response:
        client = request.client.host if request.client is not None else ""
        event = b"data: " + msgspec.json.encode(_Paced(realm, client)) + b"\n\n"
        return StreamingResponse(_pace(event), headers=_HEADERS, media_type="text/event-stream")

    return Route(PACED_PATH, answer, methods=["GET"], include_in_schema=False)


async def _pace(event: bytes) -> AsyncIterator[bytes]:
    for number in range(_EVENTS):
        if number:
            await asyncio.sleep(_PAUSE_S)
        yield event


async def look_from_outside(url: str, realm: str) -> Outside:
    """Ask the gateway of `realm` through its public address. Never raises."""
    found = Outside()
    headers = {"x-forwarded-for": _CLAIMED, "accept": "text/event-stream"}
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, headers=headers) as client:
        for _ in range(_TRIES):
            try:
                found = await _look(client, url, realm)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                return Outside(
                    f"{url} does not answer: {reason}",
                    "start the gateway and its proxy, and run this again",
                    is_reached=False,
                )
            if not found.fault:
                return found
    return found


async def _look(client: httpx.AsyncClient, url: str, realm: str) -> Outside:
    seen, arrived = b"", []
    async with client.stream("GET", url + PACED_PATH) as response:
        if response.status_code in (502, 503, 504):
            return Outside(
                f"{url} answers {response.status_code}: its proxy does not reach the gateway",
                "start the gateway, and name its address and port in the proxy's settings",
                is_reached=False,
            )
        async for piece in response.aiter_bytes():
            seen += piece
            arrived += [time.monotonic()] * piece.count(b"data:")
    try:
        event = msgspec.json.decode(seen.partition(b"data: ")[2].partition(b"\n")[0], type=_Paced)
    except msgspec.DecodeError:
        event = None
    if response.status_code != 200 or event is None or event.realm != realm:  # noqa: PLR2004
        return Outside(
            f"{url}{PACED_PATH} answers {response.status_code}, and not as this gateway",
            "correct `discovery.url`, or let the proxy pass every path to the gateway",
        )
    if event.client == _CLAIMED:
        return Outside(
            "clients can choose their address, and so pass every bound by address",
            "set X-Forwarded-For to the client's address in the proxy (nginx: `proxy_set_header "
            "X-Forwarded-For $remote_addr;`), and do not set FORWARDED_ALLOW_IPS to `*`",
        )
    if len(arrived) < _EVENTS or arrived[-1] - arrived[0] < _PAUSE_S * (_EVENTS - 1) / 2:
        return Outside(
            f"{url} holds event streams back: paid streams would end without a voucher",
            "switch the proxy's buffering and compression of event streams off (nginx: "
            "`proxy_buffering off; gzip off;`): docs/guide/deploying.md",
        )
    return Outside()
