"""docs/engineering/escrow.md says what is so: its prices, its tests, its constants."""

import json
import re
from pathlib import Path

import gas_report
from solidity import CONTRACTS

PAGE = (CONTRACTS.parent / "docs" / "engineering" / "escrow.md").read_text(encoding="utf-8")
DECISION = (CONTRACTS.parent / "docs" / "decisions" / "0002-one-escrow-per-token.md").read_text(
    encoding="utf-8"
)
FIGURES = json.loads(gas_report.SNAPSHOT.read_text(encoding="utf-8"))
GROUPS = FIGURES["all"]
WORD = r"\w*"
PRICE_ROW = re.compile(r"^\| `(\w+)`([^|]*)\|[^|]+\| *([\d,]*) *\| *([\d,]*) *\|$", re.MULTILINE)


def number(text: str) -> int | None:
    return int(text.replace(",", "")) if text else None


def test_every_price_is_the_snapshots() -> None:
    """The table of functions, against contracts/gas-snapshot.json."""
    rows = PRICE_ROW.findall(PAGE)
    assert len(rows) == 18
    for function, note, plain, usdc in rows:
        name = "forfeit" if "forfeit" in note else function
        name += "100" if "of 100" in note else ""
        assert number(plain) == GROUPS["plain token"].get(name), name
        assert number(usdc) == {**GROUPS["USDC"], **GROUPS["USDC, relayed"]}.get(name), name


def test_the_decision_rests_on_the_figures_that_hold() -> None:
    """Our lines of both tables of decision 2."""
    names = ("open", "settle", "close", "settleBatch100", "closeBatch100")
    ours = " | ".join(f"**{FIGURES[name]:,}**" for name in names)
    assert ours in DECISION
    assert " | ".join(f"**{FIGURES[name]:,}**" for name in names[:3]) + " |" in DECISION
    assert f"{GROUPS['once']['createEscrow']:,}" in DECISION


def test_every_test_of_the_threat_model_exists() -> None:
    """Each line names tests; `*` stands for several."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 4]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[3])]
    assert len(named) > 25
    for name in named:
        assert list(find(name)), f"{name} is no test"


def find(name: str) -> list[Path]:
    """The files that hold the test a name stands for."""
    if name.endswith(".py"):
        return [Path(__file__).with_name(name)] if Path(__file__).with_name(name).exists() else []
    if "::" in name:
        file, _, test = name.partition("::")
        files, word = [Path(__file__).parent / file], "def"
    else:
        folder, _, test = name.rpartition("/")
        files, word = (
            list((CONTRACTS / "test" / (folder or "invariant")).glob("*.t.sol")),
            "function",
        )
    pattern = re.compile(word + " " + test.replace("*", WORD) + r"\(")
    return [file for file in files if pattern.search(file.read_text(encoding="utf-8"))]
