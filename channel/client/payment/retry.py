"""Support for SDKs that use this client: they retry failures, and hide the reason (O-12, O-42).

An SDK repeats a request with a lost answer as a new one. A server recognises it only by the same
`Idempotency-Key`, so the key of a lost answer goes with the next identical request. An SDK also
takes a transport's exception for a broken connection: it retries, and reports that. An answer that
gives the reason and forbids a retry is shown to the developer.
"""

import hashlib
import re
from collections import OrderedDict

import httpx
import msgspec

from channel.errors import MppSessionError, PaymentOutcomeUnknownError

__all__ = ["LostKeys", "answer_refusal", "is_from_sdk"]

LOST_KEYS_MAX = 256
LOST_KEY_S_MAX = 600.0
SDK_HEADER = "x-stainless-lang"
"""A header of the SDKs of OpenAI, Anthropic and others from the same generator."""


class LostKeys:
    """The keys of requests that were paid for and got no answer."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def note(self, request: httpx.Request, content: bytes | None, key: str, now: float) -> None:
        """Keep the key for a request that is identical to this one."""
        if content is not None:
            self._keys[key] = _digest(request, content), now + LOST_KEY_S_MAX
            if len(self._keys) > LOST_KEYS_MAX:
                self._keys.popitem(last=False)

    def take(self, request: httpx.Request, content: bytes | None, now: float) -> str | None:
        """Return the key of an identical request with a lost answer, each once; None without one.

        Identical concurrent requests, such as samples of one prompt, may be lost together, each
        with its own key.
        """
        if content is None or not self._keys:
            return None
        digest = _digest(request, content)
        for key, (lost, until) in self._keys.items():
            if lost == digest and now < until:
                del self._keys[key]
                return key
        return None


def _digest(request: httpx.Request, content: bytes) -> bytes:
    parts = (request.method.encode(), str(request.url).encode(), content)
    return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()


def is_from_sdk(request: httpx.Request) -> bool:
    """Return whether an SDK sends this, which takes exceptions for broken connections."""
    return SDK_HEADER in request.headers


def answer_refusal(error: MppSessionError) -> httpx.Response:
    """Return an answer instead of an exception, in the form of an OpenAI error.

    Status 402, which no SDK retries; for a lost answer 504, which every SDK retries.
    """
    is_lost = isinstance(error, PaymentOutcomeUnknownError)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()
    body = {"error": {"message": str(error), "type": "payment_not_made", "code": name}}
    if is_lost:
        body["error"]["type"] = "payment_outcome_unknown"
    return httpx.Response(
        504 if is_lost else 402,
        headers={
            "Content-Type": "application/json",
            "X-Should-Retry": "true" if is_lost else "false",
        },
        content=msgspec.json.encode(body),
    )
