"""Deploying: the same addresses everywhere, and nothing trusted that was not checked."""

from typing import Any

import pytest

from channel.types import address
from local_chain import Chain, Contract
from settlement.addresses import (
    CREATE2_DEPLOYER,
    PERMIT2,
    create2_address,
    escrow_address,
    factory_address,
)
from settlement.artifacts import load_artifact
from settlement.dev.deploy import Deployment, DeploymentError, deploy_escrow, verify_escrow
from tests.settlement.contracts.conftest import Node
from tests.settlement.contracts.world import reverts
from third_party import PERMIT2_SALT, permit2_init_code

NOWHERE = address(b"\x11" * 20)


def hex_of(value: bytes) -> str:
    return "0x" + value.hex()


def test_permit2_built_from_source_has_its_canonical_address(chain: Chain) -> None:
    """CONTRACT-10: the address proves the code; the other tests run on this very deployment."""
    init_code = permit2_init_code()
    assert create2_address(CREATE2_DEPLOYER, PERMIT2_SALT, init_code) == PERMIT2
    assert chain.code(hex_of(PERMIT2))


def test_the_contract_computes_what_we_compute(
    chain: Chain, deployed: tuple[Chain, Deployment, Contract]
) -> None:
    """F-91: escrow addresses follow from the factory and the init code."""
    factory = Contract(chain, hex_of(factory_address()), load_artifact("EscrowFactory").abi)
    for token in (deployed[1].token, NOWHERE):
        assert factory.call("escrowOf", hex_of(token)) == hex_of(escrow_address(token))


def test_the_factory_announces_and_never_deploys_twice(chain: Chain, mocks: dict[str, Any]) -> None:
    """Anyone may deploy; the result is the same from every sender."""
    factory = Contract(chain, hex_of(factory_address()), load_artifact("EscrowFactory").abi)
    token = chain.deploy(bytes.fromhex(mocks["PlainToken"]["evm"]["bytecode"]["object"]))
    expected = hex_of(escrow_address(address(bytes.fromhex(token[2:]))))
    first = factory.send("createEscrow", token, sender=chain.accounts[5])
    assert factory.events(first) == [("EscrowCreated", {"token": token, "escrow": expected})]
    assert factory.call("createEscrow", token) == expected
    assert factory.send("createEscrow", token)["logs"] == []


def test_the_factory_refuses_a_token_without_code(chain: Chain) -> None:
    factory = Contract(chain, hex_of(factory_address()), load_artifact("EscrowFactory").abi)
    with reverts("InvalidToken", hex_of(NOWHERE)):
        factory.send("createEscrow", hex_of(NOWHERE))


async def test_deploying_again_checks_and_changes_nothing(
    chain: Chain, deployed: tuple[Chain, Deployment, Contract]
) -> None:
    head = chain.rpc("eth_blockNumber")
    assert await deploy_escrow(Node(chain), deployed[1].token) == deployed[1]
    assert chain.rpc("eth_blockNumber") == head


async def test_a_chain_without_the_deployer_or_the_token_is_refused(
    chain: Chain, deployed: tuple[Chain, Deployment, Contract]
) -> None:
    with pytest.raises(DeploymentError, match="no token's address"):
        await deploy_escrow(Node(chain), NOWHERE)
    chain.rpc("anvil_setCode", hex_of(CREATE2_DEPLOYER), "0x")
    chain.rpc("anvil_setCode", hex_of(factory_address()), "0x")
    with pytest.raises(DeploymentError, match="no CREATE2 deployer"):
        await deploy_escrow(Node(chain), deployed[1].token)


@pytest.mark.parametrize("place", ["factory", "escrow"])
async def test_other_code_at_our_address_is_refused(
    chain: Chain, deployed: tuple[Chain, Deployment, Contract], place: str
) -> None:
    """F-91, F-105: one byte is enough."""
    found = hex_of(getattr(deployed[1], place))
    code = bytearray(chain.code(found))
    code[-1] ^= 1
    chain.rpc("anvil_setCode", found, hex_of(bytes(code)))
    with pytest.raises(DeploymentError, match=f"not this package's {place}"):
        await verify_escrow(Node(chain), deployed[1].token)


@pytest.mark.parametrize(("what", "match"), [("token", "serves"), ("domain", "domain")])
async def test_other_immutables_are_refused(
    chain: Chain, deployed: tuple[Chain, Deployment, Contract], what: str, match: str
) -> None:
    """F-21, OPEN-09: the right code for another token, or under another domain."""
    deployment = deployed[1]
    code = chain.code(hex_of(deployment.escrow))
    wanted = {
        "token": deployment.token.rjust(32, b"\0"),
        "domain": deployment.domain_separator,
    }[what]
    assert wanted in code
    forged = code.replace(wanted, b"\0" * 12 + b"\x22" * 20)
    chain.rpc("anvil_setCode", hex_of(deployment.escrow), hex_of(forged))
    with pytest.raises(DeploymentError, match=match):
        await verify_escrow(Node(chain), deployment.token)
