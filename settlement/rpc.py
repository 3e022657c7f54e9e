"""One node over JSON-RPC: the only socket of the chain side.

Every call has a deadline. Reads are tried again, a bounded number of times; what changes the
chain never is, because the caller must know what it sent (F-82). web3.py's provider speaks the
protocol; its hidden retries and its log, which would print the node's address with the access
key in it, are not used, and the connection is kept alive.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from aiohttp import ClientError, ClientResponseError, ClientSession
from web3.providers.rpc.async_rpc import AsyncHTTPProvider
from web3.types import RPCEndpoint

from channel.errors import ChainUnavailableError, ConfigError
from channel.types import Address, TxHash
from settlement.abi import decode_revert
from settlement.errors import RpcRefusedError, contract_reverted
from settlement.rpc_values import (
    parse_block,
    parse_bytes,
    parse_logs,
    parse_quantity,
    parse_receipt,
)
from settlement.types import BlockRef, Log, Receipt, RevertReason

__all__ = ["Rpc", "RpcLimits"]

Call = tuple[str, Sequence[object]]
"""A method and its parameters."""

_REVERTED: Final = 3
_MESSAGE_CHARS_MAX: Final = 200


class RpcLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a node may take, how much it may say, and how often a read is tried."""

    timeout_s: float = 10.0
    answer_bytes_max: int = 32 * 1024 * 1024
    read_attempts_max: int = 3
    retry_delay_s: float = 0.2
    """Doubles after each attempt."""


class _Provider(AsyncHTTPProvider):
    """web3.py's provider on a connection of ours: kept alive, one attempt, a bounded answer."""

    logger = logging.getLogger("settlement.rpc.web3")
    logger.disabled = True

    def __init__(self, url: str, answer_bytes_max: int) -> None:
        super().__init__(url, exception_retry_configuration=None)
        self._session = ClientSession(headers=self.get_request_headers(), raise_for_status=True)
        self._url = url
        self._answer_bytes_max = answer_bytes_max

    async def _make_request(self, method: RPCEndpoint, request_data: bytes) -> bytes:  # noqa: ARG002
        async with self._session.post(self._url, data=request_data) as response:
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > self._answer_bytes_max:
                    msg = "the answer is longer than answer_bytes_max"
                    raise ValueError(msg)
            return bytes(answer)

    async def make_many(self, calls: Sequence[Call]) -> Any:
        batch = [(RPCEndpoint(method), list(params)) for method, params in calls]
        answer = await self._make_request(RPCEndpoint(""), self.encode_batch_rpc_request(batch))
        return self.decode_rpc_response(answer)

    async def disconnect(self) -> None:
        await self._session.close()


class Rpc:
    """A connection to one node of one chain; made by `connect`, which pins the chain id (SEC-09).

    Belongs to the event loop it was connected in.
    """

    def __init__(self, provider: _Provider, chain_id: int, limits: RpcLimits) -> None:
        self._provider = provider
        self._limits = limits
        self.chain_id = chain_id

    @classmethod
    async def connect(
        cls, url: str, *, chain_id: int | None = None, limits: RpcLimits | None = None
    ) -> Self:
        """Connect, and refuse a node of another chain than `chain_id`.

        Raises:
            ConfigError: The node serves another chain.
            ChainUnavailableError: It does not answer.
        """
        limits = limits or RpcLimits()
        rpc = cls(_Provider(url, limits.answer_bytes_max), 0, limits)
        try:
            rpc.chain_id = parse_quantity(await rpc.read("eth_chainId"))
        except BaseException:
            await rpc.close()
            raise
        if chain_id not in (None, rpc.chain_id):
            await rpc.close()
            msg = f"The node serves chain {rpc.chain_id}; the configuration says {chain_id}."
            raise ConfigError(msg)
        return rpc

    async def close(self) -> None:
        """Close the connection."""
        await self._provider.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # How to ask.

    async def read(self, method: str, *params: object) -> Any:
        """Ask something that changes nothing; asked again when no answer comes.

        Raises:
            ContractRevertedError: A simulated call was refused by the contract.
            RpcRefusedError: The node answered with another error.
            ChainUnavailableError: No usable answer, on any attempt.
        """
        return _result(method, await self._attempts(lambda: self._post(method, params)))

    async def read_batch(self, calls: Sequence[Call]) -> list[Any]:
        """Ask many things in one round trip; the first that fails, in order, is raised.

        Raises:
            ContractRevertedError: As `read`.
            RpcRefusedError: As `read`.
            ChainUnavailableError: As `read`, or the answers do not match the questions.
        """
        answers = await self._attempts(lambda: self._post_batch(calls))
        return [_result(method, answer) for (method, _), answer in zip(calls, answers, strict=True)]

    async def command(self, method: str, *params: object) -> Any:
        """Ask for a change, once. On `ChainUnavailableError` it may or may not have happened.

        Raises:
            RpcRefusedError: The node says no.
            ChainUnavailableError: No usable answer.
        """
        return _result(method, await self._post(method, params))

    # The questions this package asks.

    async def block_number(self) -> int:
        """Return the number of the head."""
        return parse_quantity(await self.read("eth_blockNumber"))

    async def block(self, number: int | None = None) -> BlockRef:
        """Return a block (the head if None); a node that lacks it is `ChainUnavailableError`."""
        tag = "latest" if number is None else hex(number)
        return parse_block(await self.read("eth_getBlockByNumber", tag, False))  # noqa: FBT003

    async def block_by_hash(self, block_hash: bytes) -> BlockRef:
        """Return a block by its hash; a node that lacks it is `ChainUnavailableError`."""
        return parse_block(await self.read("eth_getBlockByHash", _hex(block_hash), False))  # noqa: FBT003

    async def code(self, address: Address) -> bytes:
        """Return a contract's code, empty when there is none."""
        return parse_bytes(await self.read("eth_getCode", _hex(address), "latest"))

    async def balance_wei(self, address: Address) -> int:
        """Return an account's ether."""
        return parse_quantity(await self.read("eth_getBalance", _hex(address), "latest"))

    async def receipt(self, tx_hash: TxHash) -> Receipt | None:
        """Return a transaction's receipt, or None while it has none (never a failure, F-75)."""
        answer = await self.read("eth_getTransactionReceipt", _hex(tx_hash))
        return None if answer is None else parse_receipt(answer)

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
        return parse_logs(await self.read("eth_getLogs", query))

    async def logs_of_blocks(
        self, address: Address, topics: Sequence[bytes | None], block_hashes: Sequence[bytes]
    ) -> tuple[Log, ...]:
        """Return one contract's events in these very blocks, in one round trip.

        By hash a node that lacks a block says so; by number it may answer with nothing, and the
        events would be lost (F-73).

        Raises:
            RpcRefusedError: The node does not have one of the blocks, or not any more.
        """
        query = {
            "address": _hex(address),
            "topics": [None if topic is None else _hex(topic) for topic in topics],
        }
        calls = [("eth_getLogs", [{**query, "blockHash": _hex(each)}]) for each in block_hashes]
        found: list[Log] = []
        for block_hash, answer in zip(block_hashes, await self.read_batch(calls), strict=True):
            found += [log for log in parse_logs(answer) if log.block_hash == block_hash]
        return tuple(found)

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
        return parse_bytes(await self.read("eth_call", request, at))

    # The wire.

    async def _attempts(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask until there is an answer; within one call's deadline, so that a hang ends it."""
        clock, delay_s = asyncio.get_running_loop().time, self._limits.retry_delay_s
        deadline = clock() + self._limits.timeout_s
        for _ in range(self._limits.read_attempts_max - 1):
            try:
                return await ask()
            except ChainUnavailableError:
                if clock() + delay_s >= deadline:
                    raise
                await asyncio.sleep(delay_s)
                delay_s *= 2
        return await ask()

    async def _post(self, method: str, params: Sequence[object]) -> dict[str, Any]:
        answer = await self._bounded(
            method, self._provider.make_request(RPCEndpoint(method), list(params))
        )
        if not isinstance(answer, dict):
            raise _nonsense(method)
        return answer

    async def _post_batch(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        answers = await self._bounded("a batch", self._provider.make_many(calls))
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise _nonsense("a batch")
        if not all(isinstance(a, dict) and isinstance(a.get("id"), int) for a in answers):
            raise _nonsense("a batch")
        return sorted(answers, key=lambda answer: int(answer["id"]))

    async def _bounded(self, what: str, answering: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await answering
        except TimeoutError:
            msg = f"The node did not answer {what} within {self._limits.timeout_s:g} s."
            raise ChainUnavailableError(msg) from None
        except (ClientError, OSError) as error:  # its text holds the node's address: not passed on
            status = f" {error.status}" if isinstance(error, ClientResponseError) else ""
            msg = f"The node cannot be reached for {what} ({type(error).__name__}{status})."
            raise ChainUnavailableError(msg) from None
        except (ValueError, RecursionError):
            raise _nonsense(what) from None


def _result(method: str, answer: dict[str, Any]) -> Any:
    error = answer.get("error")
    if error is None:
        if "result" not in answer:
            raise _nonsense(method)
        return answer["result"]
    if not isinstance(error, dict):
        raise _nonsense(method)
    code, message = error.get("code"), str(error.get("message"))
    lowered = message.lower().replace(" ", "")
    if code == _REVERTED or "revert" in lowered:
        reason, text = decode_revert(_revert_bytes(error.get("data")))
        raise contract_reverted(reason, text=text)
    if "outofgas" in lowered:
        raise contract_reverted(RevertReason.OUT_OF_GAS)
    raise RpcRefusedError(
        method, code=code if isinstance(code, int) else 0, message=message[:_MESSAGE_CHARS_MAX]
    )


def _revert_bytes(given: Any) -> bytes:
    """Find what the contract returned; some nodes put words before it."""
    found = re.search(r"0x((?:[0-9a-fA-F]{2})*)", given) if isinstance(given, str) else None
    return bytes.fromhex(found[1]) if found else b""


def _nonsense(what: str) -> ChainUnavailableError:
    return ChainUnavailableError(f"The node's answer to {what} is not JSON-RPC.")


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
