"""What a provider is told about itself: everything that needs a person, and nothing else."""

import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.ledger.sqlite import SqliteLedger
from channel.state.commands import Observe
from channel.types import Address, ChannelId, ChannelKey, TxHash
from service.settings import Chain, Ledger, WatchConfig
from service.status import (
    Books,
    ChainView,
    JournalView,
    Level,
    Status,
    collect_status,
    count_channel,
    judge,
    to_json,
)
from service.testing.chain import TestChain
from settlement.escrow import EscrowReader
from settlement.fees import Fee
from settlement.journal.interface import Look, Quarantined
from settlement.journal.sqlite import SqliteJournal
from settlement.nodes import EndpointView
from settlement.orders.interface import DepositOrder, OrderLimits
from settlement.orders.url import open_orders
from settlement.payer import PayerAccount
from settlement.schedule import SettlePolicy
from settlement.tx_state import Intent, JournalTx, Purpose, TxStatus, TxVersion
from settlement.types import BlockRef
from tests.settlement.books import Books as OpenBooks
from tests.settlement.books import request_close
from tests.settlement.channels import Channels
from tests.settlement.test_schedule import NOW, channel, moment

PAYEE = Address(b"p" * 20)
HEAD = BlockRef(number=9, hash=b"h" * 32, timestamp=NOW, base_fee_wei=7, parent_hash=b"g" * 32)
KEY = ChannelKey(1, Address(b"e" * 20), ChannelId(b"c" * 32))
CHAIN = ChainView(
    chain_id=1, head=HEAD, grace_period_s=900, balance_wei=10, reserve_wei=10, nodes=()
)
JOURNAL = JournalView(holder="settler@host", pending=(), quarantined=())
FINE = Status(payee=PAYEE, asked_at=NOW + 5, books=Books(), chain=CHAIN, journal=JOURNAL)


def books(*, asked_s: int | None = None, spent: int = 900) -> Books:
    counted = Books()
    asked_at = 0 if asked_s is None else NOW - asked_s
    state = channel(vouchers=(900,), spent=spent, asked_at=asked_at)
    count_channel(counted, state, moment(), SettlePolicy())
    return counted


def pending(*, age_s: int) -> JournalTx:
    version = TxVersion(TxHash(b"t" * 32), Fee(2, 1), b"raw", NOW + 5 - age_s)
    return JournalTx(
        tx_id=1,
        intent=Intent(to=KEY.escrow, calldata=b"", purpose=Purpose.CLOSE),
        status=TxStatus.SENT,
        nonce=7,
        versions=(version,),
    )


def quarantined(tries: int) -> Quarantined:
    return Quarantined(key=KEY, reason="TOKEN_REFUSED", tries=tries, since=NOW, retry_at=NOW + 60)


def view(name: str, number: int | None, fill: bytes = b"d") -> EndpointView:
    if number is None:
        return EndpointView(name, None)
    block = replace(HEAD, number=number)
    return EndpointView(name, block, replace(block, number=1, hash=fill * 32))


CASES = [
    ("nothing", FINE, Level.FINE, ""),
    ("an exit just asked for", replace(FINE, books=books(asked_s=10)), Level.FINE, ""),
    ("a quarter gone", replace(FINE, books=books(asked_s=230)), Level.WARNING, "25 %"),
    ("half gone", replace(FINE, books=books(asked_s=460)), Level.CRITICAL, "50 %"),
    ("over", replace(FINE, books=books(asked_s=2000)), Level.CRITICAL, "100 %"),
    ("an exit that costs nothing", replace(FINE, books=books(asked_s=800, spent=0)), 0, ""),
    ("no node", replace(FINE, chain=None), Level.CRITICAL, "no node answers"),
    ("no gas", replace(FINE, chain=replace(CHAIN, balance_wei=9)), Level.CRITICAL, "9 wei"),
    ("an old head", replace(FINE, asked_at=NOW + 400), Level.WARNING, "400 s old"),
    ("a slow clock", replace(FINE, asked_at=NOW - 90), Level.WARNING, "90 s behind"),
    (
        "a node that is away",
        replace(FINE, chain=replace(CHAIN, nodes=(view("1: a", 9), view("2: b", None)))),
        Level.WARNING,
        "2: b does not answer",
    ),
    (
        "a node that lags",
        replace(FINE, chain=replace(CHAIN, nodes=(view("1: a", 90), view("2: b", 9)))),
        Level.WARNING,
        "2: b is 20 blocks",
    ),
    (
        "nodes that disagree",
        replace(FINE, chain=replace(CHAIN, nodes=(view("1: a", 9), view("2: b", 9, b"x")))),
        Level.CRITICAL,
        "1: a, 2: b",
    ),
    (
        "no settler and something owed",
        replace(FINE, books=books(), journal=replace(JOURNAL, holder=None)),
        Level.WARNING,
        "no settler",
    ),
    (
        "no settler and an exit",
        replace(FINE, books=books(asked_s=5), journal=replace(JOURNAL, holder=None)),
        Level.CRITICAL,
        "no settler",
    ),
    ("nothing owed, no settler", replace(FINE, journal=replace(JOURNAL, holder=None)), 0, ""),
    (
        "a settler that is blind",
        replace(FINE, journal=replace(JOURNAL, look=Look(9, b"h" * 32, NOW, NOW - 200))),
        Level.CRITICAL,
        "not seen the chain for 205 s",
    ),
    (
        "a settler that has looked",
        replace(FINE, journal=replace(JOURNAL, look=Look(9, b"h" * 32, NOW, NOW))),
        Level.FINE,
        "",
    ),
    (
        "a transaction under way",
        replace(FINE, journal=replace(JOURNAL, pending=(pending(age_s=20),))),
        Level.FINE,
        "",
    ),
    (
        "one that is not mined",
        replace(FINE, journal=replace(JOURNAL, pending=(pending(age_s=400),))),
        Level.WARNING,
        "nonce 7 (close) is not mined for 400 s",
    ),
    (
        "a refusal",
        replace(FINE, journal=replace(JOURNAL, quarantined=(quarantined(1),))),
        Level.WARNING,
        "token_refused",
    ),
    (
        "a refusal that lasts",
        replace(FINE, journal=replace(JOURNAL, quarantined=(quarantined(3),))),
        Level.CRITICAL,
        "token_refused",
    ),
    (
        "as much at risk as may be",
        replace(FINE, books=Books(at_risk=700), at_risk_max=700),
        Level.WARNING,
        "exposure.total_max",
    ),
    (
        "less at risk than may be",
        replace(FINE, books=Books(at_risk=699), at_risk_max=700),
        Level.FINE,
        "",
    ),
    (
        "a channel that is stopped",
        replace(FINE, books=Books(open=1, stopped=1)),
        Level.CRITICAL,
        "contradict",
    ),
]


@pytest.mark.parametrize(
    ("status", "level", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_needs_a_person_is_found(status: Status, level: int, said: str) -> None:
    """F-64, F-65, F-111: the worst decides."""
    findings = judge(status)
    assert max((finding.level for finding in findings), default=0) == level
    assert said in " ".join(finding.text for finding in findings)
    if not level:
        assert findings == ()


def test_the_worst_comes_first() -> None:
    status = replace(
        FINE, asked_at=NOW + 400, chain=replace(CHAIN, balance_wei=0), books=books(asked_s=230)
    )
    levels = [finding.level for finding in judge(status)]
    assert levels == sorted(levels, reverse=True)
    assert len(levels) == 3


def test_the_books_are_added_up_on_both_sides() -> None:
    """Exposure: what the payee and what the payers stand to lose."""
    counted = Books()
    for number, (spent, settled) in enumerate([(600, 200), (900, 900)], 1):
        state = channel(number=number, vouchers=(900,), spent=spent, settled=settled)
        count_channel(counted, state, moment(), SettlePolicy())
    assert (counted.open, counted.at_risk, counted.defended) == (2, 400, 1)
    assert (counted.unsettled, counted.undelivered) == (700, 300)
    assert counted.locked == 2 * 10_000_000 - 1100


@pytest.fixture
def config(devnet: TestChain, tmp_path: Path) -> WatchConfig:
    values = devnet.values
    return WatchConfig(
        chain=Chain(
            rpc_url=values.rpc_url,
            id=values.chain_id,
            escrow="0x" + values.escrow.hex(),
            token="0x" + values.token.hex(),
            rpc_timeout_s=1.0,
        ),
        ledger=Ledger(url=f"sqlite:///{tmp_path / 'ledger.db'}"),
    )


async def test_books_journal_and_chain_are_read_together(
    devnet: TestChain, config: WatchConfig, tmp_path: Path
) -> None:
    """While others have them open: it holds nothing up."""
    payee = devnet.account("payee").address
    async with devnet.connect() as chain:
        ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
        journal = await SqliteJournal.open(
            tmp_path / "ledger.db", chain_id=config.chain.id, account=payee
        )
        account = PayerAccount(chain.sender("payer"))
        opened = OpenBooks(
            EscrowReader(chain.rpc, chain.values.escrow), ledger, Channels(chain, account)
        )
        try:
            await opened.open(accepted=50, spent=40)
            leaving = await opened.open(accepted=9, spent=9)
            await request_close(chain, account, leaving)
            fact = await EscrowReader(chain.rpc, chain.values.escrow).read_channel(leaving)
            assert fact is not None

            await ledger.apply(fact.key, [Observe(fact)])
            await journal.take_lease("a settler", ttl_s=60)
            await journal.note_look(Look(6, b"h" * 32, 1, 2))
            await journal.note_look(Look(7, b"h" * 32, 1, int(time.time())))
            orders = await open_orders(
                config.ledger.url, chain_id=config.chain.id, escrow=chain.values.escrow
            )
            await orders.place(
                DepositOrder(
                    order_id=b"o" * 32,
                    key=fact.key,
                    funder=fact.terms.payer,
                    calldata=b"call",
                    deadline=2**64,
                    gas_gwei=30,
                    wanted_at=int(time.time()),
                ),
                OrderLimits(period_s=3600, gas_gwei=100, per_funder=1),
            )
            await orders.close()
            status = await collect_status(config, payee)
        finally:
            await journal.close()
            await ledger.close()
        head = await chain.rpc.block()
    assert status.level in (Level.FINE, Level.WARNING)  # the test chain's clock may be off
    assert status.journal.holder == "a settler"
    assert (status.books.open, status.books.at_risk) == (2, 49)
    (leaves,) = status.books.exits
    assert (leaves.channel_id, leaves.at_risk) == (leaving, 9)
    assert leaves.deadline == fact.close_requested_at + 900
    document = to_json(status)
    assert document["head"]["number"] == head.number
    assert document["exits"][0]["at_risk"] == "9"
    assert document["last_seen_block"] == 7
    assert document["sponsored_wei"] == str(30 * 10**9)


async def test_without_a_node_the_books_are_told_all_the_same(
    config: WatchConfig, tmp_path: Path, devnet: TestChain
) -> None:
    """F-64: the grace runs on."""
    ledger = await SqliteLedger.open(tmp_path / "ledger.db", exclusive=True)
    await ledger.close()
    away = replace(config, chain=replace(config.chain, rpc_url="http://127.0.0.1:1"))
    status = await collect_status(away, devnet.account("payee").address)
    assert status.chain is None
    assert status.level is Level.CRITICAL
    assert to_json(status)["head"] is None
