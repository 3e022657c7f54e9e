"""The implementation of scripts/deploy."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from eth_utils.address import to_checksum_address

from channel.types import Address
from channel.verify.typed_data import keccak
from settlement.addresses import CREATE2_DEPLOYER, SALT, factory_address
from settlement.artifacts import load_artifact

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "reference" / "deployments.md"
_ROW: Final = re.compile(r"^\| (\d+) \| (0x\w+) \| (0x\w+) \| (0x\w+) \|$", re.MULTILINE)

Row = tuple[int, str, str, str]
"""Chain id, token, escrow, hash of the escrow's code."""


def main(arguments: list[str]) -> None:
    """Bring the page up to date; with arguments run the command first, and list its escrow."""
    if not arguments:
        write_page(())
        return
    program = [sys.executable, "-m", "mpp_session.cli", "deploy", "--json", *arguments]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(done.stdout, end="")
    write_page((row_of(json.loads(done.stdout)),))


def row_of(deployment: dict[str, Any]) -> Row:
    """Return what the command printed as a line of the page."""
    token, escrow = (str(to_checksum_address(deployment[name])) for name in ("token", "escrow"))
    return deployment["chain_id"], token, escrow, deployment["code_hash"]


def write_page(new: tuple[Row, ...], page: Path = PAGE) -> None:
    """Rewrite the page: its rows for the current code, and `new`."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    rows = {}
    if _checksum(factory_address()) in text:  # else it lists escrows of older code
        rows = {(int(found[0]), found[1]): found[1:] for found in _ROW.findall(text)}
    rows |= {row[:2]: row[1:] for row in new}
    page.write_text(render_page(rows), encoding="utf-8")


def render_page(rows: dict[tuple[int, str], tuple[str, ...]]) -> str:
    """Return docs/reference/deployments.md."""
    factory, escrow = load_artifact("EscrowFactory"), load_artifact("SessionEscrow")
    listed = "\n".join(
        f"| {chain_id} | {' | '.join(columns)} |" for (chain_id, _), columns in sorted(rows.items())
    )
    return f"""# Deployments

Deploy a token's escrow with `mpp-session deploy --rpc URL --token 0x…`: it says what is there, what
it would deploy and what the gas costs, asks, and checks the result
([commands](cli.md#mpp-session-deploy)). `scripts/deploy` does the same from a checkout and writes
this page; the addresses follow from the code, so the page changes with it.

| what | value |
|---|---|
| factory, on every chain | `{_checksum(factory_address())}` |
| deployed by | `{_checksum(CREATE2_DEPLOYER)}` (the keyless CREATE2 deployer) |
| salt, of the factory and of each escrow | `0x{SALT.hex()}` |
| keccak256 of the factory's init code | `0x{keccak(factory.bytecode).hex()}` |
| keccak256 of the escrow's init code without the token | `0x{keccak(escrow.bytecode).hex()}` |
| compiler | {COMPILER} |

The escrow of a token is `CREATE2(factory, salt, keccak256(init code ‖ abi.encode(token)))`: what
`EscrowFactory.escrowOf(token)` and `settlement.addresses.escrow_address(token)` return. Equal
addresses mean equal code: a client that pins the factory needs no list. Anyone may deploy
the escrow of a token that has none yet; the result is the same.

## Escrows checked on chain

Code, token, EIP-712 domain separator and grace period were read back from the chain. The hash is of
the deployed code, whose immutables (token, chain, address) make it differ from place to place.

| chain id | token | escrow | keccak256 of the code |
|---|---|---|---|
{listed or "| - | none yet | | |"}
"""


COMPILER: Final = json.loads(
    (ROOT / "settlement" / "artifacts" / "SessionEscrow.json").read_text(encoding="utf-8")
)["compiler"]


def _checksum(value: Address) -> str:
    return str(to_checksum_address("0x" + value.hex()))
