"""Which alarms the watcher rings, when their level rises, and when they end."""

from collections.abc import Callable

from msgspec.structs import replace

from settlement.alarms import AlarmKind, Alarms
from settlement.settle.schedule import Moment
from settlement.watch.watch_alarms import WatchAlarms
from tests.settlement.settle.test_schedule import NOW, channel


def ringing(alarms: Alarms) -> list[tuple[AlarmKind, int]]:
    return [(alarm.kind, alarm.level) for alarm in alarms.ringing]


def at(gone_s: int) -> Callable[[], Moment]:
    return lambda: Moment(now=NOW + gone_s, grace_period_s=900)


def build(alarms: Alarms, *, away_s_max: float = 60.0) -> WatchAlarms:
    return WatchAlarms(alarms, away_s_max=away_s_max, skew_s_max=60.0)


def test_each_quarter_of_a_grace_period_rings_once_and_its_end_ends_it() -> None:
    """F-64: 25, 50 and 75 %, and past it."""
    alarms = Alarms()
    telling, state = build(alarms), channel(vouchers=(900,), spent=900, asked_at=NOW)
    owed = {state.key: state}
    stages = []
    for gone_s in (0, 224, 225, 450, 675, 900, 1800):
        telling.graces(owed, at(gone_s))
        stages.append(alarms.ringing[0].level if alarms.ringing else 0)
    assert stages == [0, 0, 25, 50, 75, 100, 100]
    assert "900 at risk" in alarms.ringing[0].text
    telling.graces({}, at(1801))
    assert not alarms.ringing


def test_one_exit_that_ends_leaves_the_others_ringing() -> None:
    alarms = Alarms()
    telling = build(alarms)
    states = [channel(number=n, vouchers=(9,), spent=9, asked_at=NOW) for n in (1, 2)]
    late = at(700)
    telling.graces({state.key: state for state in states}, late)
    telling.graces({states[1].key: replace(states[1])}, late)
    assert [alarm.subject for alarm in alarms.ringing] == ["0x" + states[1].key.channel_id.hex()]


def test_an_exit_that_is_cancelled_is_over_though_its_close_is_owed() -> None:
    """TOPUP-05: and the next one rings from its first quarter on."""
    alarms = Alarms()
    telling, state = build(alarms), channel(vouchers=(900,), spent=900, asked_at=NOW)
    telling.graces({state.key: state}, at(675))
    assert ringing(alarms) == [(AlarmKind.GRACE_RUNS, 75)]
    telling.graces({state.key: replace(state, close_requested_at=0)}, at(700))
    assert not alarms.ringing
    telling.graces({state.key: replace(state, close_requested_at=NOW + 700)}, at(925))
    assert ringing(alarms) == [(AlarmKind.GRACE_RUNS, 25)]


def test_books_that_are_behind_ring_until_they_are_repaired() -> None:
    """SETTLE-05: by another process; also after a restart without a new event."""
    alarms = Alarms()
    telling = build(alarms)
    state = channel(vouchers=(9,), spent=9, settled=20)
    for _ in range(2):
        telling.books([state])
    assert ringing(alarms) == [(AlarmKind.BOOKS_BEHIND, 0)]
    telling.books([])
    assert not alarms.ringing


def test_every_deep_reorg_rings_and_is_over_when_as_much_was_built_again() -> None:
    """F-70: also a second one that goes less deep."""
    alarms = Alarms()
    telling = build(alarms)
    telling.reorg(90, head_number=100, is_deep=False)
    assert not alarms.ringing
    telling.reorg(90, head_number=100, is_deep=True)
    telling.reorg(80, head_number=101, is_deep=True)
    assert ringing(alarms) == [(AlarmKind.DEEP_REORG, 2)]
    telling.grown(121)
    assert alarms.ringing
    telling.grown(122)
    assert not alarms.ringing


def test_a_chain_that_is_away_rings_when_it_lasts() -> None:
    alarms = Alarms()
    telling = build(alarms)
    telling.answered(100.0)
    telling.unanswered(159.0, TimeoutError("no node"))
    assert not alarms.ringing
    telling.unanswered(160.0, TimeoutError("no node"))
    assert ringing(alarms) == [(AlarmKind.CHAIN_AWAY, 0)]
    telling.answered(161.0)
    assert not alarms.ringing


def test_a_chain_that_was_never_there_rings_too() -> None:
    """Counted from the first look that was not answered."""
    alarms = Alarms()
    telling = build(alarms)
    telling.unanswered(5.0, TimeoutError("no node"))
    assert not alarms.ringing
    telling.unanswered(65.0, TimeoutError("no node"))
    assert ringing(alarms) == [(AlarmKind.CHAIN_AWAY, 0)]


def test_a_chain_that_shows_no_new_block_rings_and_another_node_is_asked_now_and_then() -> None:
    """F-72, F-73: a node may answer for ever with the same old block."""
    alarms = Alarms()
    telling = WatchAlarms(alarms, away_s_max=60.0, skew_s_max=60.0, still_s_max=300.0)
    asked = [telling.moved(float(now), is_new=now == 0) for now in range(0, 1000, 100)]
    assert asked == [False, False, False, True, False, False, True, False, False, True]
    assert ringing(alarms) == [(AlarmKind.CHAIN_STILL, 0)]
    assert not telling.moved(1000.0, is_new=True)
    assert not alarms.ringing
    patient = build(alarms)
    patient.moved(0.0, is_new=True)
    assert not patient.moved(10**9, is_new=False)


def test_a_short_grace_a_clock_that_is_off_and_a_deep_reorg_ring() -> None:
    """F-69, F-70, F-111."""
    alarms = Alarms()
    telling = build(alarms)
    telling.grace_period(599)
    telling.skew(-61.0)
    telling.reorg(77, head_number=99, is_deep=True)
    assert ringing(alarms) == [
        (AlarmKind.GRACE_SHORT, 0),
        (AlarmKind.CLOCK_SKEW, 0),
        (AlarmKind.DEEP_REORG, 1),
    ]
    telling.grace_period(600)
    telling.skew(60.0)
    telling.reorg(78, head_number=99, is_deep=False)
    assert ringing(alarms) == [(AlarmKind.DEEP_REORG, 1)]


async def test_a_node_that_lags_rings_when_it_lasts_and_another_is_asked() -> None:
    """F-72."""
    alarms = Alarms()
    patient, hasty = build(alarms), build(alarms, away_s_max=0.0)
    assert not patient.behind(9, is_behind=True)
    assert not alarms.ringing
    assert hasty.behind(9, is_behind=True)
    assert ringing(alarms) == [(AlarmKind.NODE_BEHIND, 0)]
    assert not hasty.behind(9, is_behind=False)
    assert not alarms.ringing
