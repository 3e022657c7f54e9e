"""One agent in the wallet: its paying client, and what runs for it."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx

from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelBusyError, MppSessionError, StoppingError
from channel.limits import WALLET_FAILURES_MAX, WALLET_REQUESTS_MAX
from mpp_session.agent.client import PayingClient

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
        self._failures: OrderedDict[str, MppSessionError | httpx.RequestError] = OrderedDict()
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

    def renew(self) -> None:
        """Make the client anew, with the policy of that time, before a request when none runs."""
        self._is_stale = True

    def remember(self, request_id: str, error: MppSessionError | httpx.RequestError) -> None:
        """Remember why an answer broke off, for the agent to ask."""
        self._failures[request_id] = error
        while len(self._failures) > WALLET_FAILURES_MAX:
            self._failures.popitem(last=False)

    def failure(self, request_id: str) -> MppSessionError | httpx.RequestError | None:
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
