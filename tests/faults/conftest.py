"""A PostgreSQL beside SQLite for the faults of the ledgers; a chain for those of the chain."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from tests.faults.chain_world import World, chain_world

__all__ = ["chain", "world"]


@pytest.fixture
async def chain(devnet: TestChain) -> AsyncIterator[Devnet]:
    """The session's chain, from this test's event loop."""
    async with devnet.connect() as connected:
        yield connected


@pytest.fixture(scope="session")
def _usdc() -> Iterator[TestChain]:
    with TestChain("usdc") as running:
        yield running


@pytest.fixture
def usdc(_usdc: TestChain) -> Iterator[TestChain]:
    """A chain whose token is Circle's own; as new for each test."""
    snapshot_id = _usdc.snapshot()
    yield _usdc
    _usdc.revert(snapshot_id)


@pytest.fixture
async def world(chain: Devnet, tmp_path: Path) -> AsyncIterator[World]:
    """A provider, its payers, and a node that lies in between."""
    async with chain_world(chain, tmp_path) as built:
        yield built
