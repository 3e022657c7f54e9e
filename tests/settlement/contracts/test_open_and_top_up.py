"""open and topUp: who pays, what is recorded, what is refused."""

from typing import Any

import pytest

from local_chain import ZERO_ADDRESS, Chain, RevertedError
from tests.settlement.contracts.world import (
    DEPOSIT,
    World,
    deploy_mock,
    reverts,
    world_with,
)

DEPOSIT_MAX = 2**88 - 1
UINT128_MAX = 2**128 - 1
OTHER = "0x" + "11" * 20


@pytest.mark.parametrize("signer", [ZERO_ADDRESS, OTHER])
def test_open_pulls_the_deposit_and_records_the_terms(world: World, signer: str) -> None:
    """CONTRACT-01, CONTRACT-14: caller is payer, the event names every term."""
    before = world.balance(world.payer.address)
    terms = world.terms(salt=7, signer=signer)
    receipt = world.escrow.send("open", *terms, sender=world.payer.address)
    channel_id = world.id_of(world.payer.address, terms)
    assert world.only_event(receipt) == (
        "ChannelOpened",
        {
            "channelId": channel_id,
            "payer": world.payer.address,
            "payee": world.payee.address,
            "token": world.token.address,
            "authorizedSigner": signer,
            "salt": (7).to_bytes(32),
            "deposit": DEPOSIT,
        },
    )
    assert world.channel(channel_id) == (
        False,
        0,
        world.payer.address,
        world.payee.address,
        world.token.address,
        signer,
        DEPOSIT,
        0,
    )
    assert world.balance(world.payer.address) == before - DEPOSIT
    assert world.balance(world.escrow.address) == DEPOSIT


def test_open_returns_the_channel_id(world: World) -> None:
    """CONTRACT-01: the id by the draft's formula, also through computeChannelId."""
    terms = world.terms(signer=OTHER)
    expected = world.id_of(world.payer.address, terms)
    assert world.escrow.call("open", *terms, sender=world.payer.address) == expected
    payee, token, _, salt, signer = terms
    computed = world.escrow.call(
        "computeChannelId", world.payer.address, payee, token, salt, signer
    )
    assert computed == expected


@pytest.mark.parametrize("field", range(5))
def test_every_term_changes_the_id(world: World, field: int) -> None:
    """CONTRACT-01: payer, payee, token, salt and signer all count."""
    terms: list[Any] = [world.payer.address, world.payee.address, world.token.address]
    terms += [bytes(32), ZERO_ADDRESS]
    changed = [*terms]
    changed[field] = (1).to_bytes(32) if field == 3 else OTHER
    first = world.escrow.call("computeChannelId", *terms)
    assert first != world.escrow.call("computeChannelId", *changed)


def test_a_channel_opens_once_for_ever(world: World) -> None:
    """CONTRACT-01, F-34: not again while open, and not after it ended."""
    channel_id = world.open()
    with reverts("ChannelAlreadyExists"):
        world.open()
    world.escrow.send("close", channel_id, 0, b"", sender=world.payee.address)
    with reverts("ChannelAlreadyExists"):
        world.open()


def test_another_token_is_refused(world: World) -> None:
    """One escrow serves one token."""
    payee, _, deposit, salt, signer = world.terms()
    with reverts("InvalidToken", OTHER):
        world.escrow.send("open", payee, OTHER, deposit, salt, signer, sender=world.payer.address)


def test_the_zero_payee_is_refused(world: World) -> None:
    _, token, deposit, salt, signer = world.terms()
    with reverts("InvalidPayee"):
        world.escrow.send(
            "open", ZERO_ADDRESS, token, deposit, salt, signer, sender=world.payer.address
        )


@pytest.mark.parametrize(
    ("deposit", "error"),
    [
        (0, "ZeroDeposit"),
        (DEPOSIT_MAX + 1, "DepositOverflow"),
        (UINT128_MAX, "DepositOverflow"),
    ],
)
def test_a_deposit_outside_the_bounds_is_refused(world: World, deposit: int, error: str) -> None:
    """CONTRACT-13: zero, and beyond 88 bits."""
    with reverts(error):
        world.open(deposit=deposit)


def test_the_greatest_deposit_opens(world: World) -> None:
    """The bound itself is allowed and reads back exactly."""
    world.token.send("mint", world.payer.address, DEPOSIT_MAX)
    channel_id = world.open(deposit=DEPOSIT_MAX)
    assert world.channel(channel_id).deposit == DEPOSIT_MAX
    with reverts("DepositOverflow"):
        world.escrow.send("topUp", channel_id, 1, sender=world.payer.address)


def test_open_without_allowance_moves_nothing(world: World) -> None:
    world.token.send("approve", world.escrow.address, 0, sender=world.payer.address)
    terms = world.terms()
    with pytest.raises(RevertedError):
        world.escrow.send("open", *terms, sender=world.payer.address)
    assert world.channel(world.id_of(world.payer.address, terms)).payer == ZERO_ADDRESS


def test_a_token_that_keeps_a_fee_is_refused(chain: Chain, mocks: dict[str, Any]) -> None:
    """CONTRACT-12, F-85: what arrives must be what is recorded."""
    world = world_with(chain, deploy_mock(chain, mocks, "FeeToken"))
    with reverts("DepositNotReceived", DEPOSIT, DEPOSIT - DEPOSIT // 100):
        world.open()


def test_a_token_that_returns_nothing_works(chain: Chain, mocks: dict[str, Any]) -> None:
    """CONTRACT-12, F-89: SafeERC20 on every path, through to the refund."""
    world = world_with(chain, deploy_mock(chain, mocks, "SilentToken"))
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, 1), sender=world.payee.address)
    world.escrow.send("close", *world.voucher(channel_id, 2), sender=world.payee.address)
    assert world.balance(world.escrow.address) == 0


def test_a_token_that_returns_false_is_refused(chain: Chain, mocks: dict[str, Any]) -> None:
    """F-89: false is failure, though the call succeeded."""
    world = world_with(chain, deploy_mock(chain, mocks, "FalseToken"))
    world.token.send("refuse", world.payer.address, True)  # noqa: FBT003
    with pytest.raises(RevertedError):
        world.open()


def test_an_escrow_needs_a_token_with_code(world: World) -> None:
    """Constructor and factory refuse an address without code."""
    with pytest.raises(RevertedError):
        world_with(world.chain, world.token.at(OTHER))


def test_top_up_raises_the_deposit(world: World) -> None:
    """CONTRACT-03, CONTRACT-14."""
    channel_id = world.open()
    receipt = world.escrow.send("topUp", channel_id, 5, sender=world.payer.address)
    assert world.only_event(receipt) == (
        "TopUp",
        {
            "channelId": channel_id,
            "payer": world.payer.address,
            "payee": world.payee.address,
            "additionalDeposit": 5,
            "newDeposit": DEPOSIT + 5,
        },
    )
    assert world.channel(channel_id).deposit == DEPOSIT + 5
    assert world.balance(world.escrow.address) == DEPOSIT + 5


def test_top_up_by_the_payer_cancels_a_pending_close(world: World) -> None:
    """CONTRACT-03, TOPUP-05: the clock is gone, and a new request starts a new one."""
    channel_id = world.open()
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    world.chain.travel(10_000)
    receipt = world.escrow.send("topUp", channel_id, 5, sender=world.payer.address)
    events = [name for name, _ in world.escrow.events(receipt)]
    assert events == ["CloseRequestCancelled", "TopUp"]
    assert world.channel(channel_id).close_requested_at == 0
    with reverts("CloseNotReady"):
        world.escrow.send("withdraw", channel_id, sender=world.payer.address)
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    assert world.channel(channel_id).close_requested_at == world.chain.now()


def test_top_up_is_the_payers_alone(world: World) -> None:
    """CONTRACT-03: a stranger and the payee are refused."""
    channel_id = world.open()
    for caller in (world.stranger, world.payee):
        with reverts("NotPayer"):
            world.escrow.send("topUp", channel_id, 5, sender=caller.address)


@pytest.mark.parametrize(
    ("amount", "error"),
    [
        (0, "ZeroDeposit"),
        (DEPOSIT_MAX - DEPOSIT + 1, "DepositOverflow"),
        (UINT128_MAX, "DepositOverflow"),
    ],
)
def test_top_up_outside_the_bounds_is_refused(world: World, amount: int, error: str) -> None:
    channel_id = world.open()
    with reverts(error):
        world.escrow.send("topUp", channel_id, amount, sender=world.payer.address)


def test_top_up_of_nothing_or_of_the_dead_is_refused(world: World) -> None:
    """CONTRACT-03: not found, finalized."""
    with reverts("ChannelNotFound"):
        world.escrow.send("topUp", bytes(32), 5, sender=world.payer.address)
    channel_id = world.open()
    world.escrow.send("close", channel_id, 0, b"", sender=world.payee.address)
    with reverts("ChannelFinalized"):
        world.escrow.send("topUp", channel_id, 5, sender=world.payer.address)
