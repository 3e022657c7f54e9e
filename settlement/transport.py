"""One node's socket: JSON-RPC over HTTP, each question with a deadline and a bounded answer.

The connection is kept alive, nothing is tried twice (F-82), and nothing is logged: a node's
address often has an access key in it.
"""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiohttp import ClientError, ClientResponseError, ClientSession

from channel.errors import ChainUnavailableError

__all__ = ["Call", "HttpTransport", "nonsense"]

Call = tuple[str, Sequence[object]]
"""A method and its parameters."""

_HEADERS: Final = {"Content-Type": "application/json"}


class HttpTransport:
    """A connection to one node. Every failure is a `ChainUnavailableError`."""

    def __init__(self, url: str, *, timeout_s: float, answer_bytes_max: int) -> None:
        self._session = ClientSession(headers=_HEADERS, raise_for_status=True)
        self._url = url
        self._timeout_s = timeout_s
        self._answer_bytes_max = answer_bytes_max
        self._ids = itertools.count()

    async def ask(self, method: str, params: Sequence[object]) -> Any:
        """Return the JSON-RPC answer to one question."""
        answer = await self._bounded(method, self._question((method, params)))
        if not isinstance(answer, dict):
            raise nonsense(method)
        return answer

    async def ask_many(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        """Return the answers to a batch, in the order of the questions."""
        answers = await self._bounded("a batch", [self._question(call) for call in calls])
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise nonsense("a batch")
        if not all(isinstance(a, dict) and isinstance(a.get("id"), int) for a in answers):
            raise nonsense("a batch")
        return sorted(answers, key=lambda answer: int(answer["id"]))

    async def disconnect(self) -> None:
        """Close the connection."""
        await self._session.close()

    def _question(self, call: Call) -> dict[str, object]:
        method, params = call
        return {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}

    async def _bounded(self, what: str, question: object) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return msgspec.json.decode(await self._post(msgspec.json.encode(question)))
        except TimeoutError:
            msg = f"The node did not answer {what} within {self._timeout_s:g} s."
            raise ChainUnavailableError(msg) from None
        except (ClientError, OSError) as error:  # its text holds the node's address: not passed on
            status = f" {error.status}" if isinstance(error, ClientResponseError) else ""
            msg = f"The node cannot be reached for {what} ({type(error).__name__}{status})."
            raise ChainUnavailableError(msg) from None
        except (ValueError, RecursionError):
            raise nonsense(what) from None

    async def _post(self, question: bytes) -> bytes:
        async with self._session.post(self._url, data=question) as response:
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > self._answer_bytes_max:
                    msg = "the answer is longer than answer_bytes_max"
                    raise ValueError(msg)
            return bytes(answer)


def nonsense(what: str) -> ChainUnavailableError:
    """Return the error for an answer that is not JSON-RPC."""
    return ChainUnavailableError(f"The node's answer to {what} is not JSON-RPC.")
