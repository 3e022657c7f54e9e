"""The commands together, each in a process of its own: serve, pay, look, pay again, close."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import GASLESS, Devnet, DevnetValues
from tests.e2e.gateways import PRICE, GatewayProcess, free_port, gateway_command, gateway_variables
from tests.e2e.warm import Forge, Forked
from tests.mpp_session.model_server import ModelServer, model_server
from tests.settlement.wallets import deploy_owned_wallet
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)


class Commands:
    """Runs `mpp-session` in one folder."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self._forge, self._folder = forge, folder
        self._inherited = {k: v for k, v in os.environ.items() if not k.startswith("MPP_SESSION_")}
        self._count = 0

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code and what was printed to either output."""
        process, shown, said = self.start(*arguments)
        await until(lambda: process.returncode is not None)
        return process.returncode or 0, shown.read_text(), said.read_text()

    def start(self, *arguments: str) -> tuple[Forked, Path, Path]:
        self._count += 1
        shown, said = (self._folder / f"{name}-{self._count}" for name in ("stdout", "stderr"))
        process = self._forge.start(
            list(arguments), self._inherited, shown, errors=said, folder=self._folder
        )
        return process, shown, said

    async def as_json(self, *arguments: str) -> Any:
        code, output, errors = await self(*arguments, "--json")
        assert code == 0, errors
        return json.loads(output)

    def gateway(self, values: DevnetValues, model: ModelServer, **changes: str) -> GatewayProcess:
        variables = gateway_variables(
            values, model.url, self._folder / "ledger.db", free_port(), step_units=8
        )
        variables["MPP_SESSION_SPONSORING_FEE_PAYER"] = "true"
        variables |= {f"MPP_SESSION_{name}": value for name, value in changes.items()}
        log = self._folder / "gateway.log"
        return GatewayProcess(gateway_command(), variables, log, forge=self._forge)


@pytest.fixture
def commands(forge: Forge, tmp_path: Path) -> Commands:
    return Commands(forge, tmp_path)


async def test_an_agent_pays_looks_and_closes_by_commands_alone(
    devnet: TestChain, tmp_path: Path, commands: Commands
) -> None:
    """CLOSE-06: what was paid, refunded and sent on chain is what the commands say."""
    await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
    ledger = ["channels", f"--ledger=sqlite:///{tmp_path / 'ledger.db'}"]
    async with model_server() as model:
        gateway = commands.gateway(devnet.values, model)
        pay = ["pay", gateway.url, "--devnet=devnet.json"]
        async with gateway.running():
            kept = await commands.as_json(*pay, "--prompt=Hello", "--keep-open")
            assert (kept["text"], kept["paid"]) == ("one two three", str(3 * PRICE))
            assert kept["open_tx"]
            assert kept["close_tx"] is None
            (row,) = await commands.as_json(*ledger)
            assert row["channel_id"] == kept["channel_id"]
            assert (row["state"], row["at_risk"]) == ("open", str(3 * PRICE))
            body = json.dumps({"messages": [], "max_tokens": 9})
            code, shown, said = await commands(*pay, f"--json-body={body}")
            assert code == 0, said
            assert shown == "one two three\n"
            assert "refunded" in said
            assert await commands.as_json(*ledger) == []
            (row,) = await commands.as_json(*ledger, "--all")
            assert (row["state"], row["settled"]) == ("ended", str(6 * PRICE))


async def test_an_agent_without_ether_pays_in_circles_own_dollar(
    tmp_path: Path, commands: Commands
) -> None:
    """OPEN-05, F-21: through the real gateway and its settler, which send everything."""
    async with Devnet.start(token="usdc") as devnet, model_server() as model:  # noqa: S106
        await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
        gateway = commands.gateway(devnet.values, model)
        async with gateway.running():
            pay = ["pay", gateway.url, "--devnet=devnet.json", "--prompt=Hello"]
            paid = await commands.as_json(*pay)
        agent = devnet.account(GASLESS).address
        assert (paid["paid"], paid["text"]) == (str(3 * PRICE), "one two three")
        assert paid["open_tx"]
        assert paid["close_tx"]
        assert await devnet.token_balance(agent) == 10**12 - 3 * PRICE
        assert await devnet.rpc.balance_wei(agent) == 0


async def test_an_agent_pays_from_a_keystore(
    devnet: TestChain, tmp_path: Path, commands: Commands
) -> None:
    """Not a devnet's public key, but an encrypted file, a node and a token."""
    values = devnet.values
    key = values.accounts["payer"].private_key
    encrypted = Account.encrypt(key, "open", kdf="pbkdf2", iterations=10)
    (tmp_path / "agent.json").write_text(json.dumps(encrypted))
    (tmp_path / "password").write_text("open\n")
    async with model_server() as model:
        gateway = commands.gateway(devnet.values, model)
        async with gateway.running():
            paid = await commands.as_json(
                "pay",
                gateway.url,
                "--prompt=Hello",
                f"--rpc-url={values.rpc_url}",
                f"--chain-id={values.chain_id}",
                f"--token=0x{values.token.hex()}",
                "--keystore=agent.json",
                "--password-file=password",
                "--store=agent.db",
            )
    assert (paid["paid"], paid["deposit"] != "0") == (str(3 * PRICE), True)
    assert paid["close_tx"]


async def test_a_contract_wallet_pays_by_command_with_keys_of_its_channels(
    devnet: TestChain, tmp_path: Path, commands: Commands
) -> None:
    """CLIENT-11: the owner's keystore, the wallet's address, and the channels' encrypted secret."""
    values, secret = devnet.values, b"\x05" * 32
    for name, key in (("owner", values.accounts[GASLESS].private_key), ("keys", secret)):
        encrypted = Account.encrypt(key, "open", kdf="pbkdf2", iterations=10)
        (tmp_path / f"{name}.json").write_text(json.dumps(encrypted))
    (tmp_path / "password").write_text("open\n")
    async with devnet.connect() as chain:
        owner = values.accounts[GASLESS].address
        wallet = await deploy_owned_wallet(chain.deployer, owner)
        await chain.fund(wallet, amount=10**6)
        async with model_server() as model:
            gateway = commands.gateway(values, model)
            async with gateway.running():
                paid = await commands.as_json(
                    "pay",
                    gateway.url,
                    "--prompt=Hello",
                    f"--rpc-url={values.rpc_url}",
                    f"--chain-id={values.chain_id}",
                    f"--token=0x{values.token.hex()}",
                    *("--keystore=owner.json", "--password-file=password", "--store=agent.db"),
                    *(f"--wallet=0x{wallet.hex()}", "--voucher-keys=keys.json"),
                )
        assert await chain.token_balance(wallet) == 10**6 - 3 * PRICE
        assert await chain.rpc.balance_wei(wallet) == await chain.rpc.balance_wei(owner) == 0
    assert (paid["paid"], bool(paid["close_tx"])) == (str(3 * PRICE), True)


async def test_a_price_above_the_limit_is_refused_and_nothing_is_paid(
    devnet: TestChain, tmp_path: Path, commands: Commands
) -> None:
    """CLIENT-01: exit code 1, the reason in one line, no channel."""
    await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
    async with model_server() as model:
        gateway = commands.gateway(devnet.values, model)
        async with gateway.running():
            arguments = ["pay", gateway.url, "--devnet=devnet.json", "--prompt=x"]
            code, shown, said = await commands(*arguments, "--price-max=24")
            spare = await commands(*arguments, "--budget=24")
        assert (code, shown) == (1, "")
        words = "llm_token 25 dUSD / 1M; the policy allows at most 24 dUSD / 1M"
        assert words in said  # O-64
        assert "Traceback" not in said
        assert spare[:2] == (1, "")
        assert "to 0.000025 dUSD; the policy allows 0.000024 dUSD" in spare[2]  # O-64
        assert model.seen == []
    assert (
        "no channels"
        in (await commands("channels", f"--ledger=sqlite:///{tmp_path / 'ledger.db'}"))[1]
    )


async def test_a_refused_deposit_says_first_why_the_server_refuses(
    devnet: TestChain, tmp_path: Path, commands: Commands
) -> None:
    """O-60: its reason with the setting's name, and then what may still be in a channel."""
    await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
    async with model_server() as model:
        gateway = commands.gateway(devnet.values, model, SPONSORING_DEPOSITS_PER_PAYER="1")
        async with gateway.running():
            arguments = ["pay", gateway.url, "--devnet=devnet.json", "--prompt=x"]
            assert (await commands(*arguments))[0] == 0
            code, _, said = await commands(*arguments)
    assert code == 1
    error = said.partition("error: ")[2]
    assert error.startswith("the server answered 429: ")
    assert "`sponsoring.deposits_per_payer`" in error.partition("may yet be made")[0]


async def test_a_command_that_is_interrupted_says_what_is_left(
    devnet: TestChain, tmp_path: Path, commands: Commands
) -> None:
    """CLOSE-08: the deposit stays in its channel, and the next command goes on with it."""
    await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
    async with model_server() as model:
        model.words, model.delay_s = ["word"] * 1_000, 0.05
        gateway = commands.gateway(devnet.values, model)
        async with gateway.running():
            process, shown, said = commands.start(
                *("pay", gateway.url, "--devnet=devnet.json", "--prompt=Hello")
            )
            await until(lambda: shown.exists() and bool(shown.read_text()))  # it answers
            process.send_signal(signal.SIGINT)
            await until(lambda: process.returncode is not None)
            assert process.returncode == 130
            assert "are left in channel 0x" in said.read_text()
            assert "Traceback" not in said.read_text()
            model.words, model.delay_s = ["one"], 0.0
            paid = await commands.as_json("pay", gateway.url, "--devnet=devnet.json", "--prompt=x")
            assert paid["open_tx"] is None
            assert paid["close_tx"]


async def test_a_second_gateway_on_the_same_books_does_not_start(
    devnet: TestChain, commands: Commands
) -> None:
    """DESIGN decision 9: on SQLite there is one gateway process."""
    async with model_server() as model:
        first, second = (commands.gateway(devnet.values, model) for _ in range(2))
        async with first.running():
            with pytest.raises(AssertionError, match="error: "):
                async with second.running():
                    pytest.fail("two gateways wrote one SQLite ledger")
            assert await first.end() == 0
