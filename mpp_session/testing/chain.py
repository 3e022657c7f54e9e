"""A local chain for tests, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from settlement.dev.devnet import Devnet
from settlement.node.rpc import Rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from types import TracebackType

    from web3 import AsyncHTTPProvider, AsyncWeb3

    from channel.types import Address
    from settlement.dev.devnet import DevAccount, DevnetValues, TokenChoice
    from settlement.tx.signer import KeySigner

__all__ = ["TestChain"]

_Answer = TypeVar("_Answer")

_TIMEOUT_S: Final = 60.0
_START_TIMEOUT_S: Final = 600.0
"""For the first start on a machine, which may install Anvil within bounds of its own."""


class TestChain:
    """A devnet for synchronous code, on an event loop in a thread of its own.

    The methods block, for synchronous tests and fixtures; `connect` is for coroutines.
    """

    __test__ = False  # despite its name, pytest must not collect it

    def __init__(self, token: TokenChoice = "dusd") -> None:  # noqa: S107 -- a token of value
        """Prepare a chain whose token is DevUSD, or Circle's own USDC."""
        self._token: TokenChoice = token
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open = AsyncExitStack()
        self._devnet: Devnet | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._devnet = self.run(self._start(), timeout_s=_START_TIMEOUT_S)
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

    def signer(self, name: str) -> KeySigner:
        """Return an account as a signer of transactions."""
        return self._running.signer(name)

    def fund(self, address: Address, *, ether: int = 0, amount: int = 0) -> None:
        """Set an account's ether, and mint `amount` base units of the token to it."""
        self.run(self._running.fund(address, ether=ether, amount=amount))

    def token_balance(self, address: Address) -> int:
        """Return an account's tokens in base units."""
        return self.run(self._running.token_balance(address))

    def advance(self, seconds: int) -> None:
        """Mine one block that many seconds after the head."""
        self.run(self._running.advance(seconds))

    def snapshot(self) -> str:
        """Save the chain's state; the id is valid for one `revert`."""
        return self.run(self._running.snapshot())

    def revert(self, snapshot_id: str) -> None:
        """Go back to a snapshot."""
        self.run(self._running.revert(snapshot_id))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Devnet]:
        """Use the same chain from this event loop."""
        async with await Rpc.connect(self.values.rpc_url, chain_id=self.values.chain_id) as rpc:
            yield Devnet(rpc, self.values)

    @asynccontextmanager
    async def web3(self) -> AsyncIterator[AsyncWeb3[AsyncHTTPProvider]]:
        """Use the chain through web3.py, for example for contracts of your own."""
        web3 = await asyncio.to_thread(import_module, "web3")  # slow: imported only on use
        provider = web3.AsyncHTTPProvider(self.values.rpc_url)
        try:
            yield web3.AsyncWeb3(provider)
        finally:
            await provider.disconnect()

    @property
    def _running(self) -> Devnet:
        if self._devnet is None:
            msg = "The chain is not running."
            raise RuntimeError(msg)
        return self._devnet

    async def _start(self) -> Devnet:
        return await self._open.enter_async_context(Devnet.start(token=self._token))

    def run(
        self, coroutine: Coroutine[Any, Any, _Answer], *, timeout_s: float = _TIMEOUT_S
    ) -> _Answer:
        """Run a coroutine on the chain's own event loop and return its result.

        Raises:
            TimeoutError: It took longer than `timeout_s`.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _end(self) -> None:
        try:
            self.run(self._open.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
