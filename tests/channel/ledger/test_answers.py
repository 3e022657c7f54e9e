"""How many bytes of answers a channel may keep."""

from channel.ledger.answers import allowance
from channel.limits import (
    STORED_BYTES_PER_BASE_UNIT,
    STORED_BYTES_PER_CHANNEL_MAX,
    STORED_BYTES_PER_CHANNEL_MIN,
)


def test_what_a_channel_may_keep_grows_with_what_it_paid_up_to_one_bound() -> None:
    """O-10, issue 10 B: the last unit that counts reaches the bound; one more adds nothing."""
    grown = STORED_BYTES_PER_CHANNEL_MAX - STORED_BYTES_PER_CHANNEL_MIN
    last, rest = divmod(grown, STORED_BYTES_PER_BASE_UNIT)
    assert rest == 0
    assert allowance(0) == STORED_BYTES_PER_CHANNEL_MIN
    assert allowance(last - 1) == STORED_BYTES_PER_CHANNEL_MAX - STORED_BYTES_PER_BASE_UNIT
    assert allowance(last) == STORED_BYTES_PER_CHANNEL_MAX
    assert allowance(last + 1) == STORED_BYTES_PER_CHANNEL_MAX
