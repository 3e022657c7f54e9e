"""Deposits that are owed: placed once, counted before, and never beyond what an hour may cost."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from channel.errors import SponsoringPausedError, TooManyDepositsError
from channel.types import Address, ChannelId, ChannelKey, TxHash
from settlement.sponsor.orders import postgres, sqlite
from settlement.sponsor.orders.interface import DepositOrder, DepositOrders, FirstVoucher
from settlement.sponsor.orders.url import open_orders
from settlement.tx.orders import OrderLimits, OrderStatus, to_gwei

ESCROW = Address(b"\xe5" * 20)
CHAIN_ID = 31337
NOW = 1_800_000_000
LIMITS = OrderLimits(period_s=3600, gas_gwei=100, per_funder=3)
TX = TxHash(b"\x07" * 32)


def order(
    number: int, *, gas_gwei: int = 10, funder: int = 0, wanted_at: int = NOW
) -> DepositOrder:
    return DepositOrder(
        order_id=number.to_bytes(32),
        key=ChannelKey(CHAIN_ID, ESCROW, ChannelId(number.to_bytes(32))),
        funder=Address((funder or number).to_bytes(20)),
        calldata=b"call" + bytes([number]),
        deadline=2**256 - 1,
        gas_gwei=gas_gwei,
        wanted_at=wanted_at,
    )


@pytest.fixture
async def orders(journal_url: str) -> AsyncIterator[DepositOrders]:
    opened = await open_orders(journal_url, chain_id=CHAIN_ID, escrow=ESCROW)
    yield opened
    await opened.close()


async def test_what_is_wanted_again_is_as_it_was_signed_this_time(orders: DepositOrders) -> None:
    """OPEN-10: a wallet may have changed its keys; its first signature would fail for ever."""
    first = await orders.place(order(1), LIMITS)
    await orders.update(first.order_id, OrderStatus.REFUSED, reason="INVALID_SIGNATURE")
    voucher = FirstVoucher(5, b"signed")
    again = replace(first, calldata=b"call signed anew", first_voucher=voucher)
    await orders.place(again, LIMITS)
    assert await orders.find(first.order_id) == again
    await orders.place(first, LIMITS)  # it is wanted already: nothing changes under the settler
    assert await orders.find(first.order_id) == again


async def test_an_order_that_is_cancelled_holds_up_no_other(
    orders: DepositOrders, journal_url: str
) -> None:
    """F-80: its client left; the next order is durable, and another process can place one."""
    other = await open_orders(journal_url, chain_id=CHAIN_ID, escrow=ESCROW)
    unbounded = replace(LIMITS, gas_gwei=10**9)
    try:
        for turns in range(20):
            placing = asyncio.create_task(orders.place(order(3 * turns + 1), unbounded))
            for _ in range(turns):
                await asyncio.sleep(0)
            placing.cancel()
            await asyncio.wait({placing})
            placed = await orders.place(order(3 * turns + 2), unbounded)
            assert await other.find(placed.order_id) == placed
            await other.place(order(3 * turns + 3), unbounded)
    finally:
        await other.close()


async def test_another_process_reads_the_order_that_was_placed(
    orders: DepositOrders, journal_url: str
) -> None:
    """F-80: another process sees it, with every field as it was."""
    placed = await orders.place(order(1), LIMITS)
    other = await open_orders(journal_url, chain_id=CHAIN_ID, escrow=ESCROW)
    elsewhere = await open_orders(journal_url, chain_id=CHAIN_ID, escrow=Address(bytes(20)))
    try:
        assert await other.find(placed.order_id) == placed == order(1)
        assert await other.list_open() == [placed]
        assert await elsewhere.list_open() == []
    finally:
        await other.close()
        await elsewhere.close()


async def test_a_repeat_is_the_same_order(orders: DepositOrders) -> None:
    """OPEN-10: in any state of the order, and it takes no more gas."""
    await orders.place(order(1), LIMITS)
    again = await orders.place(order(1, gas_gwei=95), LIMITS)
    assert again.gas_gwei == 10
    await orders.update(again.order_id, OrderStatus.SENT, tx_hash=TX)
    assert (await orders.place(order(1), LIMITS)).status is OrderStatus.SENT
    await orders.update(again.order_id, OrderStatus.REVERTED, tx_hash=TX, gas_gwei=4)
    assert (await orders.place(order(1), LIMITS)).status is OrderStatus.REVERTED
    await orders.update(again.order_id, OrderStatus.MADE)  # it has ended: nothing changes
    found = await orders.find(again.order_id)
    assert found is not None
    assert (found.status, found.gas_gwei, found.tx_hash) == (OrderStatus.REVERTED, 4, TX)
    assert await orders.list_open() == []


async def test_what_was_not_broadcast_may_be_placed_again(orders: DepositOrders) -> None:
    """And counts for nothing meanwhile."""
    await orders.place(order(1, gas_gwei=100), LIMITS)
    await orders.update(order(1).order_id, OrderStatus.REFUSED, reason="FEE_TOO_HIGH", gas_gwei=0)
    await orders.place(order(2, gas_gwei=60), LIMITS)
    with pytest.raises(SponsoringPausedError):
        await orders.place(order(1, gas_gwei=41), LIMITS)
    wanted = await orders.place(order(1, gas_gwei=40, wanted_at=NOW + 5), LIMITS)
    assert await orders.find(wanted.order_id) == wanted
    assert (wanted.status, wanted.reason) == (OrderStatus.WANTED, "")


async def test_the_hours_gas_is_counted_before_and_corrected_after(orders: DepositOrders) -> None:
    """F-98: at most what may be spent; what a deposit did cost frees the rest; hours pass."""
    await orders.place(order(1, gas_gwei=60), LIMITS)
    with pytest.raises(SponsoringPausedError):
        await orders.place(order(2, gas_gwei=41), LIMITS)
    await orders.update(order(1).order_id, OrderStatus.MADE, tx_hash=TX, gas_gwei=20)
    await orders.place(order(2, gas_gwei=80), LIMITS)
    with pytest.raises(SponsoringPausedError):
        await orders.place(order(3, gas_gwei=1), LIMITS)
    await orders.place(order(3, gas_gwei=1, wanted_at=NOW + 3600), LIMITS)
    assert await orders.gas_gwei_since(NOW - 1) == 101
    assert await orders.gas_gwei_since(NOW) == 1


async def test_a_funder_has_its_share(orders: DepositOrders) -> None:
    """F-98."""
    for number in (1, 2, 3):
        await orders.place(order(number, funder=9), LIMITS)
    with pytest.raises(TooManyDepositsError):
        await orders.place(order(4, funder=9), LIMITS)
    await orders.place(order(5, funder=8), LIMITS)
    await orders.place(order(4, funder=9, wanted_at=NOW + 3600), LIMITS)


async def test_so_many_are_looked_at_together_and_more_wait(
    orders: DepositOrders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-98, issue 10 B: at the bound all are; one more has its turn when the first has ended."""
    for module in (postgres, sqlite):
        monkeypatch.setattr(module, "OPEN_ORDERS_MAX", 3)
    voucher = FirstVoucher(5, b"signed")
    wanted = [
        replace(order(number, wanted_at=NOW + number), first_voucher=voucher)
        for number in range(1, 6)
    ]
    for one in wanted[:3]:
        await orders.adopt(one)
    assert await orders.list_open() == wanted[:3]
    for one in wanted[3:]:
        await orders.adopt(one)
    assert await orders.list_open() == wanted[:3]
    await orders.update(wanted[0].order_id, OrderStatus.REFUSED)
    assert await orders.list_open() == wanted[1:4]
    for one in wanted[1:]:
        await orders.update(one.order_id, OrderStatus.MADE, tx_hash=TX)
    made = [replace(one, status=OrderStatus.MADE, tx_hash=TX) for one in wanted[1:]]
    assert await orders.list_unknown(NOW + 5) == made[:3]
    assert await orders.list_unknown(NOW + 6) == made[:3]
    await orders.mark_known(made[0].order_id)
    assert await orders.list_unknown(NOW + 6) == made[1:]


async def test_two_workers_cannot_share_the_last_gas(
    orders: DepositOrders, journal_url: str
) -> None:
    """F-98: the count and the order are one transaction."""
    other = await open_orders(journal_url, chain_id=CHAIN_ID, escrow=ESCROW)
    try:
        outcomes = await asyncio.gather(
            *[
                (orders, other)[number % 2].place(order(number, gas_gwei=30), LIMITS)
                for number in range(1, 9)
            ],
            return_exceptions=True,
        )
    finally:
        await other.close()
    refused = [one for one in outcomes if isinstance(one, SponsoringPausedError)]
    assert len(refused) == 5
    assert len(await orders.list_open()) == 3


async def test_a_deposit_that_a_stranger_made_is_recorded_once(orders: DepositOrders) -> None:
    """AMB-10: it costs us nothing, and what we have sent ourselves stays ours."""
    made = replace(order(1), status=OrderStatus.MADE, tx_hash=TX, gas_gwei=0)
    await orders.adopt(made)
    assert await orders.find(made.order_id) == made
    await orders.place(order(2), LIMITS)
    await orders.adopt(replace(order(2), status=OrderStatus.MADE, tx_hash=TX))
    assert await orders.list_open() == [order(2)]


async def test_old_ends_are_dropped(orders: DepositOrders) -> None:
    await orders.place(order(1), LIMITS)
    await orders.place(order(2), LIMITS)
    await orders.update(order(1).order_id, OrderStatus.MADE, tx_hash=TX, gas_gwei=1)
    assert await orders.prune(NOW) == 0
    assert await orders.prune(NOW + 1) == 1
    assert await orders.find(order(1).order_id) is None
    assert await orders.find(order(2).order_id) is not None


async def test_an_opening_is_unknown_until_the_books_know_it(orders: DepositOrders) -> None:
    """F-42: with its first voucher; a top-up needs no books to know it."""
    voucher = FirstVoucher(2**128 - 1, b"signed" * 11)
    await orders.place(replace(order(1), first_voucher=voucher), LIMITS)
    await orders.place(order(2), LIMITS)
    assert await orders.list_unknown(NOW + 1) == []  # not made
    for number in (1, 2):
        await orders.update(order(number).order_id, OrderStatus.MADE, tx_hash=TX, gas_gwei=1)
    (unknown,) = await orders.list_unknown(NOW + 1)
    assert (unknown.order_id, unknown.first_voucher) == (order(1).order_id, voucher)
    assert await orders.list_unknown(NOW) == []  # too young
    await orders.mark_known(unknown.order_id)
    assert await orders.list_unknown(NOW + 1) == []


def test_gwei_are_rounded_up_and_an_order_prints_no_signature() -> None:
    """F-103: calldata holds what a payer signed."""
    assert [to_gwei(wei) for wei in (0, 1, 10**9, 10**9 + 1)] == [0, 1, 1, 2]
    assert "63616c6c" not in repr(order(1))
    signed = FirstVoucher(5, b"signed")
    assert "call" not in repr(replace(order(1), first_voucher=signed)) + repr(signed)
    assert "signed" not in repr(signed)
