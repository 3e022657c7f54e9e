"""One chain for all tests of the chain side; each test starts from the same state."""

from collections.abc import AsyncIterator

import pytest

from mpp_session.testing.chain import TestChain
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader, ReaderLimits
from tests.settlement.channels import Channels


@pytest.fixture
async def chain(devnet: TestChain) -> AsyncIterator[Devnet]:
    """The session's chain, from this test's event loop."""
    async with devnet.connect() as connected:
        yield connected


@pytest.fixture
def reader(chain: Devnet) -> EscrowReader:
    limits = ReaderLimits(channels_per_call_max=3, log_blocks_max=4, lag_s_max=0.3, lag_poll_s=0.01)
    return EscrowReader(chain.rpc, chain.values.escrow, limits=limits)


@pytest.fixture
def account(chain: Devnet) -> PayerAccount:
    """The payer's account."""
    return PayerAccount(chain.sender("payer"))


@pytest.fixture
def channels(chain: Devnet, account: PayerAccount) -> Channels:
    return Channels(chain, account)
