"""The settler sends a sponsored deposit once, in time and within its price, or not at all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.client.funding.signing import Window
from channel.errors import LedgerUnavailableError
from channel.limits import DEPOSIT_WANTED_S_MAX
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.errors import ContractRevertedError, LeaseLostError, SignerError
from settlement.sponsor.orders.interface import DepositOrder, DepositOrders
from settlement.sponsor.sender import DepositSender
from settlement.tx import order_sender
from settlement.tx.encoding import UnsignedTx
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.journal.url import open_journal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.orders import FEE_TOO_HIGH, NONCE_TAKEN, NOT_SENT, OrderStatus
from settlement.tx.signer import KeySigner
from settlement.tx.state import Abandoned, Sent, Signed, TxStatus
from tests.e2e.selling import PRICE
from tests.e2e.sponsored import LIMITS, Sponsored, sponsor_deposits
from tests.settlement.senders import FailingJournal
from tests.waiting import PATIENCE_S, until

HASTY = replace(LIMITS, wait_s=0.05)


@asynccontextmanager
async def taken(
    devnet: TestChain, folder: Path, **of_opening: Any
) -> AsyncIterator[tuple[Sponsored, Any]]:
    """A deposit that is on disk while no process sends it."""
    async with (
        devnet.connect() as chain,
        sponsor_deposits(chain, folder, limits=HASTY, sends=False) as one,
    ):
        payload = await one.payer.opening(PRICE, **of_opening)
        assert (await one.provider.send(payload)).status_code == 503
        yield one, payload


async def send(
    one: Sponsored, *, until: OrderStatus = OrderStatus.MADE, at: int | None = None
) -> DepositOrder:
    """Run a settler until the order has ended, by the given clock or the machine's."""
    (order,) = await one.orders.list_open()
    running = asyncio.create_task(
        DepositSender(
            one.orders,
            one.provider.reader,
            one.sender,
            one.journal,
            earliest=None if at is None else lambda: at,
        ).run()
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while order.status.is_open:
                assert not running.done(), running.exception()
                await asyncio.sleep(0.02)
                order = await one.orders.find(order.order_id) or order
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert order.status is until, order
    return order


async def test_what_it_cost_replaces_what_it_might(devnet: TestChain, tmp_path: Path) -> None:
    """F-98: in gwei, rounded up; the rest of the reservation is free again."""
    async with taken(devnet, tmp_path) as (one, payload):
        (wanted,) = await one.orders.list_open()
        before = await one.ether()
        made = await send(one)
        paid_wei = before - await one.ether()
        assert made.gas_gwei == -(-paid_wei // 10**9)
        assert made.gas_gwei < wanted.gas_gwei
        assert (await one.provider.send(payload)).status_code == 200


async def test_too_late_to_be_mined_is_not_sent(devnet: TestChain, tmp_path: Path) -> None:
    """OPEN-05, F-111: by the chain's clock the deposit has expired, and would revert."""
    async with devnet.connect() as chain:
        await chain.mine()  # the head may be a snapshot's, of any time ago
        now = (await chain.rpc.block()).timestamp
    async with taken(devnet, tmp_path, window=Window(0, now + 75)) as (one, payload):
        await one.chain.advance(65)
        await send(one, until=OrderStatus.REFUSED)
        answer = await one.provider.send(payload)
        assert answer.json()["type"].endswith("verification-failed"), answer.text
        assert "retry-after" not in answer.headers
        assert await one.sent() == 0


async def test_an_expired_deposit_that_a_stranger_made_is_made(
    devnet: TestChain, tmp_path: Path
) -> None:
    """AMB-10, F-83: the settler gives it up as expired, finds it on the chain, and pays no gas."""
    async with devnet.connect() as chain:
        await chain.mine()
        now = (await chain.rpc.block()).timestamp
    async with taken(devnet, tmp_path, window=Window(0, now + 75)) as (one, payload):
        (order,) = await one.orders.list_open()
        theirs = await one.chain.sender("stranger").send(order.key.escrow, order.calldata)
        await one.chain.advance(65)
        made = await send(one)
        assert (made.tx_hash, made.gas_gwei) == (theirs.tx_hash, 0)
        assert await one.sent() == 0
        assert (await one.provider.send(payload)).status_code == 200


async def test_a_deposit_that_is_mined_late_is_waited_for_and_not_sent_again(
    devnet: TestChain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F-80: longer than a caller waits; giving up would send the same call twice."""
    async with taken(devnet, tmp_path) as (one, payload):
        signer, impatient = one.chain.signer("payee"), TxLimits(mined_within_s=0.05)
        one.sender = TxManager(one.chain.rpc, signer, journal=one.journal, limits=impatient)
        async with one.chain.mining_paused():
            sending = asyncio.create_task(send(one))
            await until(lambda: caplog.text.count("is not mined yet") >= 2)
        await sending
        assert (await one.provider.send(payload)).status_code == 200
        assert await one.sent() == 1


async def test_orders_that_do_not_answer_are_asked_again(
    devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-64: the database was away for two looks; the settler lives, and sends the deposit."""
    monkeypatch.setattr(order_sender, "_RETRY_S", 0.01)
    async with taken(devnet, tmp_path) as (one, payload):
        orders = AwayOrders(one.orders, looks_lost=2)
        reader = one.provider.reader
        settler = DepositSender(orders, reader, one.sender, one.journal, look_s=0.01)
        running = asyncio.create_task(settler.run())

        async def is_ended() -> bool:
            return not await one.orders.list_open()

        await until(is_ended)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert orders.looks_lost == 0
        assert (await one.provider.send(payload)).status_code == 200


async def test_dearer_than_reserved_is_not_sent_and_may_come_again(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-78, F-98: gas rose between the order and its turn."""
    async with taken(devnet, tmp_path) as (one, payload):
        head = await one.chain.rpc.block()
        dear = 50 * max(head.base_fee_wei or 0, 10**9)
        await one.chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(dear))
        await one.chain.mine()
        refused = await send(one, until=OrderStatus.REFUSED)
        assert (refused.reason, refused.gas_gwei) == (FEE_TOO_HIGH, 0)
        assert await one.sent() == 0
        await one.chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(10**9))
        await one.chain.mine()
        assert (await one.provider.send(payload)).status_code == 503  # wanted again
        await send(one)
        assert (await one.provider.send(payload)).status_code == 200


async def test_what_the_journal_has_is_joined_and_not_sent_again(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-80, F-74: a settler died after the broadcast and before it recorded it."""
    async with taken(devnet, tmp_path) as (one, payload):
        (order,) = await one.orders.list_open()
        async with one.chain.mining_paused():
            await one.sender.broadcast(order.key.escrow, order.calldata, deadline=order.deadline)
            one.sender = TxManager(one.chain.rpc, one.chain.signer("payee"), journal=one.journal)
            await one.sender.recover()
            sending = asyncio.create_task(send(one))
            await asyncio.sleep(0.2)
        await sending
        assert (await one.provider.send(payload)).status_code == 200
        assert await one.sent() == 1


async def test_what_was_mined_and_forgotten_is_found_on_the_chain(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-80, AMB-10: the journal has the end and the order does not; no second transaction."""
    async with taken(devnet, tmp_path) as (one, payload):
        (order,) = await one.orders.list_open()
        await one.sender.send(order.key.escrow, order.calldata, deadline=order.deadline)
        made = await send(one)
        assert made.tx_hash is not None
        assert (await one.provider.send(payload)).status_code == 200
        assert await one.sent() == 1


async def test_what_reverted_and_was_forgotten_is_not_sent_again(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-76, F-80: the journal has the end and the order does not; the revert is still final."""
    async with taken(devnet, tmp_path) as (one, _):
        (order,) = await one.orders.list_open()
        chain, payer = one.chain, one.payer
        async with chain.mining_paused():
            tx_hash = await one.sender.broadcast(order.key.escrow, order.calldata)
            await move_away(chain, "gasless", await chain.token_balance(payer.address))
        with pytest.raises(ContractRevertedError):
            await one.sender.resume(tx_hash)
        await chain.fund(payer.address, amount=10**9)
        one.sender = TxManager(chain.rpc, chain.signer("payee"), journal=one.journal)
        ended = await send(one, until=OrderStatus.REVERTED)
        assert ended.gas_gwei > 0
        assert await one.sent() == 1


async def test_a_nonce_taken_from_elsewhere_costs_no_deposit(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-74: a person used the key by hand; after the payer's repeat it is sent with a new nonce."""
    async with taken(devnet, tmp_path) as (one, payload):
        async with one.chain.mining_paused():
            sending = asyncio.create_task(send(one, until=OrderStatus.REFUSED))
            await until(lambda: is_in_pool(one))
            await use_nonce_elsewhere(one, nonce=0)
        assert (await sending).reason == NONCE_TAKEN
        assert (await one.provider.send(payload)).status_code == 503  # wanted again
        await send(one)
        assert (await one.provider.send(payload)).status_code == 200
        assert await one.sent() == 2


async def test_a_signer_that_is_away_ends_no_settler(devnet: TestChain, tmp_path: Path) -> None:
    """F-104: the settler goes on settling other channels, and retries the deposit."""
    async with taken(devnet, tmp_path) as (one, payload):
        signer = AbsentSigner(one.chain.account("payee").private_key)
        one.sender = TxManager(one.chain.rpc, signer, journal=one.journal)
        await send(one)
        assert signer.asked == 2
        assert (await one.provider.send(payload)).status_code == 200
        assert await one.sent() == 1


@pytest.mark.parametrize(
    "lost", [{"before": [Sent]}, {"before": [Abandoned], "after": [Signed]}], ids=["sent", "signed"]
)
async def test_what_the_journal_did_not_answer_is_joined(
    devnet: TestChain, tmp_path: Path, lost: dict[str, Any]
) -> None:
    """F-80: the database was lost amid a broadcast; there is one transaction all the same."""
    async with taken(devnet, tmp_path) as (one, payload):
        journal = FailingJournal(one.journal, **lost)
        one.sender = TxManager(one.chain.rpc, one.chain.signer("payee"), journal=journal)
        await send(one)
        assert (await one.provider.send(payload)).status_code == 200
        assert await one.sent() == 1


async def test_what_could_not_be_sent_for_an_hour_makes_room(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-98: its signature never expires, but retries end; the payer's repeat is accepted."""
    async with taken(devnet, tmp_path, window=Window(0, 2**256 - 1)) as (one, payload):
        (order,) = await one.orders.list_open()
        await one.orders.update(order.order_id, OrderStatus.REFUSED)
        old = replace(order, wanted_at=order.wanted_at - 3601)
        await one.orders.place(old, HASTY.orders)
        assert (await send(one, until=OrderStatus.REFUSED)).reason == NOT_SENT
        assert await one.sent() == 0
        assert (await one.provider.send(payload)).status_code == 503  # wanted again
        await send(one)
        assert (await one.provider.send(payload)).status_code == 200


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_deposit_is_sent_until_so_long_after_it_was_wanted(
    devnet: TestChain, tmp_path: Path, beyond: int
) -> None:
    """F-98, issue 10 B: it is sent in the last second, and given up a second later."""
    async with taken(devnet, tmp_path, window=Window(0, 2**256 - 1)) as (one, _):
        (order,) = await one.orders.list_open()
        at = order.wanted_at + DEPOSIT_WANTED_S_MAX + beyond
        ended = await send(one, until=OrderStatus.REFUSED if beyond else OrderStatus.MADE, at=at)
        assert ended.reason == (NOT_SENT if beyond else "")
        assert await one.sent() == 1 - beyond


async def test_a_settler_without_the_lease_sends_nothing(devnet: TestChain, tmp_path: Path) -> None:
    """F-110: another settler has the lease; this one ends."""
    async with taken(devnet, tmp_path) as (one, _):
        other = await open_other(tmp_path, one.chain)
        try:
            await one.journal.release_lease()
            assert await other.take_lease("another", ttl_s=600) is not None
            running = DepositSender(
                one.orders,
                one.provider.reader,
                one.sender,
                one.journal,
                look_s=600,  # the next look would be too late
            )
            with pytest.raises(LeaseLostError):
                async with asyncio.timeout(PATIENCE_S):
                    await running.run()
        finally:
            await other.close()
        assert await one.sent() == 0
        (order,) = await one.orders.list_open()
        assert order.status is OrderStatus.WANTED


class AwayOrders:
    """The orders of a database that is away for some looks."""

    def __init__(self, inner: DepositOrders, *, looks_lost: int) -> None:
        self._inner = inner
        self.looks_lost = looks_lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def list_open(self) -> list[DepositOrder]:
        if self.looks_lost:
            self.looks_lost -= 1
            raise LedgerUnavailableError("PostgreSQL: the server is not there")
        return await self._inner.list_open()


class AbsentSigner(KeySigner):
    """A signing service that does not answer the first time."""

    asked = 0

    async def sign_transaction(self, tx: UnsignedTx) -> bytes:
        self.asked += 1
        if self.asked == 1:
            raise SignerError("The signer does not answer.")
        return await super().sign_transaction(tx)


async def move_away(chain: Devnet, name: str, amount: int) -> None:
    """Move tokens out of an account, ahead of every transaction in the pool."""
    account = "0x" + chain.account(name).address.hex()
    transfer = abi.transfer.encode(chain.account("stranger").address, amount)
    await chain.rpc.command("anvil_setBalance", account, hex(10**18))
    await chain.rpc.command("anvil_impersonateAccount", account)
    call = {
        "from": account,
        "to": "0x" + chain.values.token.hex(),
        "data": "0x" + transfer.hex(),
        "gas": hex(200_000),
        "maxFeePerGas": hex(500 * 10**9),
        "maxPriorityFeePerGas": hex(50 * 10**9),
    }
    await chain.rpc.command("eth_sendTransaction", call)


async def is_in_pool(one: Sponsored) -> bool:
    return any(tx.status is TxStatus.SENT for tx in await one.journal.open_transactions())


async def use_nonce_elsewhere(one: Sponsored, *, nonce: int) -> None:
    """A person uses the payee's key by hand, and bids more than a deposit may cost."""
    payee = "0x" + one.chain.account("payee").address.hex()
    await one.chain.rpc.command("anvil_impersonateAccount", payee)
    transfer = {
        "from": payee,
        "to": "0x" + one.payer.address.hex(),
        "value": "0x1",
        "nonce": hex(nonce),
        "gas": hex(21_000),
        "maxFeePerGas": hex(5_000 * 10**9),
        "maxPriorityFeePerGas": hex(4_000 * 10**9),
    }
    await one.chain.rpc.command("eth_sendTransaction", transfer)


async def open_other(folder: Path, chain: Devnet) -> SqliteJournal:
    payee = chain.account("payee").address
    url = f"sqlite:///{folder / 'ledger.sqlite'}"
    opened = await open_journal(url, chain_id=chain.values.chain_id, account=payee)
    assert isinstance(opened, SqliteJournal)
    return opened
