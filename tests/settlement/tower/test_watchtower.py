"""A watchtower on a real chain: what it does for a payee who is not there, and all it cannot do."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.errors import ChainUnavailableError, InvariantError
from channel.state.channel_state import LadderVoucher
from channel.types import Address, ChannelId
from channel.verify.typed_data import close_authorization_digest, derive_channel_id
from settlement import abi
from settlement.alarms import AlarmKind
from settlement.dev.devnet import Devnet
from settlement.errors import ContractRevertedError
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from settlement.node.chain_clock import ChainClock
from settlement.node.rpc import Rpc, RpcLimits
from settlement.presigned.authorization import PresignedSettle, presign
from settlement.settle.quarantine import Quarantine
from settlement.settle.schedule import SettlePolicy
from settlement.settle.settler import EscrowSettler, SettlerLimits
from settlement.tower.calls import PresignedCalls
from settlement.tower.watchtower import TowerLimits, Watchtower
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.state import Purpose
from settlement.types import BatchEntry, RevertReason
from tests.faults.odd_answers import ODD_ANSWERS
from tests.faults.proxy import LyingNode, lying_node
from tests.settlement.books import request_close
from tests.settlement.channels import DEPOSIT, Channels, set_paused
from tests.settlement.flaky_node import flaky_node
from tests.waiting import PATIENCE_S, put_ahead

GRACE_S = 900
MONTH_S = 30 * 24 * 3600
SETTLE = abi.settle_with_authorization.encode(bytes(32), 0, 0, 0, b"", b"")[:4].hex()
TX = TxLimits(mined_within_s=5.0, poll_max_s=0.05, resend_after_s=0.3)


class Tower:
    """A watchtower whose gas a stranger pays, and the payee that signs ahead for it."""

    def __init__(
        self, chain: Devnet, reader: EscrowReader, channels: Channels, journal: SqliteJournal
    ) -> None:
        self.chain, self.channels, self.journal = chain, channels, journal
        self.payee = chain.signer("payee")
        self.now = 0.0
        calls = PresignedCalls(self.payee.address)
        sender = TxManager(reader.rpc, chain.signer("stranger"), journal=journal, limits=TX)
        self.settler = EscrowSettler(
            reader,
            sender,
            calls=calls,
            quarantine=Quarantine(journal, clock=lambda: self.now, wall=lambda: self.now),
            limits=SettlerLimits(batch_max=1),
        )
        self.tower = Watchtower(
            reader,
            self.settler,
            calls,
            gas_account=sender.address,
            limits=TowerLimits(forget_after_blocks=2, unheard_s_max=100, away_s_max=100),
        )

    async def sign(
        self, channel_id: ChannelId, amount: int, *, life_s: int = MONTH_S
    ) -> PresignedSettle:
        voucher = LadderVoucher(amount, self.channels.sign(channel_id, amount))
        deadline = (await self.chain.rpc.block()).timestamp + life_s
        key = self.channels.key(channel_id)
        return await presign(key, voucher, payee=self.payee, deadline=deadline)

    async def give(self, *settles: PresignedSettle) -> int:
        refused = self.tower.take([settle.format_line().rstrip() for settle in settles])
        await self.tower.look()
        return refused

    async def look(self) -> None:
        """Look, and let what was begun come to its end."""
        await self.tower.look()
        await self.tower.tasks.drain()

    async def settled(self, channel_id: ChannelId) -> int:
        reader = EscrowReader(self.chain.rpc, self.chain.values.escrow)
        fact = await reader.read_channel(channel_id)
        assert fact is not None
        return fact.settled

    def held(self, channel_id: ChannelId) -> int | None:
        settle = self.tower.held.get(self.channels.key(channel_id))
        return None if settle is None else settle.cumulative_amount

    def rings(self, kind: AlarmKind) -> bool:
        return any(alarm.kind is kind for alarm in self.tower.alarms.ringing)


@pytest.fixture
async def tower(
    chain: Devnet, reader: EscrowReader, channels: Channels, tmp_path: Path
) -> AsyncIterator[Tower]:
    journal = await SqliteJournal.open(
        tmp_path / "tower.db",
        chain_id=chain.rpc.chain_id,
        account=chain.account("stranger").address,
    )
    await journal.take_lease("test", ttl_s=3600)
    built = Tower(chain, reader, channels, journal)
    try:
        yield built
    finally:
        await built.tower.tasks.aclose()
        await built.settler.aclose()
        await journal.close()


# -- what it does


async def test_it_settles_for_a_payee_who_is_not_there(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """F-64, SETTLE-01: within the grace, at its own gas; the rest stays the payer's."""
    payee = chain.account("payee").address
    before, gas = await chain.token_balance(payee), await chain.rpc.balance_wei(payee)
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 700))
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2 - 5)
    await tower.look()
    assert await tower.settled(channel_id) == 0, "it is still the payee's own turn"
    assert not tower.rings(AlarmKind.TOWER_ACTS)
    await chain.advance(10)
    await tower.look()
    assert tower.rings(AlarmKind.TOWER_ACTS)
    assert await tower.settled(channel_id) == 700
    assert await chain.token_balance(payee) == before + 700
    assert await chain.rpc.balance_wei(payee) == gas, "the payee pays nothing"
    await tower.look()
    assert not tower.rings(AlarmKind.TOWER_ACTS)
    await chain.advance(GRACE_S)
    payer = chain.account("payer").address
    had = await chain.token_balance(payer)
    await account.withdraw(escrow=chain.values.escrow, channel_id=channel_id)
    assert await chain.token_balance(payer) == had + DEPOSIT - 700


async def test_it_does_nothing_while_the_payee_settles_itself(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """F-110: the two never conflict; the second finds nothing to do."""
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 700))
    await request_close(chain, account, channel_id)
    close = abi.close.encode(channel_id, 700, channels.sign(channel_id, 700))
    await chain.sender("payee").send(chain.values.escrow, close)
    sent = await chain.rpc.read(
        "eth_getTransactionCount", "0x" + chain.account("stranger").address.hex(), "latest"
    )
    await chain.advance(GRACE_S - 10)
    await tower.look()
    assert sent == await chain.rpc.read(
        "eth_getTransactionCount", "0x" + chain.account("stranger").address.hex(), "latest"
    )
    assert not tower.rings(AlarmKind.TOWER_ACTS)


async def test_a_live_channel_is_left_alone(
    tower: Tower, chain: Devnet, channels: Channels
) -> None:
    """Decision 5: what covers more than was delivered is for an exit alone."""
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 700))
    await chain.advance(10 * GRACE_S)
    await tower.look()
    assert await tower.settled(channel_id) == 0


async def test_an_exit_that_is_taken_back_is_left_alone(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """TOPUP-05."""
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 700))
    await request_close(chain, account, channel_id)
    await channels.top_up(channel_id, 1)
    await chain.advance(GRACE_S)
    await tower.look()
    assert await tower.settled(channel_id) == 0


async def test_many_exits_are_all_settled(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """F-66: each in a transaction of its own, all under way together."""
    ids = [await channels.open() for _ in range(12)]
    await tower.give(*[await tower.sign(each, 100 + n) for n, each in enumerate(ids)])
    for each in ids:
        await request_close(chain, account, each)
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert [await tower.settled(each) for each in ids] == [100 + n for n in range(12)]


async def test_dust_is_not_worth_the_towers_gas(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """F-66: strangers could use it up by leaving with next to nothing owed."""
    tower.tower._policy = SettlePolicy(  # noqa: SLF001 -- as an operator sets it
        defend_min=10, token_price_wei=10**15
    )
    dust, little, much = [await channels.open() for _ in range(3)]
    await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    await tower.give(
        await tower.sign(dust, 9), await tower.sign(little, 99), await tower.sign(much, 900_000)
    )
    for each in (dust, little, much):
        await request_close(chain, account, each)
    await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert [await tower.settled(each) for each in (dust, little, much)] == [0, 0, 900_000]


async def test_a_paused_token_is_tried_until_it_moves(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """F-87."""
    channel_id = await channels.open()
    await set_paused(chain, on=True)
    await tower.give(await tower.sign(channel_id, 700))
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert await tower.settled(channel_id) == 0
    await set_paused(chain, on=False)
    await tower.look()
    assert await tower.settled(channel_id) == 0, "it is left alone for a while"
    tower.now += 30
    await tower.look()
    assert await tower.settled(channel_id) == 700


async def test_what_is_signed_ahead_is_good_to_the_end_of_the_grace(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """RELAY-04: an outage of two weeks, and an exit at the end of it."""
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 700, life_s=MONTH_S // 2))
    await tower.give(await tower.sign(channel_id, 700))  # renewed
    await chain.advance(MONTH_S // 2)
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S - 5)
    await tower.look()
    assert await tower.settled(channel_id) == 700


# -- what it takes


async def test_a_newer_one_takes_an_older_ones_place_and_never_the_other_way(
    tower: Tower, channels: Channels
) -> None:
    """RELAY-03: old lines come again with every copy of the file, in any order."""
    channel_id = await channels.open()
    old, new = await tower.sign(channel_id, 500), await tower.sign(channel_id, 700)
    await tower.give(old)
    assert tower.held(channel_id) == 500
    await tower.give(new)
    await tower.give(old, old)
    assert tower.held(channel_id) == 700


@pytest.mark.parametrize("what", ["payee", "signature", "amount", "chain", "escrow", "close"])
async def test_what_the_payee_did_not_sign_for_here_is_refused(
    tower: Tower, chain: Devnet, channels: Channels, what: str
) -> None:
    """RELAY-02, RELAY-05: before any node is asked."""
    channel_id = await channels.open()
    good = await tower.sign(channel_id, 500)
    thief = chain.signer("stranger")
    close = close_authorization_digest(good.key, 500, nonce=good.nonce, deadline=good.deadline)
    changed = {
        "payee": replace(good, payee=thief.address),
        "signature": replace(good, payee_signature=await thief.sign_message(good.digest)),
        "amount": replace(good, cumulative_amount=900),
        "chain": replace(good, key=replace(good.key, chain_id=1)),
        "escrow": replace(good, key=replace(good.key, escrow=Address(b"x" * 20))),
        "close": replace(good, payee_signature=await tower.payee.sign_message(close)),
    }
    assert await tower.give(changed[what]) == 1
    assert tower.held(channel_id) is None


async def test_what_has_expired_is_refused(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """RELAY-04: by the chain's time, when it comes and when it is held."""
    channel_id = await channels.open()
    short = await tower.sign(channel_id, 500, life_s=60)
    await tower.give(short)
    assert tower.held(channel_id) == 500
    await chain.advance(61)
    await chain.mine(3)
    await tower.look()
    await chain.mine(3)
    await tower.look()
    assert tower.held(channel_id) is None
    await tower.give(short)
    assert (tower.held(channel_id), tower.tower.waiting) == (None, 0)
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S)
    await tower.look()
    assert await tower.settled(channel_id) == 0


async def test_one_that_is_worth_less_and_lives_longer_serves_when_the_other_has_expired(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """RELAY-04: as when a large step was settled meanwhile, and the provider died after that."""
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 900, life_s=GRACE_S))
    await tower.give(await tower.sign(channel_id, 500))
    assert tower.held(channel_id) == 900
    await chain.advance(GRACE_S + 1)
    for _ in range(3):
        await tower.look()
    assert tower.held(channel_id) == 500
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert await tower.settled(channel_id) == 500


async def test_one_that_lives_longer_serves_after_a_restart_too(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """RELAY-04: the whole file arrives before the chain's time is known."""
    channel_id = await channels.open()
    expired = await tower.sign(channel_id, 900, life_s=GRACE_S)
    await chain.advance(GRACE_S + 1)
    await tower.give(expired, await tower.sign(channel_id, 500))
    await tower.look()
    assert tower.held(channel_id) == 500
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert await tower.settled(channel_id) == 500


async def test_a_voucher_that_the_escrow_would_not_take_displaces_none(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """SEC-05: the escrow itself is asked, by simulation."""
    channel_id = await channels.open()
    good, forged = await tower.sign(channel_id, 500), await tower.sign(channel_id, 900)
    forged = replace(forged, voucher_signature=bytes(65))
    await tower.give(good)
    await tower.give(forged, await tower.sign(channel_id, DEPOSIT + 1))
    assert tower.held(channel_id) == 500
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert await tower.settled(channel_id) == 500


async def test_what_is_settled_already_is_not_held(
    tower: Tower, chain: Devnet, channels: Channels
) -> None:
    """F-80."""
    channel_id = await channels.open()
    early = await tower.sign(channel_id, 400)
    settle = abi.settle.encode(channel_id, 500, channels.sign(channel_id, 500))
    await chain.sender("payee").send(chain.values.escrow, settle)
    await tower.give(early)
    assert tower.held(channel_id) is None


async def test_a_line_that_comes_before_its_channel_is_seen_is_not_lost(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """F-72: the provider's node may be ahead of the tower's, and a line comes once."""
    channel_id = derive_channel_id(
        channels.terms,
        salt=(1).to_bytes(32, "big"),
        escrow=chain.values.escrow,
        chain_id=chain.values.chain_id,
    )
    await tower.give(await tower.sign(channel_id, 700))
    assert tower.held(channel_id) is None
    assert await channels.open() == channel_id
    await tower.look()
    assert tower.held(channel_id) == 700
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert await tower.settled(channel_id) == 700


async def test_a_settle_that_a_reorg_takes_back_is_made_up_for(
    tower: Tower, chain: Devnet, channels: Channels, account: PayerAccount
) -> None:
    """F-71: also when the line came while the settle was there, as after a restart."""
    channel_id = await channels.open()
    early = await tower.sign(channel_id, 400)
    settle = abi.settle.encode(channel_id, 500, channels.sign(channel_id, 500))
    await chain.sender("payee").send(chain.values.escrow, settle)
    await tower.give(early)
    assert tower.held(channel_id) is None
    await chain.rpc.command("anvil_reorg", 1, [])
    assert await tower.settled(channel_id) == 0
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2)
    await tower.look()
    assert await tower.settled(channel_id) == 400


async def test_a_line_that_stays_worthless_is_dropped_in_the_end(
    tower: Tower, chain: Devnet, channels: Channels
) -> None:
    """It is asked about until no ordinary reorg makes it good again, and no longer."""
    channel_id = await channels.open()
    early = await tower.sign(channel_id, 400)
    settle = abi.settle.encode(channel_id, 500, channels.sign(channel_id, 500))
    await chain.sender("payee").send(chain.values.escrow, settle)
    await tower.give(early)
    assert tower.tower.waiting == 1
    await chain.mine(2)
    await tower.look()
    assert (tower.tower.waiting, tower.held(channel_id)) == (0, None)


async def test_what_is_no_line_does_no_harm(tower: Tower, channels: Channels) -> None:
    channel_id = await channels.open()
    assert tower.tower.take([b"", b"nonsense", b"\xff\xfe", b"[]"]) == 4
    await tower.give(await tower.sign(channel_id, 500))
    assert tower.held(channel_id) == 500


# -- what it cannot do


async def test_it_can_close_no_channel_and_pay_only_the_payee(
    tower: Tower, chain: Devnet, channels: Channels
) -> None:
    """F-67, F-81, RELAY-05: neither by its code nor with what it has in its hands."""
    channel_id = await channels.open()
    settle = await tower.sign(channel_id, 700)
    calls = PresignedCalls(tower.payee.address)
    calls.hold(settle)
    entry = BatchEntry(channel_id, 700, settle.voucher_signature)
    with pytest.raises(InvariantError):
        await calls.build(Purpose.CLOSE, [entry])
    with pytest.raises(InvariantError):
        await calls.build(Purpose.SETTLE, [replace(entry, cumulative_amount=701)])
    with pytest.raises(InvariantError):
        await calls.build(Purpose.SETTLE, [entry, entry])
    thief = chain.sender("stranger")
    terms = (channel_id, 700, settle.nonce, settle.deadline)
    signed = (settle.payee_signature, settle.voucher_signature)
    for calldata, reason in (
        (abi.close.encode(channel_id, 700, settle.voucher_signature), RevertReason.NOT_PAYEE),
        (abi.settle.encode(channel_id, 700, settle.voucher_signature), RevertReason.NOT_PAYEE),
        (abi.close_with_authorization.encode(*terms, *signed), RevertReason.INVALID_SIGNATURE),
    ):
        with pytest.raises(ContractRevertedError) as refused:
            await thief.send(chain.values.escrow, calldata)
        assert refused.value.reason is reason
    mine = chain.account("stranger").address
    before = await chain.token_balance(mine)
    await thief.send(chain.values.escrow, settle.calldata())
    assert await chain.token_balance(mine) == before


# -- what it tells


async def test_it_tells_when_nothing_comes_from_the_provider(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tower.tower.turn()
    assert not tower.rings(AlarmKind.TOWER_UNFED)
    put_ahead(100, monkeypatch)
    await tower.tower.turn()
    assert tower.rings(AlarmKind.TOWER_UNFED)
    tower.tower.take([b"{}"])
    await tower.tower.turn()
    assert not tower.rings(AlarmKind.TOWER_UNFED)


async def test_it_tells_when_its_own_gas_runs_low(tower: Tower, chain: Devnet) -> None:
    """F-65."""
    account = "0x" + chain.account("stranger").address.hex()
    await chain.rpc.command("anvil_setBalance", account, hex(10**9))
    await tower.look()
    assert tower.rings(AlarmKind.GAS_LOW)
    await chain.rpc.command("anvil_setBalance", account, hex(10**18))
    await tower.look()
    assert not tower.rings(AlarmKind.GAS_LOW)


async def test_it_tells_when_no_node_answers_and_goes_on_after(
    chain: Devnet, tower: Tower, caplog: pytest.LogCaptureFixture
) -> None:
    limits = RpcLimits(timeout_s=PATIENCE_S, read_attempts_max=1)
    async with (
        flaky_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url, limits=limits) as rpc,
    ):
        away = Watchtower(
            EscrowReader(rpc, chain.values.escrow),
            tower.settler,
            PresignedCalls(tower.payee.address),
            gas_account=chain.account("stranger").address,
            limits=TowerLimits(away_s_max=0.0, still_s_max=None),
        )
        await away.turn()
        assert not away.alarms.ringing
        node.fail("drop", method="eth_getBlockByNumber")
        with caplog.at_level(logging.CRITICAL):
            await away.turn()
        assert [alarm.kind for alarm in away.alarms.ringing] == [AlarmKind.CHAIN_AWAY]


async def test_a_node_that_fell_behind_is_not_believed(tower: Tower, chain: Devnet) -> None:
    """F-72."""
    await chain.mine(3)
    await tower.look()
    head = await chain.rpc.block_number()
    await chain.rpc.command("anvil_rollback", 2)
    assert await chain.rpc.block_number() < head
    with pytest.raises(ChainUnavailableError):
        await tower.tower.look()


async def test_a_node_with_a_chain_of_its_own_hides_no_exit(
    chain: Devnet, tower: Tower, channels: Channels, account: PayerAccount
) -> None:
    """F-63, SEC-09: two of three show another block; the first is dropped with an alarm."""
    channel_id = await channels.open()
    await chain.mine(9)
    async with AsyncExitStack() as open_:
        nodes = [
            await open_.enter_async_context(flaky_node(chain.values.rpc_url)) for _ in range(3)
        ]
        rpc = await open_.enter_async_context(await Rpc.connect([node.url for node in nodes]))
        reader, calls = EscrowReader(rpc, chain.values.escrow), PresignedCalls(tower.payee.address)
        settler = EscrowSettler(reader, TxManager(rpc, chain.signer("stranger")), calls=calls)
        guarded = Watchtower(reader, settler, calls, gas_account=chain.account("stranger").address)
        settle = await tower.sign(channel_id, 700)
        guarded.take([settle.format_line().rstrip()])
        await guarded.turn()
        await request_close(chain, account, channel_id)
        await chain.advance(GRACE_S // 2)
        head = await chain.rpc.read("eth_getBlockByNumber", "latest", False)  # noqa: FBT003
        nodes[0].lies["eth_getBlockByNumber"] = {**head, "hash": "0x" + "11" * 32}
        nodes[0].seen.clear()
        await guarded.turn()
        await guarded.tasks.drain()
        assert "eth_call" not in nodes[0].seen
        assert any(each.kind is AlarmKind.NODES_DISAGREE for each in guarded.alarms.ringing)
        await settler.aclose()
    assert await tower.settled(channel_id) == 700


async def test_a_line_that_the_node_will_not_simulate_hides_no_other(
    chain: Devnet, tower: Tower, channels: Channels, account: PayerAccount
) -> None:
    """F-79: a payer's wallet can be made so that its check takes too long for a node."""
    async with (
        lying_node(chain.values.rpc_url) as node,
        await Rpc.connect(node.url) as rpc,
    ):
        reader = EscrowReader(rpc, chain.values.escrow)
        tower.tower._reader = reader  # noqa: SLF001 -- the same tower, behind this node
        slow, other = await channels.open(), await channels.open()
        answer = node._lie  # noqa: SLF001

        def too_long(call: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
            is_simulated = call["method"] == "eth_call" and SETTLE in str(call["params"])
            if is_simulated and slow.hex() in str(call["params"]):
                error = {"code": -32000, "message": "execution aborted (timeout = 5s)"}
                return {"jsonrpc": "2.0", "id": call["id"], "error": error}
            return answer(call, said)

        node._lie = too_long  # type: ignore[assignment, method-assign]  # noqa: SLF001
        await tower.give(await tower.sign(slow, 500), await tower.sign(other, 700))
        await request_close(chain, account, other)
        await chain.advance(GRACE_S // 2)
        await tower.look()
        assert await tower.settled(other) == 700
        assert tower.held(slow) == 500, "it may be good: the chain itself will say"


async def test_what_it_sends_has_the_deadline_of_the_grace(
    tower: Tower, chain: Devnet, reader: EscrowReader, channels: Channels, account: PayerAccount
) -> None:
    """O-97, F-78: without one its bid would stay at the share for what does not press."""
    channel_id = await channels.open()
    await tower.give(await tower.sign(channel_id, 700))
    await request_close(chain, account, channel_id)
    await chain.advance(GRACE_S // 2 + 5)
    await tower.look()
    fact = await reader.read_channel(channel_id)
    assert fact is not None
    (sent,) = await tower.journal.transactions_from(0)
    assert sent.intent.deadline == fact.close_requested_at + GRACE_S


async def test_one_node_of_three_may_answer_it_anything(  # noqa: PLR0917 -- fixtures
    chain: Devnet,
    reader: EscrowReader,
    tower: Tower,
    channels: Channels,
    account: PayerAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """O-80: it looks on, holds what it was given, and settles when that is due."""
    monkeypatch.setattr("settlement.node.endpoints.COOLDOWN_S", 0.001)
    monkeypatch.setattr("settlement.node.endpoints.COOLDOWN_S_MAX", 0.001)
    channel_id = await channels.open()
    settle = await tower.sign(channel_id, 700)
    async with AsyncExitStack() as open_:
        nodes = [
            await open_.enter_async_context(lying_node(chain.values.rpc_url)) for _ in range(3)
        ]
        connecting = Rpc.connect([node.url for node in nodes], limits=RpcLimits(retry_delay_s=0.01))
        reader.rpc = await open_.enter_async_context(await connecting)
        for odd in ODD_ANSWERS.values():
            nodes[0].odd = odd
            await tower.give(settle)
            assert tower.held(channel_id) == 700
        await request_close(chain, account, channel_id)
        await chain.advance(GRACE_S // 2 + 5)
        nodes[0].odd = ODD_ANSWERS["reverted"]
        await tower.look()
        assert await tower.settled(channel_id) == 700


@pytest.mark.parametrize("by_s", [-GRACE_S, 10 * MONTH_S])
async def test_one_node_that_dates_its_blocks_falsely_costs_no_settle(  # noqa: PLR0917 -- fixtures
    chain: Devnet,
    reader: EscrowReader,
    tower: Tower,
    channels: Channels,
    account: PayerAccount,
    by_s: int,
) -> None:
    """O-80, O-88: no line is refused as expired or displaced by that, and none comes too late."""
    channel_id, other = await channels.open(), await channels.open()
    ahead, later = await tower.sign(channel_id, 900), await tower.sign(other, 600)
    spare = await tower.sign(channel_id, 500, life_s=20 * MONTH_S)
    wall = (await chain.rpc.block()).timestamp
    tower.tower.clock = ChainClock(wall=lambda: wall)
    async with lying_node(chain.values.rpc_url) as node:
        reader.rpc = await Rpc.connect(node.url)
        await tower.give(ahead, spare)
        date_falsely(node, by_s)
        await chain.mine()
        await tower.look()
        assert await tower.give(later) == 0
        await tower.look()
        assert (tower.held(channel_id), tower.held(other)) == (900, 600)
        await request_close(chain, account, channel_id)
        await chain.advance(GRACE_S // 2 + 5)
        wall += GRACE_S // 2 + 10
        if by_s > 0:
            node.lies.clear()
        await tower.look()
        assert await tower.settled(channel_id) == 900
        await reader.rpc.close()


def date_falsely(node: LyingNode, by_s: int) -> None:
    def lie(_: list[Any], block: dict[str, Any]) -> dict[str, Any]:
        return {**block, "timestamp": hex(int(block["timestamp"], 16) + by_s)}

    node.lies["eth_getBlockByNumber"] = lie


async def test_of_three_nodes_one_that_dates_its_blocks_falsely_is_left_out(
    chain: Devnet,
    reader: EscrowReader,
    tower: Tower,
    channels: Channels,
    account: PayerAccount,
) -> None:
    """O-88: by the others' word a settle is not too late."""
    channel_id = await channels.open()
    await chain.mine(9)
    async with AsyncExitStack() as open_:
        nodes = [
            await open_.enter_async_context(lying_node(chain.values.rpc_url)) for _ in range(3)
        ]
        connecting = Rpc.connect([node.url for node in nodes])
        reader.rpc = await open_.enter_async_context(await connecting)
        date_falsely(nodes[0], -GRACE_S)
        await tower.give(await tower.sign(channel_id, 700))
        await request_close(chain, account, channel_id)
        await chain.advance(GRACE_S // 2 + 5)
        await tower.look()
        assert await tower.settled(channel_id) == 700
        assert tower.rings(AlarmKind.NODES_DISAGREE)
