"""One Anvil per worker, our contracts on it; each test starts from the same snapshot."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from channel.types import Address, address
from local_chain import Chain, Contract, anvil
from settlement.addresses import CREATE2_DEPLOYER
from settlement.artifacts import load_artifact
from settlement.dev.deploy import Deployment, deploy_escrow
from solidity import compile_contracts
from tests.settlement.contracts.world import World
from third_party import PERMIT2_SALT, permit2_init_code


class Node:
    """`settlement.dev.deploy.DeploymentNode` on the tests' chain."""

    def __init__(self, chain: Chain) -> None:
        self._chain, self.chain_id = chain, chain.chain_id

    async def code(self, address: Address, /) -> bytes:
        return await asyncio.to_thread(self._chain.code, "0x" + address.hex())

    async def call(self, to: Address, calldata: bytes, /) -> bytes:
        return await asyncio.to_thread(self._chain.call, "0x" + to.hex(), calldata)

    async def send(self, to: Address, calldata: bytes, /) -> None:
        await asyncio.to_thread(self._chain.send, "0x" + to.hex(), calldata)


@pytest.fixture(scope="session")
def deployed() -> Iterator[tuple[Chain, Deployment, Contract]]:
    """Anvil with Permit2, a dollar, and the dollar's escrow from the factory."""
    with anvil("--block-base-fee-per-gas", "0", "--gas-price", "0") as chain:
        chain.send("0x" + CREATE2_DEPLOYER.hex(), PERMIT2_SALT + permit2_init_code())
        artifact = load_artifact("DevUSD")
        place = chain.deploy(artifact.bytecode, ["address"], chain.accounts[0])
        token = address(bytes.fromhex(place[2:]))
        deployment = asyncio.run(deploy_escrow(Node(chain), token))
        yield chain, deployment, Contract(chain, place, artifact.abi)


@pytest.fixture(scope="session")
def mocks() -> dict[str, dict[str, Any]]:
    """Hostile tokens and wallets, compiled once."""
    return compile_contracts(
        [f"test/mocks/{name}.sol" for name in ("HostileTokens", "PlainToken", "Wallets")]
    )


@pytest.fixture
def chain(deployed: tuple[Chain, Deployment, Contract]) -> Iterator[Chain]:
    """The chain, put back afterwards."""
    chain = deployed[0]
    snapshot = chain.rpc("evm_snapshot")
    yield chain
    chain.rpc("evm_revert", snapshot)


@pytest.fixture
def world(chain: Chain, deployed: tuple[Chain, Deployment, Contract]) -> World:
    """Our dollar and its escrow."""
    _, deployment, token = deployed
    escrow = Contract(chain, "0x" + deployment.escrow.hex(), load_artifact("SessionEscrow").abi)
    return World(chain, token, escrow)
