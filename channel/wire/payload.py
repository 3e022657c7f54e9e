"""The payload of a credential: open, topUp, voucher, close (draft-evm-session-00).

The parser reads every form that the draft defines, even those a server does not offer: the engine
compares `payload.type` with the challenge's `credentialTypes` and refuses there (CRED-05). Fields
that the draft does not define are ignored; others are parsed strictly (CRED-04, CRED-06).
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

from channel.errors import MalformedPayloadError, WireError
from channel.types import Address, ChannelId, Redacted, SignedVoucher, TxHash
from channel.wire.encoding import format_amount, format_hex, parse_amount
from channel.wire.fields import (
    optional,
    parse_bytes32,
    parse_channel_id,
    parse_name,
    parse_tx_hash,
    required,
)
from channel.wire.funding import (
    Deposit,
    OpenPermit,
    TopUpPermit,
    TransferAuthorization,
    format_authorized_signer,
    format_deposit,
    format_funding,
    parse_authorized_signer,
    parse_deposit,
    parse_open_permit,
    parse_signature,
    parse_top_up_permit,
    parse_transfer_authorization,
)

__all__ = [
    "ClosePayload",
    "Deposit",
    "OpenAuthorization",
    "OpenHash",
    "OpenPermit",
    "OpenPermit2",
    "Payload",
    "TopUpAuthorization",
    "TopUpHash",
    "TopUpPermit",
    "TopUpPermit2",
    "TransferAuthorization",
    "VoucherPayload",
    "build_open",
    "build_top_up",
    "format_payload",
    "parse_payload",
]


class _WithVoucher(Redacted, frozen=True):
    """A payload with a voucher, which names the channel."""

    voucher: SignedVoucher

    @property
    def channel_id(self) -> ChannelId:
        """The channel of the voucher."""
        return self.voucher.channel_id


class OpenHash(_WithVoucher, frozen=True):
    """The payer opened the channel itself: its transaction and the first voucher."""

    action: ClassVar[str] = "open"
    type: ClassVar[str] = "hash"

    salt: bytes
    authorized_signer: Address
    """Zero when the payer signs its own vouchers."""
    tx_hash: TxHash


class OpenAuthorization(_WithVoucher, frozen=True):
    """Asks the server to open the channel with an EIP-3009 authorization."""

    action: ClassVar[str] = "open"
    type: ClassVar[str] = "authorization"

    salt: bytes
    authorized_signer: Address
    authorization: TransferAuthorization
    signature: bytes
    """Of the authorization. The voucher's signature is `voucherSignature` on the wire."""


class OpenPermit2(_WithVoucher, frozen=True):
    """Asks the server to open the channel with a Permit2 transfer."""

    action: ClassVar[str] = "open"
    type: ClassVar[str] = "permit2"

    salt: bytes
    authorized_signer: Address
    authorization: OpenPermit
    signature: bytes
    """Of the permit. The voucher's signature is `voucherSignature` on the wire."""


class TopUpHash(Redacted, frozen=True):
    """The payer topped up the channel itself: its transaction."""

    action: ClassVar[str] = "topUp"
    type: ClassVar[str] = "hash"

    channel_id: ChannelId
    additional_deposit: int
    tx_hash: TxHash


class TopUpAuthorization(Redacted, frozen=True):
    """Asks the server to top up the channel with an EIP-3009 authorization."""

    action: ClassVar[str] = "topUp"
    type: ClassVar[str] = "authorization"

    channel_id: ChannelId
    additional_deposit: int
    salt: bytes
    """`topUpSalt` in the formula of the nonce."""
    authorization: TransferAuthorization
    signature: bytes


class TopUpPermit2(Redacted, frozen=True):
    """Asks the server to top up the channel with a Permit2 transfer."""

    action: ClassVar[str] = "topUp"
    type: ClassVar[str] = "permit2"

    channel_id: ChannelId
    additional_deposit: int
    authorization: TopUpPermit
    signature: bytes


class VoucherPayload(_WithVoucher, frozen=True):
    """A signed running total, and optionally the deposit that backs it."""

    action: ClassVar[str] = "voucher"

    deposit: Deposit | None = None


class ClosePayload(_WithVoucher, frozen=True):
    """The payer's consent to close the channel at the voucher's amount."""

    action: ClassVar[str] = "close"


Payload: TypeAlias = (
    OpenHash
    | OpenAuthorization
    | OpenPermit2
    | TopUpHash
    | TopUpAuthorization
    | TopUpPermit2
    | VoucherPayload
    | ClosePayload
)


def parse_payload(wire: Mapping[str, Any]) -> Payload:
    """Return the parsed payload.

    Raises:
        MalformedPayloadError: Unknown action or type, or a field missing or malformed; the
            message names it (CRED-04 to CRED-06).
    """
    try:
        action = required(wire, "action", parse_name)
        kind = required(wire, "type", parse_name) if action in _TYPED_ACTIONS else None
        return _find_reader(action, kind)(wire)
    except WireError as error:
        raise MalformedPayloadError(f"payload.{error}") from error


def _find_reader(action: str, kind: str | None) -> Callable[[Mapping[str, Any]], Payload]:
    read = _READERS.get((action, kind))
    if read is None:
        raise WireError(
            f"{'action' if kind is None else 'type'}: not defined for method evm, intent session"
        )
    return read


def _read_voucher(wire: Mapping[str, Any], signature: str = "signature") -> SignedVoucher:
    return SignedVoucher(
        channel_id=required(wire, "channelId", parse_channel_id),
        cumulative_amount=required(wire, "cumulativeAmount", parse_amount),
        signature=required(wire, signature, parse_signature),
    )


def _read_open_hash(wire: Mapping[str, Any]) -> OpenHash:
    return OpenHash(
        voucher=_read_voucher(wire),
        salt=required(wire, "salt", parse_bytes32),
        authorized_signer=parse_authorized_signer(wire),
        tx_hash=required(wire, "hash", parse_tx_hash),
    )


def _read_open_authorization(wire: Mapping[str, Any]) -> OpenAuthorization:
    return OpenAuthorization(
        voucher=_read_voucher(wire, "voucherSignature"),
        salt=required(wire, "salt", parse_bytes32),
        authorized_signer=parse_authorized_signer(wire),
        authorization=required(wire, "authorization", parse_transfer_authorization),
        signature=required(wire, "signature", parse_signature),
    )


def _read_open_permit2(wire: Mapping[str, Any]) -> OpenPermit2:
    return OpenPermit2(
        voucher=_read_voucher(wire, "voucherSignature"),
        salt=required(wire, "salt", parse_bytes32),
        authorized_signer=parse_authorized_signer(wire),
        authorization=required(wire, "authorization", parse_open_permit),
        signature=required(wire, "signature", parse_signature),
    )


def _read_top_up_hash(wire: Mapping[str, Any]) -> TopUpHash:
    return TopUpHash(
        channel_id=required(wire, "channelId", parse_channel_id),
        additional_deposit=required(wire, "additionalDeposit", parse_amount),
        tx_hash=required(wire, "hash", parse_tx_hash),
    )


def _read_top_up_authorization(wire: Mapping[str, Any]) -> TopUpAuthorization:
    return TopUpAuthorization(
        channel_id=required(wire, "channelId", parse_channel_id),
        additional_deposit=required(wire, "additionalDeposit", parse_amount),
        salt=required(wire, "salt", parse_bytes32),
        authorization=required(wire, "authorization", parse_transfer_authorization),
        signature=required(wire, "signature", parse_signature),
    )


def _read_top_up_permit2(wire: Mapping[str, Any]) -> TopUpPermit2:
    return TopUpPermit2(
        channel_id=required(wire, "channelId", parse_channel_id),
        additional_deposit=required(wire, "additionalDeposit", parse_amount),
        authorization=required(wire, "authorization", parse_top_up_permit),
        signature=required(wire, "signature", parse_signature),
    )


def _read_voucher_payload(wire: Mapping[str, Any]) -> VoucherPayload:
    return VoucherPayload(_read_voucher(wire), optional(wire, "deposit", parse_deposit))


def _read_close(wire: Mapping[str, Any]) -> ClosePayload:
    return ClosePayload(_read_voucher(wire))


_READERS: Mapping[tuple[str, str | None], Callable[[Mapping[str, Any]], Payload]] = {
    ("open", "hash"): _read_open_hash,
    ("open", "authorization"): _read_open_authorization,
    ("open", "permit2"): _read_open_permit2,
    ("topUp", "hash"): _read_top_up_hash,
    ("topUp", "authorization"): _read_top_up_authorization,
    ("topUp", "permit2"): _read_top_up_permit2,
    ("voucher", None): _read_voucher_payload,
    ("close", None): _read_close,
}
_TYPED_ACTIONS = frozenset(action for action, kind in _READERS if kind is not None)


def format_payload(payload: Payload) -> dict[str, Any]:
    """Return the payload with its wire names.

    Raises:
        WireError: An amount outside `uint128`.
    """
    wire: dict[str, Any] = {"action": payload.action}
    if not isinstance(payload, VoucherPayload | ClosePayload):
        wire["type"] = payload.type
    wire["channelId"] = format_hex(payload.channel_id)
    if isinstance(payload, TopUpHash | TopUpAuthorization | TopUpPermit2):
        return wire | _format_top_up(payload)
    voucher = payload.voucher
    wire["cumulativeAmount"] = format_amount(voucher.cumulative_amount)
    if isinstance(payload, OpenAuthorization | OpenPermit2):
        wire |= {
            "voucherSignature": format_hex(voucher.signature),
            "authorization": format_funding(payload.authorization),
            "signature": format_hex(payload.signature),
        }
    else:
        wire["signature"] = format_hex(voucher.signature)
    if isinstance(payload, OpenHash | OpenAuthorization | OpenPermit2):
        wire |= {
            "salt": format_hex(payload.salt),
            **format_authorized_signer(payload.authorized_signer),
        }
    if isinstance(payload, OpenHash):
        wire["hash"] = format_hex(payload.tx_hash)
    if isinstance(payload, VoucherPayload) and payload.deposit is not None:
        wire["deposit"] = format_deposit(payload.deposit)
    return wire


def _format_top_up(payload: TopUpHash | TopUpAuthorization | TopUpPermit2) -> dict[str, Any]:
    wire: dict[str, Any] = {"additionalDeposit": format_amount(payload.additional_deposit)}
    if isinstance(payload, TopUpHash):
        return wire | {"hash": format_hex(payload.tx_hash)}
    if isinstance(payload, TopUpAuthorization):
        wire["salt"] = format_hex(payload.salt)
    return wire | {
        "authorization": format_funding(payload.authorization),
        "signature": format_hex(payload.signature),
    }


def build_open(deposit: Deposit, voucher: SignedVoucher) -> OpenAuthorization | OpenPermit2:
    """Return the payload that opens a channel by this deposit, with the first voucher.

    Raises:
        ValueError: The deposit is a top-up.
    """
    funding, salt = deposit.authorization, deposit.salt
    if deposit.action != "open" or salt is None or isinstance(funding, TopUpPermit):
        raise ValueError("expected a deposit with action open, found a top-up")
    if isinstance(funding, OpenPermit):
        return OpenPermit2(voucher, salt, deposit.authorized_signer, funding, deposit.signature)
    return OpenAuthorization(voucher, salt, deposit.authorized_signer, funding, deposit.signature)


def build_top_up(deposit: Deposit, channel_id: ChannelId) -> TopUpAuthorization | TopUpPermit2:
    """Return the payload that tops up the channel by this deposit.

    Raises:
        ValueError: The deposit is an opening.
    """
    funding, salt = deposit.authorization, deposit.salt
    if isinstance(funding, TopUpPermit):
        return TopUpPermit2(channel_id, deposit.amount, funding, deposit.signature)
    if deposit.action != "topUp" or salt is None or isinstance(funding, OpenPermit):
        raise ValueError("expected a deposit with action topUp, found an opening")
    return TopUpAuthorization(channel_id, deposit.amount, salt, funding, deposit.signature)
