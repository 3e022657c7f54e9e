"""One wallet process, one seller and one chain for all tests of this folder."""

from collections.abc import Iterator

import pytest

from mpp_session.testing import TestChain
from tests.mpp_session.wallet.server.process import Pace, WalletProcess, running_wallet, selling


@pytest.fixture(scope="module")
def chain(_session_chain: TestChain) -> Iterator[TestChain]:
    snapshot_id = _session_chain.snapshot()
    yield _session_chain
    _session_chain.revert(snapshot_id)


@pytest.fixture(scope="module")
def wallet(chain: TestChain) -> Iterator[WalletProcess]:
    with running_wallet(chain) as running:
        yield running


@pytest.fixture
def own_wallet(chain: TestChain) -> Iterator[WalletProcess]:
    """A wallet for one test, which changes its policy or stops its agents for good."""
    with running_wallet(chain) as running:
        yield running


@pytest.fixture(scope="module")
def _pace() -> Pace:
    return Pace()


@pytest.fixture
def pace(_pace: Pace) -> Pace:
    """The shop's pace, with nothing said yet."""
    while _pace.go.acquire(blocking=False):
        pass
    _pace.said.clear()
    return _pace


@pytest.fixture(scope="module")
def shop_url(
    chain: TestChain, _pace: Pace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with selling(chain, tmp_path_factory.mktemp("shop"), _pace) as url:
        yield url
