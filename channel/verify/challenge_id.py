"""The HMAC that makes a challenge its server's own, so that no challenge need be stored (CHAL-05).

The id is computed over the strings as they stand on the wire, never over what they mean: the
echo must be the very same (AMB-01). Slots are joined by `|`, so no slot may hold one (CHAL-09).
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
    """Issues challenge ids with the first secret and recognises those of every secret (CHAL-08)."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """Take the current secret first, then those whose challenges may still be unexpired.

        Raises:
            ConfigError: No secret, or one shorter than 32 bytes (F-102).
        """
        if not secrets or any(len(secret) < SECRET_BYTES_MIN for secret in secrets):
            raise ConfigError(f"challenge secrets must have at least {SECRET_BYTES_MIN} bytes")
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
        """Whether we issued this challenge, and every bound slot is as we issued it.

        Takes the same time wherever the ids differ, and computes the HMAC before it compares. A
        challenge found genuine before, the same in every field, is not computed again: a payer
        echoes one with every voucher. Whoever hits upon a remembered id knew it.
        """
        if self._genuine.get(challenge.id) == challenge:
            return True
        slots = _join(challenge)
        if slots is None or not challenge.id.isascii():
            return False
        for key in self._keys:  # which secret it was is no secret, so the first match ends it
            if hmac.compare_digest(encode_base64url(key.digest(slots)), challenge.id):
                self._remember(challenge)
                return True
        return False

    def _remember(self, challenge: Challenge) -> None:
        """Keep a genuine challenge, whose size is ours to choose but for the description's."""
        if challenge.description is None:
            if len(self._genuine) >= GENUINE_CHALLENGES_MAX:
                self._genuine.clear()
            self._genuine[challenge.id] = challenge


class _Key:
    """A secret with both of HMAC's key blocks hashed in advance: half the work of each digest."""

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
    """Return the HMAC input, or None when a slot could be read as two (REQUIREMENTS 0.1)."""
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
