"""Every command teaches, refuses in one line, and never shows a traceback for what is no bug."""

import re
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from mpp_session.cli.app import APP
from mpp_session.cli.audit import APP as AUDIT
from mpp_session.cli.ledger import APP as LEDGER
from mpp_session.cli.policy import APP as POLICY
from mpp_session.cli.prices import APP as PRICES
from mpp_session.cli.wallet_process import APP as WALLET
from tests.mpp_session.cli.conftest import Run

COMMANDS = sorted(info.name or "" for info in APP.registered_commands)
GROUPED = [
    f"{group} {info.name or info.callback.__name__}"
    for group, app in (
        ("audit", AUDIT),
        ("ledger", LEDGER),
        ("policy", POLICY),
        ("prices", PRICES),
        ("wallet", WALLET),
    )
    for info in app.registered_commands
    if info.callback
]


def test_the_commands_are_those_of_the_manual(start: Run) -> None:
    assert COMMANDS == [
        "channels",
        "demo",
        "deploy",
        "devnet",
        "discovery",
        "doctor",
        "earnings",
        "export",
        "gateway",
        "init",
        "keygen",
        "mcp-proxy",
        "pay",
        "proxy",
        "recover",
        "settle",
        "spent",
        "status",
        "validate",
        "withdraw",
    ]
    shown = start("--help")
    assert shown.returncode == 0
    groups = ["audit", "ledger", "policy", "prices", "wallet"]
    assert all(re.search(rf"(?m)^  {name} ", shown.stdout) for name in [*COMMANDS, *groups])
    assert sorted(GROUPED) == [
        *(f"audit {name}" for name in ("export", "report", "search", "show", "verify")),
        *(f"ledger {name}" for name in ("adopt", "check", "export", "import", "repair")),
        *(f"policy {name}" for name in ("check", "diff", "explain", "replay", "schema")),
        *(f"prices {name}" for name in ("check", "import", "reload", "show")),
        *(
            f"wallet {name}"
            for name in (
                "agent-add",
                "approvals",
                "approve",
                "approver-add",
                "budgets",
                "close",
                "deny",
                "freeze",
                "reload",
                "revoke",
                "run",
                "stats",
                "status",
                "unfreeze",
            )
        ),
    ]


@pytest.mark.parametrize("group", [[], ["audit"], ["ledger"], ["policy"], ["prices"], ["wallet"]])
def test_a_list_of_commands_says_what_each_does_in_whole_sentences(
    run: Run, group: list[str]
) -> None:
    """Also on a terminal of 80 columns."""
    shown = run(*group, "--help", COLUMNS="80").stdout
    lines = re.findall(r"(?m)^  (?:[a-z]+)  +(.+)$", shown.partition("Commands:")[2])
    assert lines
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize("name", [*COMMANDS, *GROUPED])
def test_help_teaches_by_example(name: str) -> None:
    shown = CliRunner().invoke(APP, [*name.split(), "--help"], env={"COLUMNS": "100"})
    assert shown.exit_code == 0
    assert re.search(rf"(?m)^  (mpp-session {name}|scripts/{name})", shown.stdout)
    undescribed = re.findall(r"(?m)^  (--[\w-]+)(?: <\w+>)?\s*$", shown.stdout)
    assert undescribed == []


REFUSED = [
    (["nonsense"], 2, "nonsense"),
    (["gateway", "--prot", "1"], 2, "--prot"),
    (["gateway"], 2, "missing: `upstream.url`"),
    (["gateway", "--config", "none.toml"], 2, "none.toml cannot be read"),
    (["gateway", "--devnet", "none.json"], 1, "start `mpp-session devnet` first"),
    (["channels"], 2, "missing: `ledger.url`"),
    (["channels", "--ledger", "sqlite:///none.db"], 2, "there is no ledger"),
    (["channels", "--ledger", "sqlite:///:memory:"], 2, "ledger"),
    (["deploy"], 1, "give --devnet, or also --rpc, --token"),
    (["deploy", "--rpc", "http://127.0.0.1:1"], 1, "give --devnet, or also --token"),
    (["deploy", "--rpc", "http://127.0.0.1:1", "--token", "0x12"], 2, "0x12 is not an address"),
    (["policy", "check", "none.toml"], 1, "none.toml cannot be read"),
    (["audit", "verify", "--home", "none"], 1, "expected a wallet's database at none"),
    (["audit", "search", "--since", "soon", "--home", "none"], 2, "--since: expected 7d"),
    (["ledger", "check"], 2, "missing: `ledger.url`"),
    (["ledger", "check", "--ledger", "sqlite:///none.db"], 2, "there is no ledger"),
    (["ledger", "import", "none.jsonl", "--ledger", "sqlite:///new.db"], 1, "none.jsonl"),
    (["pay", "http://127.0.0.1:9"], 1, "--prompt or --json-body"),
    (["pay", "http://127.0.0.1:9", "--prompt", "x"], 1, "give --devnet"),
    (["pay", "http://127.0.0.1:9", "--prompt", "x", "--devnet", "none.json"], 1, "devnet"),
    (["pay", "http://127.0.0.1:9", "--json-body", "@none.json"], 1, "none.json"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), REFUSED)
def test_a_refusal_is_one_line_and_an_exit_code(
    run: Run, arguments: list[str], code: int, said: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(re.findall(r"(?m)^error: ", done.stderr)) <= 1


def test_a_misspelt_variable_stops_the_program(run: Run) -> None:
    """F-106."""
    done = run("channels", MPP_SESSION_LEDGER_URI="sqlite:///x.db")
    assert done.returncode == 2
    assert "did you mean `MPP_SESSION_LEDGER_URL`?" in done.stderr


def test_the_program_says_its_version(start: Run) -> None:
    """O-68."""
    assert start("--version").stdout == f"mpp-session {version('mpp-session')}\n"
