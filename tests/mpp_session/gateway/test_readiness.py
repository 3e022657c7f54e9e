"""Nothing is sold, and no deposit taken, while the model server is away (O-27)."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mpp_session.gateway.errors import ModelServerDownError
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream
from mpp_session.settings import Upstream as UpstreamSettings
from tests.mpp_session.gateway.conftest import PRICE, OpenAgent, RunGateway
from tests.mpp_session.gateway.real_model import real_model
from tests.mpp_session.serving import serve
from tests.waiting import until

MESSAGES = [{"role": "user", "content": "hello"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, **fields}


@contextlib.contextmanager
def silent_port() -> Any:
    """A server that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


AWAY = ["refuses connections", "502", "503", "504", "a name that is none"]


@contextlib.asynccontextmanager
async def away(how: str) -> AsyncIterator[str]:
    if how == "refuses connections":
        yield "http://127.0.0.1:9"
    elif how == "a name that is none":
        yield "http://model.invalid"
    else:

        async def health(_: Request) -> Response:
            return Response("Loading model", int(how))

        async with serve(Starlette(routes=[Route("/health", health)])) as url:
            yield url


@pytest.mark.parametrize("how", AWAY)
async def test_no_deposit_is_asked_for_or_taken_for_what_cannot_be_served(
    run_gateway: RunGateway, open_agent: OpenAgent, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """O-27: 503 with Retry-After before any payment; the log, not the client, learns the URL."""
    async with (
        away(how) as url,
        run_gateway(upstream__url=url) as gateway,
        open_agent() as agent,
        httpx.AsyncClient() as bare,
    ):
        answer = await bare.post(gateway.completions, json=body())
        assert answer.status_code == 503
        assert "www-authenticate" not in answer.headers
        assert int(answer.headers["retry-after"]) > 0
        assert (await bare.head(gateway.completions)).status_code == 402, "how to close"
        response = await agent.post(gateway.completions, json=body())
        assert response.status_code == 503
        assert url not in response.text
        assert await agent.payments.channels() == []
        assert await gateway.channels() == []
    ours = [record for record in caplog.records if record.name.startswith("mpp_session")]
    assert len([record for record in ours if url in record.getMessage()]) == 1


async def test_a_close_is_taken_while_the_model_server_is_away(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    """O-27: what is held already is not kept back because the model is away."""
    async with run_gateway() as gateway, open_agent() as agent:
        assert (await agent.post(gateway.completions, json=body())).status_code == 200
        readiness = gateway.gateway._readiness  # noqa: SLF001 -- the test takes the server away
        upstream = readiness._upstream  # noqa: SLF001
        upstream.url = "http://127.0.0.1:9"
        upstream.failed_at = float("inf")
        assert (await agent.post(gateway.completions, json=body())).status_code == 503
        (closed,) = await agent.payments.close(gateway.url)
        assert closed.settled == 3 * PRICE


def settings(url: str, **more: Any) -> UpstreamSettings:
    return UpstreamSettings(url=url, connect_timeout_s=0.3, **more)


async def test_the_server_is_asked_while_running_and_its_return_is_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    status = 503

    async def health(_: Request) -> Response:
        return Response(status_code=status)

    async with (
        serve(Starlette(routes=[Route("/health", health)])) as url,
        Upstream.connect(settings(url)) as upstream,
    ):
        readiness = Readiness(upstream, settings(url), interval_s=0.02)
        asking = asyncio.create_task(readiness.run())
        await until(lambda: any("sales are stopped" in line for line in caplog.messages))
        with pytest.raises(ModelServerDownError):
            readiness.require()
        status = 200
        await until(lambda: any("answers again" in line for line in caplog.messages))
        assert readiness.require() is None
        asking.cancel()
    assert sum("sales are stopped" in line for line in caplog.messages) == 1


async def test_a_server_that_is_busy_is_there_and_one_that_is_silent_is_not() -> None:
    """A slow answer to the question, while others are answered, is no outage."""
    with silent_port() as url:
        async with Upstream.connect(settings(url)) as upstream:
            readiness = Readiness(upstream, settings(url))
            await readiness._probe()  # noqa: SLF001
            assert readiness.require() is None
            upstream.answered_at = float("inf")
            await readiness._probe()  # noqa: SLF001
            assert readiness.require() is None
            upstream.answered_at = -float("inf")
            await readiness._probe()  # noqa: SLF001
            with pytest.raises(ModelServerDownError):
                readiness.require()


async def test_a_request_that_fails_makes_the_next_one_ask(
    run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    async with run_gateway() as gateway, open_agent() as agent:
        assert (await agent.post(gateway.completions, json=body())).status_code == 200
        readiness = gateway.gateway._readiness  # noqa: SLF001
        assert readiness.require() is None
        readiness._upstream.failed_at = float("inf")  # noqa: SLF001
        asking = readiness.require()
        assert asking is not None
        await asking


async def find_kind(url: str, counts: Any = "auto") -> str:
    async with Upstream.connect(settings(url, counts=counts)) as upstream:
        readiness = Readiness(upstream, settings(url, counts=counts))
        await readiness._probe()  # noqa: SLF001
        return readiness.kind


async def test_the_kind_of_server_is_found_out_by_what_it_answers() -> None:
    """O-02: asked, not guessed; what says nothing of itself is not believed to count."""

    def answers(**paths: Any) -> Starlette:
        def answer(value: Any) -> Any:
            return lambda _: JSONResponse(value)

        return Starlette(
            routes=[Route("/" + p.replace("_", "/"), answer(v)) for p, v in paths.items()]
        )

    vllm = {"data": [{"id": "x", "owned_by": "vllm"}]}
    for app, kind in (
        (answers(version={"version": "0.11"}, v1_models=vllm), "vllm"),
        (answers(version={"version": "0.11"}, v1_models={"data": []}), "chunks"),
        (answers(version="0.11", v1_models=vllm), "chunks"),
        (answers(props={"default_generation_settings": {}}), "llama.cpp"),
        (answers(props=["default_generation_settings"]), "chunks"),
        (answers(), "chunks"),
    ):
        async with serve(app) as url:
            assert await find_kind(url) == kind
            assert await find_kind(url, "usage") == "usage"


async def test_the_real_server_is_known() -> None:
    with real_model() as url:
        assert await find_kind(url) == "llama.cpp"
