"""O-81: a node that counts an account's transactions wrongly holds up nothing for good."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.limits import GAP_FILLED_MAX
from channel.types import TxHash
from settlement.alarms import AlarmKind
from settlement.dev.devnet import Devnet
from settlement.errors import LeaseLostError, SignerError, TransactionReplacedError
from settlement.node.rpc import Rpc, RpcLimits
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.state import TxStatus
from tests.faults.proxy import LyingNode, lying_node
from tests.settlement.channels import send_blindly
from tests.settlement.senders import Interrupted, are_pooled, pay_one, received
from tests.settlement.tx.test_monitor import open_journal
from tests.waiting import PATIENCE_S, until

COUNT, SEND = "eth_getTransactionCount", "eth_sendRawTransaction"
LIMITS = TxLimits(
    mined_within_s=PATIENCE_S,
    poll_max_s=0.02,
    resend_after_s=0.05,
    bump_after_s=60,
    overtaken_after_s=0.1,
    jump_checked_s=0.2,
    gap_after_s=0.3,
)


class Sending:
    """A sender with a journal on disk, and its nodes."""

    def __init__(self, chain: Devnet, nodes: list[LyingNode], journal: SqliteJournal) -> None:
        self.chain, self.nodes, self.journal = chain, nodes, journal
        self.rpcs = AsyncExitStack()

    async def sender(self, nodes: int, *, limits: TxLimits = LIMITS) -> TxManager:
        """Return a sender that asks the first so many nodes."""
        rpc_limits = RpcLimits(timeout_s=5.0, read_attempts_max=2, retry_delay_s=0.01)
        connecting = Rpc.connect([node.url for node in self.nodes[:nodes]], limits=rpc_limits)
        rpc = await self.rpcs.enter_async_context(await connecting)
        return TxManager(rpc, self.chain.signer("stranger"), journal=self.journal, limits=limits)

    async def nonces(self) -> list[int | None]:
        return [tx.nonce for tx in await self.journal.transactions_from(0)]


@pytest.fixture
async def sending(chain: Devnet, tmp_path: Path) -> AsyncIterator[Sending]:
    async with AsyncExitStack() as open_:
        nodes = [
            await open_.enter_async_context(lying_node(chain.values.rpc_url)) for _ in range(3)
        ]
        journal = await open_.enter_async_context(open_journal(chain, tmp_path))
        sending = Sending(chain, nodes, journal)
        async with sending.rpcs:
            yield sending


def more(by: int, *, times: int = 10**9):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """A lie: so many more transactions than there are, so many times."""
    left = [times]

    def lie(_params: object, said: str) -> str:
        left[0] -= 1
        return said if left[0] < 0 else hex(max(0, int(said, 16) + by))

    return lie


@pytest.mark.parametrize(
    ("nodes", "times"), [(1, 2), (2, 10**9), (3, 10**9)], ids=["one, once", "two", "three"]
)
@pytest.mark.parametrize("by", [1, 3, 10**9])
async def test_a_nonce_that_one_node_invents_is_not_given(
    sending: Sending, chain: Devnet, nodes: int, times: int, by: int
) -> None:
    """O-81: the very first transaction of a journal, and one after others."""
    sender = await sending.sender(nodes)
    for _ in range(2):
        sending.nodes[0].lies[COUNT] = more(by, times=times)  # `latest` and `pending`
        await sender.send(chain.values.token, pay_one(chain))
        sending.nodes[0].lies.clear()
    assert await sending.nonces() == [0, 1]
    assert await received(chain) == 2


async def test_a_count_that_is_too_low_changes_nothing(sending: Sending, chain: Devnet) -> None:
    """O-81, F-72: nor does it have all that ended looked at anew."""
    sender = await sending.sender(3)
    for _ in range(3):
        await sender.send(chain.values.token, pay_one(chain))
    run = asyncio.create_task(sender.run())
    await until(lambda: _is_all(sending.journal, TxStatus.FINAL))
    sending.nodes[0].lies[COUNT] = more(-3)
    async with chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        asked = sending.nodes[1].requests
        await until(lambda: sending.nodes[1].requests > asked + 3)
        ended = await sending.journal.transactions_from(0)
        assert [tx.status for tx in ended[:3]] == 3 * [TxStatus.FINAL]
    await sender.resume(tx_hash)
    await _end(run)
    assert await sending.nonces() == [0, 1, 2, 3]


async def test_one_node_takes_no_transaction_for_replaced(sending: Sending, chain: Devnet) -> None:
    """O-81: it counts past one that is on its way, for as long as that counts as overtaken."""
    sender = await sending.sender(3)
    run = asyncio.create_task(sender.run())
    async with chain.mining_paused():
        tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
        sending.nodes[0].lies[COUNT] = more(5)
        await asyncio.sleep(4 * LIMITS.overtaken_after_s)
        (tx,) = await sending.journal.open_transactions()
        assert tx.status is TxStatus.SENT
    await sender.resume(tx_hash)
    await _end(run)
    assert await received(chain) == 1


@pytest.mark.parametrize("size", [1, 3])
async def test_a_gap_is_filled_with_an_alarm(sending: Sending, chain: Devnet, size: int) -> None:
    """O-81: a node that is alone lies for longer than it is asked; then the truth comes out."""
    sender = await sending.sender(1, limits=replace(LIMITS, jump_checked_s=0.01))
    await sender.send(chain.values.token, pay_one(chain))
    sending.nodes[0].lies[COUNT] = more(size)
    tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
    assert await sending.nonces() == [0, 1 + size]
    sending.nodes[0].lies.clear()
    run = asyncio.create_task(sender.run())
    await until(lambda: _rings(sender))
    await sender.resume(tx_hash)
    await until(lambda: not _rings(sender))
    await until(lambda: _is_all(sending.journal, TxStatus.FINAL))
    await _end(run)
    assert await sending.nonces() == list(range(2 + size))
    assert await received(chain) == 2


async def test_a_gap_is_filled_up_to_a_bound(sending: Sending, chain: Devnet) -> None:
    """O-81: each nonce costs a transfer's gas; beyond the bound the alarm alone is left."""
    sender = await sending.sender(1, limits=replace(LIMITS, jump_checked_s=0.01, gap_after_s=0.05))
    sending.nodes[0].lies[COUNT] = more(GAP_FILLED_MAX + 1)
    await sender.broadcast(chain.values.token, pay_one(chain))
    sending.nodes[0].lies.clear()
    run = asyncio.create_task(sender.run())
    await until(lambda: _rings(sender))
    assert "too many" in sender.alarms.ringing[0].text
    await _end(run)
    assert await sending.nonces() == [GAP_FILLED_MAX + 1]


@asynccontextmanager
async def gap_of_two(
    sending: Sending, chain: Devnet, meanwhile: Callable[[], Awaitable[object]], *, at: int
) -> AsyncIterator[tuple[TxManager, TxHash]]:
    """A transaction that waits for nonces 0 and 1, and what happens at so many a signature."""
    rpc = (await sending.sender(1)).rpc
    signer = Interrupted(chain.account("stranger").private_key, meanwhile, at=(at,))
    limits = replace(LIMITS, jump_checked_s=0.01, gap_after_s=0.05)
    sender = TxManager(rpc, signer, journal=sending.journal, limits=limits)
    sending.nodes[0].lies[COUNT] = more(2)
    tx_hash = await sender.broadcast(chain.values.token, pay_one(chain))
    sending.nodes[0].lies.clear()
    assert await sending.nonces() == [2]
    yield sender, tx_hash


@pytest.mark.parametrize("at", [2, 3])
async def test_a_gap_that_a_signer_does_not_fill_is_tried_again(
    sending: Sending, chain: Devnet, at: int
) -> None:
    """O-98, O-81: it is away for the first nonce that is missing, or for the second."""

    async def be_away() -> None:
        raise SignerError("The signer does not answer.")

    async with gap_of_two(sending, chain, be_away, at=at) as (sender, tx_hash):
        run = asyncio.create_task(sender.run())
        assert (await sender.resume(tx_hash)).is_success
        await until(lambda: _is_all(sending.journal, TxStatus.FINAL))
        await _end(run)
    assert await sending.nonces() == [0, 1, 2]
    assert await received(chain) == 1


async def test_a_settler_without_the_lease_fills_no_gap(
    sending: Sending, chain: Devnet, tmp_path: Path
) -> None:
    """O-98, F-110: the settler that has it by now fills it; two would pay twice for each nonce."""
    async with open_journal(chain, tmp_path) as other:

        async def lose() -> None:
            await sending.journal.release_lease()
            assert await other.take_lease("another", ttl_s=600) is not None

        async with gap_of_two(sending, chain, lose, at=2) as (sender, tx_hash):
            with pytest.raises(LeaseLostError):
                await sender.resume(tx_hash)
        assert await sending.nonces() == [2]
        limits = replace(LIMITS, gap_after_s=0.05)
        second = TxManager(chain.rpc, chain.signer("stranger"), journal=other, limits=limits)
        await second.recover()
        assert (await second.resume(tx_hash)).is_success
    assert await sending.nonces() == [0, 1, 2]
    assert await received(chain) == 1


async def test_a_gap_is_filled_with_the_bytes_that_were_given_up(
    sending: Sending, chain: Devnet
) -> None:
    """O-98, F-70, F-113: what took its nonce, a reorg took back; nothing new is signed for it."""
    limits = replace(LIMITS, gap_after_s=0.05)
    sender = TxManager(chain.rpc, chain.signer("stranger"), journal=sending.journal, limits=limits)
    await chain.mine()
    async with chain.mining_paused():
        given_up = await sender.broadcast(chain.values.token, pay_one(chain))
        await chain.rpc.command("anvil_dropTransaction", "0x" + given_up.hex())
        foreign = asyncio.create_task(
            send_blindly(chain, chain.values.token, b"\x00", by="stranger")
        )
        await until(lambda: are_pooled(chain, 1))
        await chain.mine()
        taken_by = await foreign
    with pytest.raises(TransactionReplacedError):
        await sender.resume(given_up)
    await chain.rpc.command("anvil_reorg", 2, [])  # with the block that ends the pause
    await chain.rpc.command("anvil_dropTransaction", "0x" + taken_by.hex())
    later = await sender.broadcast(chain.values.token, pay_one(chain))
    assert (await sender.resume(later)).is_success
    assert await chain.rpc.receipt(given_up) is not None
    assert [len(tx.versions) for tx in await sending.journal.transactions_from(0)] == [1, 1]
    assert await sending.nonces() == [0, 1]
    assert await received(chain) == 2


@pytest.mark.parametrize(
    "said",
    ["nonce too low", "already known", "replacement transaction underpriced", "txpool is full"],
)
@pytest.mark.parametrize("nodes", [2, 3])
async def test_what_one_node_says_of_a_transaction_is_its_own_word(
    sending: Sending, chain: Devnet, nodes: int, said: str
) -> None:
    """O-81, O-97, F-82: another takes it: it is mined once, with the first bid, on its nonce."""

    def refuse(_asked: object, answer: dict[str, object]) -> bytes:
        body = (
            f'{{"jsonrpc":"2.0","id":{answer["id"]},"error":{{"code":-32000,"message":"{said}"}}}}'
        )
        return body.encode()

    sending.nodes[0].odd, sending.nodes[0].odd_methods = refuse, {SEND}
    sending.nodes[0].keeps_transactions = True
    sender = await sending.sender(nodes)
    await sender.send(chain.values.token, pay_one(chain))
    (tx,) = await sending.journal.transactions_from(0)
    assert (tx.nonce, len(tx.versions)) == (0, 1)
    assert await received(chain) == 1


async def _end(run: asyncio.Task[None]) -> None:
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await asyncio.sleep(0.05)  # the look that it had begun


def _rings(sender: TxManager) -> bool:
    return any(alarm.kind is AlarmKind.NONCE_GAP for alarm in sender.alarms.ringing)


async def _is_all(journal: SqliteJournal, status: TxStatus) -> bool:
    return all(tx.status is status for tx in await journal.transactions_from(0))
