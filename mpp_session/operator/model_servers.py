"""Finds model servers on this machine, each by a path that only its kind answers."""

import asyncio
from typing import Any, Final

import httpx
import msgspec

from channel.limits import ANSWER_DEPTH_MAX, PROBE_BYTES_MAX
from channel.wire.depth import is_shallow

__all__ = ["FoundServer", "find_model_servers"]

_PATIENCE_S: Final = 1.0

_PLACES: Final = (
    ("llama.cpp", 8080, "/props", "default_generation_settings"),
    ("vLLM", 8000, "/version", "version"),
    ("Ollama", 11434, "/api/version", "version"),
    ("LM Studio", 1234, "/api/v0/models", "data"),
    ("SGLang", 30000, "/get_model_info", "model_path"),
)
"""Kind, usual port, the path that tells it, and a member of its answer."""


class FoundServer(msgspec.Struct, frozen=True):
    """A model server that answers."""

    kind: str
    url: str


async def find_model_servers(urls: tuple[str, ...] = ()) -> list[FoundServer]:
    """Return the servers that answer at their usual ports on this machine, and at `urls`."""
    usual = [(f"http://127.0.0.1:{place[1]}", (place,)) for place in _PLACES]
    asked = [(url.rstrip("/"), _PLACES) for url in urls] or usual
    async with httpx.AsyncClient(timeout=_PATIENCE_S, trust_env=False) as client:
        found = await asyncio.gather(*[_find(client, url, places) for url, places in asked])
    return [server for server in found if server is not None]


async def _find(
    client: httpx.AsyncClient, url: str, places: tuple[tuple[str, int, str, str], ...]
) -> FoundServer | None:
    for kind, _, path, member in places:
        if member in await _read(client, url + path):
            return FoundServer(kind, url)
    return None


async def _read(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    body = b""
    try:
        async with client.stream("GET", url) as answer:
            if answer.status_code != 200:  # noqa: PLR2004
                return {}
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > PROBE_BYTES_MAX:
                    return {}
        value = msgspec.json.decode(body) if is_shallow(body, ANSWER_DEPTH_MAX) else None
    except (httpx.HTTPError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
