"""One node's socket: JSON-RPC over HTTP, each question with a deadline and a bounded answer.

web3.py's provider speaks the protocol; its hidden retries and its log, which would print the
node's address with the access key in it, are not used, and the connection is kept alive.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from aiohttp import ClientError, ClientResponseError, ClientSession
from web3.providers.rpc.async_rpc import AsyncHTTPProvider
from web3.types import RPCEndpoint

from channel.errors import ChainUnavailableError

__all__ = ["Call", "HttpTransport", "nonsense"]

_BATCH_MAX: Final = 1000

Call = tuple[str, Sequence[object]]
"""A method and its parameters."""


class HttpTransport:
    """A connection to one node. Every failure is a `ChainUnavailableError`."""

    def __init__(self, url: str, *, timeout_s: float, answer_bytes_max: int) -> None:
        self._provider = _Provider(url, answer_bytes_max)
        self._timeout_s = timeout_s
        self._batch_max = _BATCH_MAX

    async def ask(self, method: str, params: Sequence[object]) -> Any:
        """Return the JSON-RPC answer to one question."""
        answer = await self._bounded(
            method, self._provider.make_request(RPCEndpoint(method), list(params))
        )
        if not isinstance(answer, dict):
            raise nonsense(method)
        return answer

    async def ask_many(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        """Return the answers to a batch, in the order of the questions.

        Some nodes take only so many at once: then it goes in parts, as small as they need to be.
        """
        answers: list[dict[str, Any]] = []
        while len(answers) < len(calls):
            asked = calls[len(answers) : len(answers) + self._batch_max]
            try:
                answers += await self._ask_batch(asked)
            except _BatchTooLargeError:
                self._batch_max = len(asked) // 2
        return answers

    async def _ask_batch(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        answers = await self._bounded("a batch", self._provider.make_many(calls))
        if len(calls) > 1 and _is_about_batches(answers):
            raise _BatchTooLargeError
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise nonsense("a batch")
        if not all(isinstance(a, dict) and isinstance(a.get("id"), int) for a in answers):
            raise nonsense("a batch")
        return sorted(answers, key=lambda answer: int(answer["id"]))

    async def disconnect(self) -> None:
        """Close the connection."""
        await self._provider.disconnect()

    async def _bounded(self, what: str, answering: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answering
        except TimeoutError:
            msg = f"The node did not answer {what} within {self._timeout_s:g} s."
            raise ChainUnavailableError(msg) from None
        except (ClientError, OSError) as error:  # its text holds the node's address: not passed on
            status = f" {error.status}" if isinstance(error, ClientResponseError) else ""
            msg = f"The node cannot be reached for {what} ({type(error).__name__}{status})."
            raise ChainUnavailableError(msg) from None
        except (ValueError, RecursionError):
            raise nonsense(what) from None


class _BatchTooLargeError(Exception):
    """The node takes fewer questions at once."""


def _is_about_batches(answer: Any) -> bool:
    """Whether one error came in place of all answers, because there were too many questions."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, dict) and "batch" in str(error.get("message")).lower()


def nonsense(what: str) -> ChainUnavailableError:
    """Return the error for an answer that is not JSON-RPC."""
    return ChainUnavailableError(f"The node's answer to {what} is not JSON-RPC.")


class _Provider(AsyncHTTPProvider):
    """web3.py's provider on a connection of ours: kept alive, one attempt, a bounded answer."""

    logger = logging.getLogger("settlement.rpc.web3")
    # By its level, since whoever configures logging may undo `disabled` without meaning it.
    logger.setLevel(logging.CRITICAL + 1)

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
