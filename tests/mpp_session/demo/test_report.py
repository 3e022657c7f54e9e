"""The demo succeeds only when agent, provider and chain say the same, to the base unit."""

import io
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from rich.console import Console

from mpp_session.demo.report import Balances, DemoReport
from tests.mpp_session.demo.figures import report


def test_figures_that_add_up_have_no_mismatch() -> None:
    assert report().mismatches() == []


def spoiled(report: DemoReport, **changes: int) -> DemoReport:
    return replace(report, answers=(replace(report.answers[0], **changes), report.answers[1]))


WRONG: list[tuple[str, Callable[[DemoReport], DemoReport]]] = [
    ("payer is short", lambda r: replace(r, after=Balances(7501, 0, 2500, 0))),
    ("payee has exactly", lambda r: replace(r, after=Balances(7500, 0, 2499, 0))),
    ("escrow holds nothing", lambda r: replace(r, after=Balances(7500, 0, 2500, 1))),
    ("deposit covers", lambda r: replace(r, deposit=2499)),
    ("last receipt says", lambda r: replace(r, receipt_spent=2501)),
    ("answers came to what was paid", lambda r: replace(r, answers=r.answers[:1])),
    ("at its price", lambda r: spoiled(r, cost=1601)),
    ("input and output", lambda r: spoiled(r, input_tokens=45)),
    ("one unit", lambda r: spoiled(r, units=3990)),
    (
        "only the payee sent transactions: open and close",
        lambda r: replace(r, transactions=r.transactions[1:]),
    ),
    ("refused one request", lambda r: replace(r, refused=())),
    ("approved one deposit", lambda r: replace(r, approved=2)),
    (
        "tells the payment",
        lambda r: replace(r, trail=replace(r.trail, steps=r.trail.steps[1:])),
    ),
    (
        "trail is whole (record 3",
        lambda r: replace(r, trail=replace(r.trail, verdict="record 3", is_good=False)),
    ),
    ("never had ether", lambda r: replace(r, before=Balances(10_000, 1, 0, 0))),
    ("never had ether", lambda r: replace(r, after=Balances(7500, 1, 2500, 0))),
    (
        "the payee sent",
        lambda r: replace(
            r, transactions=tuple(replace(one, sender="agent") for one in r.transactions)
        ),
    ),
]


@pytest.mark.parametrize(("said", "spoil"), WRONG)
def test_one_base_unit_or_one_transaction_amiss_is_reported(
    said: str, spoil: Callable[[DemoReport], DemoReport]
) -> None:
    mismatches = spoil(report()).mismatches()
    assert any(said in sentence for sentence in mismatches), mismatches


def test_a_demo_that_paid_nothing_does_not_succeed() -> None:
    free = replace(report(), paid=0, receipt_spent=0, answers=(), after=report().before)
    assert "the deposit covers what was paid" in free.mismatches()


def test_the_table_shows_every_figure() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(report().table())
    text = console.export_text()
    for figure in (
        "1,043 at 0.10 dUSD / 1M",
        "5,989 at 0.40 dUSD / 1M",
        "100,000",
        "open, gas paid by the payee",
        "0.004000",
        "0.002500",
        "0.001500",
        "+0.002500",
    ):
        assert figure in text
