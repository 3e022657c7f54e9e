"""Agents pay through a wallet process as they pay by themselves, within its owner's policy."""

import asyncio
import functools
import json
import os
import re
import signal
import time
from contextlib import AbstractAsyncContextManager
from hashlib import sha256
from pathlib import Path

import httpx
import httpx2
import pytest
from typer.testing import CliRunner

from channel.client.policy.context import PURPOSE
from channel.errors import (
    AgentError,
    ChannelUnusableError,
    ConfigError,
    PolicyRefusedError,
)
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.agent.httpx2_transport import httpx2_transport
from mpp_session.agent.purpose import Purpose, attach_purpose
from mpp_session.agent.sync_client import open_sync_client
from mpp_session.agent.wallet_socket import WalletPayments
from mpp_session.cli.app import APP
from mpp_session.wallet.server.owner_client import ask_owner_door
from tests.e2e.warm import Forge
from tests.mpp_session.cli.test_proxy import running
from tests.mpp_session.wallet.server.process import Pace, WalletProcess
from tests.waiting import PATIENCE_S, until


def agent(
    wallet: WalletProcess, name: str = "scout", *, task: str = ""
) -> AbstractAsyncContextManager[PayingClient]:
    return open_client(wallet=wallet.address(name), token=wallet.tokens[name], task=task)


async def owner(wallet: WalletProcess, path: str, body: object = None) -> None:
    await asyncio.to_thread(ask_owner_door, wallet.home, "POST", path, body)


async def test_a_request_is_made_paid_and_answered(
    own_wallet: WalletProcess, shop_url: str
) -> None:
    """Only the shop's own fields come back, and only the agent's own arrive there."""
    wallet = own_wallet
    async with agent(wallet, task="report") as client:
        with attach_purpose(Purpose(reason="a second source")):
            answer = await client.post(
                f"{shop_url}/echo?q=1",
                json={"a": 1},
                headers={"X-Own": "mine", "Wallet-Extra": "never", "Connection": "X-Hop"},
                extensions={PURPOSE: Purpose(tool="search")},
            )
        assert answer.status_code == 200
        seen = answer.json()
        assert json.loads(seen["body"]) == {"a": 1}
        assert seen["headers"]["x-own"] == "mine"
        assert not [name for name in seen["headers"] if name.startswith("wallet-")]
        assert answer.headers["x-served"] == "yes"
        assert "payment-receipt" in answer.headers
        assert not [name for name in answer.headers if name.lower().startswith("wallet-")]

        payments = client.payments
        assert isinstance(payments, WalletPayments)
        (record,) = await payments.channels()
        assert (record.signed, record.opening) == (250, None)
        (summary,) = await payments.summary()
        assert (summary.spent, summary.locked) == (250, record.deposit)
        request = client.build_request("POST", f"{shop_url}/echo", json={})
        assert (await payments.quote(request)).amount == 250
        assert await payments.find_opening(record.key.channel_id) is not None
        used = {(one.what, one.scope): one.used for one in await payments.budgets()}
        assert used["spent", "envelope all"] == 250
        with pytest.raises(ChannelUnusableError, match="no channel"):
            await payments.close("https://unknown.example/")
        with pytest.raises(AgentError, match="no question"):
            await payments.approval("none")
    async with agent(wallet, "miser") as client:
        assert await client.payments.channels() == []


async def test_an_overspent_budget_is_the_same_error_and_signs_nothing(
    wallet: WalletProcess, shop_url: str
) -> None:
    async with agent(wallet, "miser") as client:
        await client.post(f"{shop_url}/echo", json={})
        with pytest.raises(PolicyRefusedError) as caught:
            await client.post(f"{shop_url}/echo", json={})
        assert caught.value.code == "envelope_exceeded"
        assert caught.value.allowed is not None
        (record,) = await client.payments.channels()
        assert record.signed == 250
        refused = await client.post(
            f"{shop_url}/echo", json={}, headers={"x-stainless-lang": "python"}
        )
        assert refused.status_code == 402
        assert refused.headers["x-should-retry"] == "false"


async def test_a_stream_comes_as_it_is_said_and_ends_with_a_freeze(
    wallet: WalletProcess, shop_url: str, pace: Pace
) -> None:
    reader = functools.partial(agent, wallet, "reader")
    async with reader() as client, client.stream("GET", f"{shop_url}/stream") as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        for number in range(3):
            pace.go.release()
            while f"word {number}" not in await anext(lines):
                pass
            assert pace.said == [str(one) for one in range(number + 1)]
        await owner(wallet, "/freeze", {"scope": "agent reader", "reason": "test"})
        for _ in range(396):
            pace.go.release()
        with pytest.raises(PolicyRefusedError) as caught:
            async for _ in lines:
                pass
        assert caught.value.code == "frozen"
        assert len(pace.said) < 400
    async with reader() as client:
        with pytest.raises(PolicyRefusedError) as caught:
            await client.post(f"{shop_url}/echo", json={})
        assert caught.value.code == "frozen"
    await owner(wallet, "/unfreeze", {"scope": "agent reader"})
    async with reader() as client:
        assert (await client.post(f"{shop_url}/echo", json={})).is_success


async def test_a_redirect_to_another_origin_is_not_paid(
    wallet: WalletProcess, shop_url: str
) -> None:
    """CLIENT-10, F-93: the wallet follows none, and the next hop says whose it was."""
    async with agent(wallet) as client:
        answer = await client.get(f"{shop_url}/away")
        assert answer.status_code == 307
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{shop_url}/away", follow_redirects=True)


async def test_what_a_wallet_cannot_do_is_said(wallet: WalletProcess) -> None:
    async with agent(wallet) as client:
        assert isinstance(client, PayingClient)
        with pytest.raises(ConfigError, match="websocket"):
            client.websocket("wss://a.example")
        with pytest.raises(ConfigError, match="itself"):
            client.transport.over(httpx.AsyncHTTPTransport())
        with pytest.raises(ConfigError, match="itself"):
            client.payments.over(httpx.AsyncHTTPTransport())
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:9/")
    for given in ({"rpc_url": "http://a"}, {"private_key": b"k"}, {"token": None}):
        with pytest.raises(ConfigError):
            async with open_client(
                **{"wallet": wallet.address("scout"), "token": "t", **given}  # type: ignore[arg-type]
            ):
                pytest.fail("opened")
    for place in ("unix:", "http://10.0.0.1:80", "https://127.0.0.1:1", "x"):
        with pytest.raises(ConfigError, match="expected a wallet"):
            async with open_client(wallet=place, token=wallet.tokens["scout"]):
                pytest.fail("opened")


async def test_an_agent_that_leaves_ends_its_stream(
    wallet: WalletProcess, shop_url: str, pace: Pace
) -> None:
    async with agent(wallet, "leaver") as client:
        async with client.stream("GET", f"{shop_url}/stream") as answer:
            pace.go.release()
            await anext(answer.aiter_lines())
        await until(lambda: is_idle(wallet))
        (record,) = [one for one in await client.payments.channels() if one.units]
        assert record.signed <= record.deposit
        other = httpx2.AsyncClient(transport=httpx2_transport(client))
        assert (await other.post(f"{shop_url}/echo", json={})).status_code == 200


async def is_idle(wallet: WalletProcess) -> bool:
    found = await asyncio.to_thread(ask_owner_door, wallet.home, "GET", "/status")
    return int(found["running"]["leaver"]) == 0


def test_code_that_blocks_pays_too(wallet: WalletProcess, shop_url: str) -> None:
    with open_sync_client(wallet=wallet.address("scout"), token=wallet.tokens["scout"]) as client:
        assert client.post(f"{shop_url}/echo", json={}).is_success
        assert {one.token for one in client.payments.budgets()} == {"usd"}
        for ask in (client.payments.approval, client.payments.wait_for):
            with pytest.raises(AgentError, match="no question"):
                ask("none")
        (closed,) = client.payments.close(shop_url)
    assert closed.state == "closed"


def test_the_owner_reads_reloads_and_revokes(own_wallet: WalletProcess, shop_url: str) -> None:
    wallet, run = own_wallet, CliRunner().invoke
    home = ["--home", str(wallet.home)]
    miser = wallet.address("miser"), wallet.tokens["miser"]
    with open_sync_client(wallet=miser[0], token=miser[1]) as client:
        assert client.post(f"{shop_url}/echo").is_success
    found = json.loads(run(APP, ["wallet", "status", "--json", *home]).stdout)
    assert {one["name"] for one in found["agents"]} == set(wallet.tokens)
    assert "0.000300" in run(APP, ["wallet", "budgets", *home]).stdout  # of the envelope `small`
    refused = run(APP, ["wallet", "freeze", "agent", "stranger", *home])
    assert isinstance(refused.exception, ConfigError)
    before = wallet.policy.read_text()
    wallet.policy.write_text(before.replace("allow_loopback_http", "allow_loopback_htpp"))
    assert isinstance(run(APP, ["wallet", "reload", *home]).exception, ConfigError)
    wallet.write_policy()
    assert "revision 2" in run(APP, ["wallet", "reload", *home]).stdout
    wallet.policy.write_text(before)
    assert "later" in str(run(APP, ["wallet", "reload", *home]).exception)
    wallet.write_policy()
    os.kill(wallet.pid, signal.SIGHUP)
    status = ["wallet", "status", "--json", *home]
    patience = time.monotonic() + PATIENCE_S
    while json.loads(run(APP, status).stdout)["revision"] != 3 and time.monotonic() < patience:
        time.sleep(0.05)
    wallet.write_policy(gone=("miser",))
    assert "revision 4" in run(APP, ["wallet", "reload", *home]).stdout
    assert "1 channel closed" in run(APP, ["wallet", "close", *home]).stdout
    with (
        open_sync_client(wallet=wallet.address("miser"), token=wallet.tokens["miser"]) as client,
        pytest.raises(PolicyRefusedError, match="token"),
    ):
        client.payments.channels()
    assert "revoked" in run(APP, ["wallet", "revoke", "agent", "far", *home]).stdout
    found = json.loads(run(APP, ["wallet", "status", "--json", *home]).stdout)
    assert found["revoked"] == ["agent far"]
    assert "far" not in found["running"]
    made = json.loads(run(APP, ["wallet", "agent-add", "new.one", "--uid", "7", "--json"]).stdout)
    assert made["token"].startswith("mpp_")
    assert made["token"] not in made["policy"]
    assert '[agent."new.one"]' in made["policy"]


def test_orders_are_shown_to_people_and_programs(wallet: WalletProcess, tmp_path: Path) -> None:
    run = CliRunner().invoke
    home = ["--home", str(wallet.home)]
    order = run(APP, ["wallet", "freeze", "origin", "https://a.example", "--json", *home])
    assert json.loads(order.stdout)["scope"] == "origin https://a.example"
    shown = run(APP, ["wallet", "status", *home]).stdout
    assert "origin https://a.example:443" in shown
    assert re.search(r"(?m)scout .*active", shown)
    again = ["wallet", "unfreeze", "origin", "https://a.example", *home]
    assert "no longer frozen" in run(APP, again).stdout
    assert "was not frozen" in run(APP, again).stdout
    assert json.loads(run(APP, ["wallet", "reload", "--json", *home]).stdout)["revision"]
    assert {
        one["token"] for one in json.loads(run(APP, ["wallet", "budgets", "--json", *home]).stdout)
    }
    assert json.loads(run(APP, ["wallet", "close", "--json", *home]).stdout) == []
    made = run(APP, ["wallet", "agent-add", "new", "--envelope", "all"]).stdout
    (token,) = re.findall(r"(?m)^mpp_\S+$", made)
    assert f"sha256:{sha256(token.encode()).hexdigest()}" in made
    assert "expected a name" in str(run(APP, ["wallet", "agent-add", "a b"]).exception)
    nowhere = run(APP, ["wallet", "status", "--home", str(tmp_path)])
    assert "owner's token" in str(nowhere.exception)
    (tmp_path / "owner.token").write_text("t" * 40)
    assert "no wallet answers" in str(
        run(APP, ["wallet", "status", "--home", str(tmp_path)]).exception
    )


async def test_a_stopping_wallet_ends_streams_and_starts_again(
    wallet: WalletProcess, shop_url: str, pace: Pace
) -> None:
    async with agent(wallet) as client, client.stream("GET", f"{shop_url}/stream") as answer:
        lines = answer.aiter_lines()
        pace.go.release()
        await anext(lines)
        assert await asyncio.to_thread(wallet.stop, by=signal.SIGTERM) == 0
        with pytest.raises((AgentError, httpx.TransportError)):
            async for _ in lines:
                pass
    assert "Traceback" not in wallet.log()
    assert "ERROR" not in wallet.log()
    for token in wallet.tokens.values():
        assert token not in wallet.log()
    await asyncio.to_thread(wallet.start)
    async with agent(wallet) as client:
        assert (await client.post(f"{shop_url}/echo", json={})).is_success


async def test_a_proxy_pays_through_the_wallet(
    wallet: WalletProcess, shop_url: str, forge: Forge, tmp_path: Path, pace: Pace
) -> None:
    """With no key of its own: the program sends its agent's token, and a stream is not held."""
    flags = (f"--wallet={wallet.address('scout')}", f"--upstream={shop_url}")
    async with (
        running(forge, tmp_path, *flags) as (url, _),
        httpx.AsyncClient(base_url=url) as client,
    ):
        bearer = {"Authorization": f"Bearer {wallet.tokens['scout']}"}
        answer = await client.post("/echo", json={"a": 1}, headers=bearer)
        assert json.loads(answer.json()["body"]) == {"a": 1}
        assert wallet.tokens["scout"] not in answer.text
        async with client.stream("GET", "/stream", headers=bearer) as stream:
            lines = stream.aiter_lines()
            for number in range(2):
                pace.go.release()
                assert await anext(lines) == f"data: word {number}"
                await anext(lines)
        refused = await client.post("/echo", headers={"x-api-key": "mpp_unknown"})
        assert refused.status_code == 402
        assert refused.headers["x-should-retry"] == "false"
        assert "expected the token" in refused.json()["error"]["message"]
