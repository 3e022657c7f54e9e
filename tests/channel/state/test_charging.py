"""Each growth of `spent` is one entry of the accounts, with what is known about it."""

import pytest
from msgspec.structs import replace

from channel.limits import AMOUNT_MAX, CHARGE_TEXT_CHARS_MAX
from channel.state import commands as c
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.charges import (
    Charge,
    ChargeEnd,
    ChargeNote,
    ChargeOutcome,
    clean_text,
    decode_note,
    encode_note,
)
from channel.state.charging import CHARGING, charges_of
from channel.state.transitions import transition
from tests.channel.books import LEASE, fact, opening, reserving, run, streaming

NOTE = encode_note("POST /v1/completions", "small")
USED = {"input_token": 3, "output_token": 4}
DONE = ChargeEnd(ChargeOutcome.DONE, USED, "cmpl-1")


def charges(*commands: c.Command, state: ChannelState | None = None) -> list[Charge]:
    """Return everything that the commands enter."""
    entered: list[Charge] = []
    for command in commands:
        after = transition(state, command)
        if type(command) in CHARGING:
            entered += charges_of(state, command, after)
        state = after
    return entered


def holding(name: bytes, amount: int, kind: ReservationKind) -> c.Reserve:
    return replace(reserving(name, amount, kind=kind), note=NOTE)


@pytest.mark.parametrize("kind", ReservationKind)
def test_a_request_of_any_kind_is_one_entry(kind: ReservationKind) -> None:
    entered = charges(
        opening(100),
        holding(b"r", 10, kind),
        c.Spend(b"r", 4),
        c.Extend(b"r", 5, 9, 1, LEASE),
        c.Spend(b"r", 3),
        c.Release(b"r", DONE),
        c.Release(b"r", DONE),
    )
    is_stream = kind is ReservationKind.STREAM
    assert entered == [Charge(7, ChargeOutcome.DONE, b"r", is_stream, NOTE, USED, "cmpl-1")]


def test_a_request_that_begins_a_stream_stays_one_entry() -> None:
    """What it had spent before goes over to the stream's reservation, with its note."""
    begun = replace(streaming(b"r", 20), replaces=True)
    entered = charges(
        opening(100),
        holding(b"r", 10, ReservationKind.REQUEST),
        c.Spend(b"r", 4),
        begun,
        c.Spend(b"r", 5),
        c.Release(b"r", DONE),
    )
    assert [(each.amount, each.is_stream, each.note) for each in entered] == [(9, True, NOTE)]


def test_a_stream_that_replaces_its_request_may_use_what_that_held() -> None:
    begun = replace(streaming(b"r", 10, amount_min=10), replaces=True)
    state = run(opening(10), reserving(b"r", 10), begun)
    assert [held.amount for held in state.reservations] == [10]


def test_a_repeated_reservation_keeps_what_was_spent() -> None:
    state = run(opening(100), reserving(b"r", 10), c.Spend(b"r", 4), reserving(b"r", 10))
    assert [(held.amount, held.spent) for held in state.reservations] == [(6, 4)]


def test_what_sold_nothing_is_no_entry_and_what_was_free_is_one() -> None:
    begun = (opening(100), holding(b"r", 10, ReservationKind.REQUEST))
    nothing = ChargeEnd(ChargeOutcome.DONE, {})
    assert charges(*begun, c.Release(b"r", nothing), c.Release(b"x", DONE)) == []
    assert charges(*begun, c.Release(b"r")) == []
    assert [each.amount for each in charges(*begun, c.Release(b"r", DONE))] == [0]


def test_a_release_of_which_nothing_is_known_is_a_failed_request() -> None:
    entered = charges(opening(100), reserving(b"r", 10), c.Spend(b"r", 4), c.Release(b"r"))
    assert entered == [Charge(4, ChargeOutcome.FAILED, b"r")]


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        (c.ExpireReservations(LEASE), ChargeOutcome.EXPIRED),
        (c.EndReservations(), ChargeOutcome.EXPIRED),
        (c.EndReservations(by_close=True), ChargeOutcome.CLOSED),
    ],
)
def test_an_ended_reservation_is_entered_with_what_it_becomes(
    command: c.Command, outcome: ChargeOutcome
) -> None:
    """Decision 8: all that a stream held, nothing of what a request held."""
    entered = charges(
        opening(100),
        holding(b"s", 10, ReservationKind.STREAM),
        c.Spend(b"s", 4),
        reserving(b"r", 5),
        reserving(b"q", 5),
        c.Spend(b"q", 1),
        command,
    )
    assert entered == [
        Charge(10, outcome, b"s", is_stream=True, note=NOTE),
        Charge(1, outcome, b"q"),
    ]


def test_a_repair_is_an_entry_of_what_it_raises() -> None:
    state = run(opening(100), reserving(b"r", 10), c.Spend(b"r", 4))
    assert charges(c.Repair(100, 30), state=state) == [Charge(26, ChargeOutcome.REPAIRED)]
    assert charges(c.Repair(200, 2), state=replace(state, deposit=200)) == []


def test_a_channel_comes_with_what_was_spent_before() -> None:
    came = opening(100, seen=fact(settled=20))
    assert charges(came) == [Charge(20, ChargeOutcome.BEFORE)]
    assert charges(opening(100), came) == []
    assert charges(c.Restore(run(came))) == [Charge(20, ChargeOutcome.BEFORE)]
    assert charges(c.Restore(run(opening(5)))) == []


def test_a_note_comes_back_and_is_cut() -> None:
    assert decode_note(NOTE) == ChargeNote("POST /v1/completions", "small")
    assert decode_note(b"") == ChargeNote("")
    long = decode_note(encode_note("r" * 5000, "v" * 5000))
    assert (len(long.route), len(long.variant)) == (CHARGE_TEXT_CHARS_MAX, CHARGE_TEXT_CHARS_MAX)


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "a\ud800b", "a\u202eb"])
def test_a_text_that_a_database_refuses_is_made_one_that_it_takes(text: str) -> None:
    """A client may choose the model's name, and must not stop the ledger by it."""
    assert decode_note(encode_note("POST /x", text)).variant == "a\ufffdb" == clean_text(text)


def test_the_greatest_amounts_are_entered() -> None:
    most = opening(AMOUNT_MAX, seen=fact(deposit=AMOUNT_MAX))
    held = reserving(b"r", AMOUNT_MAX, presented=AMOUNT_MAX)
    entered = charges(most, held, c.Spend(b"r", AMOUNT_MAX), c.Release(b"r", DONE))
    assert [each.amount for each in entered] == [AMOUNT_MAX]
