"""requestClose and withdraw: what the payer can always do alone."""

import pytest

from tests.settlement.contracts.world import DEPOSIT, GRACE_S, PLENTY, World, reverts


def test_request_close_starts_the_clock(world: World) -> None:
    """CONTRACT-05, CONTRACT-07, CONTRACT-14."""
    assert world.escrow.call("CLOSE_GRACE_PERIOD") == GRACE_S
    channel_id = world.open()
    receipt = world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    assert world.only_event(receipt) == (
        "CloseRequested",
        {
            "channelId": channel_id,
            "payer": world.payer.address,
            "payee": world.payee.address,
            "closeGraceEnd": world.chain.now() + GRACE_S,
        },
    )
    assert world.channel(channel_id).close_requested_at == world.chain.now()


def test_asking_again_does_not_restart_the_clock(world: World) -> None:
    """CONTRACT-05: no event, no change."""
    channel_id = world.open(signer=world.signer.address)
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    asked_at = world.channel(channel_id).close_requested_at
    world.chain.travel(100)
    receipt = world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    assert receipt["logs"] == []
    assert world.channel(channel_id).close_requested_at == asked_at
    assert world.channel(channel_id).authorized_signer == world.signer.address


@pytest.mark.parametrize("function", ["requestClose", "withdraw"])
def test_the_exit_is_the_payers_alone(world: World, function: str) -> None:
    """CONTRACT-05, CONTRACT-06: a stranger, the payee, and the signer are refused."""
    channel_id = world.open(signer=world.signer.address)
    for caller in (world.stranger, world.payee, world.signer):
        with reverts("NotPayer"):
            world.escrow.send(function, channel_id, sender=caller.address)


@pytest.mark.parametrize("function", ["requestClose", "withdraw"])
def test_there_is_no_exit_from_nothing_or_twice(world: World, function: str) -> None:
    """CONTRACT-05, CONTRACT-06: not found, finalized."""
    with reverts("ChannelNotFound"):
        world.escrow.send(function, bytes(32), sender=world.payer.address)
    channel_id = world.open()
    world.escrow.send("close", channel_id, 0, b"", sender=world.payee.address)
    with reverts("ChannelFinalized"):
        world.escrow.send(function, channel_id, sender=world.payer.address)


def test_withdraw_pays_what_was_not_settled(world: World) -> None:
    """CONTRACT-06, CONTRACT-14: at the last second of the grace period exactly."""
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, 300), sender=world.payee.address)
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    world.chain.travel_to(world.channel(channel_id).close_requested_at + GRACE_S)
    receipt = world.escrow.send("withdraw", channel_id, sender=world.payer.address)
    assert world.only_event(receipt) == (
        "ChannelClosed",
        {
            "channelId": channel_id,
            "payer": world.payer.address,
            "payee": world.payee.address,
            "settledToPayee": 300,
            "refundedToPayer": DEPOSIT - 300,
        },
    )
    assert world.balance(world.payer.address) == PLENTY - 300
    assert world.channel(channel_id).finalized


def test_withdraw_waits_for_a_request_and_the_whole_grace(world: World) -> None:
    """CONTRACT-06, F-111: one second early is too early."""
    channel_id = world.open()
    with reverts("CloseNotReady"):
        world.escrow.send("withdraw", channel_id, sender=world.payer.address)
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    world.chain.travel_to(world.channel(channel_id).close_requested_at + GRACE_S - 1)
    with reverts("CloseNotReady"):
        world.escrow.send("withdraw", channel_id, sender=world.payer.address)


def test_withdraw_of_a_channel_settled_in_full_moves_nothing(world: World) -> None:
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, DEPOSIT), sender=world.payee.address)
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    world.chain.travel(GRACE_S)
    receipt = world.escrow.send("withdraw", channel_id, sender=world.payer.address)
    assert len(receipt["logs"]) == 1
    assert world.channel(channel_id).finalized
