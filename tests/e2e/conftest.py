"""The devnet, from each test's own event loop."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.e2e.selling import Provider, provide


@pytest.fixture
async def chain(devnet: TestChain) -> AsyncIterator[Devnet]:
    async with devnet.connect() as connected:
        yield connected


@pytest.fixture
async def seller(chain: Devnet, tmp_path: Path) -> AsyncIterator[Provider]:
    """A provider whose books and clock are the test's."""
    async with provide(chain, tmp_path) as running:
        yield running
