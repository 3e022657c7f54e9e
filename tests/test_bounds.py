"""Every bound stands in one place, is in the manual, and is crossed by a test (issue 10 B)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from channel import limits

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
BOUNDS = {name: value for name, value in vars(limits).items() if name.isupper()}

OURS = {
    "AHEAD_S_MAX": "how far this clock may be off",
    "ATTEMPTS_MAX": "how often a voucher is sent",
    "BATCH_MAX": "questions that we ask a node at once",
    "BEHIND_S_MAX": "how far this clock may be off",
    "DEPOSIT_MAX": "of a helper for tests",
    "DEPOSIT_MIN": "of a helper for tests",
    "DEVELOPMENT_S_MAX": "how far this clock may be off",
    "ENDED_MAX": "of a journal for scripts and tests",
    "EXIT_STAGE_MAX": "when we act",
    "HASHES_PER_LOOK_MAX": "questions that we ask a node at once",
    "HIDDEN_UNITS_MAX": "what an answer shows; it is RESERVATION_STEP_UNITS",
    "IDLE_S_MAX": "how long we keep a connection",
    "INT64_MAX": "of a column of the books",
    "KEYS_CACHED_MAX": "keys that we derive",
    "KIND_AGE_S_MAX": "how often we ask",
    "LAYERS_MAX": "of the application's own routers",
    "LEASE_S_MAX": "of our own lease",
    "LEFT_S_MIN": "when we sign again",
    "LOT_BYTES_MAX": "of our own transactions",
    "MEASURED_S_MIN": "when we measure",
    "NODES_MIN": "how many nodes an operator must name for a comparison",
    "PENDING_S_MAX": "our own pause",
    "POLL_S_MAX": "our own pause",
    "PRICE_MAX": "of an operator's setting",
    "RECONNECT_S_MAX": "our own pause",
    "REFUSED_S_MAX": "our own pause",
    "REST_S_MAX": "our own pause",
    "RETRY_S_MAX": "our own pause",
    "SENT_MAX": "of our own transactions",
    "SHARED_MIN": "when a thread is worth it",
    "SHOWN_MAX": "of our own channels",
    "STARTS_MAX": "of our own processes",
    "STILL_S_MAX": "when an alarm rings",
    "TOKENS_MAX": "of an operator's setting",
    "TOKEN_BYTES_MAX": "what is known of vocabularies",
    "UINT64_MAX": "of a field of the contract",
    "UNIT_PRICE_MAX": "of a helper for tests",
}
"""Constants that bound nothing another party can make us use, and what they are instead."""


def constants() -> Iterator[tuple[str, str]]:
    """Yield each constant of a module that is named as a bound, with its module."""
    for package in ("channel", "settlement", "service"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path == Path(str(limits.__file__)):
                continue
            for node in ast.parse(path.read_text()).body:
                target = node.target if isinstance(node, ast.AnnAssign) else None
                if isinstance(target, ast.Name) and re.search(r"_(MAX|MIN)$", target.id):
                    yield target.id, path.relative_to(ROOT).as_posix()


def used(path: Path) -> set[str]:
    """Return what a test names: as itself, or in the text of what it patches."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.rpartition(".")[2])
    return found


def test_bounds_on_others_stand_in_one_place() -> None:
    """Issue 10 B: a new `_MAX` or `_MIN` of a module is in limits.py, or is said to be ours."""
    elsewhere = {name.lstrip("_"): module for name, module in constants()}
    assert {name: elsewhere[name] for name in elsewhere.keys() - OURS.keys()} == {}
    assert sorted(OURS.keys() - elsewhere.keys()) == [], "gone: take it out of the list"


def test_every_bound_is_in_the_manual_with_its_value() -> None:
    """Issue 10 B: docs/operating.md lists what limits.py has, and nothing else."""
    text = (ROOT / "docs" / "operating.md").read_text()
    section = text.split("\n## Every bound\n")[1].split("\n## ")[0]
    listed = re.findall(r"(?m)^\| `([A-Z_]+)` \| ([\d,.]+) \| .+ \|$", section)
    assert dict(listed) == {name: f"{value:,}" for name, value in BOUNDS.items()}
    assert len(listed) == len(BOUNDS)
