"""A chain over JSON-RPC: the calls this package makes, to one node or several.

Every call has a timeout. Reads are retried a bounded number of times, on the next node if there is
one. Calls that change the chain are never retried, because the caller must know what it sent
(F-82). Signed transactions are the exception: their bytes mean the same at every node.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from channel.errors import ChainUnavailableError
from channel.limits import NODE_ANSWER_BYTES_MAX, NODE_MESSAGE_CHARS_MAX, NODE_TIP_S_MAX
from channel.types import Address, TxHash
from settlement.abi import decode_revert
from settlement.errors import ContractRevertedError, RpcRefusedError, contract_reverted
from settlement.node import questions
from settlement.node.endpoints import Endpoint, Endpoints, NodeTransport
from settlement.node.nodes import EndpointView
from settlement.node.transport import Call, HttpTransport, nonsense
from settlement.node.values import (
    parse_block,
    parse_bytes,
    parse_count,
    parse_logs,
    parse_price,
    parse_quantity,
    parse_receipt,
)
from settlement.types import BlockRef, Log, Receipt, RevertReason

__all__ = ["Rpc", "RpcLimits"]

_Answer = TypeVar("_Answer")

_REVERTED: Final = 3
_RUN: Final = frozenset((questions.CALL, questions.ESTIMATE_GAS))
_TIPS_KEPT_S: Final = 5.0


class RpcLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on a node's answer time and size, and on how often a read is tried."""

    timeout_s: float = 10.0
    answer_bytes_max: int = NODE_ANSWER_BYTES_MAX
    read_attempts_max: int = 3
    retry_delay_s: float = 0.2
    """Doubles after each attempt."""


class Rpc:
    """A connection to one chain. `connect` makes one and pins the chain id (SEC-09).

    An instance belongs to the event loop in which it was connected.
    """

    def __init__(self, endpoints: Endpoints, chain_id: int, limits: RpcLimits) -> None:
        self._endpoints = endpoints
        self._limits = limits
        self.chain_id = chain_id
        self._tips: list[int] = []
        self._tips_until = float("-inf")

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        *,
        chain_id: int | None = None,
        limits: RpcLimits | None = None,
    ) -> Self:
        """Connect to one node, or to several of the same chain in order of preference.

        An unreachable node is tolerated while another node answers.

        Raises:
            ConfigError: No node serves `chain_id`, or the nodes serve different chains.
            ChainUnavailableError: No node answers.
        """
        limits = limits or RpcLimits()
        urls = [url] if isinstance(url, str) else list(url)
        timeout_s = limits.timeout_s / min(len(urls) or 1, limits.read_attempts_max)
        endpoints = Endpoints(
            [
                Endpoint(
                    each,
                    HttpTransport(
                        each, timeout_s=timeout_s, answer_bytes_max=limits.answer_bytes_max
                    ),
                    number=number,
                )
                for number, each in enumerate(urls, 1)
            ]
        )
        rpc = cls(endpoints, 0, limits)
        try:
            rpc.chain_id = await rpc._attempts(lambda: endpoints.require_chain(chain_id))
        except BaseException:
            await rpc.close()
            raise
        return rpc

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoints.disconnect()

    @property
    def node_count(self) -> int:
        """The number of configured nodes."""
        return len(self._endpoints)

    def mark_unhealthy(self) -> None:
        """Switch to another node if there is one: the current node lags or contradicts itself."""
        if self.node_count > 1:
            self._endpoints.mark_unhealthy()

    def avoid(self, names: Collection[str]) -> None:
        """Stop using the nodes with these names (see `compare_nodes`), unless no other is left."""
        self._endpoints.avoid(names)

    def leave_out(self, names: Collection[str]) -> None:
        """Exclude the named nodes from everything except comparisons, until the next call."""
        self._endpoints.leave_out(names)

    async def compare_nodes(self, *, depth: int) -> list[EndpointView]:
        """Return each node's head, and its block `depth` below the common head."""
        return await self._endpoints.compare(depth=depth)

    async def check_chain(self) -> None:
        """Ask the node for its chain id again: another node may now answer at its address.

        Raises:
            ChainUnavailableError: The node serves another chain, or does not answer (SEC-09).
        """
        await self._endpoints.check_chain()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # Reads and commands.

    async def read(self, method: str, *params: object) -> Any:
        """Call a method that changes nothing; retried when no answer comes.

        If several nodes answer, a refusal counts once a second node gives the same one (SEC-09).

        Raises:
            ContractRevertedError: A contract refused a simulated call.
            RpcRefusedError: The node answered with another error.
            ChainUnavailableError: No attempt got a usable answer.
        """
        return await self._read(_as_it_is, (method, params))

    async def read_batch(self, calls: Sequence[Call]) -> list[Any]:
        """Make many calls in one round trip; raise the first error, in the order of the calls.

        Raises:
            ContractRevertedError: As `read`.
            RpcRefusedError: As `read`.
            ChainUnavailableError: As `read`, or the answers do not match the questions.
        """
        return await self.parse_batch(calls, list)

    async def parse_batch(
        self, calls: Sequence[Call], parse: Callable[[list[Any]], _Answer]
    ) -> _Answer:
        """Make calls as `read_batch` does, and return what `parse` makes of the results.

        If `parse` raises `ChainUnavailableError`, the node counts as not having answered and the
        next node is asked.
        """

        async def use(node: NodeTransport) -> _Answer:
            answers = await node.ask_many(calls)
            pairs = zip(calls, answers, strict=True)
            return parse([_result(method, answer) for (method, _), answer in pairs])

        return await self._attempts(lambda: self._endpoints.ask(use))

    async def command(self, method: str, *params: object) -> Any:
        """Call a method that changes something, once. `ChainUnavailableError`: it may have run.

        Raises:
            RpcRefusedError: The node refused.
            ChainUnavailableError: No usable answer.
        """
        tries = self.node_count if method == questions.SEND else 1
        for _ in range(tries - 1):
            try:
                return await self._command(method, params)
            except ChainUnavailableError as error:
                if isinstance(error, RpcRefusedError):
                    raise
        return await self._command(method, params)

    async def _command(self, method: str, params: Sequence[object]) -> Any:
        answer = await self._endpoints.ask(lambda node: node.ask(method, params))
        return _result(method, answer)

    async def offer(self, raw: bytes) -> list[ChainUnavailableError | None]:
        """Send a signed transaction to every node; return each node's error, None if it took it."""
        params = [_hex(raw)]
        errors: list[ChainUnavailableError | None] = []
        for answer in await self._endpoints.ask_each(lambda node: node.ask(questions.SEND, params)):
            try:
                if isinstance(answer, ChainUnavailableError):
                    raise answer
                _result(questions.SEND, dict(answer))
            except ChainUnavailableError as error:
                errors.append(error)
            else:
                errors.append(None)
        return errors

    # Typed calls.

    async def block_number(self) -> int:
        """Return the number of the head."""
        return await self._read(parse_count, questions.BLOCK_NUMBER)

    async def block(self, number: int | None = None) -> BlockRef:
        """Return a block (default: the head); `ChainUnavailableError` if the node lacks it."""
        return await self._read(parse_block, questions.block(number))

    async def block_by_hash(self, block_hash: bytes) -> BlockRef:
        """Return a block by its hash, or raise `ChainUnavailableError` if the node lacks it."""
        return await self._read(parse_block, questions.block_by_hash(block_hash))

    async def code(self, address: Address) -> bytes:
        """Return a contract's code, or empty bytes if there is none."""
        return await self._read(parse_bytes, questions.code_of(address))

    async def balance_wei(self, address: Address) -> int:
        """Return an account's ether, in wei."""
        return await self._read(parse_quantity, questions.balance_of(address))

    async def nonces_used(self, address: Address) -> int:
        """Return how many transactions of an account are mined."""
        return await self._read(parse_count, questions.nonces_of(address))

    async def nonces_of_each(self, address: Address, *, with_pending: bool = False) -> list[int]:
        """Return the transaction count of each node that answers, optionally with its pool's.

        Raises:
            ChainUnavailableError: No node answers.
        """
        method, params = questions.nonces_of(address, with_pending=with_pending)

        async def use(node: NodeTransport) -> int:
            return parse_count(_result(method, await node.ask(method, params)))

        said = await self._endpoints.ask_each(use)
        counts = [each for each in said if isinstance(each, int)]
        for each in said:
            if not counts and isinstance(each, ChainUnavailableError):
                raise each
        return counts

    async def receipt(self, tx_hash: TxHash) -> Receipt | None:
        """Return a transaction's receipt, or None while there is none (never a failure, F-75)."""
        return await self._read(
            lambda answer: None if answer is None else parse_receipt(answer),
            questions.receipt(tx_hash),
        )

    async def logs(
        self,
        address: Address,
        topics: Sequence[bytes | None],
        *,
        from_block: int,
        to_block: int,
    ) -> tuple[Log, ...]:
        """Return one contract's events in a range of blocks."""
        query = {
            "address": _hex(address),
            "topics": [None if topic is None else _hex(topic) for topic in topics],
            "fromBlock": hex(from_block),
            "toBlock": hex(to_block),
        }
        return await self._read(parse_logs, questions.logs(query))

    async def logs_of_blocks(
        self, address: Address, topics: Sequence[bytes | None], block_hashes: Sequence[bytes]
    ) -> tuple[Log, ...]:
        """Return one contract's events in the blocks with these hashes, in one round trip.

        By hash, a node that lacks a block answers with an error. By number, it may answer with no
        events, and they would be lost (F-73).

        Raises:
            RpcRefusedError: The node does not have one of the blocks, or not any more.
        """
        query = {
            "address": _hex(address),
            "topics": [None if topic is None else _hex(topic) for topic in topics],
        }
        calls = [questions.logs({**query, "blockHash": _hex(each)}) for each in block_hashes]

        def parse(answers: list[Any]) -> tuple[Log, ...]:
            found: list[Log] = []
            for block_hash, answer in zip(block_hashes, answers, strict=True):
                found += [log for log in parse_logs(answer) if log.block_hash == block_hash]
            return tuple(found)

        return await self.parse_batch(calls, parse)

    async def call(
        self,
        to: Address | None,
        calldata: bytes,
        *,
        sender: Address | None = None,
        block_number: int | None = None,
        block_hash: bytes | None = None,
        gas: int | None = None,
    ) -> bytes:
        """Run a call without effect, at a block by number or by hash (the head if neither).

        With `to` None the calldata runs as code of its own and its return value comes back.

        Raises:
            ContractRevertedError: The contract refused.
        """
        request = {"data": _hex(calldata)}
        if to is not None:
            request["to"] = _hex(to)
        if sender is not None:
            request["from"] = _hex(sender)
        if gas is not None:
            request["gas"] = hex(gas)
        at: object = "latest" if block_number is None else hex(block_number)
        if block_hash is not None:
            at = {"blockHash": _hex(block_hash)}
        return await self._read(parse_bytes, questions.call(request, at))

    async def view(
        self,
        to: Address,
        calldata: bytes,
        decode: Callable[[bytes], _Answer],
        *,
        block_hash: bytes | None = None,
        gas: int | None = None,
    ) -> _Answer:
        """Return what `decode` makes of a call that never reverts, at a block or at the head.

        A node that says it reverted, or whose answer cannot be decoded, has not answered.

        Raises:
            ChainUnavailableError: No usable answer.
        """
        request = {"data": _hex(calldata), "to": _hex(to)}
        if gas is not None:
            request["gas"] = hex(gas)
        at: object = "latest" if block_hash is None else {"blockHash": _hex(block_hash)}
        try:
            return await self._read(
                lambda answer: decode(parse_bytes(answer)), questions.call(request, at)
            )
        except ContractRevertedError as error:
            msg = f"A call that never reverts was refused ({error.reason.value})."
            raise ChainUnavailableError(msg) from error

    async def call_each(self, to: Address, calldata: bytes, *, block_number: int) -> list[bytes]:
        """Run a call without effect on every node that is believed; return what they answered."""
        request = {"to": _hex(to), "data": _hex(calldata)}
        method, params = questions.call(request, hex(block_number))

        async def use(node: NodeTransport) -> bytes:
            return parse_bytes(_result(method, dict(await node.ask(method, params))))

        return await self._endpoints.ask_believed(use)

    async def least_tip(self, tip_wei: int) -> int:
        """Return the least tip that any node suggests: at most the one that was given (SEC-09).

        One that is too low is raised while it waits; one that is too high is paid.
        """
        if self.node_count > 1:
            now = asyncio.get_running_loop().time()
            if now >= self._tips_until:
                self._tips = await self._endpoints.ask_believed(_ask_tip, timeout_s=NODE_TIP_S_MAX)
                self._tips_until = asyncio.get_running_loop().time() + _TIPS_KEPT_S
            tip_wei = min([tip_wei, *self._tips])
        return tip_wei

    async def try_calls(
        self, to: Address, calldatas: Sequence[bytes], *, sender: Address
    ) -> list[ContractRevertedError | None]:
        """Run many calls without effect, at the head; say of each why it was refused, if it was.

        Raises:
            RpcRefusedError: The node would not run one of them.
            ChainUnavailableError: No usable answer.
        """
        request = {"to": _hex(to), "from": _hex(sender)}
        calls = [questions.call({**request, "data": _hex(data)}) for data in calldatas]

        async def use(node: NodeTransport) -> list[ContractRevertedError | None]:
            return [_refusal(answer) for answer in await node.ask_many(calls)]

        refusals = await self._attempts(lambda: self._endpoints.ask(use))
        if self.node_count == 1:
            return refusals
        return [  # each alone, so that a second node is asked about each
            None if refusal is None else await self._try_call(call)
            for call, refusal in zip(calls, refusals, strict=True)
        ]

    async def _try_call(self, call: Call) -> ContractRevertedError | None:
        try:
            await self.read(call[0], *call[1])
        except ContractRevertedError as error:
            return error
        return None

    # The wire.

    async def _attempts(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Ask until there is an answer; within one call's deadline, so that a hang ends it."""
        clock, delay_s = asyncio.get_running_loop().time, self._limits.retry_delay_s
        deadline = clock() + self._limits.timeout_s
        for attempt in range(1, max(self._limits.read_attempts_max, self.node_count)):
            try:
                return await ask()
            except RpcRefusedError:
                raise  # an answer, and by now every node's
            except ChainUnavailableError:
                pause_s = 0.0 if attempt < self.node_count else delay_s  # another node: no pause
                if clock() + pause_s >= deadline:
                    raise
                await asyncio.sleep(pause_s)
                delay_s = 2 * delay_s if pause_s else delay_s
        return await ask()

    async def _read(self, parse: Callable[[Any], _Answer], question: Call) -> _Answer:
        """Ask one thing; a node whose result `parse` cannot read has not answered."""
        method, params = question

        async def use(node: NodeTransport) -> _Answer:
            return parse(_result(method, await node.ask(method, params)))

        return await self._attempts(lambda: self._endpoints.ask(use))


def _as_it_is(result: Any) -> Any:
    return result


def _refusal(answer: dict[str, Any]) -> ContractRevertedError | None:
    """Return why a simulated call was refused, None if it was not."""
    try:
        parse_bytes(_result(questions.CALL, answer))
    except ContractRevertedError as error:
        return error
    return None


async def _ask_tip(node: NodeTransport) -> int:
    method, params = questions.TIP
    return parse_price(_result(method, dict(await node.ask(method, params))))


def _result(method: str, answer: dict[str, Any]) -> Any:
    error = answer.get("error")
    if error is None:
        if "result" not in answer:
            raise nonsense(method)
        return answer["result"]
    if not isinstance(error, dict):
        raise nonsense(method)
    code, message = error.get("code"), str(error.get("message"))
    lowered = message.lower().replace(" ", "")
    if method in _RUN:  # no other method can revert, so a node that says so is wrong
        if code == _REVERTED or "revert" in lowered:
            reason, text = decode_revert(_revert_bytes(error.get("data")))
            raise contract_reverted(reason, text=text)
        if "outofgas" in lowered:
            raise contract_reverted(RevertReason.OUT_OF_GAS)
    raise RpcRefusedError(
        method, code=code if isinstance(code, int) else 0, message=message[:NODE_MESSAGE_CHARS_MAX]
    )


def _revert_bytes(given: Any) -> bytes:
    """Find what the contract returned; some nodes put words before it."""
    found = re.search(r"0x((?:[0-9a-fA-F]{2})*)", given) if isinstance(given, str) else None
    return bytes.fromhex(found[1]) if found else b""


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
