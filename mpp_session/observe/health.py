"""Whether the parts that selling needs work: database, chain, settler, model server.

A look is shared by all who ask while it runs, and kept for a second, so that a stranger's requests
cause no work. A part that does not answer in time counts as down.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["HEALTH_PATHS", "Health", "HealthPages", "HealthSite", "Part", "PartDownError"]

_log: Final = logging.getLogger(__name__)

HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})

_KEPT_S: Final = 1.0
_LOOK_S_MAX: Final = 2.0
_OK: Final = 200
_DOWN: Final = 503


class PartDownError(Exception):
    """A part does not work; the text says why, for the operator."""


class Part(msgspec.Struct, frozen=True):
    """What the last look at a part showed."""

    is_ok: bool
    why: str = ""
    """What is wrong, for the operator; never for strangers."""


Check = Callable[[], Awaitable[None]]
"""Looks at a part. Raises `PartDownError`, or any error, if it does not work."""


class Health:
    """The state of each part."""

    def __init__(
        self, checks: Mapping[str, Check], *, needed: frozenset[str], kept_s: float = _KEPT_S
    ) -> None:
        """Look with these checks, by the name of their part.

        Nothing can be sold without the parts in `needed`. A look is kept for `kept_s` seconds.
        """
        self.last: dict[str, Part] = {}
        """What the last look showed."""
        self._checks = checks
        self._needed = needed
        self._kept_s = kept_s
        self._looked_at = -kept_s
        self._looking: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Future[None]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether the last look showed that everything works that selling needs."""
        return all(self.last[name].is_ok for name in self._needed)

    @property
    def is_whole(self) -> bool:
        """Whether the last look showed that every part works."""
        return all(part.is_ok for part in self.last.values())

    async def look(self) -> Mapping[str, Part]:
        """Return the state of each part, at most a second old."""
        if time.monotonic() - self._looked_at >= self._kept_s:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            await asyncio.shield(self._looking)
        return self.last

    async def run(self, interval_s: float = 5.0) -> None:
        """Look for ever, so that gauges are fresh when no one asks."""
        while True:
            await self.look()
            await asyncio.sleep(interval_s)

    async def _look(self) -> None:
        asking = [self._ask(name) for name in self._checks]
        last = dict(zip(self._checks, await asyncio.gather(*asking), strict=True))
        for name, part in last.items():
            before = self.last.get(name)
            if (True if before is None else before.is_ok) != part.is_ok:
                if part.is_ok:
                    _log.info("health: %s works again", name)
                else:
                    _log.warning("health: %s does not work: %s", name, part.why)
        self.last = last
        self._looked_at = time.monotonic()

    async def _ask(self, name: str) -> Part:
        """Look at one part. A check that is stuck goes on, and is not started beside itself."""
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.ensure_future(self._checks[name]())
        done, _ = await asyncio.wait({task}, timeout=_LOOK_S_MAX)
        if not done:
            return Part(is_ok=False, why=f"no answer within {_LOOK_S_MAX:g} s")
        del self._running[name]
        if task.cancelled():
            return Part(is_ok=False, why="the check was cancelled")
        error = task.exception()
        if error is None:
            return Part(is_ok=True)
        return Part(is_ok=False, why=str(error) or type(error).__name__)


class HealthSite:
    """Answers `HEALTH_PATHS` in front of an application, and passes on everything else."""

    def __init__(self, app: ASGIApp, pages: "HealthPages") -> None:
        self._app = app
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_ours = scope["type"] == "http" and scope["path"] in HEALTH_PATHS
        await (self._pages if is_ours else self._app)(scope, receive, send)


class HealthPages:
    """Answers `/healthz` and `/readyz`.

    `/readyz` is 200 if everything works that selling needs, and 503 otherwise. The body of both
    says `degraded` if any part is down. `/healthz` is 200
    as long as this process answers: restarting it would repair nothing that its body shows.
    """

    def __init__(self, health: Health, *, is_public: bool) -> None:
        """Show these parts. To the public only whether each works, not why it does not."""
        self._health = health
        self._is_public = is_public

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer a GET or HEAD request for one of `HEALTH_PATHS`."""
        is_head = scope["method"] == "HEAD"
        if not is_head and scope["method"] != "GET":
            await _send(send, 405, b"", [(b"allow", b"GET, HEAD")], is_head=is_head)
            return
        await self._health.look()
        asks_ready = scope["path"].endswith("/readyz")
        status = _DOWN if asks_ready and not self._health.is_ready else _OK
        await _send(send, status, self._body(), [], is_head=is_head)

    def _body(self) -> bytes:
        parts: dict[str, object] = {}
        for name, part in self._health.last.items():
            word = "ok" if part.is_ok else "down"
            parts[name] = word if self._is_public or part.is_ok else f"{word}: {part.why}"
        status = "ok" if self._health.is_whole else "degraded"
        return msgspec.json.encode({"status": status, "parts": parts})


async def _send(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]], *, is_head: bool
) -> None:
    sent = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": b"" if is_head else body})
