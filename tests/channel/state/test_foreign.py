"""Who settled or closed: these books, the payer, or a thief of the payee's key (O-89)."""

from typing import Any

import pytest

from channel.limits import GRACE_PERIOD_S_MIN
from channel.state.commands import (
    BeginClose,
    Command,
    CommitClose,
    Observe,
    Publish,
    RecordClose,
    Repair,
)
from tests.channel.books import accepting, fact, opening, run

ASKED_AT = 1_800_000_000


OPEN = (opening(0), accepting(80))
END = {"is_finalized": True}
DECIDED = (BeginClose(), CommitClose(run(*OPEN).highest))


@pytest.mark.parametrize(
    ("commands", "seen", "at"),
    [
        (OPEN, {"settled": 1}, 0),
        ((*OPEN, Publish(50)), {"settled": 51}, 0),
        (OPEN, {**END, "settled": 0}, 0),
        (OPEN, {**END, "settled": 80}, 0),
        ((*OPEN, *DECIDED), {**END, "settled": 0}, 0),
        (OPEN, {**END, "close_requested_at": ASKED_AT}, ASKED_AT + GRACE_PERIOD_S_MIN - 1),
    ],
    ids=[
        "a settle",
        "a settle beyond ours",
        "a close at 0",
        "a close for all",
        "a close at 0 before ours",
        "a close before the payer may withdraw",
    ],
)
def test_what_these_books_did_not_make_is_noted(
    commands: tuple[Command, ...], seen: dict[str, Any], at: int
) -> None:
    """O-05, O-89."""
    state = run(*commands, Observe(fact(**seen, block=177), at=at))
    assert state.foreign_block == 177
    assert run(*commands, Observe(fact(), at=at)).foreign_block == 0
    assert run(Repair(state.settled, state.settled), state=state).foreign_block == 0


@pytest.mark.parametrize(
    ("commands", "seen", "at"),
    [
        ((*OPEN, Publish(50)), {"settled": 50}, 0),
        ((*OPEN, Publish(50)), {"settled": 10}, 0),
        ((*OPEN, *DECIDED), {**END, "settled": 80}, 0),
        (OPEN, {**END, "close_requested_at": ASKED_AT}, ASKED_AT + GRACE_PERIOD_S_MIN),
        (OPEN, {**END, "close_requested_at": ASKED_AT}, 0),
        (OPEN, {"close_requested_at": ASKED_AT}, ASKED_AT),
        (OPEN, {"deposit": 500}, 0),
    ],
    ids=[
        "our settle",
        "our settle, copied",
        "our close",
        "a withdrawal",
        "a withdrawal at an unknown time",
        "a request",
        "a top-up",
    ],
)
def test_what_these_books_or_the_payer_did_is_not(
    commands: tuple[Command, ...], seen: dict[str, Any], at: int
) -> None:
    """O-89: no false alarm."""
    assert run(*commands, Observe(fact(**seen), at=at)).foreign_block == 0


def test_a_close_that_was_recorded_though_it_is_not_ours_is_noted() -> None:
    """O-89: a caller that waits for our close gets the foreign one, which was faster."""
    close = RecordClose(fact(settled=0, is_finalized=True, block=109), b"t" * 32)
    assert run(*OPEN, *DECIDED, close).foreign_block == 109
    ours = RecordClose(fact(settled=80, is_finalized=True, block=109), b"t" * 32)
    assert run(*OPEN, *DECIDED, ours).foreign_block == 0


def test_a_channel_that_was_settled_before_it_was_opened_here_is_noted() -> None:
    """O-05: other books of the same payee have it."""
    opened = run(opening(50, seen=fact(settled=20)))
    assert opened.foreign_block == 100
    assert run(opening(50, seen=fact(settled=0)), opening(60)).foreign_block == 0
