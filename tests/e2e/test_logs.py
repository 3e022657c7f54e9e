"""What a gateway and its settler write down: the request of each line, and no secret (F-103)."""

import base64
import json
from pathlib import Path

import httpx
import pytest

from settlement.dev.devnet import Devnet
from settlement.tx.journal.url import open_journal
from tests.e2e.customers import PATH, Customer
from tests.e2e.gateways import PRICE, GatewayProcess, free_port, gateway_command, gateway_variables
from tests.mpp_session.model_server import model_server
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.timeout(180)


async def test_a_whole_run_logs_no_secret_and_names_its_requests(
    chain: Devnet, tmp_path: Path
) -> None:
    """Opening, streaming, refusals, a model server that fails, and a close, at level debug."""
    async with (
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
        model_server() as (model),
    ):
        customer = Customer(chain, client)
        sent: list[str] = []

        async def note(request: httpx.Request) -> None:
            sent.append(request.headers.get("authorization", ""))

        client.event_hooks["request"].append(note)
        books = tmp_path / "books.db"
        variables = gateway_variables(chain.values, model.url, books, free_port(), step_units=8)
        variables["MPP_SESSION_UPSTREAM_API_KEY"] = "the-key-of-the-model-server"
        command = [*gateway_command(), "--log-json", "--log-level=debug"]
        gateway = GatewayProcess(command, variables, tmp_path / "gateway.log")
        async with gateway.running():
            await customer.open(gateway.url, 1_000_000)
            bought = await customer.buy(gateway.url, 50 * PRICE)
            assert bought.status_code == 200
            async with customer.events(gateway.url, 60 * PRICE) as events:
                async for _ in events:
                    pass
            refused = await customer.buy(gateway.url, 60 * PRICE, max_tokens=2000)
            assert refused.status_code == 402
            broken = {"authorization": "Payment " + "bm90IGEgY3JlZGVudGlhbA" * 9}
            assert (await client.post(gateway.url + PATH, headers=broken)).status_code == 402
            model.words = ["x"] * 100
            failed = await customer.buy(gateway.url, 80 * PRICE)
            assert failed.status_code == 502
            closed = await customer.manage(gateway.url, customer.payer.closing(6 * PRICE))
            assert closed.status_code == 200
            assert await gateway.end() == 0
        said = gateway.said()
    # Standard output, which has the address and the prices, goes to the same file here.
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(said.splitlines()) <= len(lines) + 2
    sold = [line for line in lines if line["message"].startswith("sold on channel")]
    assert len(sold) == 2
    assert sold[0]["request"] == bought.headers["x-generation-id"]
    assert len({line["request"] for line in sold}) == 2
    assert any("UpstreamError" in line["message"] and "request" in line for line in lines)
    assert not any("request" in line for line in lines if "the operator's port" in line["message"])
    for what, secret in [*secrets(variables, sent), *await raw_of(chain, books)]:
        assert secret not in said, what


def secrets(variables: dict[str, str], sent: list[str]) -> list[tuple[str, str]]:
    """Return everything that must not be written, by its name."""
    found = [
        (name, variables[f"MPP_SESSION_{name}"])
        for name in ("PAYMENT_SECRETS", "PAYEE_KEY", "UPSTREAM_API_KEY")
    ]
    found.append(("the payee's key", variables["MPP_SESSION_PAYEE_KEY"].removeprefix("0x")))
    for header in sent:
        credential = header.removeprefix("Payment ")
        if not credential:
            continue
        found.append(("a credential", credential))
        padded = credential + "=" * (-len(credential) % 4)
        try:
            payload = json.loads(base64.urlsafe_b64decode(padded)).get("payload", {})
        except ValueError:
            continue
        signature = str(payload.get("signature", "")).removeprefix("0x")
        assert len(signature) >= 128
        found.append(("a signature", signature))
    assert len([name for name, _ in found if name == "a signature"]) >= 5
    return found


async def raw_of(chain: Devnet, books: Path) -> list[tuple[str, str]]:
    """Return every transaction that the settler signed, as bytes in hexadecimal."""
    journal = await open_journal(
        f"sqlite:///{books}",
        chain_id=chain.values.chain_id,
        account=chain.values.accounts["payee"].address,
        read_only=True,
    )
    try:
        signed = [
            version.raw.hex() for tx in await journal.sent_since(0) for version in tx.versions
        ]
    finally:
        await journal.close()
    assert signed
    return [("a raw transaction", raw) for raw in signed]
