"""What a provider earned: every channel counts once, the ended ones too (O-63)."""

from msgspec.structs import replace

from channel.types import Address
from mpp_session.operator.earnings import add_up
from tests.settlement.settle.test_schedule import channel


def test_open_and_ended_channels_are_added_up_by_token() -> None:
    """O-63: delivered, accepted, settled, at risk, lost and refunded."""
    running = channel(number=1, deposit=5000, vouchers=(900,), spent=600, settled=200)
    ended = replace(
        channel(number=2, deposit=5000, vouchers=(900,), spent=900, settled=700), is_finalized=True
    )
    other = replace(running, terms=replace(running.terms, token=Address(b"u" * 20)))
    first, second = add_up([running, ended, other], None)
    assert (first.channels, first.open, first.delivered, first.accepted) == (2, 1, 1500, 1800)
    assert (first.settled, first.at_risk, first.lost, first.refunded) == (900, 400, 200, 4300)
    assert (second.token, second.channels, second.delivered) == (b"u" * 20, 1, 600)


def test_another_payees_channels_in_the_same_books_are_left_out() -> None:
    """O-63."""
    mine, other = channel(spent=0), channel(number=2, payee=b"q" * 20, vouchers=(900,), spent=900)
    (earned,) = add_up([mine, other], Address(b"p" * 20))
    assert (earned.channels, earned.delivered) == (1, 0)
