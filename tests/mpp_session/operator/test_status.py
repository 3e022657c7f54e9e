"""What `status` reports to a provider: everything that needs a person, and nothing else."""

import pytest
from msgspec.structs import replace

from channel.types import Address, ChannelId, ChannelKey, TxHash
from mpp_session.agent.amounts import TokenUnit
from mpp_session.operator.status import (
    Books,
    ChainView,
    JournalView,
    Level,
    Status,
    count_channel,
    judge,
)
from settlement.node.nodes import EndpointView
from settlement.settle.schedule import SettlePolicy
from settlement.tx.fees import Fee
from settlement.tx.journal.interface import Look, Quarantined
from settlement.tx.state import Intent, JournalTx, Purpose, TxStatus, TxVersion
from settlement.types import BlockRef
from tests.settlement.settle.test_schedule import NOW, channel, moment

PAYEE = Address(b"p" * 20)
HEAD = BlockRef(number=9, hash=b"h" * 32, timestamp=NOW, base_fee_wei=7, parent_hash=b"g" * 32)
KEY = ChannelKey(1, Address(b"e" * 20), ChannelId(b"c" * 32))
CHAIN = ChainView(
    chain_id=1, head=HEAD, grace_period_s=900, balance_wei=10**16, reserve_wei=10**16, nodes=()
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


OWED = replace(FINE, books=books())
CASES = [
    ("nothing", FINE, Level.FINE, ""),
    ("an exit just asked for", replace(FINE, books=books(asked_s=10)), Level.FINE, ""),
    ("a quarter gone", replace(FINE, books=books(asked_s=230)), Level.WARNING, "25 %"),
    ("half gone", replace(FINE, books=books(asked_s=460)), Level.CRITICAL, "50 %"),
    ("over", replace(FINE, books=books(asked_s=2000)), Level.CRITICAL, "100 %"),
    ("an exit that costs nothing", replace(FINE, books=books(asked_s=800, spent=0)), 0, ""),
    ("no node", replace(OWED, chain=None), Level.CRITICAL, "no node answers"),
    (
        "no gas",
        replace(OWED, chain=replace(CHAIN, balance_wei=9 * 10**15)),
        Level.CRITICAL,
        "0.009 ether for gas, 0.01 ether needed",
    ),
    (
        "a token that would not pay",
        replace(OWED, chain=replace(CHAIN, payout_obstacle="paused")),
        Level.CRITICAL,
        "would not pay you out: paused",
    ),
    (
        "a stolen key",
        replace(FINE, books=Books(foreign={ChannelId(b"c" * 32)})),
        Level.CRITICAL,
        "the key is stolen",
    ),
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
        replace(OWED, chain=replace(CHAIN, nodes=(view("1: a", 9), view("2: b", 9, b"x")))),
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
        "nothing owed, and the settler or tower that ran is gone",
        replace(
            FINE, journal=replace(JOURNAL, holder=None, look=Look(9, b"h" * 32, NOW, NOW - 200))
        ),
        Level.WARNING,
        "no settler runs",
    ),
    (
        "a settler that is blind",
        replace(OWED, journal=replace(JOURNAL, look=Look(9, b"h" * 32, NOW, NOW - 200))),
        Level.CRITICAL,
        "not seen the chain for 205 s",
    ),
    (
        "an escrow that gives too little time",
        replace(OWED, chain=replace(CHAIN, grace_period_s=599)),
        Level.CRITICAL,
        "gives 599 s",
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
        "one that is not mined in time for an exit",
        replace(
            FINE, books=books(asked_s=5), journal=replace(JOURNAL, pending=(pending(age_s=400),))
        ),
        Level.CRITICAL,
        "is not mined for 400 s",
    ),
    (
        "one that waits for a nonce that is missing",
        replace(
            OWED,
            chain=replace(CHAIN, nonces_used=6),
            journal=replace(JOURNAL, pending=(pending(age_s=20),)),
        ),
        Level.CRITICAL,
        "nonce 6 is missing",
    ),
    (
        "the next one to be mined",
        replace(
            FINE,
            chain=replace(CHAIN, nonces_used=7),
            journal=replace(JOURNAL, pending=(pending(age_s=20),)),
        ),
        Level.FINE,
        "",
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


TROUBLES = {
    "no node": replace(FINE, chain=None),
    "a frozen node": replace(FINE, asked_at=NOW + 4000),
    "a blind settler": replace(FINE, journal=replace(JOURNAL, look=Look(9, b"h" * 32, NOW, 1))),
    "no gas": replace(FINE, chain=replace(CHAIN, balance_wei=0)),
    "a paused token": replace(FINE, chain=replace(CHAIN, payout_obstacle="paused")),
    "a short grace": replace(FINE, chain=replace(CHAIN, grace_period_s=599)),
    "nodes at odds": replace(
        FINE, chain=replace(CHAIN, nodes=(view("1: a", 9), view("2: b", 9, b"x")))
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_where_nothing_is_owed_no_trouble_says_that_money_is_lost(name: str) -> None:
    """O-69: exit code 20 is for money that is owed now; with none, the same is for today."""
    status = TROUBLES[name]
    assert max(finding.level for finding in judge(status)) == Level.WARNING
    owed = judge(replace(status, books=books()))
    expected = Level.WARNING if name == "a frozen node" else Level.CRITICAL
    assert max(finding.level for finding in owed) == expected


def test_findings_write_money_as_people_read_it() -> None:
    """O-64: with decimals and symbol where a node names the token, base units where none does."""
    named = replace(CHAIN, unit=TokenUnit("dUSD", 6))
    bound = replace(FINE, books=Books(at_risk=1_700_000), at_risk_max=1)
    for chain, shown in ((named, "1.700000 dUSD at risk"), (CHAIN, "1,700,000 base units at risk")):
        assert shown in judge(replace(bound, chain=chain))[0].text


def test_one_channel_is_named_as_one() -> None:
    """O-69: not `1 channels are`."""
    for number, said in ((1, "1 channel is stopped"), (2, "2 channels are stopped")):
        assert said in judge(replace(FINE, books=Books(open=2, stopped=number)))[0].text


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


def test_an_old_block_is_a_warning_except_where_blocks_come_only_with_transactions() -> None:
    """A local chain that is idle has no new blocks, and nothing is wrong with it."""
    late = replace(FINE, asked_at=NOW + 3600)
    assert "the newest block is 3600 s old" in [each.text for each in judge(late)]
    local = replace(late, chain=replace(CHAIN, chain_id=31337))
    assert not [each for each in judge(local) if "newest block" in each.text]
