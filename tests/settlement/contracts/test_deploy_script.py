"""scripts/deploy: what it puts on a chain, and the page it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account as EthAccount

import deploy_run
from local_chain import Account, Chain
from settlement.artifacts import load_artifact


def test_the_page_is_what_the_code_gives(tmp_path: Path) -> None:
    """After a change of the contracts run scripts/deploy: every address is another."""
    copy = tmp_path / "deployments.md"
    copy.write_text(deploy_run.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    deploy_run.write_page((), copy)
    assert copy.read_text(encoding="utf-8") == deploy_run.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--help"], ["--rpc", "http://127.0.0.1:1"]])
def test_help_and_wrong_usage_need_no_set_up(tmp_path: Path, arguments: list[str]) -> None:
    """O-66: in a checkout where nothing is set up, and nothing is afterwards."""
    for name in ("deploy", "_setup.py"):
        copy = tmp_path / "scripts" / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((Path(deploy_run.ROOT) / "scripts" / name).read_bytes())
    program = [sys.executable, "-B", str(tmp_path / "scripts" / "deploy"), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False)  # noqa: S603 -- ours
    is_help = arguments == ["--help"]
    assert done.returncode == (0 if is_help else 2)
    assert ("--token TOKEN" if is_help else "give both --rpc and --token") in (
        done.stdout if is_help else done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"]


def test_it_deploys_from_a_keystore_and_lists_what_it_checked(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """O-66: a second run, and one without a key, find the same and send nothing."""
    page = tmp_path / "deployments.md"
    monkeypatch.setattr(deploy_run.write_page, "__defaults__", (page,))
    deployer = Account("deployer of the script")
    chain.rpc("anvil_setBalance", deployer.address, hex(10**19))
    keystore, password = tmp_path / "key.json", tmp_path / "password"
    encrypted = EthAccount.encrypt(deployer.key.secret, "a password", kdf="pbkdf2", iterations=2)
    keystore.write_text(json.dumps(encrypted), encoding="utf-8")
    password.write_text("a password\n", encoding="utf-8")
    listed = []
    for _ in range(2):
        token = chain.deploy(deployed_dollar(), ["address"], chain.accounts[0])
        arguments = ["--rpc", chain.url, "--token", token]
        keyed = [*arguments, "--keystore", str(keystore), "--password-file", str(password)]
        deploy_run.main([*keyed, "--yes"])
        head = chain.rpc("eth_blockNumber")
        deploy_run.main(keyed)
        deploy_run.main(arguments)
        assert chain.rpc("eth_blockNumber") == head
        printed = capfd.readouterr().out
        first, second, third = (json.loads(each + "}") for each in printed.split("}\n")[:3])
        assert first["escrow"] == second["escrow"] == third["escrow"]
        listed.append(third)
    text = page.read_text(encoding="utf-8")
    for each in listed:
        assert text.lower().count(each["escrow"]) == 1
        assert text.count(each["code_hash"]) == 1


def deployed_dollar() -> bytes:
    """Init code of another dollar."""
    return load_artifact("DevUSD").bytecode
