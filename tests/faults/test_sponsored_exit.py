"""No gas is paid to top up a channel whose payer has asked to leave (O-34)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.client.funding.signer import LocalSigner
from channel.client.funding.signing import sign_top_up_authorization
from channel.methods.evm.payload import (
    build_top_up,
)
from channel.state.commands import Observe
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.sponsor.sender import DepositSender
from tests.e2e.selling import DELTA, DEPOSIT, PRICE
from tests.e2e.sponsored import LIMITS, Sponsored, sponsor_deposits
from tests.waiting import until


@pytest.fixture
async def sponsored(chain: Devnet, tmp_path: Path) -> AsyncIterator[Sponsored]:
    async with sponsor_deposits(chain, tmp_path) as running:
        yield running


async def ask_to_leave(one: Sponsored) -> None:
    payer, chain = one.payer, one.chain
    await chain.fund(payer.address, ether=1)
    call = abi.request_close.encode(payer.key.channel_id)
    await chain.sender("gasless").send(chain.values.escrow, call)


async def stay(one: Sponsored, amount: int) -> None:
    """By a transaction of the payer's own, which alone takes the request back."""
    payer, chain = one.payer, one.chain
    sender = chain.sender("gasless")
    approve = abi.approve.encode(chain.values.escrow, amount)
    await sender.send(payer.terms.token, approve)
    await sender.send(chain.values.escrow, abi.top_up.encode(payer.key.channel_id, amount))


async def observe(one: Sponsored) -> None:
    """What a watcher does sooner or later."""
    fact = await one.provider.reader.read_channel(one.payer.key.channel_id)
    assert fact is not None
    await one.provider.ledger.apply(one.payer.key, [Observe(fact)])


async def signed_top_up(one: Sponsored, by: str, kind: str) -> Any:
    payer = one.payer
    if by == "payer":
        return await payer.top_up(kind, amount=100)
    signed = await sign_top_up_authorization(
        LocalSigner(one.chain.account("stranger").private_key),
        payer.token_domain,
        await payer.window(),
        channel_id=payer.key.channel_id,
        salt=bytes(32),
        amount=100,
    )
    return build_top_up(signed, payer.key.channel_id)


@pytest.mark.parametrize("knows", [True, False], ids=["in the books", "on chain only"])
async def test_a_top_up_of_a_channel_with_a_pending_close_is_not_sent(
    sponsored: Sponsored, *, knows: bool
) -> None:
    """O-34, AMB-16, AMB-27: by payer or stranger, alone or on a voucher, by either signature."""
    payer, provider = sponsored.payer, sponsored.provider
    await payer.approve_permit2()
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    await ask_to_leave(sponsored)
    if knows:
        await observe(sponsored)
    payloads = [
        await signed_top_up(sponsored, "stranger", "authorization"),
        await signed_top_up(sponsored, "payer", "authorization"),
        await signed_top_up(sponsored, "payer", "permit2"),
        payer.voucher(PRICE + DELTA, await payer.top_up_deposit(amount=100)),
        payer.voucher(PRICE + DELTA, await payer.top_up_deposit("permit2", amount=100)),
    ]
    for payload in payloads:
        answer = await provider.send(payload)
        assert answer.status_code == 410, answer.text
        assert answer.json()["type"].endswith("session/channel-finalized")
    assert await sponsored.sent() == 1
    assert await sponsored.orders.list_open() == []


async def test_a_payer_that_stays_after_all_is_topped_up_again(sponsored: Sponsored) -> None:
    """O-34, TOPUP-05: what was refused is taken once the payer's own transaction cancels."""
    payer, provider = sponsored.payer, sponsored.provider
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    await ask_to_leave(sponsored)
    top_up = await signed_top_up(sponsored, "payer", "authorization")
    assert (await provider.manage(top_up)).status_code == 410
    await stay(sponsored, 7)
    answer = await provider.manage(top_up)
    assert answer.status_code == 200, answer.text
    books = await provider.ledger.load(payer.key)
    assert books is not None
    assert (books.deposit, books.close_requested_at) == (DEPOSIT + 107, 0)


@asynccontextmanager
async def sending(one: Sponsored) -> AsyncIterator[None]:
    """The settler's half, for as long as this lasts."""
    reader = EscrowReader(one.chain.rpc, one.chain.values.escrow)
    sender = DepositSender(one.orders, reader, one.sender, one.journal)
    work = [asyncio.create_task(each) for each in (one.sender.run(), sender.run())]
    try:
        yield
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def is_idle(one: Sponsored) -> bool:
    return await one.orders.list_open() == []


@pytest.mark.parametrize("form", ["alone", "on a voucher"])
async def test_an_exit_between_check_and_broadcast_stops_the_top_up(
    chain: Devnet, tmp_path: Path, form: str
) -> None:
    """O-34: written down while the channel was open; the settler looks again before it sends."""
    limits = replace(LIMITS, wait_s=0.2)
    async with sponsor_deposits(chain, tmp_path, limits=limits, sends=False) as one:
        payer, provider = one.payer, one.provider
        opening = await payer.opening(PRICE)
        assert (await provider.manage(opening)).status_code == 503
        async with sending(one):
            await until(lambda: is_idle(one))
        assert (await provider.manage(opening)).status_code == 200
        payload: Any = await signed_top_up(one, "payer", "authorization")
        if form == "on a voucher":
            payload = payer.voucher(PRICE + DELTA, await payer.top_up_deposit(amount=100))
        assert (await provider.send(payload)).status_code == 503
        assert len(await one.orders.list_open()) == 1
        await ask_to_leave(one)
        async with sending(one):
            await until(lambda: is_idle(one))
        assert await one.sent() == 1
        answer = await provider.send(payload)
        assert answer.status_code == 410, answer.text
        assert await chain.token_balance(chain.values.escrow) == DEPOSIT
