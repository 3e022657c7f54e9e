"""pytest fixtures for testing your own code against a local chain.

    async def test_my_agent(provider, payer):
        async with payer.client() as client:
            answer = await client.get(f"{provider.url}/joke")
        assert answer.status_code == 200

Installed as a pytest plugin: `devnet`, `escrow`, `token`, `payer`, `provider`, and `gasless_payer`
and `sponsoring_provider`, where the payer only signs and the provider pays the gas. The chain
starts with the first test that uses it, runs for the whole session (one per xdist worker), and is
reset for each test. Asynchronous tests need pytest-asyncio or a similar plugin. A test run that
uses none of the fixtures imports only this file. More in docs/guide/testing.md.
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
    """Import the fixtures' types when they are named, for example in annotations."""
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
    """A local chain with escrow, token and funded accounts; reset for each test."""
    snapshot_id = _session_chain.snapshot()  # each test needs one: a revert uses it up
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
    """An account with a million dollars and no ether: it needs a provider that pays the gas."""
    from mpp_session.testing.payer import TestPayer  # noqa: PLC0415

    return TestPayer(devnet.values, tmp_path_factory.mktemp("payer"), "agent")


@pytest.fixture
def provider(devnet: TestChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestProvider]:
    """A selling server: its own two routes, or with `provider.serve` an application of yours."""
    from mpp_session.testing.provider import TestProvider  # noqa: PLC0415

    with TestProvider(devnet, tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture
def sponsoring_provider(
    devnet: TestChain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestProvider]:
    """The same, but it pays the gas of its payers' deposits."""
    from mpp_session.testing.provider import TestProvider  # noqa: PLC0415

    with TestProvider(devnet, tmp_path_factory.mktemp("provider"), pays_gas=True) as running:
        yield running
