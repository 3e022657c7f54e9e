"""O-93: a deposit counts when it is as deep as the operator says, through the whole gateway."""

from pathlib import Path

import httpx

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.e2e.customers import Customer
from tests.e2e.gateways import GatewayProcess, free_port, gateway_command, gateway_variables
from tests.e2e.warm import Forge
from tests.mpp_session.model_server import model_server
from tests.waiting import PATIENCE_S


async def test_an_opening_waits_for_three_confirmations(
    devnet: TestChain, chain: Devnet, tmp_path: Path, forge: Forge
) -> None:
    """At two it is refused and nothing is in the books; at three it is taken."""
    async with (
        model_server() as model,
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
    ):
        variables = gateway_variables(
            devnet.values,
            model.url,
            tmp_path / "ledger.db",
            free_port(),
            step_units=8,
            settles=False,
        )
        variables["MPP_SESSION_CHAIN_CONFIRMATIONS"] = "3"
        gateway = GatewayProcess(gateway_command(), variables, tmp_path / "log", forge=forge)
        customer = Customer(chain, client)
        async with gateway.running():
            await customer.payer.open(10**6)  # in the newest block: one confirmation
            await chain.rpc.command("anvil_mine", "0x1")
            opening = customer.payer.opening(0)
            refused = await customer.manage(gateway.url, opening)
            assert refused.status_code not in {200, 500}, refused.text
            await chain.rpc.command("anvil_mine", "0x1")
            taken = await customer.manage(gateway.url, opening)
            assert taken.status_code == 200, taken.text
            assert (await customer.buy(gateway.url, 200)).status_code == 200
