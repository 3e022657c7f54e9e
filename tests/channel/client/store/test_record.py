"""How much may be signed: our own count, what is in flight, and one step. Never more."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.client.store.record import (
    ChannelRecord,
    adopt_fact,
    adopt_receipt,
    choose_amount,
    count_lost,
    count_received,
    count_unread,
    require_counted,
    require_receipt,
)
from channel.errors import OverclaimError, ReceiptViolationError
from channel.types import ZERO_ADDRESS, ChannelFact, ChannelId, ChannelKey, ChannelTerms
from channel.wire.receipt import Receipt
from tests.channel.client.provider import CHAIN_ID, ESCROW, PAYEE, PAYER, TOKEN

KEY = ChannelKey(CHAIN_ID, ESCROW, ChannelId(b"\x01" * 32))
TERMS = ChannelTerms(PAYER, PAYEE, TOKEN, ZERO_ADDRESS)


def account_of(**changes: Any) -> ChannelRecord:
    fields: dict[str, Any] = {
        "key": KEY,
        "origin": "https://api.example:443",
        "url": "https://api.example/joke",
        "terms": TERMS,
        "salt": b"\x05" * 32,
        "state": "open",
        "deposit": 1_000,
        "opened_at": 1,
    }
    return ChannelRecord(**(fields | changes))


def receipt_of(**changes: Any) -> Receipt:
    fields: dict[str, Any] = {
        "method": "evm",
        "challenge_id": "one",
        "channel_id": KEY.channel_id,
        "chain_id": CHAIN_ID,
        "accepted": 100,
        "spent": 50,
        "timestamp": 1.0,
    }
    return Receipt(**(fields | changes))


def chosen(account: ChannelRecord, **changes: int) -> int:
    fields = {"required": 10, "ahead": 10, "allowance": 50, "min_delta": 0} | changes
    return choose_amount(account, **fields)


def test_the_first_voucher_covers_the_first_cost() -> None:
    assert chosen(account_of()) == 10


def test_looking_ahead_ends_at_the_allowance_and_at_the_deposit() -> None:
    assert chosen(account_of(), ahead=10**9) == 50
    assert chosen(account_of(deposit=30), ahead=10**9) == 30


def test_what_was_signed_is_signed_again_not_undercut() -> None:
    assert chosen(account_of(signed=40), required=10) == 40


def test_a_claim_beyond_the_count_is_refused() -> None:
    """F-94: inflated requiredCumulative."""
    with pytest.raises(OverclaimError) as caught:
        chosen(account_of(received=100), required=151)
    assert (caught.value.asked, caught.value.allowed, caught.value.received) == (151, 150, 100)


def test_a_least_rise_counts_like_a_claim() -> None:
    """A server's minVoucherDelta pulls no more than our own count allows."""
    assert chosen(account_of(signed=10, received=10), required=20, min_delta=40) == 50
    with pytest.raises(OverclaimError):
        chosen(account_of(signed=10, received=10), required=20, min_delta=51)


def test_a_least_rise_ends_at_the_deposit() -> None:
    """AMB-17: the tail can be spent."""
    account = account_of(signed=990, received=990)
    assert chosen(account, required=1_000, min_delta=40) == 1_000


def test_the_first_voucher_of_a_channel_has_no_least_rise() -> None:
    assert chosen(account_of(), required=10, min_delta=40) == 10


def test_what_is_signed_already_may_be_required_again() -> None:
    require_counted(account_of(signed=500), 500, 0)


@given(
    received=st.integers(0, 10**6),
    signed=st.integers(0, 10**6),
    required=st.integers(0, 2**128 - 1),
    ahead=st.integers(0, 2**128 - 1),
    allowance=st.integers(0, 10**4),
    min_delta=st.integers(0, 2**128 - 1),
    deposit=st.integers(1, 10**7),
)
def test_no_wish_of_a_server_signs_beyond_count_and_allowance(  # noqa: PLR0917
    received: int,
    signed: int,
    required: int,
    ahead: int,
    allowance: int,
    min_delta: int,
    deposit: int,
) -> None:
    """F-94, F-95, CLIENT-06."""
    account = account_of(received=received, signed=signed, deposit=deposit)
    try:
        amount = choose_amount(
            account,
            required=min(required, deposit),
            ahead=ahead,
            allowance=allowance,
            min_delta=min_delta,
        )
    except OverclaimError:
        return
    assert amount >= signed
    assert amount <= max(signed, received + allowance)
    assert amount <= max(signed, deposit)


def test_what_arrived_is_added_up() -> None:
    account = count_received(account_of(), value=30, units=3)
    assert (account.received, account.units, account.counted) == (30, 3, 30)


def test_losses_are_granted_within_a_bound_and_within_what_was_signed() -> None:
    account = account_of(signed=100, received=40)
    assert count_lost(account, value=1_000, lost_max=1_000).lost == 60
    assert count_lost(account, value=1_000, lost_max=25).lost == 25
    assert count_lost(account, value=5, lost_max=25).lost == 5
    assert count_lost(account_of(received=40, signed=10), value=5, lost_max=25).lost == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "tempo"}, "method"),
        ({"channel_id": ChannelId(b"\x02" * 32)}, "channelId"),
        ({"chain_id": 1}, "channelId"),
        ({"challenge_id": "two"}, "challengeId"),
        ({"accepted": 101}, "acceptedCumulative"),
        ({"spent": 101}, "spent"),
        ({"spent": 19}, "spent"),
    ],
)
def test_a_receipt_that_cannot_be_right_is_a_violation(changes: dict[str, Any], field: str) -> None:
    """CLIENT-09."""
    account = account_of(signed=100, spent=20)
    with pytest.raises(ReceiptViolationError) as caught:
        require_receipt(account, receipt_of(**changes), challenge_ids={"one"}, spent_min=20)
    assert caught.value.field == field


def test_an_answer_given_again_may_have_an_older_receipt() -> None:
    account = account_of(signed=100, spent=20)
    older = receipt_of(challenge_id="old", spent=10)
    require_receipt(account, older, challenge_ids=None, spent_min=0)
    assert adopt_receipt(account, older, "text", is_final=True).spent == 20


def test_a_receipt_lowers_our_count_and_never_raises_it() -> None:
    """F-35."""
    account = account_of(signed=100, received=60, lost=5)
    lowered = adopt_receipt(account, receipt_of(spent=50), "text", is_final=True)
    assert (lowered.counted, lowered.spent, lowered.receipt) == (50, 50, "text")
    higher = adopt_receipt(account, receipt_of(spent=90), "text", is_final=True)
    assert (higher.counted, higher.spent) == (65, 90)
    running = adopt_receipt(account, receipt_of(spent=50), "text", is_final=False)
    assert running.counted == 65


def test_what_a_receipt_leaves_out_may_be_charged_later() -> None:
    """O-14: a receipt does not show what is reserved for a caller that has left."""
    account = account_of(signed=100, received=60, lost=5)
    lowered = adopt_receipt(account, receipt_of(spent=50), "text", is_final=True)
    assert (lowered.counted, lowered.claimable) == (50, 65)
    charged = adopt_receipt(lowered, receipt_of(spent=62), "text", is_final=False)
    assert (charged.counted, charged.claimable) == (62, 65)


def test_what_was_not_charged_is_granted_once_again_not_twice() -> None:
    """O-14, F-94: the grants for several left streams do not add up to one large claim."""
    account = account_of(signed=1_000, received=65, waived=15)
    assert count_unread(account, value=10).claimable == 65
    assert count_unread(account, value=40).claimable == 65 + 25
    assert count_lost(account, value=40, lost_max=1_000).claimable == 65 + 25
    assert count_lost(account, value=40, lost_max=5).claimable == 65 + 5


def test_receipts_out_of_order_leave_the_greatest() -> None:
    account = adopt_receipt(account_of(signed=100), receipt_of(spent=50), "new", is_final=False)
    account = adopt_receipt(account, receipt_of(spent=40, accepted=90), "old", is_final=False)
    assert (account.accepted, account.spent, account.receipt) == (100, 50, "new")


def test_the_receipt_that_states_a_usage_is_kept() -> None:
    """A voucher's own receipt may come behind that of the stream which it paid for."""
    used = receipt_of(spent=50, usage={"output_token": 5})
    account = adopt_receipt(account_of(signed=100), used, "used", is_final=True)
    account = adopt_receipt(account, receipt_of(spent=50), "voucher", is_final=False)
    assert account.receipt == "used"
    account = adopt_receipt(account, receipt_of(spent=50, units=0), "next", is_final=False)
    account = adopt_receipt(account, receipt_of(spent=51), "more", is_final=False)
    assert account.receipt == "more"


def test_the_chain_says_what_a_channel_is() -> None:
    fact = ChannelFact(KEY, TERMS, 2_000, 300, 0, False, 9)  # noqa: FBT003
    account = adopt_fact(account_of(), fact)
    assert (account.state, account.deposit, account.settled) == ("open", 2_000, 300)
    assert adopt_fact(account_of(), replace(fact, close_requested_at=5)).state == "closing"
    assert adopt_fact(account_of(), replace(fact, is_finalized=True)).state == "closed"


def test_the_refund_is_what_was_not_spent() -> None:
    assert account_of(spent=300).refund == 700
    assert account_of(spent=300, settled=250, state="closed").refund == 750
