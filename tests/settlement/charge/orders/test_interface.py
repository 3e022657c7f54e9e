"""One authorization is claimed by one request, ordered once, and served once."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from channel.errors import SponsoringPausedError
from channel.limits import OPEN_ORDERS_MAX
from channel.state.requests import StoredResponse
from channel.types import Address, TxHash
from settlement.charge.orders.interface import (
    PAID_KEPT_S,
    ChargeOrder,
    ChargeOrders,
    GasLimit,
)
from settlement.charge.orders.url import open_charges
from settlement.tx.orders import NONCE_TAKEN, OrderStatus

TOKEN = Address(b"\xd0" * 20)
CHAIN_ID = 31337
NOW = 1_800_000_000
LEASE_S = 60
LIMIT = GasLimit(period_s=3600, gas_gwei=100)
MUCH = GasLimit(period_s=3600, gas_gwei=10**6)
TX = TxHash(b"\x07" * 32)
ANSWER = StoredResponse(200, ((b"content-type", b"text/plain"),), b"joke")


def order(
    number: int = 1, *, owner: int = 1, payer: int = 9, at: int = NOW, amount: int = 50
) -> ChargeOrder:
    return ChargeOrder(
        order_id=number.to_bytes(32),
        funder=Address(payer.to_bytes(20)),
        amount=amount,
        nonce=number.to_bytes(32),
        calldata=b"call" + number.to_bytes(2),
        deadline=NOW + 300,
        from_block=7,
        request_digest=bytes(32),
        owner=owner.to_bytes(16),
        owned_until=at + LEASE_S,
        wanted_at=at,
        gas_gwei=10,
    )


@pytest.fixture
async def orders(journal_url: str) -> AsyncIterator[ChargeOrders]:
    opened = await open_charges(journal_url, chain_id=CHAIN_ID, token=TOKEN)
    yield opened
    await opened.close()


async def claims(
    orders: ChargeOrders, wanted: ChargeOrder, *, now: int = NOW, is_private: bool = True
) -> bool:
    return (await orders.claim(wanted, now=now, is_private=is_private)).is_owner


async def paid(orders: ChargeOrders, number: int = 1, *, served: bool = False) -> ChargeOrder:
    """An order whose transfer is mined, and that no request owns."""
    first = order(number)
    assert await claims(orders, first)
    assert await orders.place(replace(first, response=ANSWER), MUCH)
    await orders.update(first.order_id, OrderStatus.MADE, tx_hash=TX, gas_gwei=8)
    await (orders.serve if served else orders.release)(first.order_id, first.owner)
    found = await orders.find(first.order_id)
    assert found is not None
    return found


async def test_one_request_owns_it_until_it_gives_it_up_or_its_lease_runs_out(
    orders: ChargeOrders,
) -> None:
    assert await claims(orders, order(owner=1))
    assert not await claims(orders, order(owner=2))
    assert await claims(orders, order(owner=3), now=NOW + LEASE_S)
    await orders.release(order().order_id, order(owner=1).owner)  # it lost it
    assert not await claims(orders, order(owner=1))
    await orders.release(order().order_id, order(owner=3).owner)
    assert await orders.find(order().order_id) is None
    assert await claims(orders, order(owner=1))


async def test_of_many_claims_together_one_wins(orders: ChargeOrders) -> None:
    won = await asyncio.gather(*[claims(orders, order(owner=each)) for each in range(1, 9)])
    assert sum(won) == 1


async def test_only_the_owner_orders_and_once(orders: ChargeOrders) -> None:
    mine, other = order(owner=1), order(owner=2)
    assert await claims(orders, mine)
    assert not await orders.place(other, LIMIT)
    assert await orders.list_open() == []
    wanted = replace(mine, response=ANSWER, status=OrderStatus.WANTED)
    assert await orders.place(wanted, LIMIT)
    assert await orders.list_open() == [wanted]
    assert not await orders.place(wanted, LIMIT)


async def test_gas_is_counted_before_it_is_spent(orders: ChargeOrders) -> None:
    """F-98: what was claimed and not ordered costs nothing."""
    for number in range(1, 12):
        assert await claims(orders, order(number, payer=number))
    for number in range(1, 11):
        assert await orders.place(order(number), LIMIT)
    with pytest.raises(SponsoringPausedError, match="nothing was charged"):
        await orders.place(order(11), LIMIT)
    await orders.update(order(1).order_id, OrderStatus.REFUSED, gas_gwei=0)
    assert await orders.place(order(11), LIMIT)


async def test_a_public_authorization_claims_nothing(orders: ChargeOrders) -> None:
    """What is on the chain authorises nothing; its payer shows more, or signs anew."""
    await paid(orders)
    assert not await claims(orders, order(owner=2), is_private=False)
    claim = await orders.claim(order(owner=2), now=NOW, is_private=True)
    assert claim.is_owner
    assert (claim.order.status, claim.order.response) == (OrderStatus.MADE, ANSWER)


async def test_what_is_served_buys_nothing_more(orders: ChargeOrders) -> None:
    await paid(orders, served=True)
    assert not await claims(orders, order(owner=2))
    assert await orders.list_credits() == []


async def test_a_credit_pays_for_the_next_authorization_of_its_payer_once(
    orders: ChargeOrders,
) -> None:
    """Never paid and not served: a new signature stands for the payment that bought nothing."""
    credit = await paid(orders)
    assert await orders.list_credits() == [credit]
    assert not (await orders.claim(order(2, payer=8), now=NOW, is_private=False)).order.tx_hash
    assert not (await orders.claim(order(3, amount=51), now=NOW, is_private=False)).order.tx_hash
    claim = await orders.claim(order(4, owner=4), now=NOW, is_private=False)
    assert (claim.is_owner, claim.order.order_id) == (True, credit.order_id)
    assert not await claims(orders, order(4, owner=5))  # the same one, while it is used
    await orders.serve(claim.order.order_id, claim.order.owner)
    assert not await claims(orders, order(4, owner=6))
    fresh = await orders.claim(order(5, owner=7), now=NOW, is_private=False)
    assert (fresh.is_owner, fresh.order.status) == (True, None)


async def test_an_authorization_paid_by_a_credit_stays_its_payers_until_it_is_served(
    orders: ChargeOrders,
) -> None:
    """Its request failed: it is presented again, and was never on the chain."""
    credit = await paid(orders)
    claim = await orders.claim(order(4, owner=4), now=NOW, is_private=False)
    await orders.release(claim.order.order_id, claim.order.owner)
    again = await orders.claim(order(4, owner=5), now=NOW, is_private=False)
    assert (again.is_owner, again.order.order_id) == (True, credit.order_id)
    assert await orders.list_open() == []


@pytest.mark.parametrize(
    ("status", "reason", "is_private", "may"),
    [
        (OrderStatus.REFUSED, "INVALID", False, True),
        (OrderStatus.REFUSED, NONCE_TAKEN, False, False),
        (OrderStatus.REFUSED, NONCE_TAKEN, True, True),
        (OrderStatus.REVERTED, "INVALID", False, False),
        (OrderStatus.REVERTED, "INVALID", True, True),
    ],
)
async def test_what_was_not_paid_may_be_tried_again_by_its_payer(
    orders: ChargeOrders,
    status: OrderStatus,
    reason: str,
    *,
    is_private: bool,
    may: bool,
) -> None:
    """What may have been broadcast is public: another could spend it on a request of its own."""
    assert await claims(orders, order())
    assert await orders.place(replace(order(), response=ANSWER), LIMIT)
    await orders.update(order().order_id, status, reason=reason)
    found = await orders.find(order().order_id)
    assert found is not None
    assert found.response is None
    later = NOW + 2 * LEASE_S
    assert await claims(orders, order(owner=2, at=later), now=later, is_private=is_private) is may


async def test_a_transfer_that_another_sent_is_adopted(orders: ChargeOrders) -> None:
    """F-83."""
    assert await claims(orders, order())
    await orders.adopt(order().order_id, TX)
    assert await orders.list_credits() == []  # it was not ordered
    assert await orders.place(order(), LIMIT)
    await orders.update(order().order_id, OrderStatus.REVERTED)
    await orders.adopt(order().order_id, TX)
    (credit,) = await orders.list_credits()
    assert credit.tx_hash == TX


async def test_what_ended_is_kept_until_the_token_refuses_it(orders: ChargeOrders) -> None:
    """A credit is kept: it is a payer's money."""
    await paid(orders, 1)
    assert await claims(orders, order(3, payer=8))
    assert await orders.prune(NOW + 300) == 0
    assert await orders.prune(NOW + 301) == 1
    assert [each.order_id for each in await orders.list_credits()] == [order(1).order_id]


async def test_what_was_paid_is_listed_by_time_and_kept_for_the_accounts(
    orders: ChargeOrders,
) -> None:
    """In pages; without what a credit paid, and without what failed. Served ones last longer."""
    many = OPEN_ORDERS_MAX + 2
    for number in range(1, many + 1):
        await paid(orders, number, served=True)
    assert await claims(orders, order(many + 1, payer=8))
    listed: list[ChargeOrder] = []
    while page := await orders.list_made(NOW, NOW + 1, after=listed[-1] if listed else None):
        listed += page
    assert [each.nonce for each in listed] == [n.to_bytes(32) for n in range(1, many + 1)]
    assert sum(each.amount for each in listed) == 50 * many
    assert await orders.list_made(NOW + 1, NOW + 2) == []
    assert await orders.list_made(NOW - 1, NOW) == []
    await orders.prune(NOW + PAID_KEPT_S)
    assert len(await orders.list_made(NOW, NOW + 1)) == OPEN_ORDERS_MAX
    assert await orders.prune(NOW + PAID_KEPT_S + 1) == many
    assert await orders.list_made(NOW, NOW + 1) == []


async def test_what_a_credit_paid_is_listed_once(orders: ChargeOrders) -> None:
    await paid(orders, 1)
    again = await orders.claim(order(2), now=NOW, is_private=True)
    assert again.order.order_id == order(1).order_id
    assert [each.order_id for each in await orders.list_made(NOW, NOW + 1)] == [order(1).order_id]
