"""Openings and top-ups of method `evm`, and the parser of its payloads (draft-evm-session-00).

The parser reads every form that the draft defines, even those a server does not offer: the engine
compares `payload.type` with the challenge's `credentialTypes` and refuses there (CRED-05). Fields
that the draft does not define are ignored; others are parsed strictly (CRED-04, CRED-06).
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from channel.errors import MalformedPayloadError, WireError
from channel.types import Address, ChannelId, SignedVoucher, TxHash
from channel.wire.encoding import format_hex, parse_amount
from channel.wire.fields import (
    format_authorized_signer,
    optional,
    parse_authorized_signer,
    parse_bytes32,
    parse_channel_id,
    parse_name,
    parse_signature,
    parse_tx_hash,
    required,
)
from channel.wire.funding import (
    Deposit,
    OpenPermit,
    TopUpPermit,
    TransferAuthorization,
    format_funding,
    parse_deposit,
    parse_open_permit,
    parse_top_up_permit,
    parse_transfer_authorization,
)
from channel.wire.payload import (
    OpenPayload,
    Payload,
    TopUpPayload,
    VoucherPayload,
    format_voucher,
    parse_close,
    parse_voucher,
)

__all__ = [
    "OpenAuthorization",
    "OpenHash",
    "OpenPermit2",
    "TopUpAuthorization",
    "TopUpHash",
    "TopUpPermit2",
    "build_open",
    "build_top_up",
    "parse_payload",
]


class OpenHash(OpenPayload, frozen=True):
    """The payer opened the channel itself: its transaction and the first voucher."""

    type: ClassVar[str] = "hash"
    needs_source: ClassVar[bool] = True

    salt: bytes
    authorized_signer: Address
    """Zero when the payer signs its own vouchers."""
    tx_hash: TxHash

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        return (
            super().members()
            | _format_terms(self.salt, self.authorized_signer)
            | {"hash": format_hex(self.tx_hash)}
        )


class OpenAuthorization(OpenPayload, frozen=True):
    """Asks the server to open the channel with an EIP-3009 authorization."""

    type: ClassVar[str] = "authorization"

    salt: bytes
    authorized_signer: Address
    authorization: TransferAuthorization
    signature: bytes
    """Of the authorization. The voucher's signature is `voucherSignature` on the wire."""

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        return (
            format_voucher(self.voucher, "voucherSignature")
            | _format_signed(self.authorization, self.signature)
            | _format_terms(self.salt, self.authorized_signer)
        )


class OpenPermit2(OpenPayload, frozen=True):
    """Asks the server to open the channel with a Permit2 transfer."""

    type: ClassVar[str] = "permit2"

    salt: bytes
    authorized_signer: Address
    authorization: OpenPermit
    signature: bytes
    """Of the permit. The voucher's signature is `voucherSignature` on the wire."""

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        return (
            format_voucher(self.voucher, "voucherSignature")
            | _format_signed(self.authorization, self.signature)
            | _format_terms(self.salt, self.authorized_signer)
        )


class TopUpHash(TopUpPayload, frozen=True):
    """The payer topped up the channel itself: its transaction."""

    type: ClassVar[str] = "hash"
    needs_source: ClassVar[bool] = True

    tx_hash: TxHash

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        return super().members() | {"hash": format_hex(self.tx_hash)}


class TopUpAuthorization(TopUpPayload, frozen=True):
    """Asks the server to top up the channel with an EIP-3009 authorization."""

    type: ClassVar[str] = "authorization"

    salt: bytes
    """`topUpSalt` in the formula of the nonce."""
    authorization: TransferAuthorization
    signature: bytes

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        return (
            super().members()
            | {"salt": format_hex(self.salt)}
            | _format_signed(self.authorization, self.signature)
        )


class TopUpPermit2(TopUpPayload, frozen=True):
    """Asks the server to top up the channel with a Permit2 transfer."""

    type: ClassVar[str] = "permit2"

    authorization: TopUpPermit
    signature: bytes

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        return super().members() | _format_signed(self.authorization, self.signature)


def _format_signed(
    funding: TransferAuthorization | OpenPermit | TopUpPermit, signature: bytes
) -> dict[str, Any]:
    return {"authorization": format_funding(funding), "signature": format_hex(signature)}


def _format_terms(salt: bytes, authorized_signer: Address) -> dict[str, Any]:
    return {"salt": format_hex(salt), **format_authorized_signer(authorized_signer)}


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


def _read_open_hash(wire: Mapping[str, Any]) -> OpenHash:
    return OpenHash(
        voucher=parse_voucher(wire),
        salt=required(wire, "salt", parse_bytes32),
        authorized_signer=parse_authorized_signer(wire),
        tx_hash=required(wire, "hash", parse_tx_hash),
    )


def _read_open_authorization(wire: Mapping[str, Any]) -> OpenAuthorization:
    return OpenAuthorization(
        voucher=parse_voucher(wire, "voucherSignature"),
        salt=required(wire, "salt", parse_bytes32),
        authorized_signer=parse_authorized_signer(wire),
        authorization=required(wire, "authorization", parse_transfer_authorization),
        signature=required(wire, "signature", parse_signature),
    )


def _read_open_permit2(wire: Mapping[str, Any]) -> OpenPermit2:
    return OpenPermit2(
        voucher=parse_voucher(wire, "voucherSignature"),
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
    return VoucherPayload(parse_voucher(wire), optional(wire, "deposit", parse_deposit))


_READERS: Mapping[tuple[str, str | None], Callable[[Mapping[str, Any]], Payload]] = {
    ("open", "hash"): _read_open_hash,
    ("open", "authorization"): _read_open_authorization,
    ("open", "permit2"): _read_open_permit2,
    ("topUp", "hash"): _read_top_up_hash,
    ("topUp", "authorization"): _read_top_up_authorization,
    ("topUp", "permit2"): _read_top_up_permit2,
    ("voucher", None): _read_voucher_payload,
    ("close", None): parse_close,
}
_TYPED_ACTIONS = frozenset(action for action, kind in _READERS if kind is not None)


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
