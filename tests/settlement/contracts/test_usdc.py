"""The escrow with Circle's own USDC: blacklist, pause, EIP-3009."""

import pytest

from local_chain import Chain, RevertedError
from tests.settlement.contracts.test_relayed_deposits import RECEIVE_TYPE, open_nonce, top_up_nonce
from tests.settlement.contracts.world import DEPOSIT, ONE_HOUR_S, PLENTY, World, world_with
from third_party import deploy_usdc


@pytest.fixture
def usdc(chain: Chain) -> World:
    """USDC behind its proxy, and its escrow."""
    return world_with(chain, deploy_usdc(chain))


def signed(world: World, amount: int, nonce: bytes) -> tuple[str, int, int, bytes, bytes]:
    """from, validAfter, validBefore, nonce, signature under USDC's domain."""
    before = world.chain.now() + ONE_HOUR_S
    message = {"from": world.payer.address, "to": world.escrow.address, "value": amount}
    message |= {"validAfter": 0, "validBefore": before, "nonce": nonce}
    domain = {"name": "USD Coin", "version": "2", "chainId": world.chain.chain_id}
    domain["verifyingContract"] = world.token.address
    types = {"ReceiveWithAuthorization": RECEIVE_TYPE}
    return (
        world.payer.address,
        0,
        before,
        nonce,
        world.sign_typed(world.payer, domain, types, message),
    )


def test_a_channel_from_open_to_close(usdc: World) -> None:
    """The whole life: open, top up, settle, close; every unit accounted for."""
    channel_id = usdc.open()
    usdc.escrow.send("topUp", channel_id, 5, sender=usdc.payer.address)
    usdc.escrow.send("settle", *usdc.voucher(channel_id, 100), sender=usdc.payee.address)
    usdc.escrow.send("close", *usdc.voucher(channel_id, 250), sender=usdc.payee.address)
    assert usdc.balance(usdc.payee.address) == PLENTY + 250
    assert usdc.balance(usdc.payer.address) == PLENTY - 250
    assert usdc.balance(usdc.escrow.address) == 0


def test_open_and_top_up_without_gas(usdc: World) -> None:
    """CONTRACT-09, F-88: receiveWithAuthorization with `bytes` as FiatTokenV2_2 has it."""
    terms = usdc.terms()
    arguments = signed(usdc, DEPOSIT, open_nonce(usdc.payer.address, terms))
    usdc.escrow.send("openWithAuthorization", *terms, *arguments, sender=usdc.stranger.address)
    channel_id = usdc.id_of(usdc.payer.address, terms)
    nonce = top_up_nonce(channel_id, 7, usdc.payer.address, bytes(32))
    payer, *rest = signed(usdc, 7, nonce)
    usdc.escrow.send("topUpWithAuthorization", channel_id, 7, payer, bytes(32), *rest)
    assert usdc.channel(channel_id).deposit == DEPOSIT + 7


def test_a_blacklisted_payer_does_not_stop_the_payee(usdc: World) -> None:
    """F-86: closeBatch pays, the refund is held until Circle lifts the ban."""
    banned, other = usdc.open(), usdc.open(payer=usdc.stranger.address)
    owner = usdc.chain.accounts[1]
    usdc.token.send("blacklist", usdc.payer.address, sender=owner)
    entries = [usdc.voucher(banned, 10), usdc.voucher(other, 20, usdc.stranger)]
    usdc.escrow.send("closeBatch", entries, sender=usdc.payee.address)
    assert usdc.balance(usdc.payee.address) == PLENTY + 30
    assert usdc.balance(usdc.stranger.address) == PLENTY - 20
    assert usdc.escrow.call("claimable", usdc.payer.address) == DEPOSIT - 10
    with pytest.raises(RevertedError):
        usdc.escrow.send("claimRefund", usdc.payer.address)
    usdc.token.send("unBlacklist", usdc.payer.address, sender=owner)
    usdc.escrow.send("claimRefund", usdc.payer.address)
    assert usdc.balance(usdc.payer.address) == PLENTY - 10


def test_a_blacklisted_payee_leaves_the_payer_its_exit(usdc: World) -> None:
    """F-86: settle is refused by the token; withdraw is not."""
    channel_id = usdc.open()
    usdc.token.send("blacklist", usdc.payee.address, sender=usdc.chain.accounts[1])
    with pytest.raises(RevertedError):
        usdc.escrow.send("settle", *usdc.voucher(channel_id, 5), sender=usdc.payee.address)
    usdc.escrow.send("requestClose", channel_id, sender=usdc.payer.address)
    usdc.chain.travel(15 * 60)
    usdc.escrow.send("withdraw", channel_id, sender=usdc.payer.address)
    assert usdc.balance(usdc.payer.address) == PLENTY


def test_a_pause_delays_and_loses_nothing(usdc: World) -> None:
    """F-87: everything that moves money waits; the clock does not."""
    channel_id = usdc.open()
    owner = usdc.chain.accounts[1]
    usdc.token.send("pause", sender=owner)
    usdc.escrow.send("requestClose", channel_id, sender=usdc.payer.address)
    usdc.chain.travel(15 * 60)
    for function, arguments, sender in (
        ("settle", usdc.voucher(channel_id, 5), usdc.payee),
        ("close", usdc.voucher(channel_id, 5), usdc.payee),
        ("topUp", (channel_id, 5), usdc.payer),
        ("withdraw", (channel_id,), usdc.payer),
    ):
        with pytest.raises(RevertedError):
            usdc.escrow.send(function, *arguments, sender=sender.address)
    usdc.token.send("unpause", sender=owner)
    usdc.escrow.send("close", *usdc.voucher(channel_id, 5), sender=usdc.payee.address)
    assert usdc.balance(usdc.payee.address) == PLENTY + 5


def test_a_forfeit_during_a_pause_holds_the_refund(usdc: World) -> None:
    """F-86, F-87: the channel ends, the payer claims after the pause."""
    channel_id = usdc.open()
    owner = usdc.chain.accounts[1]
    usdc.token.send("pause", sender=owner)
    usdc.escrow.send("close", channel_id, 0, b"", sender=usdc.payee.address)
    usdc.token.send("unpause", sender=owner)
    usdc.escrow.send("claimRefund", usdc.payer.address)
    assert usdc.balance(usdc.payer.address) == PLENTY
