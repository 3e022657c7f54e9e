"""A wallet's file with the tables of approvals, opened as a payment store opens it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpp_session.wallet.approvals.store import Approvals
from tests.mpp_session.wallet.approvals.asks import RULES
from tests.mpp_session.wallet.approvals.file import WalletFile


@pytest.fixture
def approvals() -> Approvals:
    return Approvals(RULES)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[WalletFile]:
    opened = WalletFile(tmp_path / "wallet.db")
    yield opened
    opened.close()
