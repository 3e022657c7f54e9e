"""One agent in the wallet: its paying client, and what runs for it."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelBusyError, StoppingError
from channel.limits import WALLET_BODIES_BYTES_MAX, WALLET_FAILURES_MAX, WALLET_REQUESTS_MAX
from mpp_session.agent.client import PayingClient
from mpp_session.agent.wallet_wire import WalletProblem

__all__ = ["MakeClient", "RunningAgent"]

_Result = TypeVar("_Result")

MakeClient = Callable[[str, PaymentStore], PayingClient]
"""Makes the paying client of an agent, by its name, over its part of the books."""


class RunningAgent:
    """Serves one agent. A new policy takes effect for its client as soon as nothing runs."""

    def __init__(self, name: str, store: PaymentStore, make_client: MakeClient) -> None:
        self.name = name
        self.store = store
        self._make_client = make_client
        self._client = make_client(name, store)
        self._running: set[asyncio.Task[Any]] = set()
        self._failures: OrderedDict[str, WalletProblem] = OrderedDict()
        self._bodies_bytes = 0
        self._is_stale = False
        self._is_closed = False

    @property
    def running(self) -> int:
        """The number of requests that run."""
        return len(self._running)

    async def run(self, work: Callable[[PayingClient], Coroutine[Any, Any, _Result]]) -> _Result:
        """Run one request with this agent's client; `end` can cancel it.

        Raises:
            ChannelBusyError: As many requests run as one agent may have.
            StoppingError: The wallet stops, or the policy has this agent no more.
        """
        if self._is_closed:
            raise StoppingError("the wallet is stopping, or serves this agent no more")
        if len(self._running) >= WALLET_REQUESTS_MAX:
            raise ChannelBusyError(
                f"{WALLET_REQUESTS_MAX} requests of {self.name} are running, the most that the "
                "wallet makes at a time for one agent: wait for one of them"
            )
        if self._is_stale and not self._running:
            await self._renew()
        task = asyncio.create_task(work(self._client))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])  # what was signed is counted before the caller goes on
            raise
        if task.cancelled():
            raise StoppingError("the wallet is stopping, or serves this agent no more")
        return task.result()

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of one request's body as long as it is held.

        Yields what counts more of it, and raises `ChannelBusyError` if this agent's requests hold
        as many bytes as they may.
        """
        held = 0

        def hold(more: int) -> None:
            nonlocal held
            if self._bodies_bytes + more > WALLET_BODIES_BYTES_MAX:
                raise ChannelBusyError(
                    f"the bodies of the requests of {self.name} that run hold "
                    f"{self._bodies_bytes} bytes, and the wallet holds at most "
                    f"{WALLET_BODIES_BYTES_MAX} for one agent: wait for one of them"
                )
            held += more
            self._bodies_bytes += more

        try:
            yield hold
        finally:
            self._bodies_bytes -= held

    def renew(self) -> None:
        """Make the client anew, with the policy of that time, before a request when none runs."""
        self._is_stale = True

    def remember(self, request_id: str, problem: WalletProblem) -> None:
        """Remember why an answer broke off, for the agent to ask.

        The error itself would keep the frames that it passed, and with them the request's body.
        """
        self._failures[request_id] = problem
        while len(self._failures) > WALLET_FAILURES_MAX:
            self._failures.popitem(last=False)

    def failure(self, request_id: str) -> WalletProblem | None:
        """Return why an answer broke off; None if it did not, or long ago."""
        return self._failures.get(request_id)

    async def end(self) -> None:
        """Cancel what runs, wait until it is counted, and close the client; once."""
        if self._is_closed:
            return
        self._is_closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._client.aclose()
        await self.store.close()

    async def _renew(self) -> None:
        self._is_stale = False
        old, self._client = self._client, self._make_client(self.name, self.store)
        await old.aclose()
