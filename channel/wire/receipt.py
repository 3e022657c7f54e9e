"""A receipt: `Payment-Receipt` header, or the last event of a stream (RCPT-01 to RCPT-05)."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from channel.errors import WireError
from channel.limits import RECEIPT_BYTES_MAX
from channel.tariff import Usage
from channel.types import ChannelId, TxHash
from channel.wire.challenge import INTENT
from channel.wire.encoding import (
    decode_base64url,
    encode_base64url,
    format_amount,
    format_hex,
    format_timestamp,
    parse_amount,
    parse_json_object,
    parse_safe_integer,
    parse_timestamp,
)
from channel.wire.fields import optional, parse_channel_id, parse_name, parse_tx_hash, required
from channel.wire.tariff import parse_usage, usage_object

__all__ = [
    "Receipt",
    "format_receipt",
    "format_receipt_json",
    "parse_receipt",
    "parse_receipt_json",
]

STATUS: Final = "success"


class Receipt(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The amounts of a channel after a payment (RCPT-02, RCPT-05). Amounts in base units."""

    method: str
    challenge_id: str
    channel_id: ChannelId
    chain_id: int
    accepted: int
    spent: int
    """Running total over the life of the channel, never the cost of this request alone (F-47)."""
    timestamp: float
    """POSIX seconds."""
    units: int | None = None
    """Units of this request, where one kind has a price."""
    usage: Usage | None = None
    """Units of this request by kind, where several have; other clients ignore the member."""
    tx_hash: TxHash | None = None
    confirmations: int | None = None


class _WireReceipt(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    method: str
    intent: Literal["session"]
    status: Literal["success"]
    timestamp: str
    challengeId: str  # noqa: N815
    reference: str
    channelId: str  # noqa: N815
    chainId: int  # noqa: N815
    acceptedCumulative: str  # noqa: N815
    spent: str
    units: int | None = None
    usage: dict[str, int] | None = None
    txHash: str | None = None  # noqa: N815
    confirmations: int | None = None


_encode = msgspec.json.Encoder().encode


def format_receipt(receipt: Receipt) -> str:
    """Return the value of a `Payment-Receipt` field: base64url of JSON, without a scheme.

    Raises:
        WireError: An amount outside `uint128`, or a usage that cannot be stated.
    """
    return encode_base64url(_encode(_to_wire(receipt)))


def format_receipt_json(receipt: Receipt) -> str:
    """Return the receipt as one line of JSON, for an event (SSE-04); see `format_receipt`."""
    return _encode(_to_wire(receipt)).decode("utf-8")


def _to_wire(receipt: Receipt) -> _WireReceipt:
    channel_id = format_hex(receipt.channel_id)
    return _WireReceipt(
        receipt.method,
        INTENT,
        STATUS,
        format_timestamp(receipt.timestamp),
        receipt.challenge_id,
        channel_id,
        channel_id,
        receipt.chain_id,
        format_amount(receipt.accepted),
        format_amount(receipt.spent),
        receipt.units,
        None if receipt.usage is None else usage_object(receipt.usage),
        None if receipt.tx_hash is None else format_hex(receipt.tx_hash),
        receipt.confirmations,
    )


def parse_receipt(header_value: str) -> Receipt:
    """Return the receipt in a `Payment-Receipt` field; unknown members are ignored (RCPT-04).

    Raises:
        WireError: Too long, not base64url of JSON, not a receipt of a session.
    """
    if len(header_value) > RECEIPT_BYTES_MAX:
        raise WireError(f"a receipt over {RECEIPT_BYTES_MAX} bytes")
    return parse_receipt_json(decode_base64url(header_value.strip(" \t")))


def parse_receipt_json(text: bytes | str) -> Receipt:
    """Return the receipt in its JSON, as an event carries it; see `parse_receipt`."""
    wire = parse_json_object(text, bytes_max=RECEIPT_BYTES_MAX)
    for name, expected in (("intent", INTENT), ("status", STATUS)):
        if required(wire, name, parse_name) != expected:
            raise WireError(f"{name}: not {expected}")
    return Receipt(
        method=required(wire, "method", parse_name),
        challenge_id=required(wire, "challengeId", parse_name),
        channel_id=_require_channel(wire),
        chain_id=required(wire, "chainId", parse_safe_integer),
        accepted=required(wire, "acceptedCumulative", parse_amount),
        spent=required(wire, "spent", parse_amount),
        timestamp=required(wire, "timestamp", parse_timestamp),
        units=optional(wire, "units", parse_safe_integer),
        usage=optional(wire, "usage", parse_usage),
        tx_hash=optional(wire, "txHash", parse_tx_hash),
        confirmations=optional(wire, "confirmations", parse_safe_integer),
    )


def _require_channel(wire: Mapping[str, Any]) -> ChannelId:
    channel_id = required(wire, "channelId", parse_channel_id)
    if required(wire, "reference", parse_channel_id) != channel_id:
        raise WireError("reference: not the channel id")
    return channel_id
