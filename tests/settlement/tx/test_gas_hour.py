"""What settles and closes cost: the true cost if mined, the likely one while open, else nothing."""

import pytest
from msgspec.structs import replace

from settlement.tx.gas_hour import payout_cost_wei
from settlement.tx.pricing import likely_gas
from settlement.tx.state import (
    Abandoned,
    Event,
    Included,
    JournalTx,
    Overtaken,
    Purpose,
    Sent,
    advance,
)
from tests.settlement.transactions import inclusion, signed, wanted

SENT = (signed(0, fee=100), Sent())
MINED = 55_000 * 12


def after(*events: Event) -> JournalTx:
    tx = wanted()
    for event in events:
        tx = advance(tx, event)
    return tx


@pytest.mark.parametrize(
    ("events", "cost_wei"),
    [
        ((), 0),
        ((Abandoned("never signed"),), 0),
        ((signed(0), Abandoned("refused")), 0),
        ((*SENT, Overtaken()), 0),
        (SENT, likely_gas(wanted().intent, 60_000) * 100),
        ((*SENT, Included(inclusion())), MINED),
        ((*SENT, Included(inclusion(is_success=False))), MINED),
    ],
    ids=["wanted", "unsigned", "refused", "overtaken", "sent", "mined", "reverted"],
)
def test_what_no_block_can_have_costs_nothing(events: tuple[Event, ...], cost_wei: int) -> None:
    """O-88: a limit that counted transactions without gas would hold back payouts."""
    tx = after(*events)
    assert payout_cost_wei([tx]) == cost_wei
    assert payout_cost_wei([tx, after(*SENT, Included(inclusion()))]) == cost_wei + MINED
    other = replace(tx, intent=replace(tx.intent, purpose=Purpose.OTHER))
    assert payout_cost_wei([other]) == 0
