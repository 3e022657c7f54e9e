"""Real ASGI servers in the test's own event loop, and a payer with a real websocket client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import aiohttp
import msgspec
from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config as HypercornConfig

from channel.wire.challenge import Challenge, parse_challenges
from channel.wire.credential import format_credential
from channel.wire.payload import Payload
from tests.channel.selling import Answer, Provider
from tests.mpp_session.serving import serve
from tests.waiting import PATIENCE_S, until

__all__ = ["SERVERS", "PayingSocket", "connect", "refused"]

App = Callable[..., Any]


@contextlib.asynccontextmanager
async def _hypercorn(app: App) -> AsyncIterator[str]:
    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.graceful_timeout = 1
    config.errorlog = None
    (sockets,) = (config.create_sockets().insecure_sockets,)
    port = sockets[0].getsockname()[1]
    config.bind = [f"fd://{sockets[0].detach()}"]
    stop = asyncio.Event()
    task = asyncio.create_task(
        serve_hypercorn(cast("Any", app), config, shutdown_trigger=cast("Any", stop.wait))
    )
    try:
        await until(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        await task


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


SERVERS: dict[str, Callable[[App], contextlib.AbstractAsyncContextManager[str]]] = {
    "uvicorn": serve,
    "uvicorn-wsproto": lambda app: serve(app, ws="wsproto"),
    "hypercorn": _hypercorn,
}


async def refused(
    url: str, path: str, *, headers: Mapping[str, str] = {}, protocols: tuple[str, ...] = ()
) -> Answer:
    """Ask for a websocket that the server must refuse, and return its HTTP answer."""
    found: list[Answer] = []

    async def read(response: aiohttp.ClientResponse) -> None:
        if response.status != 101:
            found.append(
                Answer(response.status, list(response.headers.items()), await response.read())
            )

    async with aiohttp.ClientSession(raise_for_status=cast("Any", read)) as session:
        with contextlib.suppress(aiohttp.WSServerHandshakeError):
            socket = await session.ws_connect(url + path, headers=headers, protocols=protocols)
            message = await socket.receive()
            raise AssertionError(f"{path} was served: {message}")
    (answer,) = found
    return answer


class PayingSocket:
    """A payer who speaks the frames by hand: every message, in order."""

    def __init__(
        self,
        socket: "aiohttp.ClientWebSocketResponse[bool]",
        provider: Provider,
        challenge: Challenge,
    ) -> None:
        self.socket = socket
        self.provider = provider
        self.challenge = challenge

    async def send(self, **frame: Any) -> None:
        await self.socket.send_str(msgspec.json.encode(frame).decode())

    async def say(self, text: str) -> None:
        await self.send(mpp="message", data=text)

    async def pay(self, payload: Payload | int, challenge: Challenge | None = None) -> None:
        payer = self.provider.payer
        made = payer.voucher(payload) if isinstance(payload, int) else payload
        credential = payer.credential(challenge or self.challenge, made)
        await self.send(mpp="authorization", authorization=format_credential(credential))

    async def frame(self) -> dict[str, Any]:
        """Return the next frame; a binary one as `bytes`, the close as `closed`."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return {"bytes": message.data}
        if message.type is aiohttp.WSMsgType.TEXT:
            frame: dict[str, Any] = msgspec.json.decode(message.data)
            return frame
        return {"closed": self.socket.close_code}

    async def data(self) -> str:
        frame = await self.frame()
        assert frame["mpp"] == "message", frame
        text: str = frame["data"]
        return text

    async def expect(self, kind: str) -> dict[str, Any]:
        frame = await self.frame()
        assert frame.get("mpp") == kind, frame
        found: dict[str, Any] = frame.get("data", frame)
        return found

    async def rest(self) -> list[dict[str, Any]]:
        """Return every frame until the close, included."""
        frames = []
        while "closed" not in (frame := await self.frame()):
            frames.append(frame)
        return [*frames, frame]


@contextlib.asynccontextmanager
async def connect(
    provider: Provider, url: str, path: str, amount: int, *, protocols: tuple[str, ...] = ()
) -> AsyncIterator[PayingSocket]:
    """Open a paid websocket: by its handshake's header, or by its first frame."""
    answer = await refused(url, path)
    (challenge,) = parse_challenges(answer.all("www-authenticate"))
    credential = provider.payer.credential(challenge, provider.payer.voucher(amount))
    headers = {} if protocols else {"Authorization": format_credential(credential)}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url + path, headers=headers, protocols=protocols) as socket,
    ):
        paying = PayingSocket(socket, provider, challenge)
        if protocols:
            await paying.pay(amount)
        yield paying
