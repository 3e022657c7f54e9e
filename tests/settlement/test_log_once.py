"""What fails every second is said once."""

import logging

import pytest

from settlement.log_once import LogOnce


def test_what_fails_again_and_again_is_said_once_until_it_changes_or_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F-64: the line that matters must not drown in a log that fills the disk."""
    log_once = LogOnce(logging.getLogger("settlement.test"), "not seen; tried again: %s")
    for text in ("no node", "no node", "no disk", "no disk"):
        log_once.make(OSError(text))
    log_once.over()
    log_once.make(OSError("no disk"))
    assert [record.getMessage() for record in caplog.records] == [
        "not seen; tried again: no node",
        "not seen; tried again: no disk",
        "not seen; tried again: no disk",
    ]
