"""Deploys the factory and a token's escrow, and verifies what is on the chain.

Used by `mpp-session deploy` and the devnet. Safe to repeat: existing contracts are only verified.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from eth_abi.abi import encode

from channel.chain import EscrowInterface
from channel.errors import ConfigError, OperatorError
from channel.limits import GRACE_PERIOD_S_MIN
from channel.types import Address
from channel.verify.typed_data import keccak
from settlement import abi
from settlement.addresses import (
    CREATE2_DEPLOYER,
    SALT,
    escrow_address,
    escrow_init_code,
    factory_address,
)
from settlement.artifacts import ContractName, load_artifact
from settlement.node import questions
from settlement.node.rpc import Rpc
from settlement.node.values import parse_block, parse_count, parse_price
from settlement.tx.fees import FeePolicy, choose_fee
from settlement.tx.manager import TxLimits, TxManager

__all__ = [
    "Deployment",
    "DeploymentError",
    "DeploymentNode",
    "DeploymentQuote",
    "DeploymentReader",
    "SenderNode",
    "deploy_escrow",
    "list_missing",
    "quote_deployment",
    "verify_escrow",
]

_DOMAIN_TYPEHASH: Final = keccak(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_NAME_HASH: Final = keccak(EscrowInterface().domain.encode())
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


class DeploymentQuote(msgspec.Struct, frozen=True):
    """What it costs to deploy what is missing, by one node's estimate."""

    gas: int
    """By the estimate, without margin."""
    price_wei: int
    """What a unit of gas costs now."""
    max_fee_wei: int
    """The highest bid for a unit of gas."""

    @property
    def cost_wei(self) -> int:
        """The cost at the price of now."""
        return self.gas * self.price_wei

    @property
    def cost_wei_max(self) -> int:
        """The cost if all of the gas limit is used at the highest bid."""
        return self.gas * (100 + TxLimits().gas_margin_percent) // 100 * self.max_fee_wei


class DeploymentReader(Protocol):
    """The operations that verifying needs; an `Rpc` has them."""

    @property
    def chain_id(self) -> int:
        """The chain's id."""

    async def code(self, address: Address, /) -> bytes:
        """Return a contract's code, or empty bytes if there is none."""

    async def call(self, to: Address, calldata: bytes, /) -> bytes:
        """Run a call without effect."""


class DeploymentNode(DeploymentReader, Protocol):
    """The operations that deploying needs."""

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


async def list_missing(node: DeploymentReader, token: Address) -> list[ContractName]:
    """Return which of factory and escrow are to be deployed, in this order.

    Raises:
        DeploymentError: The chain has no such token or no CREATE2 deployer, or other code stands
            where the factory belongs.
    """
    if not await node.code(token):
        raise DeploymentError(
            f"There is no contract at 0x{token.hex()} on chain {node.chain_id}: "
            "that is no token's address there."
        )
    if not await node.code(factory_address()):
        if not await node.code(CREATE2_DEPLOYER):
            raise DeploymentError(
                f"The chain has no CREATE2 deployer at 0x{CREATE2_DEPLOYER.hex()}."
            )
        return ["EscrowFactory", "SessionEscrow"]
    await _require_code(node, factory_address(), "EscrowFactory")
    return [] if await node.code(escrow_address(token)) else ["SessionEscrow"]


async def quote_deployment(
    rpc: Rpc, token: Address, missing: Sequence[ContractName]
) -> DeploymentQuote:
    """Ask a node what it costs to deploy `missing`, before anything is sent.

    The escrow is estimated as a creation of its own, because the factory may not exist yet: it
    costs a little more gas than through the factory.

    Raises:
        ContractRevertedError: The contracts cannot be created on this chain.
        ConfigError: The chain has no base fee.
        ChainUnavailableError: No node answers.
    """
    creations: dict[ContractName, dict[str, str]] = {
        "EscrowFactory": _request(*_factory_call()),
        "SessionEscrow": _request(None, escrow_init_code(token)),
    }
    block, tip, *gas = await rpc.read_batch(
        [
            questions.block(),
            questions.TIP,
            *(questions.estimate_gas(creations[each]) for each in missing),
        ]
    )
    base_fee_wei = parse_block(block).base_fee_wei
    if base_fee_wei is None:
        raise ConfigError("The chain has no base fee (EIP-1559): use a chain that has one.")
    fee = choose_fee(
        base_fee_wei=base_fee_wei, suggested_tip_wei=parse_price(tip), policy=FeePolicy()
    )
    return DeploymentQuote(
        gas=sum(map(parse_count, gas)),
        price_wei=min(base_fee_wei + fee.tip_wei, fee.max_fee_wei),
        max_fee_wei=fee.max_fee_wei,
    )


async def deploy_escrow(node: DeploymentNode, token: Address) -> Deployment:
    """Deploy the factory and `token`'s escrow unless they exist, then verify them.

    Raises:
        DeploymentError: As `list_missing` and `verify_escrow`.
    """
    missing = await list_missing(node, token)
    if "EscrowFactory" in missing:
        await node.send(*_factory_call())
        await _require_code(node, factory_address(), "EscrowFactory")
    if missing:
        call = _selector("createEscrow(address)") + encode(["address"], [token])
        await node.send(factory_address(), call)
    return await verify_escrow(node, token)


async def verify_escrow(node: DeploymentReader, token: Address) -> Deployment:
    """Check code, token, domain separator and grace period of `token`'s escrow.

    Raises:
        DeploymentError: A contract is missing, or is not what this package expects.
    """
    factory, escrow = factory_address(), escrow_address(token)
    await _require_code(node, factory, "EscrowFactory")
    code = await _require_code(node, escrow, "SessionEscrow")
    served = abi.token.decode_address(await node.call(escrow, abi.token.encode()))
    if served != token:
        raise DeploymentError(f"The escrow serves the token 0x{served.hex()}.")
    separator = await node.call(escrow, abi.domain_separator.encode())
    if separator != _domain_separator(node.chain_id, escrow):
        raise DeploymentError("The escrow signs under another EIP-712 domain.")
    grace = abi.decode_grace_period(await node.call(escrow, abi.close_grace_period.encode()))
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


async def _require_code(node: DeploymentReader, place: Address, name: ContractName) -> bytes:
    """Return the code of a contract of this package; refuse any other, and none."""
    what = {"EscrowFactory": "factory", "SessionEscrow": "escrow"}.get(name, name)
    code = await node.code(place)
    if not code:
        raise DeploymentError(f"The node shows no {what} at 0x{place.hex()}.")
    if not load_artifact(name).matches(code):
        raise DeploymentError(f"The code at 0x{place.hex()} is not this package's {what}.")
    return code


def _factory_call() -> tuple[Address, bytes]:
    return CREATE2_DEPLOYER, SALT + load_artifact("EscrowFactory").bytecode


def _request(to: Address | None, calldata: bytes) -> dict[str, str]:
    data = {"data": "0x" + calldata.hex()}
    return data if to is None else {**data, "to": "0x" + to.hex()}


def _domain_separator(chain_id: int, escrow: Address) -> bytes:
    return keccak(
        encode(
            ["bytes32", "bytes32", "bytes32", "uint256", "address"],
            [_DOMAIN_TYPEHASH, _NAME_HASH, _VERSION_HASH, chain_id, escrow],
        )
    )


def _selector(signature: str) -> bytes:
    return keccak(signature.encode())[:4]
