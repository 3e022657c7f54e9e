"""One node's connection: JSON-RPC over HTTP, with a timeout and a bounded answer per call.

The connection is kept alive. Each call is sent once: a retry hidden from the caller could send a
transaction twice. Errors and logs leave out the node's URL, because it may hold an access key. A
node is not trusted to answer the call that was made (SEC-09): an answer counts only if it carries
the id of its call, in any order.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import ClientError, ClientResponseError, ClientSession

from channel.errors import ChainUnavailableError
from settlement.errors import RpcRefusedError

__all__ = ["Call", "HttpTransport", "nonsense"]

_BATCH_MAX: Final = 1000
_HEADERS: Final = {
    "Accept-Encoding": "identity",  # a small compressed answer could expand beyond the bound
    "Content-Type": "application/json",
    "User-Agent": "mpp-session",
}

Call = tuple[str, Sequence[object]]
"""A method and its parameters."""


class HttpTransport:
    """A connection to one node. Every failure is a `ChainUnavailableError`."""

    def __init__(self, url: str, *, timeout_s: float, answer_bytes_max: int) -> None:
        self._url = url
        self._session = ClientSession(
            headers=_HEADERS, raise_for_status=True, auto_decompress=False
        )
        self._timeout_s = timeout_s
        self._answer_bytes_max = answer_bytes_max
        self._batch_max = _BATCH_MAX
        self._ids = itertools.count(1)

    async def ask(self, method: str, params: Sequence[object]) -> Any:
        """Return the JSON-RPC answer to one question."""
        question = self._question(method, params)
        answer = await self._post(method, question)
        if not isinstance(answer, dict) or not _is_answer(answer, question["id"]):
            raise nonsense(method)
        return answer

    async def ask_many(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        """Return the answers to a batch, in the order of the questions.

        Some nodes limit the size of a batch. The batch is then split as far as needed.
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
        questions = [self._question(method, params) for method, params in calls]
        answers = await self._post("a batch", questions)
        if len(calls) > 1 and _is_about_batches(answers):
            raise _BatchTooLargeError
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise nonsense("a batch")
        by_id = {
            answer["id"]: answer
            for answer in answers
            if isinstance(answer, dict) and type(answer.get("id")) is int
        }
        ids = [question["id"] for question in questions]
        if by_id.keys() != set(ids):
            raise nonsense("a batch")
        return [by_id[each] for each in ids]

    async def disconnect(self) -> None:
        """Close the connection."""
        await self._session.close()

    def _question(self, method: str, params: Sequence[object]) -> dict[str, Any]:
        return {
            "jsonrpc": "2.0",
            "id": next(self._ids),
            "method": method,
            "params": list(params),
        }

    async def _post(self, what: str, asked: object) -> Any:
        body = await self._bounded(what, self._exchange(what, msgspec.json.encode(asked)))
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise nonsense(what) from None

    async def _exchange(self, what: str, question: bytes) -> bytes:
        async with self._session.post(self._url, data=question) as response:
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > self._answer_bytes_max:  # a caller that reads logs asks for fewer
                    message = f"its answer is longer than {self._answer_bytes_max} bytes"
                    raise RpcRefusedError(what, code=0, message=message)
            return bytes(answer)

    async def _bounded(self, what: str, answering: Awaitable[bytes]) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answering
        except TimeoutError:
            msg = f"The node did not answer {what} within {self._timeout_s:g} s."
            raise ChainUnavailableError(msg) from None
        except (ClientError, OSError) as error:  # its text holds the node's URL: not passed on
            status = f" {error.status}" if isinstance(error, ClientResponseError) else ""
            msg = f"The node cannot be reached for {what} ({type(error).__name__}{status})."
            raise ChainUnavailableError(msg) from None
        except ValueError:
            raise nonsense(what) from None


class _BatchTooLargeError(Exception):
    """The node limits batches to fewer calls."""


def _is_answer(answer: Mapping[str, Any], question_id: int) -> bool:
    """Whether this is the answer to a call. An error may come without an id."""
    given = answer.get("id")
    is_error = answer.get("error") is not None
    return (type(given) is int and given == question_id) or (given is None and is_error)


def _is_about_batches(answer: Any) -> bool:
    """Whether one error came in place of all answers, because the batch was too large."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, dict) and "batch" in str(error.get("message")).lower()


def nonsense(what: str) -> ChainUnavailableError:
    """Return the error for an answer that is not JSON-RPC."""
    return ChainUnavailableError(f"The node's answer to {what} is not JSON-RPC.")
