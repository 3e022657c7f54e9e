"""Builds settles and closes as calls of the escrow, for one channel or many.

The payee sends its own calls, or signs an authorization that another account sends and pays the gas
for (RELAY-01). An authorization has an unguessable nonce and a short life: long enough for the
transaction that carries it, too short to be worth keeping (RELAY-04, F-104).
"""

import secrets
from collections.abc import Sequence
from typing import Final, Protocol

from channel.types import Address, ChannelKey
from channel.verify.typed_data import (
    close_authorization_digest,
    close_batch_authorization_digest,
    settle_authorization_digest,
    settle_batch_authorization_digest,
)
from settlement import abi
from settlement.escrow.reader import EscrowReader
from settlement.tx.signer import Signer
from settlement.tx.state import Purpose
from settlement.types import BatchEntry

__all__ = [
    "AUTHORIZATION_LIFE_S",
    "OwnCalls",
    "PayoutCalls",
    "RelayedCalls",
    "build_call",
    "build_relayed_call",
    "build_simulation",
]

AUTHORIZATION_LIFE_S: Final = 3600
_NONCE_BYTES: Final = 32


class PayoutCalls(Protocol):
    """Builds the call for a settle or a close."""

    @property
    def payee(self) -> Address:
        """The payee of the channels."""

    async def build(self, purpose: Purpose, entries: Sequence[BatchEntry]) -> bytes:
        """Return the call for one channel or many.

        Raises:
            SignerError: The payee's signer gave no usable signature.
            ChainUnavailableError: No node gives the chain's time.
        """


class OwnCalls:
    """The payee sends the calls itself."""

    def __init__(self, payee: Address) -> None:
        self.payee = payee

    async def build(self, purpose: Purpose, entries: Sequence[BatchEntry]) -> bytes:
        """See `PayoutCalls.build`."""
        return build_call(purpose, entries)


class RelayedCalls:
    """The payee signs; another account sends the calls and pays the gas (RELAY-01)."""

    def __init__(self, reader: EscrowReader, payee: Signer) -> None:
        self._reader = reader
        self._payee = payee

    @property
    def payee(self) -> Address:
        """See `PayoutCalls.payee`."""
        return self._payee.address

    async def build(self, purpose: Purpose, entries: Sequence[BatchEntry]) -> bytes:
        """See `PayoutCalls.build`."""
        head = await self._reader.rpc.block()
        return await build_relayed_call(
            purpose,
            entries,
            domain=(self._reader.chain_id, self._reader.escrow),
            payee=self._payee,
            now=head.timestamp,
        )


def build_simulation(purpose: Purpose, entry: BatchEntry) -> bytes:
    """Return the payee's own call for one channel: it reverts when the real call would."""
    function = abi.close if purpose is Purpose.CLOSE else abi.settle
    return function.encode(entry.channel_id, entry.cumulative_amount, entry.signature)


def build_call(purpose: Purpose, entries: Sequence[BatchEntry]) -> bytes:
    """Return the payee's own call for one channel or many."""
    if len(entries) == 1:
        return build_simulation(purpose, entries[0])
    function = abi.close_batch if purpose is Purpose.CLOSE else abi.settle_batch
    return function.encode([_words(entry) for entry in entries])


async def build_relayed_call(
    purpose: Purpose,
    entries: Sequence[BatchEntry],
    *,
    domain: tuple[int, Address],
    payee: Signer,
    now: int,
) -> bytes:
    """Return a call that any account may send, with the payee's signature in it.

    `domain` is the chain id and the escrow; `now` is the chain's time in Unix seconds.

    Raises:
        SignerError: The payee's signer gave no usable signature.
    """
    nonce = int.from_bytes(secrets.token_bytes(_NONCE_BYTES), "big")
    deadline = now + AUTHORIZATION_LIFE_S
    is_close = purpose is Purpose.CLOSE
    if len(entries) == 1:
        (entry,) = entries
        key = ChannelKey(*domain, entry.channel_id)
        digest_one = close_authorization_digest if is_close else settle_authorization_digest
        digest = digest_one(key, entry.cumulative_amount, nonce=nonce, deadline=deadline)
        signature = await payee.sign_message(digest)
        function = abi.close_with_authorization if is_close else abi.settle_with_authorization
        return function.encode(
            entry.channel_id,
            entry.cumulative_amount,
            nonce,
            deadline,
            signature,
            entry.signature,
        )
    words = [_words(entry) for entry in entries]
    digest_all = close_batch_authorization_digest if is_close else settle_batch_authorization_digest
    digest = digest_all(domain, payee.address, words, nonce=nonce, deadline=deadline)
    signature = await payee.sign_message(digest)
    function = (
        abi.close_batch_with_authorization if is_close else abi.settle_batch_with_authorization
    )
    return function.encode(payee.address, words, nonce, deadline, signature)


def _words(entry: BatchEntry) -> tuple[bytes, int, bytes]:
    return entry.channel_id, entry.cumulative_amount, entry.signature
