"""Subscribers hear of an alarm when it begins, rises and ends, and not in between."""

from settlement.alarms import Alarm, AlarmKind, Alarms


def test_each_change_is_reported_once() -> None:
    heard: list[tuple[str, int, bool]] = []

    def hear(alarm: Alarm, is_raised: bool) -> None:  # noqa: FBT001 - as `OnChange`
        heard.append((alarm.subject, alarm.level, is_raised))

    alarms = Alarms()
    alarms.on_change = hear
    for level in (25, 25, 50, 25):
        alarms.ring(AlarmKind.GRACE_RUNS, "a payer left", subject="0xaa", level=level)
    alarms.end(AlarmKind.GRACE_RUNS, subject="0xbb")
    alarms.end(AlarmKind.GRACE_RUNS, subject="0xaa")
    alarms.end(AlarmKind.GRACE_RUNS, subject="0xaa")
    assert heard == [("0xaa", 25, True), ("0xaa", 50, True), ("0xaa", 50, False)]
