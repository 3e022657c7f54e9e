"""`mpp-session policy`: what an owner runs before a wallet loads a policy."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.types import ChannelId
from mpp_session.wallet.audit.records import decision_fields, voucher_fields
from mpp_session.wallet.audit.trail import Trail
from mpp_session.wallet.policy import decide, parse_policy
from mpp_session.wallet.types import Purpose, Snapshot
from tests.mpp_session.cli.conftest import Run
from tests.mpp_session.wallet.audit.payments import write_payments
from tests.mpp_session.wallet.policy.asks import NOW, TARIFF, ask

POLICY = """\
version = 1
revision = 7

[token.usdc2]
chain = 8453
address = "0x0101010101010101010101010101010101010101"
decimals = 6

[envelope.research]
amount = "20.00 usdc2"
window = "7d"

[agent.research-1]
token = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
envelopes = ["research"]
expires = 2090-01-01T00:00:00Z

[[rule]]
name = "search"
action = "allow"
match = {path = ["/search"], task = ["t1"], tool = ["find"]}
cap = {request = "0.05 usdc2", unit_price = {output_token = "0.60 usdc2 / 1M"}}
"""
PURPOSE = ("--agent", "research-1", "--task", "t1", "--tool", "find")


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "policy.toml").write_text(POLICY)
    return "policy.toml"


def test_a_policy_is_checked(run: Run, file: str, tmp_path: Path) -> None:
    done = run("policy", "check", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("revision 7: 1 agent, 1 envelope, 1 rule, all valid; hash ")
    assert json.loads(run("policy", "check", file, "--json").stdout)["revision"] == 7
    (tmp_path / file).write_text(POLICY.replace("request =", "reqest ="))
    done = run("policy", "check", file)
    assert done.returncode == 1
    assert done.stderr == (
        "error: policy.toml: `rule[0].cap.reqest` (rule search): unknown key; did you mean "
        "`request`?\n"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--kind", "sign", "--amount", "0.05 usdc2", "--price", "output_token=0.6 / 1M"], "allow"),
        (["--kind", "sign", "--price", "output_token=0.7 / 1M"], "deny (unit_price_exceeded)"),
        (["--kind", "sign", "--amount", "0.051 usdc2"], "deny (unit_price_exceeded)"),
        (["--amount", "0.05 usdc2", "--task", "t2"], "deny (no_rule)"),
    ],
)
def test_a_decision_is_explained(run: Run, file: str, flags: list[str], said: str) -> None:
    done = run("policy", "explain", file, "POST", "https://a.example/search", *PURPOSE, *flags)
    assert done.returncode == 0, done.stderr
    assert f"\n{said}" in done.stdout
    assert "envelope.research.amount: limit 20.000000 USDC2" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--amount", "1 dai"], "the policy has no token 'dai'; it has usdc2"),
        (["--kind", "gift"], "--kind: expected deposit, sign or charge"),
        (["--recipient", "0x12"], "0x12 is not an address"),
        ([], "expected the request's URL, such as https://api.example/search, found 'a.example/'"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    run: Run, file: str, flags: list[str], said: str
) -> None:
    url = "https://a.example/" if flags else "a.example/"
    done = run("policy", "explain", file, "GET", url, *PURPOSE, *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_policies_are_compared(run: Run, file: str, tmp_path: Path) -> None:
    assert run("policy", "diff", file, file).stdout == "nothing changes\n"
    changed = POLICY.replace("0.05 usdc2", "0.06 usdc2").replace("20.00", "10.00")
    (tmp_path / "new.toml").write_text(changed)
    shown = run("policy", "diff", file, "new.toml").stdout.splitlines()
    assert shown == [
        "LOOSER: rule.search.cap.request: 0.050000 USDC2 -> 0.060000 USDC2",
        "tighter: envelope.research.amount: 20.000000 USDC2 -> 10.000000 USDC2",
        "tighter: envelope.research.locked_max: 20.000000 USDC2 -> 10.000000 USDC2",
        "revision 7 must grow above 7 to be loaded",
    ]
    found = json.loads(run("policy", "diff", file, "new.toml", "--json").stdout)
    assert [change["way"] for change in found] == ["looser", "tighter", "tighter"]


def test_the_schema_is_printed(run: Run) -> None:
    assert json.loads(run("policy", "schema").stdout)["$defs"]["RuleTable"]


def test_recorded_asks_are_decided_again(run: Run, tmp_path: Path) -> None:
    """By a policy that allows half of what was spent by a request and its later voucher."""
    policy = parse_policy(POLICY)
    one = ask("sign", agent="research-1", tariff=TARIFF, token=policy.tokens["usdc2"].address)
    one = replace(one, purpose=Purpose(task="t1", tool="find"), channel_id=ChannelId(bytes(32)))
    tables = POLICY.replace(', unit_price = {output_token = "0.60 usdc2 / 1M"}', "")
    decision = decide(parse_policy(tables), one, Snapshot())
    assert decision.action == "allow", decision.reason
    later = replace(one, amount=5, total=10_005, request_total=10_005, is_first=False)
    trail = Trail()
    with closing(sqlite3.connect(tmp_path / "wallet.db", isolation_level=None)) as db:
        db.executescript(trail.SCHEMA)
        db.execute("BEGIN")
        trail.append(db, "decision", at=NOW, **decision_fields(one, decision))
        trail.append(db, "voucher", at=NOW, **voucher_fields(one))
        trail.append(db, "voucher", at=NOW + 1, **voucher_fields(later))
        db.execute("COMMIT")
    (tmp_path / "same.toml").write_text(tables)
    shown = run("policy", "replay", "same.toml", "--home", ".")
    assert shown.stdout == "2 asks: 0 decided otherwise, 0 of them looser\n", shown.stderr
    (tmp_path / "tight.toml").write_text(tables.replace("20.00 usdc2", "0.010004 usdc2"))
    found = json.loads(run("policy", "replay", "tight.toml", "--home", ".", "--json").stdout)
    (changed,) = found["changed"]
    assert (changed["before"], changed["after"]) == ("allow", "deny")
    assert (changed["code"], changed["amount"]) == ("envelope_exceeded", "5")
    assert "of which 0.010000 USDC2 is used" in changed["reason"]


def test_a_policy_is_tried_on_what_was_asked(run: Run, file: str, tmp_path: Path) -> None:
    write_payments(tmp_path / "wallet.db")
    flags = ("policy", "replay", file, "--home", str(tmp_path))
    done = run(*flags)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "7 asks: 7 decided otherwise, 0 of them looser"
    assert "a: allow becomes deny, sign of 20 in 3 asks to POST https://api.example" in done.stdout
    assert "agent_unknown" in lines[0]
    found = json.loads(run(*flags, "--json", "--since", "2026-01-01").stdout)
    assert (found["asked"], found["changed"][0]["before"]) == (7, "ask")
    assert "and 4 more lines" in run(*flags, "--most", "1").stdout
    assert (
        run(*flags, "--since", "2090-01-01").stdout
        == "0 asks: 0 decided otherwise, 0 of them looser\n"
    )
