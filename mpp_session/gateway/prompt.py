"""Counts a prompt's tokens before the model runs, with the model server's own tokenizer.

llama.cpp        POST /apply-template, then POST /tokenize with its text
vLLM, SGLang     POST /tokenize with the messages
llama-cpp-python POST /extras/tokenize/count with a text: an upper estimate, without the template
others           an upper estimate: a token for each byte of the request, and a few

A prompt without a template is texts, which the same endpoints count, and tokens as numbers, which
are their own count. The input of a response is counted by POST /v1/responses/input_tokens.

An estimate is only reserved. What is charged then follows from the server's usage.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import msgspec

from channel.errors import MppSessionError
from channel.limits import ANSWER_DEPTH_MAX, CHOICES_MAX, PROMPT_COUNT_S_MAX, PROMPT_TOKENS_BESIDE
from channel.wire.depth import is_shallow
from mpp_session.gateway.endpoints.fields import ModelRequest
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


_Way: TypeAlias = Callable[["PromptCounter", ModelRequest], Awaitable[PromptCount]]


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
        self._unserved: set[str] = set()
        """Paths of `ModelRequest.count_path` that the server does not have."""
        self._outages = readiness.outages
        self._rests_until = 0.0

    async def count(self, asked: ModelRequest) -> PromptCount:
        """Return the count, or an upper estimate. Never raises for what the server answers."""
        most = asked.bytes_received + PROMPT_TOKENS_BESIDE
        found = None
        if asked.texts is not None and not asked.texts:
            found = PromptCount(asked.tokens, is_exact=True)
        elif len(asked.texts or ()) <= CHOICES_MAX:  # one question for each
            found = await self._find(asked)
        if found is None or found.tokens <= 0:
            return PromptCount(most, is_exact=False)
        return PromptCount(min(found.tokens, most), is_exact=found.is_exact)

    async def _find(self, asked: ModelRequest) -> PromptCount | None:
        if self._outages != self._readiness.outages:
            self._outages = self._readiness.outages
            self._ways, self._is_proven = _WAYS, False
            self._unserved.clear()
        if time.monotonic() < self._rests_until:
            return None
        if asked.count_path is not None:
            return await self._by_path(asked.count_path, asked)
        if asked.texts is None and "messages" not in asked.fields:
            return None
        for way in self._ways:
            try:
                async with asyncio.timeout(PROMPT_COUNT_S_MAX):
                    found = await way(self, asked)
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

    async def _by_path(self, path: str, asked: ModelRequest) -> PromptCount | None:
        """Ask for the count of a whole request, as OpenAI and llama.cpp tell it."""
        if path in self._unserved:
            return None
        try:
            async with asyncio.timeout(PROMPT_COUNT_S_MAX):
                answer = await self._post(path, asked.body, asked)
            return PromptCount(_read_count(answer, "input_tokens"), is_exact=True)
        except _NotServedError:
            self._unserved.add(path)
        except (OSError, UpstreamError):
            self._rests_until = time.monotonic() + _REST_S
        return None

    async def _by_template(self, asked: ModelRequest) -> PromptCount:
        count = asked.tokens
        texts: list[object] = [*(asked.texts or ())]
        if asked.texts is None:
            texts = [(await self._post("/apply-template", asked.body, asked)).get("prompt")]
        for prompt in texts:
            text = {"content": prompt, "add_special": True, "parse_special": True}
            if not isinstance(prompt, str):
                raise _NotServedError
            answer = await self._post("/tokenize", msgspec.json.encode(text), asked)
            tokens = answer.get("tokens")
            if not isinstance(tokens, list) or (prompt and not tokens):  # it read another field
                raise _NotServedError
            count += len(tokens)
        return PromptCount(count, is_exact=True)

    async def _by_messages(self, asked: ModelRequest) -> PromptCount:
        kept = ("model", "messages", "tools", "chat_template_kwargs")
        fields = {name: asked.fields[name] for name in kept if name in asked.fields}
        asking: list[dict[str, Any]] = [{"prompt": text} for text in asked.texts or ()]
        if asked.texts is None:
            asking = [{"add_generation_prompt": True}]
        count = asked.tokens
        for one in asking:
            answer = await self._post("/tokenize", msgspec.json.encode(fields | one), asked)
            count += _read_count(answer)
        return PromptCount(count, is_exact=True)

    async def _by_text(self, asked: ModelRequest) -> PromptCount:
        """Count the messages as JSON: its punctuation outweighs the template's."""
        kept = ("messages", "tools", "functions", "response_format")
        fields = {name: asked.fields[name] for name in kept if name in asked.fields}
        count = asked.tokens + PROMPT_TOKENS_BESIDE
        for text in asked.texts or [msgspec.json.encode(fields).decode()]:
            body = msgspec.json.encode({"input": text})
            count += _read_count(await self._post("/extras/tokenize/count", body, asked))
        return PromptCount(count, is_exact=False)

    async def _post(self, path: str, body: bytes, asked: ModelRequest) -> dict[str, Any]:
        status, answer = await self._upstream.post(
            path,
            body,
            PROMPT_COUNT_S_MAX,
            bytes_max=_ANSWER_BYTES_PER_BYTE * (len(asked.body) + PROMPT_TOKENS_BESIDE) + 4096,
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


def _read_count(answer: dict[str, Any], name: str = "count") -> int:
    count = answer.get(name)
    if type(count) is not int:
        raise _NotServedError
    return count
