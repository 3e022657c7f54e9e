"""Several nodes behind one connection: whichever answers, and never another chain's (SEC-09).

One node is asked as long as it answers, so that what belongs together comes from one view of the
chain (F-72). When it does not, or answers what cannot be, the next one is, and the first rests a
while. When it says no, another node must say the same before that counts. A node's chain id is
checked before its first answer counts. `compare` holds the nodes against each other: who lags,
and whether they show the same block where they should (`settlement.node.nodes` judges).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from channel.errors import ChainUnavailableError, ConfigError, MppSessionError
from settlement.errors import ContractRevertedError, RpcRefusedError
from settlement.node import questions
from settlement.node.nodes import EndpointView
from settlement.node.values import parse_block, parse_quantity
from settlement.types import BlockRef, RevertReason

__all__ = [
    "Endpoint",
    "Endpoints",
    "NodeTransport",
]

_log: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

REST_S: Final = 15.0
"""How long a node that failed is asked only when no other answers. Doubles each time."""
REST_S_MAX: Final = 300.0


class NodeTransport(Protocol):
    """One node's socket."""

    async def ask(self, method: str, params: Sequence[object]) -> Any:
        """Return the JSON-RPC answer to one question, or raise `ChainUnavailableError`."""

    async def ask_many(self, calls: Sequence[tuple[str, Sequence[object]]]) -> Any:
        """Return the answers to a batch, or raise `ChainUnavailableError`."""

    async def disconnect(self) -> None:
        """Close it."""


class Endpoint:
    """One node: its socket, whether its chain was checked, and since when it rests."""

    def __init__(self, url: str, transport: NodeTransport, *, number: int = 1) -> None:
        self.transport = transport
        self.name = f"{number}: {urlsplit(url).hostname}"
        """Its place and its host alone: the rest of an address may hold an access key."""
        self.chain_id: int | None = None
        self.rests_until = float("-inf")
        self.rest_s = REST_S
        self.failures = 0


class Endpoints:
    """The nodes of one chain, in the order of preference."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Use these nodes; the first one is preferred.

        Raises:
            ConfigError: There is none.
        """
        if not endpoints:
            raise ConfigError("no node to ask: give at least one URL")
        self._endpoints = list(endpoints)
        self._current = self._endpoints[0]
        self._clock = clock
        self._left_out: frozenset[str] = frozenset()
        self.chain_id: int | None = None

    @property
    def current(self) -> Endpoint:
        """The node that is asked now."""
        return self._current

    def __len__(self) -> int:
        return len(self._endpoints)

    async def ask(self, use: Callable[[NodeTransport], Awaitable[_T]]) -> _T:
        """Ask the current node once; when it fails it rests, and the next call asks another.

        `use` reads the answer, too: one that cannot be read is no answer. When a node says no,
        the others are asked, until two say the same; a node that is alone with its no rests.

        Raises:
            ContractRevertedError: A contract refused, by a second node's word where one answers.
            RpcRefusedError: The same for a refusal by the node itself.
            ChainUnavailableError: It did not answer, or serves another chain.
        """
        endpoint = self._current
        try:
            await self._require_ours(endpoint)
            answer = await use(endpoint.transport)
        except (ContractRevertedError, RpcRefusedError) as refusal:
            return await self._ask_others(endpoint, use, refusal)
        except ChainUnavailableError:
            self.distrust(endpoint)
            raise
        endpoint.rest_s, endpoint.failures = REST_S, 0
        return answer

    async def _ask_others(
        self,
        endpoint: Endpoint,
        use: Callable[[NodeTransport], Awaitable[_T]],
        refusal: ContractRevertedError | RpcRefusedError,
    ) -> _T:
        """Ask the other nodes about one node's no: is it the chain's, or this node's alone?"""
        said: list[ContractRevertedError | RpcRefusedError] = [refusal]
        others = [each for each in self._endpoints if each is not endpoint]
        for other in sorted(others, key=self._reluctance):
            if other.name in self._left_out:
                continue
            try:
                await self._require_ours(other)
                answer = await use(other.transport)
            except (ContractRevertedError, RpcRefusedError) as found:
                if any(_is_same(found, each) for each in said):
                    raise found from None
                said.append(found)
            except ChainUnavailableError:
                self._let_rest(other)
            else:
                self.distrust(endpoint)
                return answer
        raise refusal

    async def ask_each(
        self, use: Callable[[NodeTransport], Awaitable[_T]]
    ) -> list[_T | ChainUnavailableError]:
        """Ask every node at once, also one that rests or is left out; each answers for itself."""

        async def ask(endpoint: Endpoint) -> _T | ChainUnavailableError:
            try:
                await self._require_ours(endpoint)
                return await use(endpoint.transport)
            except ChainUnavailableError as error:
                return error

        return await asyncio.gather(*[ask(endpoint) for endpoint in self._endpoints])

    async def ask_believed(
        self, use: Callable[[NodeTransport], Awaitable[_T]], *, timeout_s: float | None = None
    ) -> list[_T]:
        """Ask every node that is not left out at once; return the answers that came, and no more.

        So that one node's word can be held against another's, whichever is asked otherwise.
        """

        async def ask(endpoint: Endpoint) -> list[_T]:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._require_ours(endpoint)
                    return [await use(endpoint.transport)]
            except (ChainUnavailableError, ContractRevertedError, TimeoutError):
                return []

        believed = [each for each in self._endpoints if each.name not in self._left_out]
        return [said for each in await asyncio.gather(*map(ask, believed)) for said in each]

    def distrust(self, endpoint: Endpoint | None = None) -> None:
        """Let a node rest, the current one if none is named, and go on with the next."""
        endpoint = endpoint or self._current
        self._let_rest(endpoint)
        if endpoint is self._current:
            self._choose()

    def _let_rest(self, endpoint: Endpoint) -> None:
        endpoint.failures += 1
        endpoint.rests_until = self._clock() + endpoint.rest_s
        endpoint.rest_s = min(2 * endpoint.rest_s, REST_S_MAX)

    def avoid(self, names: Collection[str]) -> None:
        """Let the nodes of these names rest, unless no other is left."""
        if len(names) < len(self._endpoints):
            for endpoint in self._endpoints:
                if endpoint.name in names:
                    self.distrust(endpoint)

    def leave_out(self, names: Collection[str]) -> None:
        """Ask the nodes of these names nothing but comparisons, whoever else is away, until told.

        An empty collection takes all in again. That some node is asked is the caller's care.
        """
        self._left_out = frozenset(names)
        if self._current.name in self._left_out:
            self._choose()

    async def compare(self, *, depth: int) -> list[EndpointView]:
        """Ask every node for its head, and for one block that most should have by now.

        That is so deep below the head that more than half of them have reached: below the lowest
        one a single node that is far behind would have all compared where they cannot differ. A
        node that does not answer is in the list without a head; it never delays the others beyond
        its own deadline.
        """
        heads = await asyncio.gather(*[self._block(each) for each in self._endpoints])
        seen = sorted([head.number for head in heads if head is not None], reverse=True)
        reached = seen[min(len(heads) // 2, len(seen) - 1)] if seen else 0
        number = max(0, reached - depth)
        deep = await asyncio.gather(
            *[
                self._block(each, number) if head is not None else _nothing()
                for each, head in zip(self._endpoints, heads, strict=True)
            ]
        )
        return [
            EndpointView(each.name, head, at_depth)
            for each, head, at_depth in zip(self._endpoints, heads, deep, strict=True)
        ]

    async def disconnect(self) -> None:
        """Close every socket."""
        await asyncio.gather(*[each.transport.disconnect() for each in self._endpoints])

    def _choose(self) -> None:
        believed = [each for each in self._endpoints if each.name not in self._left_out]
        self._current = min(believed or self._endpoints, key=self._reluctance)

    def _reluctance(self, endpoint: Endpoint) -> tuple[float, int]:
        """Rested nodes first, in the order of preference; else whoever rests the longest."""
        rests = max(0.0, endpoint.rests_until - self._clock())
        return rests, self._endpoints.index(endpoint)

    async def require_chain(self, chain_id: int | None) -> int:
        """Check which chain the nodes serve, and return it; those that are away come later.

        So does one that serves another chain while another node serves `chain_id`: a process
        that starts again in an emergency must not be kept from it by one node.

        Raises:
            ConfigError: No node serves `chain_id`; or, without one, a node serves another chain
                than the first.
            ChainUnavailableError: None answers.
        """
        found = await asyncio.gather(
            *[self._chain_of(each) for each in self._endpoints], return_exceptions=True
        )
        served = [each for each in found if isinstance(each, int)]
        failed = [each for each in found if isinstance(each, BaseException)]
        if not served:
            raise failed[0]
        self.chain_id = served[0] if chain_id is None else chain_id
        strange = [each for each in served if each != self.chain_id]
        if strange and (chain_id is None or len(strange) == len(served)):
            raise ConfigError(
                f"The node serves chain {strange[0]}; the configuration says {self.chain_id}."
            )
        for endpoint in self._endpoints:
            if endpoint.chain_id != self.chain_id:
                if endpoint.chain_id is not None:
                    _log.error(
                        "node %s serves chain %d, not %d: it is asked nothing until it does",
                        endpoint.name,
                        endpoint.chain_id,
                        self.chain_id,
                    )
                    endpoint.chain_id = None
                self.distrust(endpoint)
        return self.chain_id

    async def _chain_of(self, endpoint: Endpoint) -> int:
        if endpoint.chain_id is None:
            answer = await endpoint.transport.ask(*questions.CHAIN_ID)
            endpoint.chain_id = parse_quantity(_result(answer))
        return endpoint.chain_id

    async def check_chain(self) -> None:
        """Ask the current node once more which chain it serves; if another one, it rests.

        Raises:
            ChainUnavailableError: It serves another one by now, or does not answer.
        """
        endpoint = self._current
        endpoint.chain_id = None
        try:
            await self._require_ours(endpoint)
        except ChainUnavailableError:
            self.distrust(endpoint)
            raise

    async def _require_ours(self, endpoint: Endpoint) -> None:
        """Check the chain of a node that was away, or served another one, before it counts."""
        served = await self._chain_of(endpoint)
        if served != self.chain_id:
            endpoint.chain_id = None
            raise ChainUnavailableError(
                f"The node {endpoint.name} serves chain {served}, not {self.chain_id}."
            )

    async def _block(self, endpoint: Endpoint, number: int | None = None) -> BlockRef | None:
        """Return a node's head, or its block of this number; None where it has none."""
        try:
            await self._require_ours(endpoint)
            answer = await endpoint.transport.ask(*questions.block(number))
            return parse_block(_result(answer))
        except ChainUnavailableError:
            return None


def _is_same(one: MppSessionError, other: MppSessionError) -> bool:
    """Whether two nodes say the same no; one that gives no reason contradicts no reason."""
    if isinstance(one, ContractRevertedError) and isinstance(other, ContractRevertedError):
        reasons = {one.reason, other.reason}
        return len(reasons) == 1 or RevertReason.UNKNOWN in reasons
    return isinstance(one, RpcRefusedError) and isinstance(other, RpcRefusedError)


async def _nothing() -> None:
    return None


def _result(answer: Any) -> Any:
    if not isinstance(answer, dict) or "result" not in answer:
        raise ChainUnavailableError("The node's answer is not JSON-RPC.")
    return answer["result"]
