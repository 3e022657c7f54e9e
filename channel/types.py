"""The values that the engine passes between its layers: frozen, and in range once they exist.

Addresses, ids and hashes are `bytes`, normalised once at the boundary, so that two spellings of
one id can never become two rows (F-06). Amounts are `int` in base units of the token.
"""

from typing import NewType

import msgspec

from channel.limits import AMOUNT_MAX

__all__ = [
    "ZERO_ADDRESS",
    "Address",
    "ChannelFact",
    "ChannelId",
    "ChannelKey",
    "ChannelTerms",
    "Redacted",
    "SignedVoucher",
    "TokenUnit",
    "TxHash",
    "VerifiedVoucher",
    "address",
    "base_units",
    "channel_id",
    "tx_hash",
]

Address = NewType("Address", bytes)
ChannelId = NewType("ChannelId", bytes)
TxHash = NewType("TxHash", bytes)

ZERO_ADDRESS = Address(bytes(20))


def address(value: bytes) -> Address:
    """Return 20 bytes as an `Address`, or raise `ValueError`."""
    return Address(_sized(value, 20, "an address"))


def channel_id(value: bytes) -> ChannelId:
    """Return 32 bytes as a `ChannelId`, or raise `ValueError`."""
    return ChannelId(_sized(value, 32, "a channel id"))


def tx_hash(value: bytes) -> TxHash:
    """Return 32 bytes as a `TxHash`, or raise `ValueError`."""
    return TxHash(_sized(value, 32, "a transaction hash"))


def base_units(value: int) -> int:
    """Return an amount that fits `uint128`, or raise `ValueError` (ENC-04)."""
    if not 0 <= value <= AMOUNT_MAX:
        msg = f"expected an amount between 0 and 2**128 - 1, found {value}"
        raise ValueError(msg)
    return value


def _sized(value: bytes, size: int, what: str) -> bytes:
    if len(value) != size:
        msg = f"expected {size} bytes for {what}, found {len(value)}"
        raise ValueError(msg)
    return value


class ChannelKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Identifies a channel globally: an id is unique only together with chain and escrow."""

    chain_id: int
    escrow: Address
    channel_id: ChannelId


class ChannelTerms(msgspec.Struct, frozen=True, gc=False):
    """The terms a channel was opened with. They never change."""

    payer: Address
    payee: Address
    token: Address
    authorized_signer: Address
    """As the escrow stores it: zero when the payer signs its own vouchers."""

    @property
    def signer(self) -> Address:
        """Who must sign the vouchers: `authorized_signer`, or the payer if unset (VCH-02)."""
        return self.payer if self.authorized_signer == ZERO_ADDRESS else self.authorized_signer


class ChannelFact(msgspec.Struct, frozen=True, gc=False):
    """A channel in the escrow's storage at one block: absolute values, never deltas (F-29)."""

    key: ChannelKey
    terms: ChannelTerms
    deposit: int
    settled: int
    close_requested_at: int
    """Unix seconds of the block with the close request; 0 when none is pending."""
    is_finalized: bool
    block_number: int


class Redacted(msgspec.Struct, frozen=True):
    """A value whose `signature` must never reach a log: its repr hides it (F-103)."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self._show(name)}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({shown})"

    def _show(self, name: str) -> str:
        value = getattr(self, name)
        if name == "signature":
            return "<withheld>"
        return f"0x{value.hex()}" if isinstance(value, bytes) else repr(value)


class SignedVoucher(Redacted, frozen=True, gc=False):
    """A voucher as received; its signature is not checked yet."""

    channel_id: ChannelId
    cumulative_amount: int
    signature: bytes


class VerifiedVoucher(Redacted, frozen=True, gc=False):
    """A voucher whose signature was checked against the channel's signer.

    Only `channel.verify.voucher` creates one, and only this type enters `channel.state`. The type
    checker therefore proves that no unverified voucher is accepted.
    """

    key: ChannelKey
    cumulative_amount: int
    signature: bytes
    """In the form the escrow takes: 65 bytes with v of 27 or 28, or a wallet's own form."""
    by_contract: bool = False
    """Only the signer's contract accepts it, and the contract may change its answer (F-19)."""


class TokenUnit(msgspec.Struct, frozen=True):
    """How amounts of a token are written for people. Everywhere else they are base units."""

    symbol: str
    decimals: int

    def format(self, amount: int, *, signed: bool = False) -> str:
        """Return base units as a decimal of the whole token, exactly: no rounding, ever."""
        sign = "-" if amount < 0 else "+" if signed else ""
        whole, part = divmod(abs(amount), 10**self.decimals)
        decimals = f".{part:0{self.decimals}d}" if self.decimals else ""
        return f"{sign}{whole:,}{decimals} {self.symbol}"
