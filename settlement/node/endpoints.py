"""Several nodes behind one connection: any that answers, all of the same chain (SEC-09).

One node is asked as long as it answers, so that related reads share one view of the chain (F-72).
When it fails, or its answer cannot be read, it gets a cool-down and the next node is asked. A
refusal by one node counts only once a second node gives the same refusal. Each node's chain id is
checked before its first answer is used. `compare` reads every node's head and one common block;
`settlement.node.nodes` judges which nodes lag or disagree.
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

COOLDOWN_S: Final = 15.0
"""Seconds for which a node that failed is asked only if no other answers. Doubles each time."""
COOLDOWN_S_MAX: Final = 300.0


class NodeTransport(Protocol):
    """One node's socket."""

    async def ask(self, method: str, params: Sequence[object]) -> Any:
        """Return the JSON-RPC answer to one question, or raise `ChainUnavailableError`."""

    async def ask_many(self, calls: Sequence[tuple[str, Sequence[object]]]) -> Any:
        """Return the answers to a batch, or raise `ChainUnavailableError`."""

    async def disconnect(self) -> None:
        """Close the connection."""


class Endpoint:
    """One node: its transport, the chain id it reported, and its cool-down."""

    def __init__(self, url: str, transport: NodeTransport, *, number: int = 1) -> None:
        self.transport = transport
        self.name = f"{number}: {urlsplit(url).hostname}"
        """Position and host only: the rest of the URL may hold an access key."""
        self.chain_id: int | None = None
        self.cooldown_until = float("-inf")
        self.cooldown_s = COOLDOWN_S
        self.failures = 0


class Endpoints:
    """The nodes of one chain, in the order of preference."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Use these nodes; the first one is preferred.

        Raises:
            ConfigError: `endpoints` is empty.
        """
        if not endpoints:
            raise ConfigError("No node is configured: give at least one URL.")
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
        """Ask the current node once; if it fails, start its cool-down and choose another.

        `use` also parses the answer; an answer that it cannot parse counts as no answer. When a
        node refuses, the other nodes are asked until two give the same refusal. A node whose
        refusal no other node confirms gets a cool-down.

        Raises:
            ContractRevertedError: A contract refused; confirmed by a second node if one answers.
            RpcRefusedError: A node refused; confirmed by a second node if one answers.
            ChainUnavailableError: The node did not answer, or serves another chain.
        """
        endpoint = self._current
        try:
            await self._require_ours(endpoint)
            answer = await use(endpoint.transport)
        except (ContractRevertedError, RpcRefusedError) as refusal:
            return await self._ask_others(endpoint, use, refusal)
        except ChainUnavailableError:
            self.mark_unhealthy(endpoint)
            raise
        endpoint.cooldown_s, endpoint.failures = COOLDOWN_S, 0
        return answer

    async def _ask_others(
        self,
        endpoint: Endpoint,
        use: Callable[[NodeTransport], Awaitable[_T]],
        refusal: ContractRevertedError | RpcRefusedError,
    ) -> _T:
        """Ask the other nodes whether a refusal is the chain's or only this node's."""
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
                self._start_cooldown(other)
            else:
                self.mark_unhealthy(endpoint)
                return answer
        raise refusal

    async def ask_each(
        self, use: Callable[[NodeTransport], Awaitable[_T]]
    ) -> list[_T | ChainUnavailableError]:
        """Ask all nodes concurrently, also those in cool-down or left out; return every answer."""

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
        """Ask all nodes that are not left out, concurrently; return only the answers that came.

        The caller can then compare the answers of several nodes.
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

    def mark_unhealthy(self, endpoint: Endpoint | None = None) -> None:
        """Start a node's cool-down (the current node's by default) and choose the next node."""
        endpoint = endpoint or self._current
        self._start_cooldown(endpoint)
        if endpoint is self._current:
            self._choose()

    def _start_cooldown(self, endpoint: Endpoint) -> None:
        endpoint.failures += 1
        endpoint.cooldown_until = self._clock() + endpoint.cooldown_s
        endpoint.cooldown_s = min(2 * endpoint.cooldown_s, COOLDOWN_S_MAX)

    def avoid(self, names: Collection[str]) -> None:
        """Start the cool-down of the named nodes, unless that would leave no other node."""
        if len(names) < len(self._endpoints):
            for endpoint in self._endpoints:
                if endpoint.name in names:
                    self.mark_unhealthy(endpoint)

    def leave_out(self, names: Collection[str]) -> None:
        """Exclude the named nodes from everything except comparisons, until the next call.

        An empty collection includes all nodes again. The caller must leave at least one node.
        """
        self._left_out = frozenset(names)
        if self._current.name in self._left_out:
            self._choose()

    async def compare(self, *, depth: int) -> list[EndpointView]:
        """Read every node's head, and one older block that most nodes should have by now.

        The block is `depth` below a head that more than half of the nodes have reached. Measured
        from the lowest head, one node far behind would move the comparison to blocks on which no
        two nodes can differ. A node that does not answer is listed without a head, and delays the
        others no longer than its own timeout.
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
        """Close every connection."""
        await asyncio.gather(*[each.transport.disconnect() for each in self._endpoints])

    def _choose(self) -> None:
        believed = [each for each in self._endpoints if each.name not in self._left_out]
        self._current = min(believed or self._endpoints, key=self._reluctance)

    def _reluctance(self, endpoint: Endpoint) -> tuple[float, int]:
        """Sort by remaining cool-down, then by the order of preference."""
        cooldown = max(0.0, endpoint.cooldown_until - self._clock())
        return cooldown, self._endpoints.index(endpoint)

    async def require_chain(self, chain_id: int | None) -> int:
        """Check which chain the nodes serve, and return its id. Others are checked later.

        A node that serves another chain is set aside while another node serves `chain_id`: one
        wrong node must not keep a process from starting in an emergency.

        Raises:
            ConfigError: No node serves `chain_id`; or, without `chain_id`, two nodes serve
                different chains.
            ChainUnavailableError: No node answers.
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
                f"The node serves chain {strange[0]}; the configuration says {self.chain_id}: "
                "correct `chain.id`, or name a node of that chain."
            )
        for endpoint in self._endpoints:
            if endpoint.chain_id != self.chain_id:
                if endpoint.chain_id is not None:
                    _log.error(
                        "node %s serves chain %d, not %d: it is not used until it does",
                        endpoint.name,
                        endpoint.chain_id,
                        self.chain_id,
                    )
                    endpoint.chain_id = None
                self.mark_unhealthy(endpoint)
        return self.chain_id

    async def _chain_of(self, endpoint: Endpoint) -> int:
        if endpoint.chain_id is None:
            answer = await endpoint.transport.ask(*questions.CHAIN_ID)
            endpoint.chain_id = parse_quantity(_result(answer))
        return endpoint.chain_id

    async def check_chain(self) -> None:
        """Ask the current node for its chain id again; start its cool-down if the id has changed.

        Raises:
            ChainUnavailableError: The node now serves another chain, or does not answer.
        """
        endpoint = self._current
        endpoint.chain_id = None
        try:
            await self._require_ours(endpoint)
        except ChainUnavailableError:
            self.mark_unhealthy(endpoint)
            raise

    async def _require_ours(self, endpoint: Endpoint) -> None:
        """Check the chain id of a node before its answers are used."""
        served = await self._chain_of(endpoint)
        if served != self.chain_id:
            endpoint.chain_id = None
            raise ChainUnavailableError(
                f"The node {endpoint.name} serves chain {served}, not {self.chain_id}."
            )

    async def _block(self, endpoint: Endpoint, number: int | None = None) -> BlockRef | None:
        """Return a node's head, or its block with this number; None if it has none."""
        try:
            await self._require_ours(endpoint)
            answer = await endpoint.transport.ask(*questions.block(number))
            return parse_block(_result(answer))
        except ChainUnavailableError:
            return None


def _is_same(one: MppSessionError, other: MppSessionError) -> bool:
    """Whether two refusals are the same. A refusal without a reason contradicts no other."""
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
