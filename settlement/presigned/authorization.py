"""A presigned settle: a voucher, and the payee's authorization to settle with it.

Its holder can do one thing: settle this amount of this channel to the payee, until the deadline, at
its own gas. It is never a close: a close ends the channel at the amount it names, so that one
signed yesterday would give away what was delivered today. The escrow refuses a settle below the
settled amount, which costs nothing (RELAY-01, RELAY-05).
"""

import secrets
from typing import Final, Self

import msgspec

from channel.errors import InvalidSignatureError
from channel.limits import TOWER_LINE_BYTES_MAX
from channel.state.channel_state import LadderVoucher
from channel.types import Address, ChannelKey, address, base_units, channel_id
from channel.verify.signature import recover
from channel.verify.typed_data import settle_authorization_digest
from settlement import abi
from settlement.tx.signer import Signer

__all__ = ["PresignedError", "PresignedSettle", "parse_line", "presign"]

_FORMAT: Final = 1
_NONCE_BYTES: Final = 32
_UINT64_MAX: Final = 2**64 - 1


class PresignedError(Exception):
    """An invalid line, or one of another payee. The message contains no signature."""


class PresignedSettle(msgspec.Struct, frozen=True):
    """One settle that any account may send. Its repr omits the signatures (F-103)."""

    key: ChannelKey
    payee: Address
    cumulative_amount: int
    voucher_signature: bytes
    nonce: int
    deadline: int
    """Unix seconds of the last block that accepts it."""
    payee_signature: bytes

    @property
    def digest(self) -> bytes:
        """The digest that the payee signed."""
        return settle_authorization_digest(
            self.key, self.cumulative_amount, nonce=self.nonce, deadline=self.deadline
        )

    def calldata(self) -> bytes:
        """Return the call, which any account may send."""
        return abi.settle_with_authorization.encode(
            self.key.channel_id,
            self.cumulative_amount,
            self.nonce,
            self.deadline,
            self.payee_signature,
            self.voucher_signature,
        )

    def is_signed_by_key(self) -> bool:
        """Whether the payee's key signed it; a contract's signature needs the chain to check."""
        try:
            return recover(self.digest, self.payee_signature) == self.payee
        except InvalidSignatureError:
            return False

    def supersedes(self, other: Self) -> bool:
        """Whether this settle is worth more than another of its channel, or lives longer."""
        mine = (self.cumulative_amount, self.deadline)
        return mine > (other.cumulative_amount, other.deadline)

    def format_line(self) -> bytes:
        """Return the settle as a line of JSON, with its newline."""
        line = _Line(
            format=_FORMAT,
            chain_id=self.key.chain_id,
            escrow=_hex(self.key.escrow),
            channel_id=_hex(self.key.channel_id),
            payee=_hex(self.payee),
            cumulative_amount=str(self.cumulative_amount),
            voucher_signature=_hex(self.voucher_signature),
            nonce=_hex(self.nonce.to_bytes(_NONCE_BYTES, "big")),
            deadline=self.deadline,
            payee_signature=_hex(self.payee_signature),
        )
        return _encoder.encode(line) + b"\n"

    def __repr__(self) -> str:
        return (
            f"PresignedSettle(0x{self.key.channel_id.hex()}, {self.cumulative_amount}, "
            f"deadline={self.deadline})"
        )


async def presign(
    key: ChannelKey, voucher: LadderVoucher, *, payee: Signer, deadline: int
) -> PresignedSettle:
    """Sign a settle ahead, with an unguessable nonce.

    Raises:
        SignerError: The payee's signer gave no usable signature.
    """
    nonce = int.from_bytes(secrets.token_bytes(_NONCE_BYTES), "big")
    amount = voucher.cumulative_amount
    digest = settle_authorization_digest(key, amount, nonce=nonce, deadline=deadline)
    return PresignedSettle(
        key=key,
        payee=payee.address,
        cumulative_amount=amount,
        voucher_signature=voucher.signature,
        nonce=nonce,
        deadline=deadline,
        payee_signature=await payee.sign_message(digest),
    )


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    chain_id: int
    escrow: str
    channel_id: str
    payee: str
    cumulative_amount: str
    voucher_signature: str
    nonce: str
    deadline: int
    payee_signature: str


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(_Line)


def parse_line(line: bytes) -> PresignedSettle:
    """Parse a line. Its contents are not verified.

    Raises:
        PresignedError: The line is invalid.
    """
    if len(line) > TOWER_LINE_BYTES_MAX:
        raise PresignedError(f"it is longer than {TOWER_LINE_BYTES_MAX} bytes")
    try:
        read = _decoder.decode(line)
        if read.format != _FORMAT:
            raise PresignedError(f"its format is {read.format}; only {_FORMAT} is supported")
        nonce = _bytes(read.nonce)
        if len(nonce) != _NONCE_BYTES or not 0 <= read.deadline <= _UINT64_MAX:
            raise PresignedError("its nonce or deadline is out of range")
        return PresignedSettle(
            key=ChannelKey(
                read.chain_id, address(_bytes(read.escrow)), channel_id(_bytes(read.channel_id))
            ),
            payee=address(_bytes(read.payee)),
            cumulative_amount=base_units(int(read.cumulative_amount)),
            voucher_signature=_bytes(read.voucher_signature),
            nonce=int.from_bytes(nonce, "big"),
            deadline=read.deadline,
            payee_signature=_bytes(read.payee_signature),
        )
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise PresignedError(str(error)) from None


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _bytes(text: str) -> bytes:
    if not text.startswith("0x"):
        raise ValueError("it is not hexadecimal")
    return bytes.fromhex(text[2:])
