"""Whether the model server answers, and what kind of server it is (O-27).

The gateway probes it at start, at intervals, and before a sale or deposit if the last probe is old:
a payer must not deposit for what cannot be served, and no gas must be paid for it.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable
from typing import Any, Final

import msgspec

from channel.limits import ANSWER_DEPTH_MAX, PROBE_S_MAX
from channel.wire.depth import is_shallow
from mpp_session.gateway.counting import ServerKind
from mpp_session.gateway.errors import ConnectTimeoutError, ModelServerDownError, UpstreamError
from mpp_session.gateway.upstream import Upstream
from mpp_session.settings import Upstream as UpstreamSettings

__all__ = ["Readiness"]

_log: Final = logging.getLogger(__name__)

_INTERVAL_S: Final = 5.0
_FRESH_UP_S: Final = 15.0
_FRESH_DOWN_S: Final = 1.0
_KIND_AGE_S_MAX: Final = 60.0
_LOG_INTERVAL_S: Final = 60.0
_UNAVAILABLE: Final = frozenset({502, 503, 504})


class Readiness:
    """The known state of the model server."""

    def __init__(
        self, upstream: Upstream, settings: UpstreamSettings, *, interval_s: float = _INTERVAL_S
    ) -> None:
        self._upstream = upstream
        self._timeout_s = min(settings.connect_timeout_s, PROBE_S_MAX)
        self._counts = settings.counts
        self._interval_s = interval_s
        self._found: ServerKind = "chunks"
        self._found_at = -math.inf
        self._cause: str | None = None
        """Why the gateway cannot serve; None if it can, or if no probe has ended yet."""
        self._checked_at = -math.inf
        self.outages = 0
        """How often the server was found to be away; another may answer afterwards."""
        self._silent = 0
        self._logged_at = -math.inf
        self._probing: asyncio.Task[None] | None = None

    @property
    def kind(self) -> ServerKind:
        """How the server counts: as configured, or as detected."""
        return self._found if self._counts == "auto" else self._counts

    @property
    def fault(self) -> str | None:
        """Why the server cannot be sold, as the last probe found; None if it can."""
        return self._cause

    def require(self) -> Awaitable[None] | None:
        """Return None if the server is known to answer; otherwise an awaitable that probes it.

        Raises:
            ModelServerDownError: It is known not to answer.
        """
        age = time.monotonic() - self._checked_at
        if self._upstream.failed_at < self._checked_at:
            if self._cause is None and age < _FRESH_UP_S:
                return None
            if self._cause is not None and age < _FRESH_DOWN_S:
                raise _down()
        return self._find_out()

    async def look(self) -> str | None:
        """Probe once, and return why the server cannot be sold; None if it can."""
        await self._probe()
        return self._cause

    async def run(self) -> None:
        """Probe repeatedly, while the gateway serves."""
        while True:
            await self._probe()
            await asyncio.sleep(self._interval_s)

    async def _find_out(self) -> None:
        await self._probe()
        if self._cause is not None:
            raise _down()

    async def _probe(self) -> None:
        """Probe once; concurrent callers share the result."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._ask())
        await asyncio.shield(self._probing)

    async def _ask(self) -> None:
        cause = await self._find_cause()
        now = time.monotonic()
        if cause is None and now - self._found_at > _KIND_AGE_S_MAX and self._counts == "auto":
            self._found = await self._find_kind()
            self._found_at = now
        if cause is not None:
            self._found_at = -math.inf  # a server of another kind may replace it
            self.outages += 1
        self._log_change(cause, now)
        self._cause = cause
        self._checked_at = time.monotonic()

    async def _find_cause(self) -> str | None:
        asked_at = time.monotonic()
        try:
            status, _ = await self._upstream.get("/health", self._timeout_s)
        except ConnectTimeoutError as error:
            return str(error)
        except TimeoutError:
            # A busy server may be slow to answer. It is up if it answers other requests.
            self._silent += 1
            is_busy = self._upstream.answered_at > asked_at - _FRESH_UP_S or self._silent == 1
            return None if is_busy else f"no answer within {self._timeout_s:g} s"
        except ConnectionError as error:
            return str(error)
        except UpstreamError:
            status = 200  # an invalid answer still shows that the server is up
        self._silent = 0
        return f"GET /health answers {status}" if status in _UNAVAILABLE else None

    async def _find_kind(self) -> ServerKind:
        """Detect the kind of server by answers only that kind gives; `chunks` for all others."""
        if "default_generation_settings" in await self._read("/props"):
            return "llama.cpp"
        if "version" in await self._read("/version"):
            models = (await self._read("/v1/models")).get("data")
            first = models[0] if isinstance(models, list) and models else None
            if isinstance(first, dict) and first.get("owned_by") == "vllm":
                return "vllm"
        return "chunks"

    async def _read(self, path: str) -> dict[str, Any]:
        try:
            status, body = await self._upstream.get(path, self._timeout_s)
            value = msgspec.json.decode(body) if is_shallow(body, ANSWER_DEPTH_MAX) else None
        except (OSError, UpstreamError, msgspec.DecodeError, UnicodeDecodeError):
            return {}
        return value if status == 200 and isinstance(value, dict) else {}  # noqa: PLR2004

    def _log_change(self, cause: str | None, now: float) -> None:
        if cause is None:
            if self._cause is not None:
                _log.info("the model server at %s answers again", self._upstream.url)
            self._logged_at = -math.inf
        elif self._cause is None or now - self._logged_at > _LOG_INTERVAL_S:
            self._logged_at = now
            _log.warning(
                "the model server at %s does not answer, sales are stopped: %s",
                self._upstream.url,
                cause,
            )


def _down() -> ModelServerDownError:
    return ModelServerDownError("The model server does not answer; nothing was paid. Try later.")
