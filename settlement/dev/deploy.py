"""Deploys the factory and a token's escrow, and verifies what is on the chain.

Used by scripts/deploy and the devnet. Safe to repeat: existing contracts are only verified.
"""

from typing import Final, Protocol

import msgspec
from eth_abi.abi import decode, encode

from channel.errors import OperatorError
from channel.limits import GRACE_PERIOD_S_MIN
from channel.types import Address, address
from channel.verify.typed_data import keccak
from settlement.addresses import CREATE2_DEPLOYER, SALT, escrow_address, factory_address
from settlement.artifacts import load_artifact
from settlement.tx.manager import TxManager

__all__ = [
    "Deployment",
    "DeploymentError",
    "DeploymentNode",
    "SenderNode",
    "deploy_escrow",
    "verify_escrow",
]

_DOMAIN_TYPEHASH: Final = keccak(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_NAME_HASH: Final = keccak(b"EVM Payment Channel")
_VERSION_HASH: Final = keccak(b"1")


class DeploymentError(OperatorError):
    """The chain lacks a required contract, or holds other code than this package's."""


class Deployment(msgspec.Struct, frozen=True):
    """Contracts found on a chain and verified."""

    chain_id: int
    token: Address
    factory: Address
    escrow: Address
    domain_separator: bytes
    grace_period_s: int
    code_hash: bytes
    """keccak256 of the escrow's code; immutables make it differ from chain to chain."""


class DeploymentNode(Protocol):
    """The operations that deploying needs."""

    @property
    def chain_id(self) -> int:
        """The chain's id."""

    async def code(self, address: Address, /) -> bytes:
        """Return a contract's code, or empty bytes if there is none."""

    async def call(self, to: Address, calldata: bytes, /) -> bytes:
        """Run a call without effect."""

    async def send(self, to: Address, calldata: bytes, /) -> None:
        """Send a transaction; return once it is mined with success."""


class SenderNode:
    """A `DeploymentNode` that sends with one key."""

    def __init__(self, sender: TxManager) -> None:
        self._sender = sender

    @property
    def chain_id(self) -> int:
        """The chain's id."""
        return self._sender.rpc.chain_id

    async def code(self, address: Address, /) -> bytes:
        """Return a contract's code, or empty bytes if there is none."""
        return await self._sender.rpc.code(address)

    async def call(self, to: Address, calldata: bytes, /) -> bytes:
        """Run a call without effect."""
        return await self._sender.rpc.call(to, calldata)

    async def send(self, to: Address, calldata: bytes, /) -> None:
        """Send a transaction; return once it is mined with success."""
        await self._sender.send(to, calldata)


async def deploy_escrow(node: DeploymentNode, token: Address) -> Deployment:
    """Deploy the factory and `token`'s escrow unless they exist, then verify them.

    Raises:
        DeploymentError: As `verify_escrow`, or the chain has no CREATE2 deployer.
    """
    factory = factory_address()
    if not await node.code(factory):
        if not await node.code(CREATE2_DEPLOYER):
            raise DeploymentError(
                f"The chain has no CREATE2 deployer at 0x{CREATE2_DEPLOYER.hex()}."
            )
        await node.send(CREATE2_DEPLOYER, SALT + load_artifact("EscrowFactory").bytecode)
    if not await node.code(escrow_address(token)):
        if not await node.code(token):
            raise DeploymentError(f"There is no token at 0x{token.hex()}.")
        await node.send(factory, _selector("createEscrow(address)") + encode(["address"], [token]))
    return await verify_escrow(node, token)


async def verify_escrow(node: DeploymentNode, token: Address) -> Deployment:
    """Check code, token, domain separator and grace period of `token`'s escrow.

    Raises:
        DeploymentError: A contract is missing, or is not what this package expects.
    """
    factory, escrow = factory_address(), escrow_address(token)
    if not load_artifact("EscrowFactory").matches(await node.code(factory)):
        raise DeploymentError(f"The code at 0x{factory.hex()} is not this package's factory.")
    code = await node.code(escrow)
    if not load_artifact("SessionEscrow").matches(code):
        raise DeploymentError(f"The code at 0x{escrow.hex()} is not this package's escrow.")
    (served,) = decode(["address"], await node.call(escrow, _selector("TOKEN()")))
    if address(bytes.fromhex(served[2:])) != token:
        raise DeploymentError(f"The escrow serves the token {served}.")
    separator = await node.call(escrow, _selector("domainSeparator()"))
    if separator != _domain_separator(node.chain_id, escrow):
        raise DeploymentError("The escrow signs under another EIP-712 domain.")
    (grace,) = decode(["uint64"], await node.call(escrow, _selector("CLOSE_GRACE_PERIOD()")))
    if grace < GRACE_PERIOD_S_MIN:
        raise DeploymentError(f"The escrow's grace period is {grace} s, below the minimum.")
    return Deployment(
        chain_id=node.chain_id,
        token=token,
        factory=factory,
        escrow=escrow,
        domain_separator=separator,
        grace_period_s=grace,
        code_hash=keccak(code),
    )


def _domain_separator(chain_id: int, escrow: Address) -> bytes:
    return keccak(
        encode(
            ["bytes32", "bytes32", "bytes32", "uint256", "address"],
            [_DOMAIN_TYPEHASH, _NAME_HASH, _VERSION_HASH, chain_id, escrow],
        )
    )


def _selector(signature: str) -> bytes:
    return keccak(signature.encode())[:4]
