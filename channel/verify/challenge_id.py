"""The HMAC that proves this server issued a challenge, so that it stores none (CHAL-05).

The HMAC covers the strings as on the wire, not their meaning: the echo must be identical
(AMB-01). Slots are joined by `|`, so no slot may contain one (CHAL-09).
"""

import hmac
from collections.abc import Sequence
from hashlib import sha256

from channel.errors import ConfigError, WireError
from channel.limits import GENUINE_CHALLENGES_MAX, SECRET_BYTES_MIN
from channel.wire.challenge import Challenge
from channel.wire.encoding import encode_base64url

__all__ = ["ChallengeBinder"]

_SEPARATOR = "|"
_SEPARATORS = 6
_BLOCK_BYTES = 64
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))
_ALWAYS_AUTHORIZATION = "authorization"


class ChallengeBinder:
    """Issues challenge ids with the first secret and accepts those of every secret (CHAL-08)."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """Set the current secret first, then the ones whose challenges may still be unexpired.

        Raises:
            ConfigError: No secret, or one shorter than 32 bytes (F-102).
        """
        if not secrets or any(len(secret) < SECRET_BYTES_MIN for secret in secrets):
            raise ConfigError(
                f"expected challenge secrets of at least {SECRET_BYTES_MIN} bytes each; "
                "generate a longer one"
            )
        self._keys = tuple(_Key(secret) for secret in secrets)
        self._genuine: dict[str, Challenge] = {}

    def bind(
        self,
        *,
        realm: str,
        method: str,
        intent: str,
        request: str,
        expires: str | None = None,
        digest: str | None = None,
        header: str | None = None,
        opaque: str | None = None,
    ) -> str:
        """Return the id that binds these wire strings.

        Raises:
            WireError: One of them holds a `|`, or is not text that can be encoded.
        """
        slots = _join(
            Challenge("", realm, method, intent, request, expires, digest, header, opaque)
        )
        if slots is None:
            raise WireError("a slot of a challenge holds | or a lone surrogate")
        return encode_base64url(self._keys[0].digest(slots))

    def is_bound(self, challenge: Challenge) -> bool:
        """Return whether this server issued the challenge, with every bound slot unchanged.

        The comparison takes constant time. A challenge that was found genuine before, identical
        in every field, skips the HMAC, because a payer echoes one with every voucher. That leaks
        nothing: a caller who sends a remembered id already knew it.
        """
        if self._genuine.get(challenge.id) == challenge:
            return True
        slots = _join(challenge)
        if slots is None or not challenge.id.isascii():
            return False
        for key in self._keys:  # which secret matched is not confidential: stop at the first
            if hmac.compare_digest(encode_base64url(key.digest(slots)), challenge.id):
                self._remember(challenge)
                return True
        return False

    def _remember(self, challenge: Challenge) -> None:
        """Keep a genuine challenge. This server chose its size, except for the description's."""
        if challenge.description is None:
            if len(self._genuine) >= GENUINE_CHALLENGES_MAX:
                self._genuine.clear()
            self._genuine[challenge.id] = challenge


class _Key:
    """A secret with both HMAC key blocks hashed in advance, which halves the work of a digest."""

    def __init__(self, secret: bytes) -> None:
        block = (sha256(secret).digest() if len(secret) > _BLOCK_BYTES else secret).ljust(
            _BLOCK_BYTES, b"\0"
        )
        self._inner = sha256(block.translate(_INNER_PAD))
        self._outer = sha256(block.translate(_OUTER_PAD))

    def digest(self, message: bytes) -> bytes:
        inner = self._inner.copy()
        inner.update(message)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


def _join(challenge: Challenge) -> bytes | None:
    """Return the HMAC input, or None when a slot contains the separator (REQUIREMENTS 0.1)."""
    bound = (
        f"{challenge.realm}|{challenge.method}|{challenge.intent}|{challenge.request}"
        f"|{challenge.expires or ''}|{challenge.digest or ''}"
    )
    separators = _SEPARATORS
    if challenge.header is not None and challenge.header.lower() != _ALWAYS_AUTHORIZATION:
        bound = f"{bound}|{challenge.header}"
        separators += 1
    text = f"{bound}|{challenge.opaque or ''}"
    if text.count(_SEPARATOR) != separators:
        return None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return None
