"""The implementation of scripts/deploy."""

import argparse
import asyncio
import getpass
import json
import re
import sys
from pathlib import Path
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from channel.errors import ProblemError
from channel.types import Address, address
from channel.verify.typed_data import keccak
from settlement.addresses import CREATE2_DEPLOYER, SALT, factory_address
from settlement.artifacts import load_artifact
from settlement.dev.deploy import Deployment, SenderNode, deploy_escrow, verify_escrow
from settlement.node.rpc import Rpc
from settlement.tx.manager import TxManager
from settlement.tx.signer import KeySigner

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "reference" / "deployments.md"
_ROW: Final = re.compile(r"^\| (\d+) \| (0x\w+) \| (0x\w+) \| (0x\w+) \|$", re.MULTILINE)

Row = tuple[int, str, str, str]
"""Chain id, token, escrow, hash of the escrow's code."""


def main() -> None:
    """Parse the command line, run, and report errors in one line."""
    options = _parser().parse_args()
    if not options.rpc:
        write_page(())
        return
    try:
        deployment = asyncio.run(run(options))
    except (ProblemError, ValueError, OSError) as error:
        sys.exit(f"deploy: {error}")
    write_page((row_of(deployment),))
    print(f"factory  {_checksum(deployment.factory)}")
    print(f"escrow   {_checksum(deployment.escrow)}")
    print(f"token    {_checksum(deployment.token)} on chain {deployment.chain_id}")
    print(f"checked  code, token, domain separator, grace of {deployment.grace_period_s} s")


async def run(options: argparse.Namespace) -> Deployment:
    """Deploy with a keystore's key; without one only verify."""
    token = address(bytes.fromhex(options.token.removeprefix("0x")))
    account = _unlock(options) if options.keystore else Account.create()
    async with await Rpc.connect(options.rpc) as rpc:
        node = SenderNode(TxManager(rpc, KeySigner(bytes(account.key))))
        if options.keystore:
            return await deploy_escrow(node, token)
        return await verify_escrow(node, token)


def row_of(deployment: Deployment) -> Row:
    """Return a deployment as a line of the page."""
    return (
        deployment.chain_id,
        _checksum(deployment.token),
        _checksum(deployment.escrow),
        "0x" + deployment.code_hash.hex(),
    )


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

Written by `scripts/deploy`; the addresses follow from the code, so this page changes with it.

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


def _unlock(options: argparse.Namespace) -> LocalAccount:
    keystore = Path(options.keystore).read_text(encoding="utf-8")
    if options.password_file:
        password = Path(options.password_file).read_text(encoding="utf-8").rstrip("\n")
    else:
        password = getpass.getpass(f"Password of {options.keystore}: ")
    account: LocalAccount = Account.from_key(Account.decrypt(keystore, password))
    return account


def _checksum(value: Address) -> str:
    return str(to_checksum_address("0x" + value.hex()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Deploy the factory and a token's escrow.")
    parser.add_argument("--rpc", help="URL of a node of the chain")
    parser.add_argument("--token", help="address of the ERC-20 token")
    parser.add_argument("--keystore", help="JSON keystore of the account that pays; without: check")
    parser.add_argument("--password-file", help="file with the keystore's password")
    return parser
