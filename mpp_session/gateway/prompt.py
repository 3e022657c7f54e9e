"""Counts a prompt's tokens before the model runs, with the model server's own tokenizer.

llama.cpp        POST /apply-template, then POST /tokenize with its text
vLLM, SGLang     POST /tokenize with the messages
llama-cpp-python POST /extras/tokenize/count with a text: an upper estimate, without the template
others           an upper estimate: a token for each byte of the request, and a few

An estimate is only reserved. What is charged then follows from the server's usage.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import msgspec

from channel.errors import MppSessionError
from channel.limits import ANSWER_DEPTH_MAX, PROMPT_COUNT_S_MAX, PROMPT_TOKENS_BESIDE
from channel.wire.depth import is_shallow
from mpp_session.gateway.chat import ChatRequest
from mpp_session.gateway.errors import UpstreamError
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream

__all__ = ["PromptCount", "PromptCounter"]

_REST_S: Final = 60.0
"""How long a tokenizer that failed or was slow is left alone."""
_ANSWER_BYTES_PER_BYTE: Final = 16
"""A token's number, its comma, and a text with its escapes, for each byte of a prompt."""
_OK: Final = 200
_CLIENT_ERRORS: Final = range(400, 429)


class PromptCount(msgspec.Struct, frozen=True):
    """How many tokens a prompt has, before the model reads it."""

    tokens: int
    is_exact: bool
    """Whether the server's tokenizer counted the whole prompt; else it has at most `tokens`."""


class _NotServedError(MppSessionError):
    """The server has no such endpoint, or answers it in another form."""


_Way: TypeAlias = Callable[["PromptCounter", ChatRequest], Awaitable[PromptCount]]


class PromptCounter:
    """Asks the model server for the number of a prompt's tokens, in the way that it supports.

    A way that the server does not support is tried once, and again after the server was away.
    """

    def __init__(self, upstream: Upstream, readiness: Readiness) -> None:
        self._upstream = upstream
        self._readiness = readiness
        self._ways: tuple[_Way, ...] = _WAYS
        self._is_proven = False
        """Whether the only way left has worked: an error is then about one prompt."""
        self._outages = readiness.outages
        self._rests_until = 0.0

    async def count(self, chat: ChatRequest) -> PromptCount:
        """Return the count, or an upper estimate. Never raises for what the server answers."""
        most = chat.bytes_received + PROMPT_TOKENS_BESIDE
        found = await self._find(chat)
        if found is None or found.tokens <= 0:
            return PromptCount(most, is_exact=False)
        return PromptCount(min(found.tokens, most), is_exact=found.is_exact)

    async def _find(self, chat: ChatRequest) -> PromptCount | None:
        if self._outages != self._readiness.outages:
            self._outages = self._readiness.outages
            self._ways, self._is_proven = _WAYS, False
        if time.monotonic() < self._rests_until:
            return None
        for way in self._ways:
            try:
                async with asyncio.timeout(PROMPT_COUNT_S_MAX):
                    found = await way(self, chat)
            except _NotServedError:
                if not self._is_proven:
                    self._ways = tuple(one for one in self._ways if one is not way)
            except (OSError, UpstreamError):
                self._rests_until = time.monotonic() + _REST_S
                return None
            else:
                self._ways, self._is_proven = (way,), True
                return found
        return None

    async def _by_template(self, chat: ChatRequest) -> PromptCount:
        applied = await self._post("/apply-template", chat.body, chat)
        text = {"content": applied.get("prompt"), "add_special": True, "parse_special": True}
        if not isinstance(text["content"], str):
            raise _NotServedError
        answer = await self._post("/tokenize", msgspec.json.encode(text), chat)
        tokens = answer.get("tokens")
        if not isinstance(tokens, list):
            raise _NotServedError
        return PromptCount(len(tokens), is_exact=True)

    async def _by_messages(self, chat: ChatRequest) -> PromptCount:
        kept = ("model", "messages", "tools", "chat_template_kwargs")
        fields = {name: chat.fields[name] for name in kept if name in chat.fields}
        fields["add_generation_prompt"] = True
        answer = await self._post("/tokenize", msgspec.json.encode(fields), chat)
        return PromptCount(_read_count(answer), is_exact=True)

    async def _by_text(self, chat: ChatRequest) -> PromptCount:
        """Count the messages as JSON: its punctuation outweighs the template's."""
        kept = ("messages", "tools", "functions", "response_format")
        fields = {name: chat.fields[name] for name in kept if name in chat.fields}
        body = msgspec.json.encode({"input": msgspec.json.encode(fields).decode()})
        answer = await self._post("/extras/tokenize/count", body, chat)
        return PromptCount(_read_count(answer) + PROMPT_TOKENS_BESIDE, is_exact=False)

    async def _post(self, path: str, body: bytes, chat: ChatRequest) -> dict[str, Any]:
        status, answer = await self._upstream.post(
            path,
            body,
            PROMPT_COUNT_S_MAX,
            bytes_max=_ANSWER_BYTES_PER_BYTE * (len(chat.body) + PROMPT_TOKENS_BESIDE) + 4096,
        )
        if status in _CLIENT_ERRORS or (status != _OK and self._is_proven):
            raise _NotServedError
        if status != _OK:
            raise UpstreamError(f"The model server answered its tokenizer with {status}.")
        try:
            value = msgspec.json.decode(answer) if is_shallow(answer, ANSWER_DEPTH_MAX) else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            value = None
        if not isinstance(value, dict):
            raise _NotServedError
        return value


_WAYS: Final[tuple[_Way, ...]] = (
    PromptCounter._by_template,  # noqa: SLF001 -- its own methods
    PromptCounter._by_messages,  # noqa: SLF001
    PromptCounter._by_text,  # noqa: SLF001
)


def _read_count(answer: dict[str, Any]) -> int:
    count = answer.get("count")
    if type(count) is not int:
        raise _NotServedError
    return count
