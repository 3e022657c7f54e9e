"""ABI and bytecode of the contracts, as written by scripts/compile.

Contracts: `SessionEscrow`, `EscrowFactory`, `DevUSD`. No compiler is needed at run time.
"""

from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

import msgspec

__all__ = ["Artifact", "ContractName", "load_artifact"]

ContractName = Literal["DevUSD", "EscrowFactory", "SessionEscrow"]


class _ArtifactFile(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The file format of an artifact."""

    name: str
    compiler: str
    abi: tuple[dict[str, Any], ...]
    bytecode: str
    deployed_bytecode: str
    immutables: tuple[tuple[int, int], ...]


class Artifact(msgspec.Struct, frozen=True):
    """One compiled contract.

    Attributes:
        name: The contract's name.
        abi: Its JSON ABI.
        bytecode: Init code without constructor arguments; append them ABI-encoded.
        deployed_bytecode: Code on the chain, with zeros in place of immutables.
        immutables: Positions of immutables: (start, length) in bytes, sorted.
    """

    name: str
    abi: tuple[dict[str, Any], ...]
    bytecode: bytes
    deployed_bytecode: bytes
    immutables: tuple[tuple[int, int], ...]

    def matches(self, code: bytes) -> bool:
        """Whether `code`, read from a chain, is this contract with any immutables."""
        if len(code) != len(self.deployed_bytecode):
            return False
        blanked = bytearray(code)
        for start, length in self.immutables:
            blanked[start : start + length] = bytes(length)
        return bytes(blanked) == self.deployed_bytecode


_HEX_PREFIX: Final = len("0x")


@cache
def load_artifact(name: ContractName) -> Artifact:
    """Read one artifact from the package data; cached."""
    raw = files(__name__).joinpath(f"{name}.json").read_bytes()
    stored = msgspec.json.decode(raw, type=_ArtifactFile)
    return Artifact(
        name=stored.name,
        abi=stored.abi,
        bytecode=bytes.fromhex(stored.bytecode[_HEX_PREFIX:]),
        deployed_bytecode=bytes.fromhex(stored.deployed_bytecode[_HEX_PREFIX:]),
        immutables=stored.immutables,
    )
