"""The measurements of scripts/gas."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from gas_bench import Bench, RelayedBench, gas_used
from local_chain import Account, Chain, Contract, anvil
from settlement.addresses import CREATE2_DEPLOYER, SALT, factory_address
from settlement.artifacts import load_artifact
from solidity import CONTRACTS, compile_contracts
from third_party import PERMIT2_SALT, deploy_usdc, permit2_init_code

SNAPSHOT: Final = CONTRACTS / "gas-snapshot.json"
GOALS: Final = {
    "open": 93_000,
    "settle": 55_500,
    "close": 63_000,
    "settleBatch100": 17_500,
    "closeBatch100": 26_000,
}


def deploy_plain(chain: Chain) -> Contract:
    """OpenZeppelin's ERC-20."""
    output = compile_contracts(["test/mocks/PlainToken.sol"])["PlainToken"]
    code = bytes.fromhex(output["evm"]["bytecode"]["object"])
    return Contract(chain, chain.deploy(code), output["abi"])


def deployment(chain: Chain, token: Contract) -> Iterator[tuple[str, int]]:
    """Costs paid once a chain, and once a token."""
    init_code = SALT + load_artifact("EscrowFactory").bytecode
    yield "deploy factory", gas_used(chain.send("0x" + CREATE2_DEPLOYER.hex(), init_code))
    place = "0x" + factory_address().hex()
    factory = Contract(chain, place, load_artifact("EscrowFactory").abi)
    yield "createEscrow", gas_used(factory.send("createEscrow", token.address))


def measure() -> dict[str, Any]:
    """The five figures with goals at the top, the others in groups below."""
    # The hardfork is named, so that a newer Anvil measures the same.
    free = ("--block-base-fee-per-gas", "0", "--gas-price", "0")
    with anvil(*free, "--hardfork", "osaka") as chain:
        chain.send("0x" + CREATE2_DEPLOYER.hex(), PERMIT2_SALT + permit2_init_code())
        plain, usdc = deploy_plain(chain), deploy_usdc(chain)
        groups = {
            "plain token": dict(_both(Bench(chain, plain, None))),
            "plain token, separate signer": dict(Bench(chain, plain, Account("s")).singles()),
            "USDC": dict(_both(Bench(chain, usdc, None))),
            "USDC, separate signer": dict(Bench(chain, usdc, Account("s")).singles()),
            "once": dict(deployment(chain, usdc)),
            "USDC, relayed": dict(RelayedBench(chain, usdc, "USD Coin", "2").relayed()),
        }
    return {name: groups["plain token"][name] for name in GOALS} | {"all": groups}


def _both(bench: Bench) -> Iterator[tuple[str, int]]:
    yield from bench.singles()
    yield from bench.batches()


def print_table(figures: dict[str, Any]) -> None:
    """One row a function, one column a group."""
    groups: dict[str, dict[str, int]] = figures["all"]
    table = Table("gas", "goal", *groups, title="Escrow gas; batches per channel")
    for name in dict.fromkeys(name for group in groups.values() for name in group):
        goal = f"{GOALS[name]:,}" if name in GOALS else ""
        row = [f"{group[name]:,}" if name in group else "" for group in groups.values()]
        table.add_row(name, goal, *row)
    Console().print(table)


def main() -> None:
    """Measure, and print or write."""
    figures = measure()
    text = json.dumps(figures, indent=2) + "\n"
    if "--write" in sys.argv:
        Path(SNAPSHOT).write_text(text, encoding="utf-8")
    if "--json" in sys.argv:
        sys.stdout.write(text)
    else:
        print_table(figures)
