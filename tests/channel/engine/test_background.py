"""What runs on after its request says how it ended, and leaves the books as they are."""

import asyncio
import logging
from pathlib import Path

import pytest

from channel.engine.background import Background
from tests.channel.engine.test_engine import opened, perform
from tests.channel.selling import PRICE, open_desk
from tests.waiting import until


async def test_a_close_that_the_end_of_the_process_cuts_off_stays_owed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """O-98, F-42: it is no error to log, and the repeat closes for what was decided."""
    async with open_desk(tmp_path) as desk:
        await opened(desk, 5 * PRICE)
        desk.chain.answers.clear()
        closing = asyncio.create_task(perform(desk, desk.payer.closing(2 * PRICE)))

        async def is_decided() -> bool:
            return (await desk.books()).closing_with is not None

        await until(is_decided)
        (cut_off,) = [task for task in asyncio.all_tasks() if "Closing._close" in repr(task)]
        cut_off.cancel()  # as `asyncio.run` does at its end
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not caplog.records
        desk.chain.answers.set()
        await perform(desk, desk.payer.closing(3 * PRICE))
        assert [amount for _, amount, _ in desk.chain.closed] == [2 * PRICE]


async def test_a_bug_in_the_background_is_logged_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-98, F-42: nobody waits for it, so the log alone can tell."""

    async def break_down() -> None:
        raise ZeroDivisionError("a bug")

    background = Background()
    background.start(break_down())
    await background.close()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
