"""Signers: a key in this process, or a remote service that holds it (decision 14).

A `Signer` signs 32-byte digests for one address. It also receives what the digest is of, so that a
remote service can apply rules of its own: the unsigned bytes of a transaction, or the kind of a
message.

The remote protocol is one request and one answer, JSON over HTTP:

    POST <url>    {"address": "0x..", "digest": "0x..", "kind": "transaction",
                   "transaction": "0x02.."}        or "kind": "message" without a transaction
    200           {"signature": "0x.."}            65 bytes, r ‖ s ‖ v with v of 27 or 28

The answer is not trusted: the caller recovers the signer's address from the signature.
"""

import asyncio
import secrets
from typing import Final, Protocol

import httpx
import msgspec

from channel.errors import ConfigError, InvalidSignatureError
from channel.limits import SIGNER_ANSWER_BYTES_MAX
from channel.types import Address
from channel.verify.signature import address_of, recover, sign
from settlement.errors import SignerError
from settlement.tx.encoding import UnsignedTx

__all__ = ["KeySigner", "MessageSigner", "RemoteSigner", "Signer", "WalletSigner"]

_KEY_BYTES: Final = 32
_ENTROPY_BYTES: Final = 32


class MessageSigner(Protocol):
    """Signs messages for an account: its own key, or a contract wallet's owner (ERC-1271)."""

    @property
    def address(self) -> Address:
        """The account: the key's own, or the wallet's."""

    async def sign_message(self, digest: bytes) -> bytes:
        """Return a signature of a typed message's digest.

        Raises:
            SignerError: No usable signature.
        """


class Signer(Protocol):
    """Signs for one address."""

    @property
    def address(self) -> Address:
        """The address that the signatures recover to."""

    async def sign_transaction(self, tx: UnsignedTx) -> bytes:
        """Return a canonical 65-byte signature of a transaction.

        Raises:
            SignerError: No usable signature; no usable bytes left the signer.
        """

    async def sign_message(self, digest: bytes) -> bytes:
        """Return a canonical 65-byte signature of a typed message's digest.

        Raises:
            SignerError: No usable signature.
        """


class KeySigner:
    """A key in this process. Its repr shows only the address."""

    def __init__(self, private_key: bytes) -> None:
        """Use a private key of 32 bytes.

        Raises:
            ConfigError: The bytes are not a private key.
        """
        if len(private_key) != _KEY_BYTES:
            raise ConfigError(f"A private key has 32 bytes, not {len(private_key)}.")
        try:
            self._address = address_of(private_key)
        except ValueError:
            raise ConfigError("A private key is between 0 and the order of the curve.") from None
        self._private_key = private_key

    @property
    def address(self) -> Address:
        """See `Signer.address`."""
        return self._address

    async def sign_transaction(self, tx: UnsignedTx) -> bytes:
        """See `Signer.sign_transaction`."""
        return sign(self._private_key, tx.digest())

    async def sign_message(self, digest: bytes) -> bytes:
        """See `Signer.sign_message`. Differs each time, like `LocalSigner`'s signatures."""
        return sign(self._private_key, digest, entropy=secrets.token_bytes(_ENTROPY_BYTES))

    def __repr__(self) -> str:
        return f"KeySigner(0x{self._address.hex()})"


class WalletSigner:
    """A contract wallet that accepts its owner's plain signature (ERC-1271)."""

    def __init__(self, wallet: Address, owner: MessageSigner) -> None:
        self._wallet = wallet
        self._owner = owner

    @property
    def address(self) -> Address:
        """The wallet."""
        return self._wallet

    async def sign_message(self, digest: bytes) -> bytes:
        """Return the owner's signature, which the escrow checks with the wallet."""
        return await self._owner.sign_message(digest)


class _Answer(msgspec.Struct):
    signature: str


class RemoteSigner:
    """A key that another program holds, reached over the protocol above."""

    def __init__(
        self,
        url: str,
        address: Address,
        *,
        token: str | None = None,
        timeout_s: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare the client; it sends nothing before the first signature.

        Args:
            url: The signer's URL. The signer sees every transaction: use https, or this machine.
            address: The address of its key; a signature by any other key is refused.
            token: Sent as `Authorization: Bearer`.
            timeout_s: Timeout of one signature, in seconds.
            transport: Transport for the requests, for tests.
        """
        headers = {"Accept-Encoding": "identity"}  # a compressed answer could expand in memory
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            headers=headers, timeout=timeout_s, follow_redirects=False, transport=transport
        )
        self._url = url
        self._timeout_s = timeout_s
        self._address = address

    @property
    def address(self) -> Address:
        """See `Signer.address`."""
        return self._address

    async def sign_transaction(self, tx: UnsignedTx) -> bytes:
        """See `Signer.sign_transaction`."""
        extra = {"kind": "transaction", "transaction": "0x" + tx.encode().hex()}
        return await self._sign(tx.digest(), extra)

    async def sign_message(self, digest: bytes) -> bytes:
        """See `Signer.sign_message`."""
        return await self._sign(digest, {"kind": "message"})

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _sign(self, digest: bytes, extra: dict[str, str]) -> bytes:
        question = {"address": "0x" + self._address.hex(), "digest": "0x" + digest.hex(), **extra}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", self._url, json=question) as response,
            ):
                body = await _read(response)
        except (httpx.HTTPError, TimeoutError) as error:  # its text may hold the URL: not passed on
            raise SignerError(f"The signer does not answer ({type(error).__name__}).") from None
        if response.status_code != httpx.codes.OK:
            raise SignerError(f"The signer refused with status {response.status_code}.")
        try:
            signature = bytes.fromhex(
                msgspec.json.decode(body, type=_Answer).signature.removeprefix("0x")
            )
        except (msgspec.MsgspecError, ValueError):
            raise SignerError("The signer's answer is not a signature.") from None
        self._require(digest, signature)
        return signature

    def _require(self, digest: bytes, signature: bytes) -> None:
        """Check that the expected key signed the digest, in the form the escrow accepts."""
        try:
            signed_by = recover(digest, signature)
        except InvalidSignatureError as error:
            raise SignerError(f"The signer's answer is not a signature: {error}") from None
        if signed_by != self._address:
            raise SignerError(
                f"The signer signed with the key of 0x{signed_by.hex()}, or signed something else "
                "than it was asked to."
            )


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > SIGNER_ANSWER_BYTES_MAX:
            raise SignerError("The signer's answer is longer than a signature.")
    return bytes(body)
