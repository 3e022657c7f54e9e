"""`mpp-session init`: three files, and the next command checks them."""

import socket
import stat
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mpp_session.agent.keystore import decrypt_keystore, read_password
from mpp_session.devnet_file import devnet_settings
from mpp_session.operator.model_servers import FoundServer, find_model_servers
from mpp_session.settings.config import load_config
from mpp_session.testing.chain import TestChain
from tests.mpp_session.cli.conftest import Run
from tests.mpp_session.gateway.real_model import real_model

FILES = ("gateway.toml", "payee.json", "payee.password")


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with real_model() as url:
        yield url


def flags(devnet: TestChain, model_url: str) -> list[str]:
    values = devnet.values
    return [
        *("--upstream", model_url, "--rpc", values.rpc_url),
        *("--escrow", "0x" + values.escrow.hex(), "--price", "0.10/0.40"),
        *("--realm", "api.example.com"),
    ]


def test_it_writes_settings_that_load_and_a_key_that_is_the_payees(
    run: Run, devnet: TestChain, tmp_path: Path, model_url: str
) -> None:
    """The escrow names the token, the node the chain; every file is its owner's alone."""
    folder = tmp_path / 'a "shop" of mine'
    done = run("init", str(folder), *flags(devnet, model_url))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"mpp-session doctor --config {folder / 'gateway.toml'}"
    for name in FILES:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    config = load_config(folder / "gateway.toml", environment={})
    assert config.chain.id == devnet.values.chain_id
    assert config.chain.token == "0x" + devnet.values.token.hex()
    assert config.upstream.url == model_url
    assert (config.price_rows[0].input, config.price_rows[0].output) == ("0.10", "0.40")
    assert config.ledger.url.endswith("of%20mine/books.db")
    key = decrypt_keystore(folder / "payee.json", read_password(folder / "payee.password"))
    assert len(key) == 32
    assert config.payee.address in done.stderr
    shown = done.stdout + done.stderr
    assert key.hex() not in shown
    assert config.payment.secrets[0].reveal() not in shown


def test_on_a_devnet_the_next_command_finds_no_fault(
    run: Run, devnet: TestChain, tmp_path: Path, model_url: str
) -> None:
    """The first hour: init, then doctor; the devnet's payee has gas."""
    devnet.advance(1)
    file = tmp_path / "devnet.json"
    devnet.values.write(file)
    done = run(
        "init", "shop", "--devnet", str(file), "--upstream", model_url, "--price", "0.10/0.40"
    )
    assert done.returncode == 0, done.stderr
    checked = run(*done.stdout.split()[1:])
    assert checked.returncode == 0, checked.stdout
    assert "no faults" in checked.stdout


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_written_over_and_nothing_is_left_half_written(
    run: Run, devnet: TestChain, tmp_path: Path, name: str
) -> None:
    """A key file holds the only copy of a key."""
    there = tmp_path / name
    there.write_text("mine")
    done = run("init", *flags(devnet, "http://127.0.0.1:9"))
    assert done.returncode == 2
    assert f"{there} exists" in done.stderr
    assert there.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("missing", "said"),
    [("--rpc", "--rpc is missing"), ("--price", "--price is missing")],
)
def test_the_error_names_the_flag_that_a_script_lacks(
    run: Run, devnet: TestChain, tmp_path: Path, missing: str, said: str
) -> None:
    given = flags(devnet, "http://127.0.0.1:9")
    at = given.index(missing)
    done = run("init", *given[:at], *given[at + 2 :])
    assert done.returncode == 1
    assert said in done.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--price", "0.10/cheap", "expected a price"),
        ("--price", "0.10/0", "must not be free"),
        ("--escrow", "0x" + "11" * 20, "no escrow"),
        ("--escrow", "nowhere", "not an address"),
        ("--rpc", "http://127.0.0.1:1", "node cannot be reached"),
    ],
)
def test_a_wrong_answer_writes_nothing(  # noqa: PLR0917 -- fixtures and cases
    run: Run, devnet: TestChain, tmp_path: Path, flag: str, value: str, said: str
) -> None:
    given = flags(devnet, "http://127.0.0.1:9")
    given[given.index(flag) + 1] = value
    done = run("init", *given)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert [*tmp_path.iterdir()] == []


async def test_a_model_server_is_known_by_its_own_path(model_url: str) -> None:
    """A real llama.cpp server; a closed port and a server of another kind are none."""
    with other_server() as other, closed_port() as closed:
        found = await find_model_servers((model_url, other, closed))
    assert found == [FoundServer("llama.cpp", model_url)]


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def other_server() -> Iterator[str]:
    """A web server that answers every path with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>version default_generation_settings</html>")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_file_is_toml_for_any_answers(run: Run, devnet: TestChain, tmp_path: Path) -> None:
    given = flags(devnet, "http://127.0.0.1:9")
    given[given.index("--realm") + 1] = 'a "b" \\ c'
    assert run("init", *given).returncode == 0
    document = tomllib.loads((tmp_path / "gateway.toml").read_text())
    assert document["payment"]["realm"] == 'a "b" \\ c'


def test_on_a_devnet_the_payee_pays_the_gas_as_with_the_flag_devnet(
    run: Run, devnet: TestChain, tmp_path: Path, model_url: str
) -> None:
    """The devnet's agent has no ether: without this it could not pay what `init` sells."""
    file = tmp_path / "devnet.json"
    devnet.values.write(file)
    done = run("init", "--devnet", str(file), "--upstream", model_url, "--price", "0.10/0.40")
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "gateway.toml", environment={})
    assert config.sponsoring.fee_payer
    wanted = devnet_settings(devnet.values)
    assert config.sponsoring.gas_budget_wei == wanted["sponsoring.gas_budget_wei"]
    assert config.sponsoring.deposits_per_payer == wanted["sponsoring.deposits_per_payer"]
