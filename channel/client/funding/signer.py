"""Signers of vouchers: a Protocol, a key held in this process, and the account that deposits.

A signer sees digests only. `policy` and `record` decide beforehand what may be signed. The caller
decides where a key is kept: in a file, a wallet process, or on another machine.
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

    Channels remember the address, so that a changed key never signs for an old channel (F-22).
    """

    @property
    def address(self) -> Address:
        """The address that signs."""

    async def sign(self, digest: bytes) -> bytes:
        """Return a canonical 65-byte signature of a 32-byte digest (ENC-06).

        Preferably a different one each time: a close at a public amount is accepted only with a
        signature that was never shown (docs/decisions/0009-proof-of-key.md). A contract wallet's
        signature has the form that the wallet accepts.
        """


class AccountSigner:
    """The account of a chain; its signatures move its deposits."""

    def __init__(self, chain: PayerChain) -> None:
        self._chain = chain

    @property
    def address(self) -> Address:
        """The account's address."""
        return self._chain.account

    async def sign(self, digest: bytes) -> bytes:
        """See `PayerChain.sign`."""
        return await self._chain.sign(digest)


class LocalSigner:
    """A private key in memory. Its repr shows the address only (F-103)."""

    def __init__(self, private_key: bytes) -> None:
        """Take a 32-byte secp256k1 key, or raise `ValueError` if it is not one."""
        if len(private_key) != KEY_BYTES:
            raise ValueError(f"expected a private key of 32 bytes, found {len(private_key)}")
        self._private_key = private_key
        self._address = address_of(private_key)

    @property
    def address(self) -> Address:
        """The address that signs."""
        return self._address

    async def sign(self, digest: bytes) -> bytes:
        """Return a canonical 65-byte signature, different each time; takes tens of microseconds."""
        return sign(self._private_key, digest, entropy=secrets.token_bytes(ENTROPY_BYTES))

    def __repr__(self) -> str:
        return f"LocalSigner(0x{self._address.hex()})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a signer is not copied or stored")
