"""SDKs between the caller and this client: they retry what fails, and hide why (O-12, O-42).

An SDK repeats a request whose answer was lost as a new one. It is the same one to a server only
under the same `Idempotency-Key`, so the key of a lost answer goes with the next request that is
equal to the letter. And an exception of a transport is a broken connection to an SDK, to be tried
again and then reported as that; an answer that says why, and not to try again, is shown.
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
"""What the SDKs of OpenAI, Anthropic and others that are generated alike send."""


class LostKeys:
    """The keys of requests that were paid for and whose answers never came."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def note(self, request: httpx.Request, content: bytes | None, key: str, now: float) -> None:
        """Keep the key for a request that is equal to this one."""
        if content is not None:
            self._keys[key] = _digest(request, content), now + LOST_KEY_S_MAX
            if len(self._keys) > LOST_KEYS_MAX:
                self._keys.popitem(last=False)

    def take(self, request: httpx.Request, content: bytes | None, now: float) -> str | None:
        """Return a key that an equal request was lost under, each once; None if there is none.

        Equal requests that run at a time, such as samples of one prompt, are lost together, each
        under a key of its own.
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
    """Say whether an SDK sends this, which takes exceptions for broken connections."""
    return SDK_HEADER in request.headers


def answer_refusal(error: MppSessionError) -> httpx.Response:
    """Return an answer in place of an exception, as an OpenAI server words its errors.

    402, which no SDK tries again; where the answer was lost 504, which every SDK does.
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
