"""pytest fixtures for people who test their code against a local chain.

    async def test_my_code(devnet, escrow, token):
        async with devnet.connect() as chain:
            assert await chain.token_balance(chain.account("payer").address) == 10**12

Installed as a pytest plugin. The chain starts when the first test asks for it, runs for the whole
session (one per xdist worker), and goes back to its first state after each test. Nothing is
imported for runs that use none of it.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from types import TracebackType

    from channel.types import Address
    from settlement.devnet import DevAccount, Devnet, DevnetValues

__all__ = ["TestChain", "devnet", "escrow", "token"]

_Answer = TypeVar("_Answer")

_TIMEOUT_S: Final = 60.0


class TestChain:
    """A devnet for synchronous code: it lives on an event loop in a thread of its own.

    The methods block, for synchronous tests and fixtures; `connect` is for coroutines.
    """

    __test__ = False  # the name is for people; pytest must not collect it

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open = AsyncExitStack()
        self._devnet: Devnet | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._devnet = self._run(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def values(self) -> DevnetValues:
        """Addresses, keys and the node's URL."""
        return self._running.values

    def account(self, name: str) -> DevAccount:
        """Return an account by name; `payer`, `payee` and `stranger` have ether and tokens."""
        return self._running.account(name)

    def fund(self, address: Address, *, ether: int = 0, amount: int = 0) -> None:
        """Set an account's ether, and mint it `amount` base units of the token."""
        self._run(self._running.fund(address, ether=ether, amount=amount))

    def token_balance(self, address: Address) -> int:
        """Return an account's tokens in base units."""
        return self._run(self._running.token_balance(address))

    def advance(self, seconds: int) -> None:
        """Mine one block that many seconds after the head."""
        self._run(self._running.advance(seconds))

    def snapshot(self) -> str:
        """Remember the chain's state; the id serves for one `revert`."""
        return self._run(self._running.snapshot())

    def revert(self, snapshot_id: str) -> None:
        """Go back to a snapshot."""
        self._run(self._running.revert(snapshot_id))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Devnet]:
        """Use the same chain from this event loop."""
        from settlement.devnet import Devnet  # noqa: PLC0415 -- lazy: see the module's docstring
        from settlement.rpc import Rpc  # noqa: PLC0415

        async with await Rpc.connect(self.values.rpc_url, chain_id=self.values.chain_id) as rpc:
            yield Devnet(rpc, self.values)

    @property
    def _running(self) -> Devnet:
        if self._devnet is None:
            msg = "The chain is not running."
            raise RuntimeError(msg)
        return self._devnet

    async def _start(self) -> Devnet:
        from settlement.devnet import Devnet  # noqa: PLC0415

        return await self._open.enter_async_context(Devnet.start())

    def _run(self, coroutine: Coroutine[Any, Any, _Answer]) -> _Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_TIMEOUT_S)

    def _end(self) -> None:
        try:
            self._run(self._open.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@pytest.fixture(scope="session")
def _session_chain() -> Iterator[TestChain]:
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
