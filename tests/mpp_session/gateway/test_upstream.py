"""How much of a model server's answer is read, and how much of its words is logged."""

from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channel.limits import ANSWER_BYTES_MAX, LOCATION_CHARS_MAX, PROBE_BYTES_MAX
from mpp_session.gateway.errors import UpstreamError
from mpp_session.gateway.upstream import Upstream, UpstreamAnswer, read_body
from mpp_session.settings import Upstream as UpstreamSettings
from tests.mpp_session.serving import serve

PIECE = bytes(4 * 1024 * 1024)


def answer_of(size: int) -> UpstreamAnswer:
    """An answer of so many bytes, which arrives in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // len(PIECE)):
            yield PIECE
        yield bytes(size % len(PIECE))

    return UpstreamAnswer(200, {}, pieces)


async def test_an_answer_in_one_piece_has_at_most_so_many_bytes() -> None:
    """O-23, issue 10 B: one byte more is an error, and no answer that was cut."""
    assert len(await read_body(answer_of(ANSWER_BYTES_MAX))) == ANSWER_BYTES_MAX
    with pytest.raises(UpstreamError, match="cannot be read"):
        await read_body(answer_of(ANSWER_BYTES_MAX + 1))


async def test_an_answer_to_a_probe_has_at_most_so_many_bytes() -> None:
    """O-23, issue 10 B: the gateway asks by itself, so its own questions cost less."""

    async def health(request: Request) -> Response:
        return Response(bytes(int(request.query_params["size"])))

    async with (
        serve(Starlette(routes=[Route("/health", health)])) as url,
        Upstream.connect(UpstreamSettings(url=url)) as upstream,
    ):
        status, body = await upstream.get(f"/health?size={PROBE_BYTES_MAX}", 5.0)
        assert (status, len(body)) == (200, PROBE_BYTES_MAX)
        with pytest.raises(UpstreamError, match="cannot be read"):
            await upstream.get(f"/health?size={PROBE_BYTES_MAX + 1}", 5.0)


@pytest.mark.parametrize("beyond", [0, 1])
async def test_the_log_shows_the_beginning_of_where_a_server_redirects_to(
    beyond: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 10 B: a target at the bound is logged whole, a longer one without its end."""
    target = "/".ljust(LOCATION_CHARS_MAX, "x") + "y" * beyond

    async def redirect(_: Request) -> Response:
        return Response(status_code=307, headers={"location": target})

    async with (
        serve(Starlette(routes=[Route("/v1/models", redirect)])) as url,
        Upstream.connect(UpstreamSettings(url=url)) as upstream,
    ):
        with pytest.raises(UpstreamError, match="redirects with 307"):
            async with upstream.request("GET", "/v1/models", Headers({}), None):
                raise AssertionError("a redirect is no answer")
    (line,) = [text for text in caplog.messages if "redirects" in text]
    assert f"to {target[:LOCATION_CHARS_MAX]!r}:" in line
