"""What an operator sees of a running gateway: metrics that equal its books, and its health."""

import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from settlement.dev.devnet import Devnet
from tests.e2e.customers import Customer
from tests.e2e.gateways import PRICE, GatewayProcess, free_port, gateway_command, gateway_variables
from tests.mpp_session.model_server import ModelServer, model_server
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(180)

DEPOSIT = 1_000_000
TOKEN = "token-" * 6  # 32 characters or more
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Observed:
    """A gateway with an operator's port, and its customer."""

    def __init__(self, gateway: GatewayProcess, admin_url: str, customer: Customer) -> None:
        self.gateway = gateway
        self.admin_url = admin_url
        self.customer = customer

    async def scrape(self) -> Samples:
        answer = await self.customer.client.get(f"{self.admin_url}/metrics")
        assert answer.status_code == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    async def value(self, name: str, **labels: str) -> float | None:
        return (await self.scrape()).get((f"mpp_session_{name}", frozenset(labels.items())))

    async def health(self, path: str, *, public: bool = True) -> tuple[int, dict[str, str]]:
        url = self.gateway.url if public else self.admin_url
        answer = await self.customer.client.get(url + path)
        parts: dict[str, str] = answer.json()["parts"]
        return answer.status_code, parts


@pytest.fixture
async def customer(chain: Devnet) -> AsyncIterator[Customer]:
    alone = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, limits=alone) as client:
        yield Customer(chain, client)


def build(customer: Customer, model: ModelServer, folder: Path, **changes: str) -> Observed:
    port = free_port()
    variables = gateway_variables(
        customer.chain.values, model.url, folder / "books.db", free_port(), step_units=8
    )
    ours = {"ADMIN_PORT": str(port), "SETTLEMENT_SWEEP_INTERVAL_S": "1", **changes}
    variables |= {f"MPP_SESSION_{name}": value for name, value in ours.items()}
    gateway = GatewayProcess(gateway_command(), variables, folder / "gateway.log")
    return Observed(gateway, f"http://127.0.0.1:{port}", customer)


async def test_the_metrics_equal_the_books(customer: Customer, tmp_path: Path) -> None:
    """Revenue, units, challenges, refusals, exposure and settlements, from one real scrape."""
    async with model_server() as model:
        model.words = ["x"] * 20
        seen = build(customer, model, tmp_path)
        async with seen.gateway.running():
            await customer.open(seen.gateway.url, DEPOSIT)
            async with customer.events(seen.gateway.url, 100 * PRICE) as events:
                async for _ in events:
                    pass
            model.words = ["x"] * 4
            assert (await customer.buy(seen.gateway.url, 100 * PRICE)).status_code == 200
            refused = await customer.buy(seen.gateway.url, 100 * PRICE, max_tokens=200)
            assert refused.status_code == 402
            found = await seen.scrape()

            def value(name: str, **labels: str) -> float | None:
                return found.get((name, frozenset(labels.items())))

            cost = 24 * PRICE
            assert value("mpp_session_revenue_base_units_total", model="") == cost
            assert value("mpp_session_units_total", model="", kind="llm_token") == 24
            checked = {"model": "", "kind": "output_token"}
            for source in ("billed", "reported"):
                assert value("mpp_session_checked_units_total", **checked, source=source) == 4
            assert value("mpp_session_requests_total", model="", outcome="done") == 2
            assert value("mpp_session_deposits_total", action="open") == 1
            assert value("mpp_session_challenges_total", route="POST /v1/chat/completions") == 1
            problem = "session/insufficient-balance"
            assert value("mpp_session_refusals_total", problem=problem) == 1
            chat = {"gen_ai_operation_name": "chat", "gen_ai_request_model": ""}
            assert value("gen_ai_server_time_to_first_token_seconds_count", **chat) == 2
            assert value("gen_ai_server_request_duration_seconds_count", **chat) == 2
            commits = value("mpp_session_commit_seconds_count")
            assert commits is not None
            assert commits >= 2
            await until(lambda: has(seen, "value_at_risk_base_units", cost))
            assert (await seen.value("channels", state="open")) == 1
            assert (await seen.value("token_base_units")) == 10**6
            assert (await seen.value("settler_up")) == 1
            assert ((await seen.value("gas_balance_wei")) or 0) > 0
            closed = await customer.manage(seen.gateway.url, customer.payer.closing(cost))
            assert closed.status_code == 200
            await until(lambda: has(seen, "settled_base_units_total", cost))
            assert (await seen.value("settlements_total", final="yes")) == 1
            await until(lambda: has(seen, "value_at_risk_base_units", 0))


async def has(seen: Observed, name: str, value: float, **labels: str) -> bool:
    return (await seen.value(name, **labels)) == value


async def test_its_health_is_free_and_true(customer: Customer, tmp_path: Path) -> None:
    """On the port that sells it names no internals; a model server that is gone is seen."""
    async with contextlib.AsyncExitStack() as behind:
        model = await behind.enter_async_context(model_server())
        seen = build(customer, model, tmp_path)
        async with seen.gateway.running():
            whole = dict.fromkeys(("database", "chain", "settler", "model_server"), "ok")

            async def is_whole() -> bool:
                return await seen.health("/readyz") == (200, whole)

            await until(is_whole)
            assert await seen.health("/healthz") == (200, whole)
            assert await seen.health("/readyz", public=False) == (200, whole)
            answer = await customer.client.head(f"{seen.gateway.url}/readyz")
            assert (answer.status_code, answer.content) == (200, b"")
            answer = await customer.client.post(f"{seen.gateway.url}/healthz")
            assert answer.status_code == 405
            await behind.aclose()

            async def is_away() -> bool:
                return (await seen.health("/readyz"))[0] == 503

            await until(is_away)
            assert await seen.health("/readyz") == (503, {**whole, "model_server": "down"})
            status, parts = await seen.health("/healthz")
            assert (status, parts["model_server"]) == (200, "down")
            _, parts = await seen.health("/readyz", public=False)
            assert parts["model_server"].startswith("down: ")
            assert (await seen.value("part_up", part="model_server")) == 0


def revenue_of(worker: int) -> float:
    """Return what one worker counted, from its file in the folder that all share."""
    variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    (folder,) = [one for one in variables if one.startswith(b"PROMETHEUS_MULTIPROC_DIR=")]
    path = Path(folder.partition(b"=")[2].decode()) / f"counter_{worker}.db"
    if not path.exists():
        return 0
    counts = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return float(sum(value for key, value, *_ in counts if "revenue" in key))


async def shows_paid_cycles(seen: Observed, number: int) -> bool:
    """Wait until the dashboard's page of payment cycles shows so many paid requests."""
    async with httpx.AsyncClient(base_url=seen.admin_url, trust_env=False) as operator:
        await operator.post("/login", data={"token": TOKEN})

        async def shows() -> bool:
            return (await operator.get("/cycles")).text.count(">paid<") == number

        await until(shows)
    return True


async def test_two_workers_are_added_up_and_a_killed_one_is_not_forgotten(
    customer: Customer, postgres_url: str, tmp_path: Path
) -> None:
    async with model_server() as model:
        changes = {"LEDGER_URL": postgres_url, "LISTEN_WORKERS": "2", "ADMIN_TOKEN": TOKEN}
        seen = build(customer, model, tmp_path, **changes)
        async with seen.gateway.running():

            def served() -> list[int]:
                found = re.findall(r"serves as process (\d+)", seen.gateway.said())
                return [int(one) for one in found]

            await until(lambda: len(served()) >= 2)
            await customer.open(seen.gateway.url, DEPOSIT)
            bought = 0

            async def buy() -> None:
                nonlocal bought
                bought += 1
                answer = await customer.buy(seen.gateway.url, 8 * bought * PRICE)
                assert answer.status_code == 200, answer.text

            while not all(revenue_of(worker) for worker in served()):
                await buy()
            assert await has(seen, "revenue_base_units_total", 3 * bought * PRICE, model="")
            assert await shows_paid_cycles(seen, bought)
            os.kill(served()[1], signal.SIGKILL)
            await until(lambda: len(served()) >= 3)
            assert await has(seen, "revenue_base_units_total", 3 * bought * PRICE, model="")
            await buy()
            assert await has(seen, "revenue_base_units_total", 3 * bought * PRICE, model="")
            assert await has(seen, "requests_total", bought, model="", outcome="done")
