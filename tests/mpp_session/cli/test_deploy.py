"""`mpp-session deploy`: reads first, quotes, asks, sends, checks."""

import asyncio
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account import Account

from channel.types import Address
from channel.verify.signature import address_of
from local_chain import Chain, anvil
from mpp_session.testing.chain import TestChain
from settlement.addresses import CREATE2_DEPLOYER, escrow_address, factory_address
from settlement.artifacts import load_artifact
from tests.mpp_session.cli.conftest import Run

KEY = b"\x42" * 32
PAYER = address_of(KEY)
ETHER = 10**18
DOLLAR = load_artifact("DevUSD").bytecode + encode(["address"], [PAYER])
NOWHERE = "0x" + "11" * 20


def hex_of(value: bytes) -> str:
    return "0x" + value.hex()


async def new_token(devnet: TestChain) -> Address:
    async with devnet.connect() as chain:
        receipt = await chain.sender("payer").send(None, DOLLAR)
    assert receipt.contract is not None
    return receipt.contract


@pytest.fixture
def key_files(tmp_path: Path) -> tuple[str, ...]:
    """Flags of an encrypted key; made with few iterations, to be fast."""
    encrypted = Account.encrypt(KEY, "a password", kdf="pbkdf2", iterations=2)
    (tmp_path / "key.json").write_text(json.dumps(encrypted))
    (tmp_path / "password").write_text("a password\n")
    return ("--keystore", "key.json", "--password-file", "password")


class Bare:
    """A chain with the CREATE2 deployer, a token, and nothing of this package."""

    def __init__(self, chain: Chain) -> None:
        chain.rpc("anvil_setBalance", hex_of(PAYER), hex(ETHER))
        self.chain = chain
        place = chain.deploy(DOLLAR)
        self.token = Address(bytes.fromhex(place[2:]))
        self.arguments = ("deploy", "--rpc", chain.url, "--token", place)

    def state(self) -> tuple[int, int]:
        """The head's number, and what the payer has."""
        head, balance = (
            self.chain.rpc("eth_blockNumber"),
            self.chain.rpc("eth_getBalance", hex_of(PAYER), "latest"),
        )
        return int(head, 16), int(balance, 16)


@pytest.fixture
def bare() -> Iterator[Bare]:
    with anvil() as chain:
        yield Bare(chain)


def document(stdout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stdout)
    return found


def test_it_says_what_it_would_deploy_where_and_for_how_much(run: Run, bare: Bare) -> None:
    """O-66: a token before any deploy is no error; without a key nothing is sent."""
    before = bare.state()
    done = run(*bare.arguments)
    assert (done.returncode, done.stdout) == (3, "")
    for place in (factory_address(), escrow_address(bare.token)):
        assert f"{hex_of(place)} to deploy" in done.stderr
    assert "gwei" in done.stderr
    assert "of the chain's own coin" in done.stderr
    assert "give --keystore" in done.stderr
    assert bare.state() == before


def test_it_deploys_for_no_more_than_quoted_and_checks_the_result(
    run: Run, bare: Bare, key_files: tuple[str, ...]
) -> None:
    """O-66: the quote comes first and holds; the settings are those of the new escrow."""
    quote = document(run(*bare.arguments, "--json").stdout)
    assert quote["missing"] == ["EscrowFactory", "SessionEscrow"]
    assert quote["code_hash"] is None
    _, balance_before = bare.state()
    done = run(*bare.arguments, *key_files, "--yes")
    assert done.returncode == 0, done.stderr
    head, balance = bare.state()
    spent = balance_before - balance
    assert int(quote["cost_wei"]) // 2 < spent <= int(quote["cost_wei_max"])
    used = [
        int(bare.chain.rpc("eth_getBlockByNumber", hex(number), False)["gasUsed"], 16)  # noqa: FBT003
        for number in (head - 1, head)
    ]
    assert 0.9 * quote["gas"] < sum(used) <= 1.05 * quote["gas"]
    chain = tomllib.loads(done.stdout)["chain"]
    assert chain["id"] == bare.chain.chain_id
    assert chain["escrow"] == hex_of(escrow_address(bare.token))
    assert chain["token"] == hex_of(bare.token)
    assert load_artifact("SessionEscrow").matches(
        bare.chain.code(hex_of(escrow_address(bare.token)))
    )
    again = run(*bare.arguments, *key_files, "--json")
    assert again.returncode == 0, again.stderr
    assert document(again.stdout)["missing"] == []
    assert document(again.stdout)["grace_period_s"] == 900
    assert bare.state() == (head, balance)


def test_without_a_yes_it_sends_nothing(run: Run, bare: Bare, key_files: tuple[str, ...]) -> None:
    """O-66."""
    before = bare.state()
    done = run(*bare.arguments, *key_files)
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert f"Deploy it from {hex_of(PAYER)}?" in done.stderr
    assert "nothing was sent: answer y, or give --yes" in done.stderr
    assert bare.state() == before


def test_an_account_that_cannot_pay_the_quote_sends_nothing(
    run: Run, bare: Bare, key_files: tuple[str, ...]
) -> None:
    """O-66: refused before the first of two transactions, not between them."""
    bare.chain.rpc("anvil_setBalance", hex_of(PAYER), hex(10**12))
    before = bare.state()
    done = run(*bare.arguments, *key_files, "--yes")
    assert done.returncode == 1
    assert f"error: {hex_of(PAYER)} has 0.000001 of the chain's own coin" in done.stderr
    assert bare.state() == before


def test_a_chain_without_the_create2_deployer_is_refused(run: Run, bare: Bare) -> None:
    """O-66."""
    bare.chain.rpc("anvil_setCode", hex_of(CREATE2_DEPLOYER), "0x")
    done = run(*bare.arguments)
    assert done.returncode == 1
    assert "error: The chain has no CREATE2 deployer" in done.stderr


def test_a_devnet_needs_no_key_file(run: Run, devnet: TestChain, tmp_path: Path) -> None:
    """O-66: its keys are public; a second token gets an escrow from the factory that is there."""
    devnet.values.write(tmp_path / "devnet.json")
    there = run("deploy", "--devnet", "devnet.json", "--json")
    assert there.returncode == 0, there.stderr
    assert document(there.stdout)["escrow"] == hex_of(devnet.values.escrow)
    token = asyncio.run(new_token(devnet))
    done = run("deploy", "--devnet", "devnet.json", "--token", hex_of(token), "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert document(done.stdout)["escrow"] == hex_of(escrow_address(token))
    assert f"{hex_of(factory_address())} is there" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--rpc", "http://127.0.0.1:1"], 1, "give --devnet, or also --token"),
        (["--rpc", "http://127.0.0.1:1", "--token", NOWHERE], 1, "cannot be reached"),
        (["--rpc", "no address", "--token", NOWHERE], 1, "cannot be reached"),
        (["--rpc", "DEVNET", "--token", NOWHERE], 1, f"no contract at {NOWHERE} on chain 31337"),
        (["--rpc", "DEVNET", "--token", "0x12"], 2, "0x12 is not an address"),
        (["--rpc", "DEVNET", "--devnet", "devnet.json"], 1, "either --devnet, or --rpc"),
    ],
)
def test_a_refusal_is_one_line(
    run: Run, devnet: TestChain, arguments: list[str], code: int, said: str
) -> None:
    """O-66: --rpc without --token, no token there, a chain that does not answer: no traceback."""
    given = [devnet.values.rpc_url if each == "DEVNET" else each for each in arguments]
    done = run("deploy", *given)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


def test_other_code_in_the_factorys_place_is_refused(
    run: Run, bare: Bare, key_files: tuple[str, ...]
) -> None:
    """O-66, F-91: nothing is sent to a contract that is not this package's."""
    bare.chain.rpc("anvil_setCode", hex_of(factory_address()), "0x60016000f3")
    before = bare.state()
    done = run(*bare.arguments, *key_files, "--yes")
    assert done.returncode == 1
    assert "is not this package's factory" in done.stderr
    assert bare.state() == before
