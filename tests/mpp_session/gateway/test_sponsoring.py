"""A gateway that pays its payers' gas: what it promises at start, and an agent without ether."""

import pytest

from channel.errors import ConfigError
from mpp_session.testing.chain import TestChain
from settlement.abi import Function
from settlement.node.values import parse_quantity
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway
from tests.mpp_session.model_server import ModelServer

PAUSE = Function("pause()")
PATH = "/v1/chat/completions"


async def test_an_agent_without_ether_buys_tokens(
    devnet: TestChain, model: ModelServer, run_gateway: RunGateway, open_agent: OpenAgent
) -> None:
    """CLIENT-02, OPEN-05, CHAL-03: opened, paid and closed, and not one transaction of its own."""
    payer = devnet.account("payer").address
    name = "0x" + payer.hex()
    async with devnet.connect() as chain:
        await chain.rpc.command("anvil_setBalance", name, "0x0")
        before = await chain.rpc.read("eth_getTransactionCount", name, "latest")
        model.words = ["one ", "two "]
        async with (
            run_gateway(sponsoring__fee_payer=True) as gateway,
            open_agent() as client,
        ):
            answer = await client.post(
                f"{gateway.url}{PATH}", json={"messages": [], "max_tokens": 8}
            )
            assert answer.status_code == 200, answer.text
            (closed,) = await client.payments.close(gateway.url)
        assert closed.state == "closed"
        assert closed.settled > 0
        assert await chain.rpc.balance_wei(payer) == 0
        after = await chain.rpc.read("eth_getTransactionCount", name, "latest")
        assert parse_quantity(after) == parse_quantity(before)


@pytest.mark.parametrize("types", [(), ("permit2",), ("permit2", "authorization")])
async def test_the_offer_is_what_was_asked_for_and_works(
    run_gateway: RunGateway, types: tuple[str, ...]
) -> None:
    """CHAL-03, CHAL-04: in the operator's order, `hash` beside them."""
    async with run_gateway(sponsoring__fee_payer=True, sponsoring__types=types) as gateway:
        terms = gateway.parts.engine.settings.sponsor
        assert terms is not None
        assert terms.credential_types == (*(types or ("authorization", "permit2")), "hash")
    async with run_gateway(sponsoring__fee_payer=False) as gateway:
        assert gateway.parts.engine.settings.sponsor is None


async def test_a_promise_that_cannot_be_kept_does_not_start(
    devnet: TestChain, run_gateway: RunGateway
) -> None:
    """CHAL-04, F-88, decision 15: a paused token; then an account without gas."""
    async with devnet.connect() as chain:
        promised = {"sponsoring__fee_payer": True, "sponsoring__types": ("authorization",)}
        token = devnet.values.token
        await chain.deployer.send(token, PAUSE.encode())
        with pytest.raises(ConfigError, match="promises authorization"):
            async with run_gateway(**promised):
                pass
        await chain.deployer.send(token, Function("unpause()").encode())
        payee = "0x" + devnet.account("payee").address.hex()
        await chain.rpc.command("anvil_setBalance", payee, "0x10")
        with pytest.raises(ConfigError, match="send it at least"):
            async with run_gateway(**promised):
                pass
