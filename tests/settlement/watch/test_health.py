"""Gas to defend, wallets that change their mind, nodes that differ: on a real chain."""

import pytest
from msgspec.structs import replace

from channel.errors import ChainUnavailableError, ExposureLimitError, OpeningsPausedError
from channel.methods.evm.method import EVM
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.types import Address, ChannelId, VerifiedVoucher
from settlement.alarms import AlarmKind, Alarms
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.escrow.wallets import WalletSigners
from settlement.node.rpc import Rpc
from settlement.settle.due import SweepTotals
from settlement.settle.exposure import ExposureGate, ExposureLimits
from settlement.tx.journal.interface import Quarantined
from settlement.watch.health import HealthChecks, HealthLimits
from tests.settlement.flaky_node import flaky_node
from tests.settlement.settle.test_schedule import channel
from tests.settlement.wallets import deploy_wallet

GWEI = 10**9


def promise(
    gate: ExposureGate, state: ChannelState, amount: int, *, by_contract: bool = True
) -> None:
    """Ask whether a voucher may be taken on a channel as it is."""
    gate.require_promise(VerifiedVoucher(state.key, amount, b"", by_contract=by_contract), state)


def kinds(alarms: Alarms) -> set[AlarmKind]:
    return {alarm.kind for alarm in alarms.ringing}


@pytest.fixture
def alarms() -> Alarms:
    return Alarms()


@pytest.fixture
def gate() -> ExposureGate:
    return ExposureGate(ExposureLimits(total_max=1000))


@pytest.fixture
def health(chain: Devnet, reader: EscrowReader, alarms: Alarms, gate: ExposureGate) -> HealthChecks:
    return HealthChecks(
        reader,
        alarms,
        gate,
        gas_account=chain.account("payee").address,
        limits=HealthLimits(closes_reserved_min=20, gas_per_close=80_000),
    )


async def test_openings_pause_when_gas_runs_low_and_go_on_when_there_is_more(
    health: HealthChecks, gate: ExposureGate, alarms: Alarms, chain: Devnet
) -> None:
    """F-65: the reserve grows with the channels that may have to be closed."""
    head = replace(await chain.rpc.block(), base_fee_wei=100 * GWEI)
    payee = "0x" + chain.account("payee").address.hex()
    for_twenty = 20 * 80_000 * 100 * GWEI * 2
    await chain.rpc.command("anvil_setBalance", payee, hex(for_twenty))
    await health.check(head, SweepTotals(defended=19))
    gate.require_openings()
    await health.check(head, SweepTotals(defended=20))
    assert AlarmKind.GAS_LOW in kinds(alarms)
    with pytest.raises(OpeningsPausedError):
        gate.require_openings()
    await health.check(replace(head, base_fee_wei=90 * GWEI), SweepTotals(defended=20))
    assert gate.is_gas_low, "the price moves with each block"
    await health.check(replace(head, base_fee_wei=70 * GWEI), SweepTotals(defended=20))
    gate.require_openings()
    assert alarms.ringing == []


async def test_the_unsettled_total_is_counted_and_reported(
    health: HealthChecks, gate: ExposureGate, alarms: Alarms, chain: Devnet
) -> None:
    """F-66."""
    head = await chain.rpc.block()
    await health.check(head, SweepTotals(at_risk=1000))
    assert AlarmKind.EXPOSURE_FULL in kinds(alarms)
    assert gate.is_full
    await health.check(head, SweepTotals(at_risk=999))
    assert alarms.ringing == []


async def _wallet_channel(chain: Devnet, behaviour: str) -> ChannelState:
    wallet = await deploy_wallet(chain.sender("stranger"), behaviour)
    state = channel(vouchers=(900,), spent=900, escrow=bytes(chain.values.escrow))
    return replace(
        state,
        key=replace(state.key, chain_id=chain.values.chain_id),
        terms=replace(state.terms, authorized_signer=wallet),
    )


async def test_a_wallet_that_changes_its_mind_is_served_no_more(
    health: HealthChecks, gate: ExposureGate, alarms: Alarms, chain: Devnet
) -> None:
    """F-19: and is served again when it takes its voucher again."""
    head = await chain.rpc.block()
    state = await _wallet_channel(chain, "agrees")
    assert WalletSigners(EVM.escrow.domain).is_wallet(state)
    totals = SweepTotals(defended=1, wallets=[state])
    await health.check(head, totals)
    assert alarms.ringing == []
    code = "0x" + (await chain.rpc.code(state.terms.signer)).hex()
    where = "0x" + state.terms.signer.hex()
    await chain.rpc.command("anvil_setCode", where, "0x5f5ffd")  # now it reverts
    await health.check(head, totals)
    (alarm,) = alarms.ringing
    assert alarm.kind is AlarmKind.SIGNER_CHANGED
    assert "900 at risk" in alarm.text
    with pytest.raises(ExposureLimitError):
        promise(gate, state, 900)
    await chain.rpc.command("anvil_setCode", where, code)
    await health.check(head, totals)
    promise(gate, state, 900)
    assert alarms.ringing == []


async def test_a_wallet_that_burns_or_lies_is_no_yes(
    health: HealthChecks, alarms: Alarms, chain: Devnet
) -> None:
    """F-20."""
    states = [
        await _wallet_channel(chain, behaviour)
        for behaviour in ("burns all gas", "says another word", "returns nothing")
    ]
    states = [
        replace(state, key=replace(state.key, channel_id=bytes([i]) * 32))
        for i, state in enumerate(states)
    ]
    await health.check(await chain.rpc.block(), SweepTotals(wallets=states))
    assert len([a for a in alarms.ringing if a.kind is AlarmKind.SIGNER_CHANGED]) == 3


def test_a_key_is_distinguished_from_a_wallet_without_a_node() -> None:
    """F-18: a signature that recovers to its signer is taken, with any code at the account."""
    signers = WalletSigners(EVM.escrow.domain)
    state = channel(vouchers=(5,), spent=5)
    assert signers.is_wallet(state)
    unsigned = replace(channel(number=2), highest=LadderVoucher(0, b""))
    assert not signers.is_wallet(unsigned)


async def test_while_nodes_disagree_no_deposit_is_believed(
    chain: Devnet, alarms: Alarms, gate: ExposureGate
) -> None:
    """SEC-09."""
    async with (
        flaky_node(chain.values.rpc_url) as node,
        await Rpc.connect([node.url, chain.values.rpc_url]) as rpc,
    ):
        health = HealthChecks(
            EscrowReader(rpc, chain.values.escrow), alarms, gate, gas_account=None
        )
        head = await chain.rpc.read("eth_getBlockByNumber", "latest", False)  # noqa: FBT003
        node.lies["eth_getBlockByNumber"] = {**head, "hash": "0x" + "77" * 32}
        await health.begin()
        assert kinds(alarms) == {AlarmKind.NODES_DISAGREE}
        with pytest.raises(ChainUnavailableError):
            gate.require_deposits()
        node.lies.clear()
        await health.begin()
        gate.require_deposits()


async def test_a_node_that_is_away_costs_a_round_and_nothing_else(
    chain: Devnet, alarms: Alarms, gate: ExposureGate, caplog: pytest.LogCaptureFixture
) -> None:
    async with flaky_node(chain.values.rpc_url) as node, await Rpc.connect(node.url) as rpc:
        health = HealthChecks(
            EscrowReader(rpc, chain.values.escrow),
            alarms,
            gate,
            gas_account=chain.account("payee").address,
        )
        head = await rpc.block()
        node.fail("refuse", method="eth_getBalance")
        await health.check(head, SweepTotals(at_risk=5))
    assert gate.total == 5
    assert "not all checks ran" in caplog.text


def test_alarms_are_said_once_a_level_and_when_they_are_over(
    alarms: Alarms, caplog: pytest.LogCaptureFixture
) -> None:
    """F-64."""
    for level in (25, 25, 50, 25, 75):
        alarms.ring(AlarmKind.GRACE_RUNS, f"{level} %", subject="0x1", level=level)
    assert [alarm.level for alarm in alarms.ringing] == [75]
    alarms.end(AlarmKind.GRACE_RUNS, subject="0x1")
    alarms.end(AlarmKind.GRACE_RUNS, subject="0x1")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "alarm grace-runs (0x1): 25 %",
        "alarm grace-runs (0x1): 50 %",
        "alarm grace-runs (0x1): 75 %",
        "alarm grace-runs (0x1): over",
    ]


# -- what the chain refuses


class Refusing:
    """What a journal has in quarantine."""

    def __init__(self, *entries: Quarantined) -> None:
        self.entries = list(entries)
        self.broken = frozenset[Address]()

    async def quarantined(self) -> list[Quarantined]:
        return self.entries

    async def distrusted(self) -> frozenset[Address]:
        return self.broken


async def test_what_the_chain_refuses_to_settle_is_served_no_more(
    chain: Devnet, reader: EscrowReader, alarms: Alarms, gate: ExposureGate
) -> None:
    """F-20, F-87: a wallet agrees when asked, and refuses in the block: no bound is needed."""
    state = await _wallet_channel(chain, "agrees")
    refused = Quarantined(key=state.key, reason="INVALID_SIGNATURE", tries=1, since=1, retry_at=2)
    others = replace(refused, key=replace(state.key, escrow=Address(b"\x07" * 20)), tries=9)
    journal = Refusing(refused, others)
    health = HealthChecks(reader, alarms, gate, gas_account=None, refusals=journal)
    head = await chain.rpc.block()
    await health.check(head, SweepTotals(wallets=[state]))
    with pytest.raises(ExposureLimitError, match="refuses to settle this channel"):
        promise(gate, state, 900)
    assert alarms.ringing == []
    journal.entries[0] = replace(refused, tries=3)
    await health.check(head, SweepTotals(wallets=[state]))
    assert [(each.kind, each.text) for each in alarms.ringing] == [
        (AlarmKind.REFUSED, "1 channels: invalid signature")
    ]
    journal.entries.clear()
    await health.check(head, SweepTotals(wallets=[state]))
    promise(gate, state, 900)
    assert alarms.ringing == []


async def test_a_wallet_that_was_paid_out_is_served_again(
    health: HealthChecks, gate: ExposureGate, alarms: Alarms, chain: Devnet
) -> None:
    """F-19: it agreed again and was settled by another process, before this one asked it."""
    state = await _wallet_channel(chain, "reverts")
    head = await chain.rpc.block()
    await health.check(head, SweepTotals(wallets=[state]))
    assert gate.blocked == {state.key}
    await health.check(head, SweepTotals(wallets=[]))
    promise(gate, state, 901)
    assert alarms.ringing == []


class Deaf(EscrowReader):
    """Through a node that gives up on one wallet each time it is asked."""

    wallet: Address

    async def is_valid_wallet_signature(
        self, signer: Address, digest: bytes, signature: bytes
    ) -> bool:
        if signer == self.wallet:
            raise ChainUnavailableError("execution aborted (timeout = 5s)")
        return await super().is_valid_wallet_signature(signer, digest, signature)


async def test_a_wallet_that_cannot_be_asked_hides_no_other(
    chain: Devnet, alarms: Alarms, gate: ExposureGate
) -> None:
    """F-20: its payer could make it so, to hide another one of its own."""
    reader = Deaf(chain.rpc, chain.values.escrow)
    states = [await _wallet_channel(chain, "reverts") for _ in range(3)]
    states = [
        replace(each, key=replace(each.key, channel_id=ChannelId(bytes(31) + bytes([number]))))
        for number, each in enumerate(states)
    ]
    reader.wallet = states[0].terms.signer
    health = HealthChecks(reader, alarms, gate, gas_account=None)
    for _ in range(2):
        await health.check(await chain.rpc.block(), SweepTotals(wallets=states))
    assert gate.blocked == {states[1].key, states[2].key}
