"""Looks at the model server for `mpp-session doctor`: its kind, its models, its usage."""

from typing import Any, Final

import msgspec
from starlette.datastructures import Headers

from mpp_session.gateway.endpoints.chat import parse_chat_request
from mpp_session.gateway.endpoints.fields import Bounds
from mpp_session.gateway.errors import UpstreamError
from mpp_session.gateway.prompt import PromptCounter
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream, read_body
from mpp_session.settings import Upstream as UpstreamSettings

__all__ = ["ModelServer", "look_at_model_server", "look_at_server"]

_CHAT: Final = "/v1/chat/completions"


class ModelServer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at `upstream.url`."""

    fault: str | None = None
    """Why it cannot be sold; None if it can."""
    kind: str = ""
    """How the gateway counts its output."""
    models: tuple[str, ...] = ()
    has_usage: bool = False
    """Whether an answer in one piece reports how many tokens it has."""
    counts_prompts: bool = False
    """Whether it counts the tokens of a prompt before the model runs, exactly."""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


async def look_at_model_server(settings: UpstreamSettings) -> ModelServer:
    """Ask the model server what it is, and for one token of output. Never raises."""
    async with Upstream.connect(settings) as upstream:
        readiness = Readiness(upstream, settings)
        fault = await readiness.look()
        if fault is not None:
            return ModelServer(fault=fault)
        models = await _models(upstream, settings.connect_timeout_s)
        try:
            has_usage = await _reports_usage(upstream, models)
        except UpstreamError as error:
            return ModelServer(fault=str(error), kind=readiness.kind, models=models)
        return ModelServer(
            kind=readiness.kind,
            models=models,
            has_usage=has_usage,
            counts_prompts=await _counts_prompts(upstream, readiness, models),
        )


async def look_at_server(settings: UpstreamSettings) -> str | None:
    """Return why a server of which only paths are sold cannot be sold; None if it can."""
    async with Upstream.connect(settings) as upstream:
        return await Readiness(upstream, settings).look()


async def _counts_prompts(
    upstream: Upstream, readiness: Readiness, models: tuple[str, ...]
) -> bool:
    body = msgspec.json.encode(_simplest(models))
    bounds = Bounds(max_tokens=1, default_max_tokens=1, kind=readiness.kind)
    asked = parse_chat_request(body, bounds)
    return (await PromptCounter(upstream, readiness).count(asked)).is_exact


async def _models(upstream: Upstream, timeout_s: float) -> tuple[str, ...]:
    try:
        _, body = await upstream.get("/v1/models", timeout_s)
        return tuple(model.id for model in msgspec.json.decode(body, type=_Models).data)
    except (OSError, UpstreamError, msgspec.DecodeError, UnicodeDecodeError):
        return ()


def _simplest(models: tuple[str, ...]) -> dict[str, Any]:
    return {
        "model": models[0] if models else "default",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "Hi"}],
    }


async def _reports_usage(upstream: Upstream, models: tuple[str, ...]) -> bool:
    """Return whether an answer of one token states its usage.

    Raises:
        UpstreamError: The server refuses the simplest request.
    """
    asked = _simplest(models)
    headers = Headers({"content-type": "application/json"})
    async with upstream.request("POST", _CHAT, headers, msgspec.json.encode(asked)) as response:
        body = await read_body(response)
        if response.status_code != 200:  # noqa: PLR2004
            raise UpstreamError(
                f"POST {_CHAT} for model {asked['model']!r} gives {response.status_code}."
            )
    try:
        usage = msgspec.json.decode(body, type=_Answer).usage
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return usage is not None and bool(usage.completion_tokens)
