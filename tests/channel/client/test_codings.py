"""O-23: every reader of every answer unpacks it within a bound."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import httpx
import pytest

from channel.errors import AgentError
from tests.channel.client.conftest import Agent
from tests.channel.client.exchanges import sell_stream
from tests.channel.client.provider import Events, Provider, Seen

MEMORY_MAX = 24 * 1024 * 1024
ZEROS = b" " * (64 * 1024 * 1024)
GZIPPED = gzip.compress(ZEROS)
BOMBS = {
    "gzip": GZIPPED,
    "gzip, gzip": gzip.compress(GZIPPED),
    "deflate": zlib.compress(ZEROS),
    "deflate, gzip": gzip.compress(zlib.compress(ZEROS)),
    "x-gzip": GZIPPED,
    "br": GZIPPED,
    "zstd": GZIPPED,
    "identity, gzip": GZIPPED,
}


@pytest.fixture
def bounded() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_MAX


def packed(
    status: int, coding: str, content: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    async def pieces() -> object:  # as from a network: not read before
        yield content

    fields = {"Content-Encoding": coding} | (headers or {})
    return httpx.Response(status, headers=fields, stream=Events(pieces()))  # type: ignore[arg-type]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("coding", BOMBS)
@pytest.mark.parametrize("kind", ["application/problem+json", "application/json", "text/html"])
async def test_a_refusal_is_unpacked_within_a_bound(
    agent: Agent, provider: Provider, coding: str, kind: str
) -> None:
    """A 402 with a challenge, and one that the caller reads itself."""

    def refuse(_: Seen) -> httpx.Response:
        headers = {"Content-Type": kind}
        headers["WWW-Authenticate"] = provider.refuse().headers["WWW-Authenticate"]
        return packed(402, coding, BOMBS[coding], headers)

    provider.override = refuse
    with pytest.raises((httpx.DecodingError, AgentError)):
        await agent.client.get("/joke")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("coding", BOMBS)
@pytest.mark.parametrize("status", [200, 404, 500])
async def test_any_other_answer_is_unpacked_within_a_bound(
    agent: Agent, provider: Provider, coding: str, status: int
) -> None:
    provider.override = lambda _: packed(status, coding, BOMBS[coding])
    with pytest.raises(httpx.DecodingError):
        await agent.client.get("/joke")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("coding", BOMBS)
async def test_a_paid_stream_is_unpacked_within_a_bound(
    agent: Agent, provider: Provider, coding: str
) -> None:
    sell_stream(provider, 3)
    bomb = BOMBS[coding]
    honest = provider.stream

    def stream(*sold: object) -> httpx.Response:
        headers = dict(honest(*sold).headers)  # type: ignore[arg-type]
        return packed(200, coding, bomb, headers)

    provider.stream = stream  # type: ignore[assignment]
    with pytest.raises((httpx.DecodingError, AgentError)):
        await agent.client.post("/chat", json={"stream": True})


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity", ""])
async def test_what_was_asked_for_is_read_as_ever(
    agent: Agent, provider: Provider, coding: str
) -> None:
    """And nothing is asked for that could not be bounded."""
    packers: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    pack = packers.get(coding, bytes)
    text = json.dumps({"joke": "because" * 1000}).encode()

    def answer(seen: Seen) -> httpx.Response | None:
        assert seen.headers.get("Accept-Encoding", "gzip, deflate") == "gzip, deflate"
        return packed(200, coding, pack(text)) if seen.credential is not None else None

    provider.override = answer
    await agent.client.get("/free", headers={"Accept-Encoding": "br, zstd"})
    provider.override = lambda _: packed(200, coding, pack(text))
    answered = await agent.client.get("/joke")
    assert answered.json() == {"joke": "because" * 1000}
    assert "Content-Encoding" not in answered.headers or coding in ("identity", "")
