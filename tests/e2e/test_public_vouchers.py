"""What a stranger can do with what the chain shows: learn nothing, close nothing (O-20, O-21)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenHash,
)
from channel.state.channel_state import ReservationKind
from channel.state.commands import Command, Publish, Release, Reserve, Spend
from channel.types import ZERO_ADDRESS, SignedVoucher
from channel.verify.signature import sign
from channel.wire.encoding import decode_base64url
from channel.wire.payload import (
    ClosePayload,
    Payload,
    VoucherPayload,
)
from mpp_session.testing import TestChain
from settlement.alarms import Alarms
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.settle.executor import CloseExecutor
from settlement.settle.schedule import Moment, SettlePolicy, Watched
from settlement.settle.settler import EscrowSettler
from tests.e2e.provider import JOKE_PRICE, open_shop
from tests.e2e.selling import Provider, provide, sent_by_payee
from tests.e2e.test_agent import agent_of
from tests.settlement.planning import plan

PUBLIC, SPENT, ACCEPTED = 100, 160, 300
_FAR = 2_000_000_000


@pytest.fixture
async def seller(chain: Devnet, tmp_path: Path) -> AsyncIterator[Provider]:
    async with provide(chain, tmp_path) as provider:
        yield provider


async def deliver(seller: Provider, up_to: int) -> None:
    """Have so much delivered in all, on the strength of the vouchers that are there."""
    state = await seller.books()
    assert state is not None
    name, amount = b"r" * 16, up_to - state.spent
    commands: list[Command] = [
        Reserve(name, ReservationKind.REQUEST, amount, amount, state.accepted, 0, _FAR),
        Spend(name, amount),
        Release(name),
    ]
    (await seller.ledger.apply(seller.payer.key, commands)).require()


async def settle(seller: Provider, voucher: SignedVoucher) -> SignedVoucher:
    """As the settler does: public first, then mined."""
    key, amount = seller.payer.key, voucher.cumulative_amount
    await seller.ledger.apply(key, [Publish(amount)])
    await seller.settler.settle_channel(key, amount, voucher.signature)
    return voucher


async def live_channel(seller: Provider) -> SignedVoucher:
    """A channel in use, of which one voucher is in calldata; returns that one."""
    await seller.opened()
    first = seller.payer.sign(PUBLIC)
    for voucher in (first, seller.payer.sign(ACCEPTED)):
        assert (await seller.manage(VoucherPayload(voucher))).status_code == 200
    await deliver(seller, SPENT)
    return await settle(seller, first)


async def used_up(seller: Provider, amount: int = PUBLIC) -> SignedVoucher:
    """A live channel on which all that was signed is spent and settled; returns that voucher."""
    voucher = seller.payer.sign(amount)
    assert (await seller.manage(VoucherPayload(voucher))).status_code == 200
    await deliver(seller, amount)
    return await settle(seller, voucher)


def figures(answer: httpx.Response) -> set[str]:
    """Every amount in an answer, from its receipt and its problem."""
    found: set[str] = set()
    if text := answer.headers.get("payment-receipt"):
        found |= set(map(str, msgspec.json.decode(decode_base64url(text)).values()))
    if answer.content:
        found |= set(map(str, answer.json().values()))
    return found


@pytest.mark.parametrize(
    ("what", "method"),
    [
        ("topUp", "HEAD"),
        ("topUp", "POST"),
        ("voucher", "HEAD"),
        ("voucher", "GET"),
        ("open", "HEAD"),
        ("open", "GET"),
        ("close", "POST"),
    ],
)
async def test_what_is_public_shows_no_amounts(seller: Provider, what: str, method: str) -> None:
    """O-20, AMB-29: a stranger with a transaction's hash, or with a voucher from calldata."""
    public = await live_channel(seller)
    top_up = await seller.payer.top_up(7)
    opening = OpenHash(
        voucher=public,
        salt=seller.payer.salt,
        authorized_signer=ZERO_ADDRESS,
        tx_hash=seller.payer.open_tx,
    )
    payloads: dict[str, Payload] = {
        "topUp": top_up,
        "voucher": VoucherPayload(public),
        "open": opening,
        "close": ClosePayload(public),
    }
    for _ in range(2):
        answer = await seller.send(payloads[what], method=method)
        assert answer.status_code == (402 if method == "GET" or what == "close" else 200)
        assert not {str(SPENT), str(ACCEPTED)} & figures(answer)
        if what != "topUp":
            assert answer.status_code == 402 or str(PUBLIC) in figures(answer)


async def test_the_payer_sees_its_amounts(seller: Provider) -> None:
    """O-20: by a voucher that was never shown, or a new signature over the one that was."""
    await live_channel(seller)
    answer = await seller.manage(seller.payer.voucher(ACCEPTED))
    assert {str(SPENT), str(ACCEPTED)} <= figures(answer)
    await used_up(seller, ACCEPTED)
    await seller.payer.top_up(7)
    anew = VoucherPayload(signed_anew(seller, ACCEPTED, 1))
    assert str(ACCEPTED) in figures(await seller.manage(anew))


def signed_anew(seller: Provider, amount: int, entropy: int) -> SignedVoucher:
    key = seller.payer.key
    digest = EVM.voucher_digest(key, amount)
    signature = sign(seller.payer.private_key, digest, entropy=entropy.to_bytes(32))
    return SignedVoucher(key.channel_id, amount, signature)


async def refused(seller: Provider, payload: ClosePayload) -> None:
    """It closes nothing, and costs no gas."""
    sent = await sent_by_payee(seller)
    answer = await seller.send(payload, method="POST")
    assert answer.status_code == 402, answer.text
    books = await seller.books()
    assert books is not None
    assert not books.is_closing
    assert await sent_by_payee(seller) == sent
    fact = await seller.reader.read_channel(seller.payer.key.channel_id)
    assert fact is not None
    assert not fact.is_finalized


async def test_a_stranger_closes_nothing_after_any_settle(seller: Provider) -> None:
    """O-21, AMB-28: `published == spent`, by any voucher ever put on chain; the payer can."""
    await seller.opened()
    public = [await used_up(seller, amount) for amount in (PUBLIC, 2 * PUBLIC, 3 * PUBLIC)]
    for voucher in public:
        await refused(seller, ClosePayload(voucher))
    closed = await seller.send(ClosePayload(signed_anew(seller, 3 * PUBLIC, 1)), method="POST")
    assert closed.status_code == 200, closed.text
    fact = await seller.reader.read_channel(seller.payer.key.channel_id)
    assert fact is not None
    assert (fact.is_finalized, fact.settled) == (True, 3 * PUBLIC)


@pytest.mark.parametrize("how", ["handed to a watchtower", "taken back by a reorg"])
async def test_what_the_chain_does_not_show_any_more_or_not_yet_is_public_too(
    seller: Provider, how: str
) -> None:
    """O-21: a settle that was exported, and one whose block is gone."""
    await seller.opened()
    voucher = seller.payer.sign(PUBLIC)
    assert (await seller.manage(VoucherPayload(voucher))).status_code == 200
    await deliver(seller, PUBLIC)
    if how == "handed to a watchtower":
        await seller.ledger.apply(seller.payer.key, [Publish(PUBLIC)])
    else:
        before = await seller.chain.snapshot()
        await settle(seller, voucher)
        await seller.chain.revert(before)
        await seller.chain.mine(3)
    await refused(seller, ClosePayload(voucher))
    again = await seller.send(ClosePayload(signed_anew(seller, PUBLIC, 1)), method="POST")
    assert again.status_code == 200, again.text


async def test_a_signature_asks_for_a_close_once(seller: Provider) -> None:
    """O-21: a stranger may have read a refused close, and send it later."""
    await seller.opened()
    assert (await seller.manage(seller.payer.voucher(PUBLIC))).status_code == 200
    await deliver(seller, PUBLIC)
    await seller.ledger.apply(seller.payer.key, [Publish(PUBLIC)])
    asked = ClosePayload(signed_anew(seller, PUBLIC, 1))
    seller.settles.by = seller.settler_of("stranger")
    assert (await seller.send(asked, method="POST")).status_code == 409
    seller.settles.by = seller.settler
    await refused(seller, asked)
    again = await seller.send(ClosePayload(signed_anew(seller, PUBLIC, 2)), method="POST")
    assert again.status_code == 200, again.text


async def test_a_client_that_signs_without_entropy_can_close(seller: Provider) -> None:
    """O-21: its last voucher is its close (RFC 6979), which no stranger has seen yet."""
    await seller.opened()
    voucher = seller.payer.sign(PUBLIC)
    assert (await seller.manage(VoucherPayload(voucher))).status_code == 200
    await deliver(seller, PUBLIC)
    closed = await seller.send(ClosePayload(voucher), method="POST")
    assert closed.status_code == 200, closed.text
    assert (await seller.send(ClosePayload(voucher), method="POST")).status_code == 200


@pytest.mark.parametrize("way", ["one unit more", "when idle"])
async def test_a_client_that_signs_without_entropy_can_close_after_a_settle(
    seller: Provider, way: str
) -> None:
    """O-21: for one base unit more, as the error says; or for nothing once it is idle."""
    await seller.opened()
    voucher = await used_up(seller)
    answer = await seller.send(ClosePayload(voucher), method="POST")
    assert answer.json()["type"].endswith("session/insufficient-balance")
    assert answer.json()["requiredCumulative"] == str(PUBLIC + 1)
    if way == "one unit more":
        assert (await seller.send(seller.payer.closing(PUBLIC + 1), method="POST")).is_success
    else:
        state = await seller.books()
        assert state is not None
        policy = SettlePolicy(close_idle_s=3600)
        moment = Moment(now=state.active_at + 3600, grace_period_s=900)
        dues = plan([Watched(state=state)], moment, policy)
        executor = CloseExecutor(seller.ledger, seller.settler, Alarms())
        assert (await executor.carry_out(dues)).closed == 1
    fact = await seller.reader.read_channel(seller.payer.key.channel_id)
    assert fact is not None
    assert fact.is_finalized
    assert fact.settled == PUBLIC + (way == "one unit more")


async def test_our_client_closes_at_what_was_spent_though_that_is_settled(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-21, CLOSE-06: it signs with entropy, so its close is no repeat of a public voucher."""
    async with devnet.connect() as chain, open_shop(chain, tmp_path) as shop:
        async with agent_of(devnet.values, tmp_path, shop.url) as client:
            assert (await client.get("/joke")).status_code == 200
            (account,) = await client.payments.channels()
            state = await shop.ledger.load(account.key)
            assert state is not None
            assert state.spent == JOKE_PRICE == state.highest.cumulative_amount
            await shop.ledger.apply(account.key, [Publish(JOKE_PRICE)])
            settler = EscrowSettler(
                EscrowReader(chain.rpc, account.key.escrow), chain.sender("payee")
            )
            await settler.settle_channel(account.key, JOKE_PRICE, state.highest.signature)
            (account,) = await client.payments.close(shop.url)
        assert account.state == "closed"
        assert account.settled == account.spent == JOKE_PRICE
