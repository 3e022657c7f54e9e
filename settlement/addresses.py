"""Addresses of the factory and of each token's escrow: CREATE2 arithmetic (pure).

The factory is deployed through the keyless CREATE2 deployer with salt zero, and deploys one
escrow per token with salt zero. Both addresses follow from the init code alone, so a client that
pins the factory needs no list of escrows.
"""

from functools import cache
from typing import Final

from eth_abi.abi import encode

from channel.types import Address, address
from channel.verify.typed_data import keccak
from settlement.artifacts import load_artifact

__all__ = [
    "CREATE2_DEPLOYER",
    "PERMIT2",
    "SALT",
    "create2_address",
    "escrow_address",
    "escrow_init_code",
    "factory_address",
]

CREATE2_DEPLOYER: Final = address(bytes.fromhex("4e59b44847b379578588920cA78FbF26c0B4956C"))
"""Takes salt ‖ init code as calldata; at the same address on every chain that has it."""

PERMIT2: Final = address(bytes.fromhex("000000000022D473030F116dDEE9F6B43aC78BA3"))

SALT: Final = bytes(32)


def create2_address(deployer: Address, salt: bytes, init_code: bytes) -> Address:
    """Return the address at which `deployer` creates `init_code` (EIP-1014)."""
    return address(keccak(b"\xff" + deployer + salt + keccak(init_code))[12:])


def escrow_init_code(token: Address) -> bytes:
    """Return the init code of the escrow for `token`: bytecode and constructor argument."""
    return load_artifact("SessionEscrow").bytecode + encode(["address"], [token])


@cache
def factory_address() -> Address:
    """Return the factory's address, the same on every chain."""
    return create2_address(CREATE2_DEPLOYER, SALT, load_artifact("EscrowFactory").bytecode)


def escrow_address(token: Address) -> Address:
    """Return the address of `token`'s escrow, whether it is deployed or not."""
    return create2_address(factory_address(), SALT, escrow_init_code(token))
