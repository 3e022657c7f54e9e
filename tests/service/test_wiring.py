"""What runs beside a gateway, and when it must not run on."""

import logging
import shutil
from pathlib import Path

import pytest

from channel.errors import LedgerUnavailableError, StorageFailedError
from service.wiring import _expire_reservations, _prune
from tests.channel.books import KEY, opening
from tests.channel.selling import open_desk


async def test_books_that_are_lost_end_what_the_gateway_ends_with(tmp_path: Path) -> None:
    """F-51: a gateway that nobody asks anything must not stay up on books it cannot keep."""
    async with open_desk(tmp_path) as desk:
        shutil.move(tmp_path / "ledger.sqlite", tmp_path / "elsewhere")
        with pytest.raises(StorageFailedError):
            await desk.ledger.apply(KEY, [opening(0)])
        for guard in (_prune(desk.ledger), _expire_reservations(desk.engine, 0.01)):
            with pytest.raises(StorageFailedError, match="new process"):
                await guard


async def test_books_that_are_away_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F-51: what is only away comes back."""
    async with open_desk(tmp_path) as desk:
        tries = []

        async def away(_: int) -> int:
            tries.append("again")
            if len(tries) < 3:
                raise LedgerUnavailableError("The database is away.")
            raise StorageFailedError("This ends the test.")

        monkeypatch.setattr(desk.ledger, "expire_reservations", away)
        with caplog.at_level(logging.CRITICAL), pytest.raises(StorageFailedError):
            await _expire_reservations(desk.engine, 0.001)
        assert len(tries) == 3
