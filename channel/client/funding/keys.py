"""The keys that sign vouchers: one for all channels, or one for each channel (CLIENT-11).

A channel's own key can only sign vouchers for that channel: it holds no money and moves no deposit.
It is derived from one secret and the channel's salt, so it is the same after a restart, and there
is one secret to protect instead of one for each channel.
"""

import hashlib
import hmac
from functools import lru_cache
from typing import Final, Protocol

from channel.client.funding.signer import LocalSigner, Signer
from channel.limits import SECRET_BYTES_MIN

__all__ = ["ChannelKeys", "OneKey", "VoucherKeys"]

KEYS_CACHED_MAX: Final = 64
_LABEL: Final = b"mpp-session voucher key 1"


class VoucherKeys(Protocol):
    """Provides the signer for the vouchers of a channel."""

    def signer(self, salt: bytes) -> Signer:
        """Return the signer for the channel with this salt; one salt always yields one signer."""


class OneKey:
    """The same signer for every channel."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def signer(self, salt: bytes) -> Signer:  # noqa: ARG002 -- see `VoucherKeys`
        """Return the signer."""
        return self._signer


class ChannelKeys:
    """Derives a key for each channel from one secret. Its repr shows nothing (F-103)."""

    def __init__(self, secret: bytes) -> None:
        """Take at least 32 random bytes, or raise `ValueError`."""
        if len(secret) < SECRET_BYTES_MIN:
            raise ValueError(
                f"expected a secret of at least {SECRET_BYTES_MIN} bytes, found {len(secret)}"
            )
        self._secret = secret
        self._derive = lru_cache(maxsize=KEYS_CACHED_MAX)(self._make)

    def signer(self, salt: bytes) -> Signer:
        """Return the channel's own key."""
        return self._derive(salt)

    def _make(self, salt: bytes) -> LocalSigner:
        return LocalSigner(hmac.digest(self._secret, _LABEL + salt, hashlib.sha256))

    def __repr__(self) -> str:
        return "ChannelKeys(...)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("keys are not copied or stored")
