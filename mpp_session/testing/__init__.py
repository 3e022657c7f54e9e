"""pytest fixtures for people who test their own code against a local chain.

    async def test_my_agent(provider, payer):
        async with payer.client() as client:
            answer = await client.get(f"{provider.url}/joke")
        assert answer.status_code == 200

Installed as a pytest plugin: `devnet`, `escrow`, `token`, `payer`, `provider`, and `gasless_payer`
and `sponsoring_provider`, between whom the payer only signs. The chain starts when the first test
asks for it, runs for the whole session (one per xdist worker), and is as new for each test.
Asynchronous tests need pytest-asyncio, or any plugin that runs them. Nothing but this file is
imported for runs that use none of it. More in docs/guide/testing.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from channel.types import Address
    from mpp_session.testing.chain import TestChain as TestChain
    from mpp_session.testing.payer import TestPayer as TestPayer
    from mpp_session.testing.provider import TestProvider as TestProvider

__all__ = [
    "devnet",
    "escrow",
    "gasless_payer",
    "payer",
    "provider",
    "sponsoring_provider",
    "token",
]

_HOMES = {
    "TestChain": "mpp_session.testing.chain",
    "TestPayer": "mpp_session.testing.payer",
    "TestProvider": "mpp_session.testing.provider",
}


def __getattr__(name: str) -> object:
    """Import the fixtures' types when they are named, in annotations say."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


@pytest.fixture(scope="session")
def _session_chain() -> Iterator[TestChain]:
    from mpp_session.testing.chain import TestChain  # noqa: PLC0415 -- lazy: see above

    with TestChain() as chain:
        yield chain


@pytest.fixture
def devnet(_session_chain: TestChain) -> Iterator[TestChain]:
    """A local chain with escrow, token and funded accounts; as new for each test."""
    snapshot_id = _session_chain.snapshot()  # used up by its revert: one for each test
    yield _session_chain
    _session_chain.revert(snapshot_id)


@pytest.fixture
def escrow(devnet: TestChain) -> Address:
    """The escrow's address on `devnet`."""
    return devnet.values.escrow


@pytest.fixture
def token(devnet: TestChain) -> Address:
    """The token's address on `devnet`: a dollar with six decimals."""
    return devnet.values.token


@pytest.fixture
def payer(devnet: TestChain, tmp_path_factory: pytest.TempPathFactory) -> TestPayer:
    """An account with a million dollars; `payer.client()` is an httpx client that pays."""
    from mpp_session.testing.payer import TestPayer  # noqa: PLC0415

    return TestPayer(devnet.values, tmp_path_factory.mktemp("payer"))


@pytest.fixture
def gasless_payer(devnet: TestChain, tmp_path_factory: pytest.TempPathFactory) -> TestPayer:
    """An account with a million dollars and no ether; it pays whoever pays its gas."""
    from mpp_session.testing.payer import TestPayer  # noqa: PLC0415

    return TestPayer(devnet.values, tmp_path_factory.mktemp("payer"), "agent")


@pytest.fixture
def provider(devnet: TestChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestProvider]:
    """A server that sells: its own two routes, or with `provider.serve` an application of yours."""
    from mpp_session.testing.provider import TestProvider  # noqa: PLC0415

    with TestProvider(devnet, tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture
def sponsoring_provider(
    devnet: TestChain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestProvider]:
    """The same, and it pays the gas of its payers' deposits."""
    from mpp_session.testing.provider import TestProvider  # noqa: PLC0415

    with TestProvider(devnet, tmp_path_factory.mktemp("provider"), pays_gas=True) as running:
        yield running
