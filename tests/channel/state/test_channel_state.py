"""The books may never contradict themselves (ACC-07)."""

import pytest
from msgspec.structs import replace

from channel.errors import InvariantError
from channel.limits import AMOUNT_MAX
from channel.state.channel_state import ChannelState, LadderVoucher, require_invariants
from tests.channel.books import accepting, opening, reserving, run

GOOD = run(opening(10), accepting(100), reserving(b"r", 30))


def test_good_books_pass() -> None:
    require_invariants(GOOD)
    assert (GOOD.reserved, GOOD.available, GOOD.is_stopped) == (30, 70, False)


@pytest.mark.parametrize(
    "broken",
    [
        replace(GOOD, spent=71),
        replace(GOOD, spent=-31),
        replace(GOOD, accepted=29),
        replace(GOOD, settled=1),
        replace(GOOD, accepted=AMOUNT_MAX + 1),
        replace(GOOD, deposit=AMOUNT_MAX + 1),
        replace(GOOD, deposit=-1),
        replace(GOOD, settled=-1),
        replace(GOOD, published=AMOUNT_MAX + 1),
        replace(GOOD, highest=LadderVoucher(101, b"")),
        replace(GOOD, at_or_below_spent=LadderVoucher(1, b"")),
        replace(GOOD, spent=20, above_spent=LadderVoucher(19, b"")),
        replace(GOOD, reservations=(replace(GOOD.reservations[0], amount=-1),)),
        replace(GOOD, reservations=(*GOOD.reservations, replace(GOOD.reservations[0], amount=-1))),
    ],
)
def test_books_that_contradict_themselves_are_found(broken: ChannelState) -> None:
    with pytest.raises(InvariantError):
        require_invariants(broken)
