"""What the overview says of each part that must work."""

import pytest
from msgspec.structs import replace

from channel.types import Address
from mpp_session.dashboard.health import judge_health, judge_model
from mpp_session.operator.doctor import Check, Verdict
from mpp_session.operator.status import Books, ChainView, Finding, JournalView, Level, Status
from settlement.node.nodes import EndpointView
from settlement.tx.journal.interface import Look
from settlement.types import BlockRef

NOW = 1_800_000_000
HEAD = BlockRef(number=9, hash=b"h" * 32, timestamp=NOW, base_fee_wei=7, parent_hash=b"g" * 32)
NODES = (EndpointView("one", HEAD, HEAD), EndpointView("two", HEAD, HEAD))
CHAIN = ChainView(
    chain_id=1, head=HEAD, grace_period_s=900, balance_wei=1, reserve_wei=1, nodes=NODES
)
LOOK = Look(block_number=9, block_hash=b"h" * 32, block_time=NOW, looked_at=NOW)
FINE = Status(
    payee=Address(b"p" * 20),
    asked_at=NOW + 5,
    books=Books(),
    chain=CHAIN,
    journal=JournalView(holder="settler@host", pending=(), quarantined=(), look=LOOK),
)

TOWER = Check("watchtower", Verdict.OK, "settles.jsonl got its last line 1 s ago")


def kinds(status: Status | str, model_server: str | None = None) -> dict[str, str]:
    _, health = judge_health(status, judge_model(model_server), TOWER)
    return {each.name: each.kind for each in health}


def test_all_is_well() -> None:
    assert set(kinds(FINE).values()) == {"good"}


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("Settler", replace(FINE, journal=replace(FINE.journal, holder=None)), "warn"),
        (
            "Settler",
            replace(FINE, books=Books(at_risk=1), journal=replace(FINE.journal, holder=None)),
            "bad",
        ),
        ("Settler", replace(FINE, asked_at=NOW + 500), "warn"),
        ("Chain", replace(FINE, chain=None), "bad"),
        (
            "Chain",
            replace(FINE, chain=replace(CHAIN, nodes=(NODES[0], EndpointView("two", None)))),
            "warn",
        ),
        ("Database", "the database does not answer", "bad"),
    ],
)
def test_what_is_wrong_is_shown_where_it_is(name: str, status: Status | str, kind: str) -> None:
    assert kinds(status)[name] == kind


def test_a_model_server_that_is_away_is_bad_and_says_why() -> None:
    _, health = judge_health(
        FINE, judge_model("no answer within 5 s"), Check("watchtower", Verdict.ADVICE, "none")
    )
    shown = {each.name: each for each in health}
    assert (shown["Model server"].kind, shown["Model server"].detail) == (
        "bad",
        "no answer within 5 s",
    )
    assert shown["Watchtower"].state == "none"


def test_findings_keep_their_severity() -> None:
    found = (Finding(Level.CRITICAL, "one"), Finding(Level.WARNING, "two"))
    findings, _ = judge_health(replace(FINE, findings=found), None, TOWER)
    assert findings == (("bad", "one"), ("warn", "two"))


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [(Verdict.OK, "good"), (Verdict.SKIPPED, ""), (Verdict.ADVICE, "warn"), (Verdict.FAULT, "bad")],
)
def test_the_watchtower_is_shown_as_the_doctor_finds_it(verdict: Verdict, kind: str) -> None:
    _, health = judge_health(FINE, None, Check("watchtower", verdict, "found", "do this"))
    (shown,) = [each for each in health if each.name == "Watchtower"]
    assert (shown.kind, shown.detail) == (kind, "found: do this")
