"""Traces a gateway, if the operator has asked for it: OpenTelemetry is not imported otherwise."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec
from starlette.types import ASGIApp

from channel.errors import ConfigError
from channel.http.hooks import Hooks
from mpp_session.settings.config import wants_traces

__all__ = ["Tracing", "open_tracing"]


class Tracing(msgspec.Struct, frozen=True):
    """What a traced gateway is built with."""

    hooks: Hooks
    wrap: Callable[[ASGIApp], ASGIApp]
    """Returns an application that opens a span for each request."""


@contextlib.asynccontextmanager
async def open_tracing() -> AsyncIterator[Tracing | None]:
    """Yield what to trace with, and export the rest at the end; None if nothing is asked for.

    Raises:
        ConfigError: The extra `telemetry` is not installed.
    """
    if not wants_traces():
        yield None
        return
    try:
        from mpp_session.observe.tracing import (  # noqa: PLC0415 - optional
            TraceHooks,
            TracingSite,
            open_provider,
        )
    except ImportError as error:
        raise ConfigError(
            "the variables OTEL_... ask for traces, and OpenTelemetry is not installed: run `pip "
            "install mpp-session[telemetry]`, or unset them"
        ) from error
    provider = await asyncio.to_thread(open_provider)
    try:
        yield Tracing(TraceHooks(provider), lambda app: TracingSite(app, provider))
    finally:
        await asyncio.to_thread(provider.shutdown)
