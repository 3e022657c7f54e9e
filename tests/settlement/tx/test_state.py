"""The life of a transaction: every event in every state, and whole lives drawn at random."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.errors import InvariantError
from channel.types import TxHash
from settlement.tx.state import (
    Abandoned,
    Bumped,
    Confirmed,
    Event,
    Included,
    JournalTx,
    NodeAnswer,
    Overtaken,
    Sent,
    TxStatus,
    Unmined,
    advance,
    classify_refusal,
    look_for,
)
from settlement.types import Receipt
from tests.settlement.transactions import inclusion, signed, version, wanted


def after(*events: Event) -> JournalTx:
    return reduce(advance, events, wanted())


MINED = (signed(3), Sent(), Included(inclusion()))
REVERTED = (signed(3), Sent(), Included(inclusion(is_success=False), "NOT_PAYEE"))


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ((), TxStatus.INTENT),
        ((signed(3),), TxStatus.SIGNED),
        ((signed(3), Sent()), TxStatus.SENT),
        (MINED, TxStatus.MINED),
        (REVERTED, TxStatus.REVERTED),
        ((*MINED, Confirmed()), TxStatus.FINAL),
        ((*REVERTED, Confirmed()), TxStatus.FINAL),
        ((signed(3), Included(inclusion())), TxStatus.MINED),  # we died before we heard
        ((signed(3), Sent(), Overtaken()), TxStatus.REPLACED),
        ((signed(3), Overtaken()), TxStatus.REPLACED),
        ((Abandoned("no"),), TxStatus.ABANDONED),
        ((signed(3), Abandoned("no")), TxStatus.ABANDONED),
        # a reorg
        ((*MINED, Unmined()), TxStatus.SENT),
        ((*REVERTED, Unmined()), TxStatus.SENT),
        ((*MINED, Confirmed(), Unmined()), TxStatus.SENT),
        # what does not follow changes nothing
        ((Sent(),), TxStatus.INTENT),
        ((Confirmed(),), TxStatus.INTENT),
        ((Overtaken(),), TxStatus.INTENT),
        ((signed(3), Unmined()), TxStatus.SIGNED),
        ((signed(3), Sent(), Confirmed()), TxStatus.SENT),
        ((signed(3), Sent(), Abandoned("no")), TxStatus.SENT),  # a node may have it
        ((*MINED, Overtaken()), TxStatus.MINED),
        ((*MINED, Sent()), TxStatus.MINED),
        ((signed(3), Overtaken(), Included(inclusion())), TxStatus.REPLACED),
    ],
)
def test_what_follows_from_what(events: tuple[Event, ...], status: TxStatus) -> None:
    assert after(*events).status is status


def test_a_nonce_is_given_once() -> None:
    """F-74."""
    with pytest.raises(InvariantError, match="has a nonce"):
        after(signed(3), signed(4))


def test_a_bump_keeps_nonce_and_first_bytes_and_is_to_be_sent_again() -> None:
    """F-77: whichever version is mined wins."""
    tx = after(signed(3), Sent(), Bumped(version(2, fee=113)))
    assert (tx.status, tx.nonce, len(tx.versions)) == (TxStatus.SIGNED, 3, 2)
    for number in (1, 2):
        assert advance(tx, Included(inclusion(number))).status is TxStatus.MINED


def test_a_bump_for_no_more_is_no_bump() -> None:
    assert len(after(signed(3), Bumped(version(2))).versions) == 1


def test_what_was_never_signed_cannot_be_bumped() -> None:
    with pytest.raises(InvariantError, match="never signed"):
        after(Bumped(version(2, fee=200)))


def test_a_bumped_transaction_cannot_be_given_up() -> None:
    """Its first version lies with some node: its nonce is not free."""
    tx = after(signed(3), Bumped(version(2, fee=200)), Abandoned("no"))
    assert (tx.status, tx.nonce) == (TxStatus.SIGNED, 3)


def test_a_nonce_that_was_never_sent_is_free_again() -> None:
    tx = after(signed(3), Abandoned("insufficient funds"))
    assert (tx.nonce, tx.reason) == (None, "insufficient funds")


def test_a_foreign_inclusion_is_a_bug() -> None:
    with pytest.raises(InvariantError, match="no version"):
        after(signed(3), Included(inclusion(9)))


def test_a_reorg_may_move_it_to_another_block() -> None:
    """F-71."""
    moved = after(*MINED, Included(inclusion(block=51)))
    assert moved.inclusion == inclusion(block=51)


_EVENTS = st.lists(
    st.sampled_from(
        [
            Sent(),
            Bumped(version(2, fee=200)),
            Bumped(version(3, fee=300)),
            Included(inclusion(1)),
            Included(inclusion(1, is_success=False), "UNKNOWN"),
            Unmined(),
            Confirmed(),
            Overtaken(),
            Abandoned("no"),
        ]
    ),
    max_size=12,
)


@given(events=_EVENTS)
def test_whole_lives_keep_the_order_of_things(events: list[Event]) -> None:
    """A nonce is never lost once bytes may be out; bids only rise; a version is never dropped."""
    tx = advance(wanted(), signed(7))
    for event in events:
        before, tx = tx, advance(tx, event)
        assert advance(tx, event) == tx or isinstance(
            event, Unmined
        )  # a repeated event does no harm
        assert tx.versions[: len(before.versions)] == before.versions
        bids = [one.fee.max_fee_wei for one in tx.versions]
        assert bids == sorted(set(bids))
        assert (tx.nonce is None) == (tx.status is TxStatus.ABANDONED)
        assert (tx.inclusion is not None) == (
            tx.status in (TxStatus.MINED, TxStatus.REVERTED, TxStatus.FINAL)
        )
        if before.status in (TxStatus.REPLACED, TxStatus.ABANDONED):
            assert tx == before
        if before.status is TxStatus.ABANDONED:
            assert not tx.is_open


# -- what one look at the chain says


def receipt(number: int = 1, *, block: int = 50, is_success: bool = True) -> Receipt:
    found = inclusion(number, block=block, is_success=is_success)
    return Receipt(
        tx_hash=found.tx_hash,
        is_success=is_success,
        block_number=block,
        block_hash=found.block_hash,
        gas_used=found.gas_used,
        gas_price_wei=found.gas_price_wei,
        contract=None,
        logs=(),
    )


def look(
    tx: JournalTx, *seen: Receipt, head: int = 50, used: int = 3, deep: int = 1
) -> list[Event]:
    receipts = {one.tx_hash: one for one in seen}
    return list(look_for(tx, receipts, head_number=head, nonces_used=used, confirmations=deep))


SENT = after(signed(3), Sent(), Bumped(version(2, fee=200)), Sent())


def test_no_receipt_says_nothing() -> None:
    """F-75: absence is never failure."""
    assert look(SENT) == []
    assert look(wanted(), used=9) == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_receipt_of_any_version_counts(number: int) -> None:
    assert look(SENT, receipt(number)) == [Included(inclusion(number)), Confirmed()]


def test_depth_is_counted_with_the_block_itself() -> None:
    for head, is_deep in ((49, False), (50, False), (51, False), (52, True)):
        found = look(SENT, receipt(), head=head, deep=3)
        assert (Confirmed() in found) is is_deep


def test_a_known_inclusion_is_not_reported_again() -> None:
    tx = advance(SENT, Included(inclusion()))
    assert look(tx, receipt(), head=50, deep=2) == []
    assert look(tx, receipt(), head=51, deep=2) == [Confirmed()]


def test_a_reorg_takes_it_back_or_moves_it() -> None:
    tx = advance(SENT, Included(inclusion()))
    assert look(tx, head=51) == [Unmined()]
    assert look(tx, receipt(block=51), head=51, deep=9) == [Included(inclusion(block=51))]


def test_a_node_that_lags_says_nothing() -> None:
    """F-72."""
    assert look(advance(SENT, Included(inclusion(block=50))), head=49) == []


def test_a_used_nonce_without_a_receipt_was_used_elsewhere() -> None:
    assert look(SENT, used=4) == [Overtaken()]
    assert look(SENT, receipt(), used=4) == [Included(inclusion()), Confirmed()]


# -- what a node means


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("already known", NodeAnswer.KNOWN),  # geth
        ("AlreadyKnown", NodeAnswer.KNOWN),  # Nethermind
        ("transaction already imported", NodeAnswer.KNOWN),  # Anvil
        ("Known transaction", NodeAnswer.KNOWN),  # Besu
        ("nonce too low: next nonce 5, tx nonce 4", NodeAnswer.NONCE_USED),
        ("OldNonce, Current nonce: 5", NodeAnswer.NONCE_USED),
        ("replacement transaction underpriced", NodeAnswer.UNDERPRICED),
        ("transaction underpriced: gas tip cap 1, minimum needed 2", NodeAnswer.UNDERPRICED),
        ("max fee per gas less than block base fee", NodeAnswer.UNDERPRICED),
        ("FeeTooLow, MaxFeePerGas too low", NodeAnswer.UNDERPRICED),
        ("insufficient funds for gas * price + value", NodeAnswer.REFUSED),
        ("txpool is full", NodeAnswer.REFUSED),
        ("exceeds block gas limit", NodeAnswer.REFUSED),
        ("", NodeAnswer.REFUSED),
    ],
)
def test_nodes_say_the_same_in_many_ways(said: str, meant: NodeAnswer) -> None:
    """F-82."""
    assert classify_refusal(said) is meant


def test_no_raw_transaction_is_shown() -> None:
    """F-103."""
    secret = replace(version(1), raw=b"very secret")
    assert "secret" not in repr(replace(wanted(), versions=(secret,)))
    assert TxHash(bytes(31) + b"\x01").hex() in repr(secret)
