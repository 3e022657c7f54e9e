"""One node's socket: JSON-RPC over HTTP, each question with a deadline and a bounded answer.

The connection is kept alive. A question is asked once: a retry that the caller does not see could
send a transaction twice. Errors and logs leave out the node's address: it may hold an access key.
"""

import asyncio
import json
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from aiohttp import ClientError, ClientResponseError, ClientSession

from channel.errors import ChainUnavailableError

__all__ = ["Call", "HttpTransport", "nonsense"]

_BATCH_MAX: Final = 1000

Call = tuple[str, Sequence[object]]
"""A method and its parameters."""


class HttpTransport:
    """A connection to one node. Every failure is a `ChainUnavailableError`."""

    def __init__(self, url: str, *, timeout_s: float, answer_bytes_max: int) -> None:
        self._url = url
        self._answer_bytes_max = answer_bytes_max
        self._session = ClientSession(
            headers={"Content-Type": "application/json"}, raise_for_status=True
        )
        self._timeout_s = timeout_s
        self._batch_max = _BATCH_MAX

    async def ask(self, method: str, params: Sequence[object]) -> Any:
        """Return the JSON-RPC answer to one question."""
        answer = await self._bounded(method, self._post(_question(1, (method, params))))
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
        answers = await self._bounded(
            "a batch",
            self._post([_question(number, call) for number, call in enumerate(calls, 1)]),
        )
        if len(calls) > 1 and _is_about_batches(answers):
            raise _BatchTooLargeError
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise nonsense("a batch")
        if not all(isinstance(a, dict) and isinstance(a.get("id"), int) for a in answers):
            raise nonsense("a batch")
        return sorted(answers, key=lambda answer: int(answer["id"]))

    async def disconnect(self) -> None:
        """Close the connection."""
        await self._session.close()

    async def _post(self, question: object) -> Any:
        """Send one JSON value and return the one that comes back.

        Raises:
            ClientError: No answer, or one with an error's status.
            ValueError: The answer is not JSON, or longer than `answer_bytes_max`.
        """
        async with self._session.post(self._url, data=json.dumps(question)) as response:
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > self._answer_bytes_max:
                    msg = "the answer is longer than answer_bytes_max"
                    raise ValueError(msg)
            return json.loads(answer)

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


def _question(number: int, call: Call) -> dict[str, object]:
    method, params = call
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}


def _is_about_batches(answer: Any) -> bool:
    """Whether one error came in place of all answers, because there were too many questions."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, dict) and "batch" in str(error.get("message")).lower()


def nonsense(what: str) -> ChainUnavailableError:
    """Return the error for an answer that is not JSON-RPC."""
    return ChainUnavailableError(f"The node's answer to {what} is not JSON-RPC.")
