"""Opening, topping up and merging without gas, over HTTP and a real chain."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.chain import TransactionEvidence
from channel.methods.evm.method import EVM
from channel.state.commands import BeginClose
from channel.types import TxHash
from channel.wire.receipt import parse_receipt
from settlement.dev.devnet import Devnet
from tests.e2e.selling import DEPOSIT, PRICE
from tests.e2e.sponsored import LIMITS, Sponsored, sponsor_deposits


@pytest.fixture
async def sponsored(chain: Devnet, tmp_path: Path) -> AsyncIterator[Sponsored]:
    async with sponsor_deposits(chain, tmp_path) as running:
        yield running


async def test_an_open_by_authorization_is_served_in_one_request(sponsored: Sponsored) -> None:
    """OPEN-05, OPEN-08, CHAL-03: no ether, one signature, one answer; the deposit is in escrow."""
    provider, payer = sponsored.provider, sponsored.payer
    before = await provider.chain.token_balance(payer.address)
    answer = await provider.send(await payer.opening(PRICE))
    assert answer.status_code == 200, answer.text
    assert answer.text == "joke 1"
    state = await provider.ledger.load(payer.key)
    assert state is not None
    assert (state.deposit, state.accepted, state.spent) == (DEPOSIT, PRICE, PRICE)
    assert await provider.chain.token_balance(payer.address) == before - DEPOSIT
    assert await sponsored.ether("gasless") == 0
    receipt = parse_receipt(answer.headers["payment-receipt"])
    assert (receipt.accepted, receipt.spent) == (PRICE, PRICE)


async def test_the_challenge_says_what_is_offered(sponsored: Sponsored) -> None:
    """CHAL-03: feePayer and the ways of funding, the preferred one first."""
    asked = EVM.parse_request((await sponsored.provider.challenge()).request)
    assert asked.fee_payer
    assert asked.credential_types == ("authorization", "permit2", "hash")


@pytest.mark.parametrize("kind", ["authorization", "permit2"])
async def test_a_whole_life_without_gas(sponsored: Sponsored, kind: str) -> None:
    """OPEN-05, OPEN-06, TOPUP-02, TOPUP-04, TOPUP-06, VCH-06: open, top up, merge, close."""
    provider, payer = sponsored.provider, sponsored.payer
    if kind == "permit2":
        await payer.approve_permit2()
    opened = await provider.manage(await payer.opening(PRICE, kind))
    assert opened.status_code == 200, opened.text
    topped = await provider.manage(await payer.top_up(kind, amount=500))
    assert topped.status_code == 200, topped.text
    books = await provider.ledger.load(payer.key)
    assert books is not None
    assert (books.deposit, books.accepted, books.spent) == (DEPOSIT + 500, PRICE, 0)
    merged = payer.voucher(
        DEPOSIT + 700, await payer.top_up_deposit(kind, amount=200, salt=bytes([1] * 32))
    )
    answer = await provider.send(merged)
    assert answer.text == "joke 1", answer.text
    books = await provider.ledger.load(payer.key)
    assert books is not None
    assert (books.deposit, books.accepted, books.spent) == (DEPOSIT + 700, DEPOSIT + 700, PRICE)
    closed = await provider.manage(payer.closing(PRICE))
    assert closed.status_code == 200, closed.text
    assert await sponsored.ether("gasless") == 0
    assert await sponsored.sent() == 4


@pytest.mark.parametrize("kind", ["authorization", "permit2"])
async def test_an_opening_rides_on_a_voucher(sponsored: Sponsored, kind: str) -> None:
    """VCH-06, VCH-07: deposit and first voucher in one credential; a repeat opens nothing twice."""
    provider, payer = sponsored.provider, sponsored.payer
    if kind == "permit2":
        await payer.approve_permit2()
    before = await sponsored.chain.token_balance(payer.address)
    payload = payer.voucher(PRICE, await payer.opening_deposit(kind))
    first = await provider.send(payload)
    assert first.text == "joke 1", first.text
    again = await provider.send(payload)
    assert again.status_code == 402
    assert again.json()["type"].endswith("session/insufficient-balance")
    assert await sponsored.chain.token_balance(payer.address) == before - DEPOSIT
    assert await sponsored.sent() == 1


async def test_a_retried_credential_is_broadcast_once_and_resets_nothing(
    sponsored: Sponsored,
) -> None:
    """OPEN-10, F-25, F-29: the same opening and top-up repeatedly, also concurrently."""
    provider, payer = sponsored.provider, sponsored.payer
    opening = await payer.opening(3 * PRICE)
    answers = await asyncio.gather(*[provider.send(opening) for _ in range(3)])
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert (await provider.send(opening)).status_code == 402  # all of it is spent
    top_up = await payer.top_up()
    answers = await asyncio.gather(*[provider.manage(top_up) for _ in range(3)])
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    books = await provider.ledger.load(payer.key)
    assert books is not None
    assert (books.deposit, books.accepted, books.spent) == (DEPOSIT + 500, 3 * PRICE, 3 * PRICE)
    assert await sponsored.sent() == 2


async def test_a_top_up_that_a_stranger_repeats_asks_no_node(
    sponsored: Sponsored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-98, TOPUP-06: it is public on the chain; its signature no longer matters."""
    payer, provider = sponsored.payer, sponsored.provider
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    top_up = await payer.top_up(amount=500)
    assert (await provider.manage(top_up)).status_code == 200
    asked: list[TxHash] = []
    read = provider.reader.read_transaction

    async def noted(tx_hash: TxHash) -> TransactionEvidence | None:
        asked.append(tx_hash)
        return await read(tx_hash)

    monkeypatch.setattr(provider.reader, "read_transaction", noted)
    for signature in (top_up.signature, bytes(65)):
        answer = await provider.manage(replace(top_up, signature=signature))
        assert answer.status_code == 200, answer.text
        assert "payment-receipt" in answer.headers
    assert asked == []
    assert await sponsored.sent() == 2


async def test_worker_and_settler_meet_in_postgresql(
    chain: Devnet, tmp_path: Path, postgres_url: str
) -> None:
    """F-80, OPEN-10: orders and journal in the other database; the same deposit, once."""
    async with sponsor_deposits(chain, tmp_path, database=postgres_url) as one:
        opening = await one.payer.opening(2 * PRICE)
        answers = await asyncio.gather(*[one.provider.send(opening) for _ in range(2)])
        assert [answer.status_code for answer in answers] == [200, 200]
        assert (await one.provider.manage(await one.payer.top_up())).status_code == 200
        books = await one.provider.ledger.load(one.payer.key)
        assert books is not None
        assert (books.deposit, books.spent) == (DEPOSIT + 500, 2 * PRICE)
        assert await one.sent() == 2


async def test_a_channel_that_is_being_closed_gets_no_gas(sponsored: Sponsored) -> None:
    """TOPUP-07, F-98: the close is mined first, and the top-up would pay for a revert."""
    provider, payer = sponsored.provider, sponsored.payer
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    await provider.ledger.apply(payer.key, [BeginClose()])
    for payload in (await payer.top_up(), payer.voucher(2 * PRICE, await payer.top_up_deposit())):
        answer = await provider.send(payload)
        assert (answer.status_code, await sponsored.sent()) == (410, 1), answer.text


async def test_gas_is_not_paid_for_channels_of_others(sponsored: Sponsored) -> None:
    """TOPUP-07, F-98: never opened here, though it exists on chain."""
    answer = await sponsored.provider.manage(await sponsored.payer.top_up())
    assert (answer.status_code, await sponsored.sent()) == (410, 0)


async def test_a_merged_open_of_a_channel_that_was_opened_otherwise_is_refused(
    sponsored: Sponsored,
) -> None:
    """VCH-07: for a channel that exists a deposit must be a top-up; a repeat is not another."""
    provider, payer = sponsored.provider, sponsored.payer
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    again = payer.voucher(2 * PRICE, await payer.opening_deposit(amount=DEPOSIT + 1))
    answer = await provider.send(again)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (
        400,
        "malformed-credential",
    )
    assert await sponsored.sent() == 1


async def test_one_address_and_one_payer_have_their_share_of_the_hour(
    chain: Devnet, tmp_path: Path
) -> None:
    """F-98: 429 and no gas; what was taken before is answered as ever."""
    orders = replace(LIMITS.orders, per_funder=3)
    limits = replace(LIMITS, orders=orders)
    async with sponsor_deposits(chain, tmp_path, limits=limits, per_source_max=5) as one:
        provider, payer = one.provider, one.payer
        opening = await payer.opening(PRICE)
        assert (await provider.manage(opening)).status_code == 200
        for salt in (1, 2):
            answer = await provider.manage(await payer.top_up(salt=bytes([salt] * 32)))
            assert answer.status_code == 200, answer.text
        for salt in (3, 4, 5):  # two more by the payer's share, then the address has had its own
            answer = await provider.manage(await payer.top_up(salt=bytes([salt] * 32)))
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "600")
        assert (await provider.manage(opening)).status_code == 200
        assert await one.sent() == 3
