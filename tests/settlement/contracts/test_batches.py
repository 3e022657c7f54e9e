"""settleBatch and closeBatch, direct and relayed: one bad entry never blocks the others."""

from contextlib import suppress
from typing import Any

import pytest

from channel.verify.typed_data import keccak
from local_chain import Account, Chain
from tests.settlement.contracts.world import (
    DEPOSIT,
    ONE_HOUR_S,
    PLENTY,
    World,
    deploy_mock,
    reverts,
    world_with,
)

ENTRY = [
    {"name": "channelId", "type": "bytes32"},
    {"name": "cumulativeAmount", "type": "uint128"},
    {"name": "signature", "type": "bytes"},
]
BATCH = [
    {"name": "payee", "type": "address"},
    {"name": "entries", "type": "BatchEntry[]"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
]
ENOUGH_FOR_ONE_WALLET = 400_000 * 64 // 63 + 60_000


def selector(error: str) -> bytes:
    return keccak(f"{error}()".encode())[:4]


def skipped(world: World, receipt: dict[str, Any]) -> dict[bytes, bytes]:
    """Reason by channel id of every entry left out."""
    return {
        values["channelId"]: values["reason"]
        for name, values in world.escrow.events(receipt)
        if name == "BatchEntrySkipped"
    }


def sign_batch(
    world: World, kind: str, entries: list[Any], nonce: int = 1, by: Account | None = None
) -> tuple[Any, ...]:
    """Arguments of the relayed form, signed with eth_account's encoder."""
    deadline = world.chain.now() + ONE_HOUR_S
    domain = {"name": "EVM Payment Channel", "version": "1", "chainId": world.chain.chain_id}
    domain["verifyingContract"] = world.escrow.address
    names = [field["name"] for field in ENTRY]
    message = {
        "payee": world.payee.address,
        "entries": [dict(zip(names, entry, strict=True)) for entry in entries],
        "nonce": nonce,
        "deadline": deadline,
    }
    types = {f"{kind}BatchAuthorization": BATCH, "BatchEntry": ENTRY}
    signature = world.sign_typed(by or world.payee, domain, types, message)
    return world.payee.address, entries, nonce, deadline, signature


@pytest.mark.parametrize("function", ["settleBatch", "closeBatch"])
def test_a_batch_pays_all_in_one_transfer(world: World, function: str) -> None:
    """Payouts are added up; each channel has its own event; paid is returned."""
    ids = [world.open(salt=i) for i in range(5)]
    entries = [world.voucher(channel_id, 10 * (i + 1)) for i, channel_id in enumerate(ids)]
    assert world.escrow.call(function, entries, sender=world.payee.address) == 150
    receipt = world.escrow.send(function, entries, sender=world.payee.address)
    transfers = [log for log in receipt["logs"] if log["address"].lower() == world.token.address]
    assert len(transfers) == (1 if function == "settleBatch" else 6)
    assert world.balance(world.payee.address) == PLENTY + 150
    for i, channel_id in enumerate(ids):
        found = world.channel(channel_id)
        assert (found.settled, found.finalized) == (10 * (i + 1), function == "closeBatch")
    if function == "closeBatch":
        assert world.balance(world.payer.address) == PLENTY - 150
        assert world.balance(world.escrow.address) == 0


@pytest.mark.parametrize("function", ["settleBatch", "closeBatch"])
def test_bad_entries_are_left_out_and_named(world: World, function: str) -> None:
    """F-79: each kind of refusal once, among good entries, with the reason a single call has."""
    good = [world.open(salt=i) for i in range(2)]
    finalized, foreign = world.open(salt=10), world.open(salt=11, payer=world.stranger.address)
    world.escrow.send("close", finalized, 0, b"", sender=world.payee.address)
    payee, world.payee = world.payee, world.stranger
    other_payee = world.open(salt=12)
    world.payee = payee
    above, unsigned = world.open(salt=13), world.open(salt=14)
    missing = b"\x01" * 32
    entries = [
        world.voucher(good[0], 10),
        world.voucher(missing, 10),
        world.voucher(finalized, 10),
        world.voucher(other_payee, 10),
        world.voucher(above, DEPOSIT + 1),
        (unsigned, 10, b""),
        world.voucher(foreign, 10),
        world.voucher(good[1], 10),
    ]
    receipt = world.escrow.send(function, entries, sender=world.payee.address)
    assert skipped(world, receipt) == {
        missing: selector("ChannelNotFound"),
        finalized: selector("ChannelFinalized"),
        other_payee: selector("NotPayee"),
        above: selector("AmountExceedsDeposit"),
        unsigned: selector("InvalidSignature"),
        foreign: selector("InvalidSignature"),
    }
    assert world.balance(world.payee.address) == PLENTY + 20
    assert world.channel(above).settled == world.channel(unsigned).settled == 0


def test_the_same_channel_twice_is_paid_once(world: World) -> None:
    """F-80: the second entry sees what the first did."""
    channel_id = world.open()
    entries = [world.voucher(channel_id, amount) for amount in (10, 10, 5, 30)]
    receipt = world.escrow.send("settleBatch", entries, sender=world.payee.address)
    assert skipped(world, receipt) == {channel_id: selector("AmountNotIncreasing")}
    assert world.balance(world.payee.address) == PLENTY + 30
    twice = [(channel_id, 0, b""), (channel_id, 0, b"")]
    receipt = world.escrow.send("closeBatch", twice, sender=world.payee.address)
    assert skipped(world, receipt) == {channel_id: selector("ChannelFinalized")}
    assert world.balance(world.payer.address) == PLENTY - 30


@pytest.mark.parametrize("function", ["settleBatch", "closeBatch"])
def test_a_batch_of_nothing_pays_nothing(world: World, function: str) -> None:
    assert world.escrow.send(function, [], sender=world.payee.address)["logs"] == []


def test_close_batch_takes_forfeits_too(world: World) -> None:
    """CLOSE-07 in a batch."""
    ids = [world.open(salt=i) for i in range(2)]
    entries = [(ids[0], 0, b""), world.voucher(ids[1], 7)]
    world.escrow.send("closeBatch", entries, sender=world.payee.address)
    assert world.balance(world.payee.address) == PLENTY + 7
    assert world.balance(world.payer.address) == PLENTY - 7


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_a_failed_refund_blocks_no_other_channel(
    chain: Chain, mocks: dict[str, Any], mode: int
) -> None:
    """F-79, F-86: revert, all gas burnt, garbage, a bomb of return data: the refund is held."""
    world = world_with(chain, deploy_mock(chain, mocks, "PickyToken"))
    bad, good = world.open(), world.open(payer=world.stranger.address)
    world.token.send("setMode", world.payer.address, mode)
    entries = [world.voucher(bad, 10), world.voucher(good, 20, world.stranger)]
    receipt = world.escrow.send("closeBatch", entries, sender=world.payee.address)
    held = [values for name, values in world.escrow.events(receipt) if name == "RefundHeld"]
    assert held == [{"channelId": bad, "payer": world.payer.address, "amount": DEPOSIT - 10}]
    assert world.balance(world.payee.address) == PLENTY + 30
    assert world.balance(world.stranger.address) == PLENTY - 20
    world.token.send("setMode", world.payer.address, 0)
    world.escrow.send("claimRefund", world.payer.address)
    assert world.balance(world.payer.address) == PLENTY - 10
    assert world.balance(world.escrow.address) == 0


def test_refunds_of_one_payer_add_up_while_held(world: World) -> None:
    ids = [world.open(salt=i) for i in range(3)]
    world.token.send("blacklist", world.payer.address)
    entries = [(channel_id, 0, b"") for channel_id in ids]
    world.escrow.send("closeBatch", entries, sender=world.payee.address)
    assert world.escrow.call("claimable", world.payer.address) == 3 * DEPOSIT


@pytest.mark.parametrize("kind", ["Settle", "Close"])
def test_a_stranger_submits_a_batch(world: World, kind: str) -> None:
    """RELAY-07: one signature over all entries; the payee is paid."""
    ids = [world.open(salt=i) for i in range(3)]
    entries = [world.voucher(channel_id, 10) for channel_id in ids]
    signed = sign_batch(world, kind, entries)
    function = f"{kind.lower()}BatchWithAuthorization"
    world.escrow.send(function, *signed, sender=world.stranger.address)
    assert world.balance(world.payee.address) == PLENTY + 30
    assert world.escrow.call("isBatchNonceUsed", world.payee.address, 1)
    for again in ("settleBatchWithAuthorization", "closeBatchWithAuthorization"):
        renewed = sign_batch(world, again.removesuffix("BatchWithAuthorization").title(), entries)
        with reverts("NonceAlreadyUsed"):
            world.escrow.send(again, *renewed)


@pytest.mark.parametrize("kind", ["Settle", "Close"])
@pytest.mark.parametrize(
    "change", ["payee", "drop", "reorder", "voucher", "amount", "nonce", "deadline", "kind"]
)
def test_a_relayer_can_change_nothing_in_a_batch(world: World, kind: str, change: str) -> None:
    """RELAY-07: entries with their signatures, nonce, deadline and the function are signed."""
    ids = [world.open(salt=i) for i in range(2)]
    entries = [world.voucher(channel_id, 10) for channel_id in ids]
    payee, _, nonce, deadline, signature = sign_batch(world, kind, entries)
    if change == "kind":
        kind = "Close" if kind == "Settle" else "Settle"
    changed = {
        "payee": (world.stranger.address, entries, nonce, deadline),
        "drop": (payee, entries[:1], nonce, deadline),
        "reorder": (payee, entries[::-1], nonce, deadline),
        "voucher": (payee, [entries[0], (ids[1], 10, b"")], nonce, deadline),
        "amount": (payee, [entries[0], world.voucher(ids[1], 11)], nonce, deadline),
        "nonce": (payee, entries, nonce + 1, deadline),
        "deadline": (payee, entries, nonce, deadline + 1),
        "kind": (payee, entries, nonce, deadline),
    }[change]
    with reverts("InvalidSignature"):
        world.escrow.send(f"{kind.lower()}BatchWithAuthorization", *changed, signature)


def test_a_late_batch_is_refused(world: World) -> None:
    """RELAY-04 for batches."""
    entries = [world.voucher(world.open(), 10)]
    signed = sign_batch(world, "Settle", entries)
    world.chain.travel(ONE_HOUR_S + 1)
    with reverts("AuthorizationExpired"):
        world.escrow.send("settleBatchWithAuthorization", *signed)


def test_single_and_batch_nonces_do_not_meet(world: World) -> None:
    """RELAY-03, RELAY-07: their keys have three words and two."""
    channel_id = world.open()
    signed = world.authorize("Settle", channel_id, 10, 1)
    voucher = world.voucher(channel_id, 10)
    world.escrow.send("settleWithAuthorization", *signed, voucher[2])
    assert not world.escrow.call("isBatchNonceUsed", world.payee.address, 1)
    entries = [world.voucher(channel_id, 20)]
    world.escrow.send("settleBatchWithAuthorization", *sign_batch(world, "Settle", entries))
    assert world.channel(channel_id).settled == 20


@pytest.mark.parametrize("mode", range(7))
def test_a_wallet_that_misbehaves_is_skipped(
    chain: Chain, mocks: dict[str, Any], world: World, mode: int
) -> None:
    """F-20, F-79: reverting, burning all its gas, answering garbage: the others are paid."""
    wallet = deploy_mock(chain, mocks, "OddWallet")
    wallet.send("set", mode, 0)
    odd, good = world.open(signer=wallet.address), world.open(salt=1)
    entries = [(odd, 10, b"invalid"), world.voucher(good, 10)]
    receipt = world.escrow.send("settleBatch", entries, sender=world.payee.address)
    assert skipped(world, receipt) == {odd: selector("InvalidSignature")}
    assert world.balance(world.payee.address) == PLENTY + 10


def test_a_relayer_cannot_starve_an_entry_of_gas(
    chain: Chain, mocks: dict[str, Any], world: World
) -> None:
    """RELAY-07: at every gas limit the batch either reverts or pays the slow wallet's entry."""
    wallet = deploy_mock(chain, mocks, "OddWallet")
    wallet.send("set", 8, 300_000)
    slow, plain = world.open(signer=wallet.address), world.open(salt=1)
    entries = [world.voucher(plain, 10), (slow, 10, b"invalid")]
    signed = sign_batch(world, "Settle", entries)
    outcomes: set[int | str] = set()
    for gas in range(100_000, 1_000_000, 12_345):
        try:
            paid = world.escrow.call("settleBatchWithAuthorization", *signed, gas=gas)
        except Exception as refused:  # noqa: BLE001 - out of gas has no one shape
            outcomes.add(type(refused).__name__)
        else:
            outcomes.add(paid)
    assert 20 in outcomes
    assert 10 not in outcomes
    with reverts("InsufficientGas"):
        world.escrow.call("settleBatchWithAuthorization", *signed, gas=ENOUGH_FOR_ONE_WALLET)


def test_a_relayer_cannot_have_a_refund_held_by_giving_little_gas(world: World) -> None:
    """RELAY-07 for refunds: at every gas limit the payer is refunded or all reverts."""
    channel_id = world.open()
    signed = sign_batch(world, "Close", [(channel_id, 0, b"")])
    for gas in range(60_000, 500_000, 10_000):
        snapshot = world.chain.rpc("evm_snapshot")
        with suppress(Exception):  # out of gas has no one shape
            world.escrow.send("closeBatchWithAuthorization", *signed, gas=gas)
        assert world.escrow.call("claimable", world.payer.address) == 0
        world.chain.rpc("evm_revert", snapshot)
