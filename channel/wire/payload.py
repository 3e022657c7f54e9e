"""The payload of a credential: open, topUp, voucher, close.

Vouchers and closes are the same in every method. How a channel is opened and topped up differs, so
a method defines its own payloads for these two and parses all of them (`channel.methods`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from channel.types import ChannelId, Redacted, SignedVoucher
from channel.wire.encoding import format_amount, format_hex, parse_amount
from channel.wire.fields import parse_channel_id, parse_signature, required

__all__ = [
    "AttachedDeposit",
    "ClosePayload",
    "OpenPayload",
    "Payload",
    "TopUpPayload",
    "VoucherPayload",
    "format_payload",
    "format_voucher",
    "parse_close",
    "parse_voucher",
]


class AttachedDeposit(Redacted, frozen=True):
    """A deposit attached to a voucher, in a method that has such (VCH-06)."""

    action: str
    """`open` or `topUp`."""
    type: str

    def members(self) -> dict[str, Any]:
        """Return the deposit with its wire names."""
        raise NotImplementedError


class _WithVoucher(Redacted, frozen=True):
    """A payload with a voucher, which names the channel."""

    type: ClassVar[str | None] = None
    needs_source: ClassVar[bool] = False
    """Whether the credential must state its source (CRED-02)."""

    voucher: SignedVoucher

    @property
    def channel_id(self) -> ChannelId:
        """The channel of the voucher."""
        return self.voucher.channel_id

    def members(self) -> dict[str, Any]:
        """Return what only this payload has, with its wire names."""
        return format_voucher(self.voucher)


class OpenPayload(_WithVoucher, frozen=True):
    """Opens a channel: how it is funded, and the first voucher. A method defines the rest."""

    action: ClassVar[str] = "open"


class TopUpPayload(Redacted, frozen=True):
    """Adds to the deposit of a channel. A method defines the rest."""

    action: ClassVar[str] = "topUp"
    type: ClassVar[str | None] = None
    needs_source: ClassVar[bool] = False

    channel_id: ChannelId
    additional_deposit: int

    def members(self) -> dict[str, Any]:
        """Return what only this payload has, with its wire names."""
        return {"additionalDeposit": format_amount(self.additional_deposit)}


class VoucherPayload(_WithVoucher, frozen=True):
    """A signed running total, and optionally the deposit that backs it."""

    action: ClassVar[str] = "voucher"

    deposit: AttachedDeposit | None = None

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        attached = {} if self.deposit is None else {"deposit": self.deposit.members()}
        return super().members() | attached


class ClosePayload(_WithVoucher, frozen=True):
    """The payer's consent to close the channel at the voucher's amount."""

    action: ClassVar[str] = "close"


Payload: TypeAlias = OpenPayload | TopUpPayload | VoucherPayload | ClosePayload


def parse_voucher(wire: Mapping[str, Any], signature: str = "signature") -> SignedVoucher:
    """Return the voucher in a payload whose member `signature` signs it.

    Raises:
        WireError: A member is missing or malformed; the message names it.
    """
    return SignedVoucher(
        channel_id=required(wire, "channelId", parse_channel_id),
        cumulative_amount=required(wire, "cumulativeAmount", parse_amount),
        signature=required(wire, signature, parse_signature),
    )


def parse_close(wire: Mapping[str, Any]) -> ClosePayload:
    """Return the payload of a close, or raise `WireError`."""
    return ClosePayload(parse_voucher(wire))


def format_voucher(voucher: SignedVoucher, signature: str = "signature") -> dict[str, Any]:
    """Return a voucher's amount and signature with their wire names; see `parse_voucher`."""
    return {
        "cumulativeAmount": format_amount(voucher.cumulative_amount),
        signature: format_hex(voucher.signature),
    }


def format_payload(payload: Payload) -> dict[str, Any]:
    """Return the payload with its wire names.

    Raises:
        WireError: An amount outside `uint128`.
    """
    wire: dict[str, Any] = {"action": payload.action}
    if payload.type is not None:
        wire["type"] = payload.type
    wire["channelId"] = format_hex(payload.channel_id)
    return wire | payload.members()
