"""settle and close: the payee's side."""

from typing import TYPE_CHECKING, Any

import pytest

from local_chain import Chain
from tests.settlement.contracts.world import (
    DEPOSIT,
    PLENTY,
    World,
    deploy_mock,
    reverts,
    world_with,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HALF_N = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def test_settle_pays_the_increase(world: World) -> None:
    """CONTRACT-02, CONTRACT-14: twice, each time the difference."""
    channel_id = world.open()
    for amount, delta in ((300, 300), (1000, 700)):
        voucher = world.voucher(channel_id, amount)
        receipt = world.escrow.send("settle", *voucher, sender=world.payee.address)
        assert world.only_event(receipt) == (
            "Settled",
            {
                "channelId": channel_id,
                "payer": world.payer.address,
                "payee": world.payee.address,
                "cumulativeAmount": amount,
                "deltaPaid": delta,
                "newSettled": amount,
            },
        )
        assert world.balance(world.payee.address) == PLENTY + amount
        assert world.channel(channel_id).settled == amount


def test_settle_to_the_last_unit(world: World) -> None:
    """CONTRACT-02: the whole deposit can be settled, and nothing after it."""
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, DEPOSIT), sender=world.payee.address)
    assert world.balance(world.escrow.address) == 0
    with reverts("AmountNotIncreasing"):
        world.escrow.send("settle", *world.voucher(channel_id, DEPOSIT), sender=world.payee.address)


@pytest.mark.parametrize("function", ["settle", "close"])
def test_only_the_payee_moves_money_to_the_payee(world: World, function: str) -> None:
    """CONTRACT-02, CONTRACT-04: payer and stranger are refused, with a good voucher too."""
    channel_id = world.open()
    for caller in (world.payer, world.stranger):
        with reverts("NotPayee"):
            world.escrow.send(function, *world.voucher(channel_id, 1), sender=caller.address)


@pytest.mark.parametrize("function", ["settle", "close"])
def test_nothing_moves_on_a_channel_that_is_not_or_is_no_more(world: World, function: str) -> None:
    """CONTRACT-02, CONTRACT-04, F-67."""
    voucher = world.voucher(bytes(32), 1)
    with reverts("ChannelNotFound"):
        world.escrow.send(function, *voucher, sender=world.payee.address)
    channel_id = world.open()
    world.escrow.send("close", channel_id, 0, b"", sender=world.payee.address)
    with reverts("ChannelFinalized"):
        world.escrow.send(function, *world.voucher(channel_id, 1), sender=world.payee.address)


@pytest.mark.parametrize("amount", [0, 499, 500])
def test_settle_must_increase(world: World, amount: int) -> None:
    """CONTRACT-02, F-33: equal and lower are refused."""
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, 500), sender=world.payee.address)
    with reverts("AmountNotIncreasing"):
        world.escrow.send("settle", *world.voucher(channel_id, amount), sender=world.payee.address)


@pytest.mark.parametrize("function", ["settle", "close"])
@pytest.mark.parametrize("amount", [DEPOSIT + 1, 2**88, 2**128 - 1])
def test_nothing_above_the_deposit(world: World, function: str, amount: int) -> None:
    """CONTRACT-02, CONTRACT-04: not by one unit, not by a wrapped amount."""
    channel_id = world.open()
    with reverts("AmountExceedsDeposit"):
        world.escrow.send(function, *world.voucher(channel_id, amount), sender=world.payee.address)


def test_close_pays_both_and_ends_the_channel(world: World) -> None:
    """CONTRACT-04, CONTRACT-14, CLOSE-05: one transaction, after a settle or not."""
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, 300), sender=world.payee.address)
    voucher = world.voucher(channel_id, 1000)
    receipt = world.escrow.send("close", *voucher, sender=world.payee.address)
    assert world.only_event(receipt) == (
        "ChannelClosed",
        {
            "channelId": channel_id,
            "payer": world.payer.address,
            "payee": world.payee.address,
            "settledToPayee": 1000,
            "refundedToPayer": DEPOSIT - 1000,
        },
    )
    assert world.balance(world.payee.address) == PLENTY + 1000
    assert world.balance(world.payer.address) == PLENTY - 1000
    assert world.balance(world.escrow.address) == 0
    ended = world.channel(channel_id)
    assert (ended.finalized, ended.settled, ended.deposit) == (True, 1000, DEPOSIT)


@pytest.mark.parametrize("amount", [0, 299, 300])
@pytest.mark.parametrize("signature", [b"", b"\xff" * 65])
def test_close_at_or_below_settled_forfeits_without_a_signature(
    world: World, amount: int, signature: bytes
) -> None:
    """CONTRACT-04, CLOSE-07, F-33: pays nothing more and refunds the rest."""
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, 300), sender=world.payee.address)
    world.escrow.send("close", channel_id, amount, signature, sender=world.payee.address)
    assert world.balance(world.payee.address) == PLENTY + 300
    assert world.balance(world.payer.address) == PLENTY - 300


def test_close_of_a_channel_spent_to_the_end_refunds_nothing(world: World) -> None:
    channel_id = world.open()
    voucher = world.voucher(channel_id, DEPOSIT)
    receipt = world.escrow.send("close", *voucher, sender=world.payee.address)
    assert world.only_event(receipt)[1]["refundedToPayer"] == 0
    assert world.balance(world.escrow.address) == 0


@pytest.mark.parametrize("function", ["settle", "close"])
def test_the_payee_may_act_while_a_close_is_pending_and_after_the_grace(
    world: World, function: str
) -> None:
    """CLOSE-03, CLOSE-08: until the payer has withdrawn, the payee is not too late."""
    channel_id = world.open()
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    world.chain.travel(10 * 24 * 3600)
    world.escrow.send(function, *world.voucher(channel_id, 700), sender=world.payee.address)
    assert world.balance(world.payee.address) == PLENTY + 700


@pytest.mark.parametrize("function", ["settle", "close"])
@pytest.mark.parametrize(
    "wrong",
    [
        *["payee", "stranger", "other amount", "other channel", "raw struct", "empty"],
        *["high s", "v 0", "v 29", "compact", "66 bytes", "zero r", "zero s", "s is n"],
    ],
)
def test_a_voucher_not_by_the_signer_in_canonical_form_is_refused(
    world: World, function: str, wrong: str
) -> None:
    """CONTRACT-08, ENC-06, AMB-07, F-14, F-16, F-17, F-67."""
    channel_id = world.open()
    other_id = world.open(salt=1)
    good = world.voucher(channel_id, 100)[2]
    r, s, v = good[:32], good[32:64], good[64]
    flipped = (N - int.from_bytes(s)).to_bytes(32)
    made: dict[str, Callable[[], bytes]] = {
        "payee": lambda: world.voucher(channel_id, 100, world.payee)[2],
        "stranger": lambda: world.voucher(channel_id, 100, world.stranger)[2],
        "other amount": lambda: world.voucher(channel_id, 101)[2],
        "other channel": lambda: world.voucher(other_id, 100)[2],
        "empty": lambda: b"",
        "high s": lambda: r + flipped + bytes([55 - v]),
        "v 0": lambda: r + s + bytes([v - 27]),
        "v 29": lambda: r + s + bytes([v + 2]),
        "compact": lambda: r + (int.from_bytes(s) | (v - 27) << 255).to_bytes(32),
        "66 bytes": lambda: good + b"\x00",
        "zero r": lambda: bytes(32) + s + bytes([v]),
        "zero s": lambda: r + bytes(32) + bytes([v]),
        "s is n": lambda: r + N.to_bytes(32) + bytes([v]),
        "raw struct": lambda: world.payer.sign(channel_id),
    }
    signature = made[wrong]()
    assert int.from_bytes(s) <= HALF_N
    with reverts("InvalidSignature"):
        world.escrow.send(function, channel_id, 100, signature, sender=world.payee.address)


def test_a_separate_signer_signs_and_the_payer_no_longer_can(world: World) -> None:
    """CONTRACT-08: authorizedSigner, and only it."""
    channel_id = world.open(signer=world.signer.address)
    with reverts("InvalidSignature"):
        world.escrow.send("settle", *world.voucher(channel_id, 5), sender=world.payee.address)
    voucher = world.voucher(channel_id, 5, world.signer)
    world.escrow.send("settle", *voucher, sender=world.payee.address)
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    voucher = world.voucher(channel_id, 6, world.signer)
    world.escrow.send("close", *voucher, sender=world.payee.address)
    assert world.channel(channel_id).authorized_signer == world.signer.address


def test_a_voucher_for_another_escrow_or_chain_is_refused(
    world: World, chain: Chain, mocks: dict[str, Any]
) -> None:
    """SEC-03: the domain binds escrow and chain id."""
    other = world_with(chain, deploy_mock(chain, mocks, "PlainToken"))
    channel_id = world.open()
    for foreign in (other.digest(channel_id, 5), world.digest(channel_id, 5, chain_id=1)):
        signature = world.payer.sign(foreign)
        with reverts("InvalidSignature"):
            world.escrow.send("settle", channel_id, 5, signature, sender=world.payee.address)


def test_a_refund_the_token_refuses_does_not_stop_the_payee(world: World) -> None:
    """F-86: the payee is paid, the refund waits, and the payer has it once the token agrees."""
    channel_id = world.open()
    world.token.send("blacklist", world.payer.address)
    voucher = world.voucher(channel_id, 1000)
    receipt = world.escrow.send("close", *voucher, sender=world.payee.address)
    refund = DEPOSIT - 1000
    assert [name for name, _ in world.escrow.events(receipt)] == ["ChannelClosed", "RefundHeld"]
    assert world.balance(world.payee.address) == PLENTY + 1000
    assert world.escrow.call("claimable", world.payer.address) == refund
    assert world.balance(world.escrow.address) == refund
    world.token.send("unBlacklist", world.payer.address)
    receipt = world.escrow.send("claimRefund", world.payer.address, sender=world.stranger.address)
    assert world.only_event(receipt) == (
        "RefundClaimed",
        {"payer": world.payer.address, "amount": refund},
    )
    assert world.balance(world.payer.address) == PLENTY - 1000
    with reverts("NothingToClaim"):
        world.escrow.send("claimRefund", world.payer.address)


def test_a_refused_claim_stays_claimable(world: World) -> None:
    channel_id = world.open()
    world.token.send("blacklist", world.payer.address)
    world.escrow.send("close", channel_id, 0, b"", sender=world.payee.address)
    with reverts("AccountBlacklisted", world.payer.address, within="DevUSD"):
        world.escrow.send("claimRefund", world.payer.address)
    assert world.escrow.call("claimable", world.payer.address) == DEPOSIT


def test_a_paused_token_stops_settling_but_loses_nothing(world: World) -> None:
    """F-87: the same voucher settles after the pause."""
    channel_id = world.open()
    world.token.send("pause")
    with reverts("EnforcedPause", within="DevUSD"):
        world.escrow.send("settle", *world.voucher(channel_id, 5), sender=world.payee.address)
    world.token.send("unpause")
    world.escrow.send("settle", *world.voucher(channel_id, 5), sender=world.payee.address)
    assert world.channel(channel_id).settled == 5
