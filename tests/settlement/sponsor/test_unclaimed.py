"""A payer that never comes back for its sponsored channel: the books take it all the same."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.errors import LedgerUnavailableError
from channel.state.channel_state import ChannelState
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import RpcRefusedError
from settlement.sponsor.orders.interface import DepositOrder, DepositOrders, FirstVoucher
from settlement.sponsor.unclaimed import UnclaimedChannels
from tests.e2e.selling import DEPOSIT, PRICE
from tests.e2e.sponsored import LIMITS, Sponsored, sponsor_deposits
from tests.settlement.sponsor.test_sender import move_away
from tests.waiting import until

HASTY = replace(LIMITS, wait_s=0.05)


class Orders:
    """The orders of a database that is away for some looks, or with rows that were changed."""

    def __init__(self, inner: DepositOrders, *, looks_lost: int = 0, **changes: Any) -> None:
        self._inner = inner
        self.looks_lost = looks_lost
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def list_unknown(self, wanted_before: int) -> list[DepositOrder]:
        if self.looks_lost:
            self.looks_lost -= 1
            raise LedgerUnavailableError("PostgreSQL: the server is not there")
        found = await self._inner.list_unknown(wanted_before)
        return [replace(order, **self._changes) for order in found]


def claimer(sponsored: Sponsored, *, orders: Any = None, **changes: float) -> UnclaimedChannels:
    """One that does not wait for the payer."""
    return UnclaimedChannels(
        orders or sponsored.orders,
        sponsored.provider.ledger,
        sponsored.provider.reader,
        **{"confirmations": 1, "age_s": -2, **changes},  # type: ignore[arg-type]
    )


async def abandon(sponsored: Sponsored, chain: Devnet) -> None:
    """Ask for an opening, and leave before it is mined."""
    payload = await sponsored.payer.opening(PRICE)
    async with chain.mining_paused():
        answer = await sponsored.provider.send(payload)
        assert answer.status_code == 503, answer.text
    await until_ended(sponsored)


async def until_ended(sponsored: Sponsored) -> None:
    async def is_ended() -> bool:
        return not await sponsored.orders.list_open()

    await until(is_ended)


async def books(sponsored: Sponsored) -> ChannelState | None:
    return await sponsored.provider.ledger.load(sponsored.payer.key)


async def test_the_books_take_a_channel_that_no_client_claims(
    devnet: TestChain, tmp_path: Path
) -> None:
    """OPEN-08, F-42: with its first voucher, once; its payer finds it, and pays by it."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path, limits=HASTY) as one:
        await abandon(one, chain)
        assert await books(one) is None
        await claimer(one, age_s=60).look()
        assert await books(one) is None  # its payer may still be on the way
        await claimer(one, confirmations=3).look()
        assert await books(one) is None  # not deep enough
        await claimer(one).look()
        state = await books(one)
        assert state is not None
        assert (state.deposit, state.accepted, state.spent) == (DEPOSIT, PRICE, 0)
        assert await one.orders.list_unknown(2**40) == []
        answer = await one.provider.send(one.payer.voucher(PRICE))
        assert answer.text == "joke 1", answer.text
        await claimer(one).look()
        assert (await one.provider.manage(one.payer.closing(PRICE))).status_code == 200
        assert await one.sent() == 2


async def test_a_deposit_that_is_not_deep_is_not_taken_over(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-70, OPEN-12: the opening is; a top-up since then may yet be taken back."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path, limits=HASTY) as one:
        await abandon(one, chain)
        await chain.mine(2)
        payload: Any = await one.payer.top_up(amount=500)
        inner = payload.authorization
        call = abi.top_up_with_authorization.encode(
            payload.channel_id,
            payload.additional_deposit,
            one.payer.address,
            payload.salt,
            inner.valid_after,
            inner.valid_before,
            inner.nonce,
            payload.signature,
        )
        await chain.sender("stranger").send(chain.values.escrow, call)
        await claimer(one, confirmations=3).look()
        state = await books(one)
        assert state is not None
        assert state.deposit == DEPOSIT


async def test_a_channel_that_was_claimed_is_left_alone(devnet: TestChain, tmp_path: Path) -> None:
    """F-25: what was spent stays spent."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path) as one:
        assert (await one.provider.send(await one.payer.opening(2 * PRICE))).status_code == 200
        before = await books(one)
        assert len(await one.orders.list_unknown(2**40)) == 1
        await claimer(one).look()
        assert await books(one) == before
        assert await one.orders.list_unknown(2**40) == []


async def test_a_channel_that_has_ended_is_not_taken(devnet: TestChain, tmp_path: Path) -> None:
    """OPEN-04: the payer found ether, and left by itself."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path, limits=HASTY) as one:
        await abandon(one, chain)
        await chain.fund(one.payer.address, ether=1)
        leave = abi.request_close.encode(one.payer.key.channel_id)
        await chain.sender("gasless").send(chain.values.escrow, leave)
        await claimer(one).look()
        assert await books(one) is None
        assert await one.orders.list_unknown(2**40) == []


async def test_an_opening_that_a_reorg_made_fail_ends_no_settler(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-70, F-76: mined once, then again in another block, and reverted there."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path, limits=HASTY) as one:
        await abandon(one, chain)
        (order,) = await one.orders.list_unknown(2**40)
        assert order.tx_hash is not None
        tx = await one.journal.find(order.tx_hash)
        assert tx is not None
        async with chain.mining_paused():
            while await chain.rpc.receipt(order.tx_hash) is not None:
                await chain.rpc.command("anvil_rollback", 1)
            await move_away(chain, "gasless", await chain.token_balance(one.payer.address))
            with suppress(RpcRefusedError):  # it may be in the pool again
                await chain.rpc.command("eth_sendRawTransaction", "0x" + tx.newest.raw.hex())
        receipt = await chain.rpc.receipt(order.tx_hash)
        assert receipt is not None
        assert not receipt.is_success
        await claimer(one).look()
        assert await books(one) is None
        assert await one.orders.list_unknown(2**40) == []


@pytest.mark.parametrize("is_willing", [True, False], ids=["takes it", "refuses it"])
async def test_a_wallets_voucher_is_asked_about_again(
    devnet: TestChain,
    tmp_path: Path,
    is_willing: bool,  # noqa: FBT001
) -> None:
    """ENC-07, F-19: no key signed it; what the wallet says now is what counts."""
    says_yes = "0x631626ba7e60e01b60005260206000f3"
    async with (
        devnet.connect() as chain,
        sponsor_deposits(chain, tmp_path, limits=HASTY, takes_contract_signatures=True) as one,
    ):
        place = "0x" + one.payer.address.hex()
        await chain.rpc.command("anvil_setCode", place, says_yes)
        payload = await one.payer.opening(PRICE)
        voucher = replace(payload.voucher, signature=b"the wallet's own way")
        async with chain.mining_paused():
            answer = await one.provider.send(replace(payload, voucher=voucher))
            assert answer.status_code == 503, answer.text
        await until_ended(one)
        if not is_willing:
            await chain.rpc.command("anvil_setCode", place, "0x00")
        await claimer(one).look()
        assert (await books(one) is not None) == is_willing
        assert await one.orders.list_unknown(2**40) == []


@pytest.mark.parametrize("first", [FirstVoucher(PRICE, bytes(65)), None], ids=["forged", "none"])
async def test_a_first_voucher_that_no_key_signed_adds_nothing(
    devnet: TestChain, tmp_path: Path, first: FirstVoucher | None
) -> None:
    """ENC-07: the order's row was changed; the escrow keeps the deposit for its payer."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path, limits=HASTY) as one:
        await abandon(one, chain)
        orders = Orders(one.orders, first_voucher=first)
        await claimer(one, orders=orders).look()
        assert await books(one) is None
        assert await one.orders.list_unknown(2**40) == []


async def test_it_goes_on_looking_by_itself(devnet: TestChain, tmp_path: Path) -> None:
    """F-42, F-64: as a task of the settler, also after the database was away."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path, limits=HASTY) as one:
        orders = Orders(one.orders, looks_lost=2)
        running = asyncio.create_task(claimer(one, orders=orders, look_s=0.02).run())
        await abandon(one, chain)

        async def is_known() -> bool:
            return await books(one) is not None

        await until(is_known)
        assert orders.looks_lost == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
