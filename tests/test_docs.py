"""The documentation is whole: its pages are reachable, its figures add up, its build is strict."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mpp_session

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COSTS = (DOCS / "guide" / "is-this-for-me.md").read_text()
DOLLARS_PER_ETH = 3_000
GWEI_PRICES = (0.01, 0.1, 5)


def test_every_page_is_in_the_navigation() -> None:
    """O-70: a reader finds each page from the index; `nav` of docs/zensical.toml names it."""
    nav = tomllib.loads((DOCS / "zensical.toml").read_text())["project"]["nav"]
    listed = list(pages_of(nav))
    assert sorted(listed) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )


def pages_of(entry: Any) -> Iterator[str]:
    match entry:
        case str():
            yield entry
        case list():
            for part in entry:
                yield from pages_of(part)
        case dict():
            for part in entry.values():
                yield from pages_of(part)


def test_the_index_leads_to_every_page_for_users() -> None:
    """O-70: by task and by what is looked up."""
    linked = set(re.findall(r"\]\(([\w/-]+\.md)", (DOCS / "index.md").read_text()))
    for folder in ("guide", "reference"):
        for page in (DOCS / folder).glob("*.md"):
            assert f"{folder}/{page.name}" in linked


def test_the_python_reference_has_every_public_name() -> None:
    """O-70: once each, and no other."""
    text = (DOCS / "reference" / "python.md").read_text()
    assert sorted(re.findall(r"(?m)^::: mpp_session\.(\w+)$", text)) == sorted(mpp_session.__all__)


def test_the_glossary_is_short_and_in_order() -> None:
    """Issue 11: at most thirty words, none of them twice."""
    text = (DOCS / "guide" / "glossary.md").read_text()
    words = re.findall(r"(?m)^\| ([\w -]+?) \| (?!meaning)", text)
    assert 20 < len(words) <= 30
    assert words == sorted(set(words))


def test_the_costs_follow_from_the_gas() -> None:
    """O-70: each figure is the formula's, with the example prices that the page names."""
    rows = re.findall(r"(?m)^\| (.+?) \| ([\d,]+) \| \$(\S+) \| \$(\S+) \| \$(\S+) \|$", COSTS)
    assert len(rows) == 7
    for what, gas, *dollars in rows:
        for gwei, said in zip(GWEI_PRICES, dollars, strict=True):
            exact = number(gas) * gwei * 1e-9 * DOLLARS_PER_ETH
            assert abs(float(said) - exact) <= 0.00005, (what, gwei, exact)
    assert f"{DOLLARS_PER_ETH:,} dollars per ETH" in COSTS


def test_the_gas_of_a_channel_is_what_was_measured() -> None:
    """O-70: of docs/engineering/performance.md and contracts/gas-snapshot.json."""
    measured = (DOCS / "engineering" / "performance.md").read_text()
    usdc = json.loads((ROOT / "contracts" / "gas-snapshot.json").read_text())["all"]["USDC"]
    gas = {
        name.strip("*"): number(figure)
        for name, figure in re.findall(r"(?m)^\| (.+?) \| ([\d,]+) \| \$", COSTS)
    }
    for name in ("open", "top-up"):
        figure = gas[f"{name} by authorization"]
        assert re.search(rf"gas of an? {name} by authorization, usdc \| {figure:,}\.00 ", measured)
    assert gas["close, alone"] == usdc["close"]
    assert gas["close, in a batch of 100"] == usdc["closeBatch100"]
    leaving = gas["leave without the provider: `requestClose` and `withdraw`"]
    assert leaving == usdc["requestClose"] + usdc["withdraw"]
    opened = gas["open by authorization"]
    assert gas["a channel: open and close, alone"] == opened + usdc["close"]
    assert gas["a channel: open and close in a batch"] == opened + usdc["closeBatch100"]


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("[gone](guide/gone.md)", "page does not exist"),
        ("[gone](guide/selling.md#gone)", "anchor does not exist"),
        ("::: mpp_session.gone", "mpp_session.gone could not be found"),
    ],
)
def test_the_build_fails_for_what_is_broken(tmp_path: Path, fault: str, complaint: str) -> None:
    """O-70: a missing page, a missing anchor, an unknown name."""
    built = build(tmp_path, fault)
    assert built.returncode != 0
    assert complaint in built.stdout + built.stderr


def test_the_build_holds(tmp_path: Path) -> None:
    """O-70: nothing is broken as the pages stand, and the site loads nothing from elsewhere."""
    built = build(tmp_path, "")
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]* href)="(?:https?:)?//[^"]*', page.read_text())


def build(folder: Path, added: str) -> subprocess.CompletedProcess[str]:
    """Build a copy of the pages as `scripts/docs` does, with a line added to the index."""
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("*.toml"))
    settings = (DOCS / "zensical.toml").read_text()
    (folder / "zensical.toml").write_text(settings.replace('"../.."', f'"{ROOT}"'))
    index = folder / "docs" / "index.md"
    index.write_text(f"{index.read_text()}\n{added}\n")
    subprocess.run([sys.executable, "scripts/setup", "docs"], cwd=ROOT, check=True)
    return subprocess.run(  # noqa: S603 -- our own folder
        [".cache/docs-venv/bin/zensical", "build", "--strict", "-f", folder / "zensical.toml"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
