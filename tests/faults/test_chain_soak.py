"""The short form of `scripts/soak`: all faults together, and the books fit the chain."""

from pathlib import Path

import msgspec
import pytest

from settlement.dev.devnet import Devnet
from tests.faults.soak import BLOCK_TIME_S, SoakLimits, soak


@pytest.mark.timeout(180)
async def test_after_random_faults_the_books_equal_the_chain_to_the_base_unit(
    tmp_path: Path,
) -> None:
    """SETTLE-02, SETTLE-05, F-70, F-72, F-73, F-75: agents that open, stream, hang up, top up,
    close and leave; a node that lies, reorgs, dear gas, a settler that is killed."""
    limits = SoakLimits(agents=10, seconds=9.0, seed=20)
    async with Devnet.start(block_time_s=BLOCK_TIME_S) as chain:
        balance = await soak(chain, tmp_path, limits, tell=lambda _: None)
    assert balance.is_even, msgspec.json.encode(balance)
    assert balance.channels >= 10
    assert balance.delivered > 0
    assert sum(balance.faults.values()) >= 3
