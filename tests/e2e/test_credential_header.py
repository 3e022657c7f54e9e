"""Credentials in a field of their own, so that `Authorization` is the application's (O-58)."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as AppRoute

from channel.client.policy.policy import Policy, TokenLimits
from channel.http import PaidEventStream, Price, Route
from channel.wire.challenge import parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    VoucherPayload,
)
from mpp_session.agent.client import open_client
from mpp_session.selling import sell
from mpp_session.testing import TestChain
from settlement.dev.devnet import Devnet
from tests.e2e.gateways import gateway_variables
from tests.e2e.selling import Payer

FIELD = "Payment-Authorization"
OURS = {"Authorization": "Bearer of-the-application"}
ROUTES = [
    Route(method="GET", path="/joke", price=Price(unit_price=10, unit_type="request")),
    Route(
        method="GET",
        path="/story",
        price=Price(unit_price=5, unit_type="llm_chunk"),
        metered=True,
    ),
]


async def joke(request: Request) -> Response:
    if request.headers.get("authorization") != OURS["Authorization"]:
        return JSONResponse({"error": "who are you?"}, 401, {"Cache-Control": "public, max-age=60"})
    return JSONResponse({"joke": "A chain walks into a bar."}, 200, {"Cache-Control": "public"})


async def story(request: Request) -> Response:
    async def words() -> AsyncIterator[str]:
        for number in range(50):
            yield f"word {number} for {request.headers['authorization']}"

    return PaidEventStream(words())


async def free(_: Request) -> Response:
    return JSONResponse({"free": True}, 200, {"Cache-Control": "public, s-maxage=60"})


@asynccontextmanager
async def shop(
    devnet: TestChain, folder: Path, patch: pytest.MonkeyPatch, by: str
) -> AsyncIterator[str]:
    """An application sold as the manual says, its field set by a setting or as an argument."""
    variables = gateway_variables(
        devnet.values, "", folder / "ledger.db", 0, step_units=8, settles=False
    )
    for name, value in variables.items():
        if name.startswith("MPP_SESSION_") and not re.search("UPSTREAM|PRICE|LISTEN", name):
            patch.setenv(name, value)
    options: dict[str, Any] = {}
    if by == "argument":
        options["credential_header"] = FIELD
    else:
        patch.setenv("MPP_SESSION_PAYMENT_CREDENTIAL_HEADER", FIELD)
    pages = [AppRoute("/joke", joke), AppRoute("/story", story), AppRoute("/free", free)]
    app = sell(Starlette(routes=pages), ROUTES, **options)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())  # noqa: SLF001 -- `serve` would take our signals
    while not server.started and not task.done():  # noqa: ASYNC110 -- there is no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize("by", ["argument", "setting"])
async def test_an_application_keeps_authorization_for_itself(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """O-58, CHAL-12: the client pays in the field that is asked for, and leaves the other one."""
    values = devnet.values
    limits = TokenLimits(
        chain_id=values.chain_id,
        token=values.token,
        unit_price_max={"request": 1_000, "llm_chunk": 50},
        deposit_max=100_000,
        budget=1_000_000,
    )
    async with (
        shop(devnet, tmp_path, monkeypatch, by) as url,
        open_client(
            rpc_url=values.rpc_url,
            private_key=values.accounts["payer"].private_key,
            policy=Policy(limits=(limits,), allow_loopback_http=True),
            store=tmp_path / "store.db",
            base_url=url,
        ) as client,
    ):
        answer = await client.get("/joke", headers=OURS)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "private"
        answered = await client.get("/story", headers=OURS)
        assert answered.text.count(f"for {OURS['Authorization']}") == 50
        (account,) = await client.payments.channels()
        assert account.spent == 10 + 50 * 5


async def test_the_server_reads_no_other_field_and_no_cache_keeps_its_answers(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-58, CHAL-12, CORE-06: by hand, as any client may send it."""
    async with (
        devnet.connect() as chain,
        shop(devnet, tmp_path, monkeypatch, "argument") as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        text = await _opening(chain, client)
        wrong = await client.get("/joke", headers={"Authorization": text})
        assert (wrong.status_code, wrong.json()["type"].rpartition("/")[2]) == (
            402,
            "payment-required",
        )
        ours = {FIELD: text}
        unknown = await client.get("/joke", headers=ours)  # it lacks the application's own
        assert (unknown.status_code, unknown.headers["cache-control"]) == (
            401,
            "private, max-age=60",
        )
        free_page = await client.get("/free", headers=ours)
        assert free_page.headers["cache-control"] == "private"
        assert (await client.get("/free")).headers["cache-control"] == "public, s-maxage=60"
        nowhere = await client.get("/nowhere", headers=ours)
        assert (nowhere.status_code, nowhere.headers["cache-control"]) == (404, "private")
        paid = await client.get("/joke", headers={**ours, **OURS})
        assert (paid.status_code, paid.headers["cache-control"]) == (200, "private")
        again = await client.get("/joke", headers={**ours, **OURS})
        assert (again.status_code, again.headers["cache-control"]) == (402, "no-store")


async def _opening(chain: Devnet, client: httpx.AsyncClient) -> str:
    """A credential that opens a channel and pays for one request."""
    refused = await client.get("/joke")
    (challenge,) = parse_challenges(refused.headers.get_list("www-authenticate"))
    assert challenge.header == FIELD
    payer = Payer(chain)
    await payer.open()
    source = (payer.key.chain_id, payer.address)
    opened = format_credential(Credential(challenge, payer.opening(10), source))
    assert (await client.head("/joke", headers={FIELD: opened})).status_code == 200
    return format_credential(Credential(challenge, VoucherPayload(payer.sign(10)), source))
