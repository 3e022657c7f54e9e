"""scripts/deploy: what it puts on a chain, and the page it writes."""

import asyncio
import json
from argparse import Namespace
from pathlib import Path

from eth_account import Account as EthAccount

import deploy_run
from local_chain import Account, Chain, Contract
from settlement.artifacts import load_artifact
from settlement.dev.deploy import Deployment


def test_the_page_is_what_the_code_gives(tmp_path: Path) -> None:
    """After a change of the contracts run scripts/deploy: every address is another."""
    copy = tmp_path / "deployments.md"
    copy.write_text(deploy_run.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    deploy_run.write_page((), copy)
    assert copy.read_text(encoding="utf-8") == deploy_run.PAGE.read_text(encoding="utf-8")


def test_it_deploys_from_a_keystore_and_lists_what_it_checked(
    chain: Chain, deployed: tuple[Chain, Deployment, Contract], tmp_path: Path
) -> None:
    """A second run, and one without a key, find the same and send nothing."""
    deployer = Account("deployer of the script")
    chain.rpc("anvil_setBalance", deployer.address, hex(10**19))
    keystore, password = tmp_path / "key.json", tmp_path / "password"
    encrypted = EthAccount.encrypt(deployer.key.secret, "a password", kdf="pbkdf2", iterations=2)
    keystore.write_text(json.dumps(encrypted), encoding="utf-8")
    password.write_text("a password\n", encoding="utf-8")
    token = chain.deploy(deployed_dollar(), ["address"], chain.accounts[0])
    options = Namespace(rpc=chain.url, token=token, keystore=keystore, password_file=password)
    first = asyncio.run(deploy_run.run(options))
    head = chain.rpc("eth_blockNumber")
    assert asyncio.run(deploy_run.run(options)) == first
    options.keystore = None
    assert asyncio.run(deploy_run.run(options)) == first
    assert chain.rpc("eth_blockNumber") == head

    page = tmp_path / "deployments.md"
    other = deployed[1]
    deploy_run.write_page((deploy_run.row_of(first),), page)
    deploy_run.write_page((deploy_run.row_of(other),), page)
    deploy_run.write_page((deploy_run.row_of(other),), page)
    text = page.read_text(encoding="utf-8")
    for deployment in (first, other):
        assert text.lower().count(deployment.escrow.hex()) == 1
        assert text.count("0x" + deployment.code_hash.hex()) == 1


def deployed_dollar() -> bytes:
    """Init code of another dollar."""
    return load_artifact("DevUSD").bytecode
