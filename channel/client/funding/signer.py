"""Who signs vouchers: a Protocol, a key held in this process, and the account that deposits.

A signer sees digests only. What may be signed at all is decided before, by `policy` and
`account`; where a key is kept (a file, a wallet process, a machine elsewhere) is the caller's.
"""

import secrets
from typing import Protocol

from channel.chain import PayerChain
from channel.types import Address
from channel.verify.signature import address_of, sign

__all__ = ["AccountSigner", "LocalSigner", "Signer"]

KEY_BYTES = 32
ENTROPY_BYTES = 32


class Signer(Protocol):
    """Signs for one address.

    Channels remember which, so that a changed key never signs for an old channel (F-22).
    """

    @property
    def address(self) -> Address:
        """Whose signatures these are."""

    async def sign(self, digest: bytes) -> bytes:
        """Return a canonical 65-byte signature of a 32-byte digest (ENC-06).

        Best another one each time: a close at an amount that is public already is only taken
        with a signature that was never shown (docs/decisions/0009-proof-of-key.md). A contract
        wallet's has the form that the wallet takes.
        """


class AccountSigner:
    """The account behind a chain: what it signs moves its deposits."""

    def __init__(self, chain: PayerChain) -> None:
        self._chain = chain

    @property
    def address(self) -> Address:
        """The account."""
        return self._chain.account

    async def sign(self, digest: bytes) -> bytes:
        """See `PayerChain.sign`."""
        return await self._chain.sign(digest)


class LocalSigner:
    """A private key in memory. Printing it shows the address only (F-103)."""

    def __init__(self, private_key: bytes) -> None:
        """Take a 32-byte secp256k1 key, or raise `ValueError` if it is not one."""
        if len(private_key) != KEY_BYTES:
            raise ValueError("a private key has 32 bytes")
        self._private_key = private_key
        self._address = address_of(private_key)

    @property
    def address(self) -> Address:
        """Whose signatures these are."""
        return self._address

    async def sign(self, digest: bytes) -> bytes:
        """Return a canonical 65-byte signature, another one each time; tens of microseconds."""
        return sign(self._private_key, digest, entropy=secrets.token_bytes(ENTROPY_BYTES))

    def __repr__(self) -> str:
        return f"LocalSigner(0x{self._address.hex()})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a signer is not copied or stored")
