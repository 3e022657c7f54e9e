"""settleWithAuthorization, closeWithAuthorization: the payee signs, anyone submits."""

from typing import Any

import pytest

from local_chain import Account
from tests.settlement.contracts.world import DEPOSIT, PLENTY, World, reverts

KINDS = {"Settle": "settleWithAuthorization", "Close": "closeWithAuthorization"}
FIELDS = [
    {"name": "channelId", "type": "bytes32"},
    {"name": "cumulativeAmount", "type": "uint128"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
]


def arguments(
    world: World, kind: str, channel_id: bytes, amount: int = 500, nonce: int = 3, **more: Any
) -> tuple[Any, ...]:
    """All arguments of the relayed function: payee's and voucher's signature included."""
    signed = world.authorize(kind, channel_id, amount, nonce, **more)
    return *signed, world.voucher(channel_id, amount)[2]


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each test runs for both."""
    return str(request.param)


def test_a_stranger_submits_and_the_payee_is_paid(world: World, kind: str) -> None:
    """RELAY-01, RELAY-02: the money goes to the payee, the refund to the payer."""
    channel_id = world.open()
    world.escrow.send(
        KINDS[kind], *arguments(world, kind, channel_id), sender=world.stranger.address
    )
    found = world.channel(channel_id)
    assert (found.settled, found.finalized) == (500, kind == "Close")
    assert world.balance(world.payee.address) == PLENTY + 500
    assert world.balance(world.stranger.address) == PLENTY
    assert world.escrow.call("isNonceUsed", world.payee.address, channel_id, 3)
    assert not world.escrow.call("isNonceUsed", world.payee.address, channel_id, 4)


def test_a_wallet_signs_the_authorization_as_typed_data(world: World, kind: str) -> None:
    """RELAY-01: eth_account's own encoder gives a signature the contract takes."""
    channel_id = world.open()
    deadline = world.chain.now() + 60
    domain = {"name": "EVM Payment Channel", "version": "1", "chainId": world.chain.chain_id}
    domain["verifyingContract"] = world.escrow.address
    message = {"channelId": channel_id, "cumulativeAmount": 9, "nonce": 1, "deadline": deadline}
    signature = world.sign_typed(world.payee, domain, {f"{kind}Authorization": FIELDS}, message)
    voucher = world.voucher(channel_id, 9)[2]
    world.escrow.send(KINDS[kind], channel_id, 9, 1, deadline, signature, voucher)
    assert world.balance(world.payee.address) == PLENTY + 9


def test_an_authorization_works_once_for_both_functions(world: World) -> None:
    """RELAY-03, RELAY-05: one set of nonces, unordered, per channel."""
    channel_id, other_id = world.open(), world.open(salt=1)
    world.escrow.send(KINDS["Settle"], *arguments(world, "Settle", channel_id, 5, 2**256 - 1))
    for kind, amount in (("Settle", 6), ("Close", 7)):
        with reverts("NonceAlreadyUsed"):
            world.escrow.send(KINDS[kind], *arguments(world, kind, channel_id, amount, 2**256 - 1))
    world.escrow.send(KINDS["Settle"], *arguments(world, "Settle", channel_id, 6, 0))
    world.escrow.send(KINDS["Close"], *arguments(world, "Close", other_id, 6, 2**256 - 1))


def test_a_signature_for_one_does_not_work_for_the_other(world: World, kind: str) -> None:
    """RELAY-05, F-23: the types differ."""
    channel_id = world.open()
    other = next(name for name in KINDS if name != kind)
    with reverts("InvalidSignature"):
        world.escrow.send(KINDS[other], *arguments(world, kind, channel_id))


def test_the_deadline_itself_is_in_time(world: World, kind: str) -> None:
    """RELAY-04: one second later is too late."""
    channel_id = world.open()
    deadline = world.chain.now() + 100
    signed = arguments(world, kind, channel_id, deadline=deadline)
    snapshot = world.chain.rpc("evm_snapshot")
    world.chain.travel_to(deadline)
    world.escrow.send(KINDS[kind], *signed)
    world.chain.rpc("evm_revert", snapshot)
    world.chain.travel_to(deadline + 1)
    with reverts("AuthorizationExpired"):
        world.escrow.send(KINDS[kind], *signed)


@pytest.mark.parametrize("field", [1, 2, 3])
def test_a_relayer_can_change_nothing(world: World, kind: str, field: int) -> None:
    """RELAY-02: amount, nonce and deadline are signed; with a good voucher too."""
    channel_id = world.open()
    signed = [*arguments(world, kind, channel_id)]
    signed[field] += 1
    signed[5] = world.voucher(channel_id, signed[1])[2]
    with reverts("InvalidSignature"):
        world.escrow.send(KINDS[kind], *signed)


def test_only_the_payees_signature_counts(world: World, kind: str) -> None:
    """RELAY-02: not the payer's, not a stranger's."""
    channel_id = world.open()
    payee = world.payee
    for other in (world.payer, world.stranger):
        world.payee = other
        signed = arguments(world, kind, channel_id)
        world.payee = payee
        with reverts("InvalidSignature"):
            world.escrow.send(KINDS[kind], *signed)


def test_the_voucher_is_checked_as_ever(world: World, kind: str) -> None:
    """RELAY-02: a payee's authorization is no voucher; a refused one leaves the nonce unused."""
    channel_id = world.open()
    signed = world.authorize(kind, channel_id, 500, 3)
    for signature in (b"", world.voucher(channel_id, 499)[2]):
        with reverts("InvalidSignature"):
            world.escrow.send(KINDS[kind], *signed, signature)
    with reverts("AmountExceedsDeposit"):
        world.escrow.send(KINDS[kind], *arguments(world, kind, channel_id, DEPOSIT + 1))
    assert not world.escrow.call("isNonceUsed", world.payee.address, channel_id, 3)
    world.escrow.send(KINDS[kind], *signed, world.voucher(channel_id, 500)[2])


def test_a_relayed_forfeit_needs_no_voucher(world: World) -> None:
    """RELAY-02: empty only on the forfeit path."""
    channel_id = world.open()
    world.escrow.send(KINDS["Settle"], *arguments(world, "Settle", channel_id, 500, 1))
    world.escrow.send(KINDS["Close"], *world.authorize("Close", channel_id, 500, 2), b"")
    assert world.balance(world.payer.address) == PLENTY - 500


def test_nothing_relayed_moves_what_is_not_or_has_ended(world: World, kind: str) -> None:
    with reverts("ChannelNotFound"):
        world.escrow.send(KINDS[kind], *arguments(world, kind, b"\x01" * 32))
    channel_id = world.open()
    world.escrow.send("close", channel_id, 0, b"", sender=world.payee.address)
    with reverts("ChannelFinalized"):
        world.escrow.send(KINDS[kind], *arguments(world, kind, channel_id))


def test_a_relayed_settle_must_increase(world: World) -> None:
    channel_id = world.open()
    world.escrow.send("settle", *world.voucher(channel_id, 500), sender=world.payee.address)
    with reverts("AmountNotIncreasing"):
        world.escrow.send(KINDS["Settle"], *arguments(world, "Settle", channel_id, 500))


def test_an_authorization_is_for_one_escrow(world: World, kind: str) -> None:
    """SEC-03: under another domain no account has made the signature."""
    channel_id = world.open()
    signed = [*arguments(world, kind, channel_id)]
    assert isinstance(world.payee, Account)
    digest = world.typed(
        f"{kind}Authorization(bytes32 channelId,uint128 cumulativeAmount,"
        "uint256 nonce,uint256 deadline)",
        ["bytes32", "uint128", "uint256", "uint256"],
        signed[:4],
        chain_id=1,
    )
    signed[4] = world.payee.sign(digest)
    with reverts("InvalidSignature"):
        world.escrow.send(KINDS[kind], *signed)
