"""EIP-1559 transactions as bytes: what is signed, and what is broadcast (pure).

Every signer signs a 32-byte digest. A remote signer can hash the unsigned transaction itself and so
check what it signs.
"""

from typing import Final

import msgspec

from channel.types import Address, TxHash
from channel.verify.typed_data import keccak

__all__ = ["UnsignedTx", "assemble"]

_TYPE: Final = b"\x02"
_V_OFFSET: Final = 27

_Item = int | bytes | list["_Item"]


class UnsignedTx(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields of an EIP-1559 transaction without an access list."""

    chain_id: int
    nonce: int
    tip_wei: int
    max_fee_wei: int
    gas: int
    to: Address | None
    """None creates a contract."""
    value_wei: int
    calldata: bytes

    def encode(self) -> bytes:
        """Return the bytes whose hash is signed."""
        return _TYPE + _rlp(self._items())

    def digest(self) -> bytes:
        """Return the hash that is signed."""
        return keccak(self.encode())

    def _items(self) -> list[_Item]:
        to = b"" if self.to is None else self.to
        return [
            self.chain_id,
            self.nonce,
            self.tip_wei,
            self.max_fee_wei,
            self.gas,
            to,
            self.value_wei,
            self.calldata,
            [],
        ]


def assemble(tx: UnsignedTx, signature: bytes) -> tuple[TxHash, bytes]:
    """Return the hash and the bytes of a signed transaction; the signature is `r ‖ s ‖ v`."""
    r, s, parity = signature[:32], signature[32:64], signature[64] - _V_OFFSET
    signed: list[_Item] = [
        *tx._items(),  # noqa: SLF001 -- of this module
        parity,
        int.from_bytes(r, "big"),
        int.from_bytes(s, "big"),
    ]
    raw = _TYPE + _rlp(signed)
    return TxHash(keccak(raw)), raw


def _rlp(item: _Item) -> bytes:
    """Encode by the Ethereum yellow paper, appendix B."""
    if isinstance(item, list):
        inside = b"".join([_rlp(part) for part in item])
        return _prefix(inside, short=0xC0) + inside
    if isinstance(item, int):
        item = item.to_bytes((item.bit_length() + 7) // 8, "big")
    if len(item) == 1 and item[0] < 0x80:  # noqa: PLR2004 -- the yellow paper's
        return item
    return _prefix(item, short=0x80) + item


def _prefix(content: bytes, *, short: int) -> bytes:
    size = len(content)
    if size <= 55:  # noqa: PLR2004 -- the yellow paper's
        return bytes((short + size,))
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((short + 55 + len(digits),)) + digits
