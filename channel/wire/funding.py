"""Authorizations that let the payee move the deposit: EIP-3009 and Permit2 (RELAY-06)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from channel.errors import WireError
from channel.types import ZERO_ADDRESS, Address, ChannelId, Redacted
from channel.wire.encoding import (
    format_address,
    format_amount,
    format_hex,
    parse_address,
    parse_amount,
    parse_uint256,
)
from channel.wire.fields import (
    format_authorized_signer,
    parse_authorized_signer,
    parse_bytes32,
    parse_channel_id,
    parse_name,
    parse_object,
    parse_signature,
    required,
)
from channel.wire.payload import AttachedDeposit

__all__ = [
    "Deposit",
    "Funding",
    "OpenPermit",
    "TopUpPermit",
    "TransferAuthorization",
    "format_funding",
    "parse_deposit",
    "parse_open_permit",
    "parse_top_up_permit",
    "parse_transfer_authorization",
]


class TransferAuthorization(Redacted, frozen=True, gc=False):
    """An EIP-3009 `ReceiveWithAuthorization`, signed by the funder of the deposit."""

    funder: Address
    to: Address
    """The escrow; the token refuses any other."""
    value: int
    valid_after: int
    """Unix seconds, exclusive, as is `valid_before`."""
    valid_before: int
    nonce: bytes
    """Not random: the escrow recomputes it from the terms of the channel."""


class OpenPermit(Redacted, frozen=True, gc=False):
    """A Permit2 witness transfer that opens a channel. The spender is signed, not sent."""

    funder: Address
    token: Address
    amount: int
    nonce: int
    deadline: int
    """Unix seconds, inclusive."""
    payee: Address
    salt: bytes
    authorized_signer: Address


class TopUpPermit(Redacted, frozen=True, gc=False):
    """A Permit2 witness transfer that tops a channel up."""

    funder: Address
    token: Address
    amount: int
    nonce: int
    deadline: int
    channel_id: ChannelId


Funding: TypeAlias = TransferAuthorization | OpenPermit | TopUpPermit


class Deposit(AttachedDeposit, frozen=True):
    """Funding attached to a voucher (VCH-06), of type `authorization` or `permit2`.

    The authorization holds its amount.
    """

    authorization: Funding
    signature: bytes
    salt: bytes | None
    """None only for a topUp by permit2, which has no salt."""
    authorized_signer: Address
    """Zero when unset, and for every topUp."""

    @property
    def amount(self) -> int:
        """The amount of the deposit, in base units."""
        funding = self.authorization
        return funding.value if isinstance(funding, TransferAuthorization) else funding.amount

    def members(self) -> dict[str, Any]:
        """Return the deposit with its wire names."""
        wire: dict[str, Any] = {"action": self.action, "type": self.type}
        if self.salt is not None:
            wire["salt"] = format_hex(self.salt)
        return wire | {
            **format_authorized_signer(self.authorized_signer),
            "authorization": format_funding(self.authorization),
            "signature": format_hex(self.signature),
        }


def parse_transfer_authorization(value: object) -> TransferAuthorization:
    """Return an EIP-3009 authorization, or raise `WireError` naming the field."""
    wire = parse_object(value)
    return TransferAuthorization(
        funder=required(wire, "from", parse_address),
        to=required(wire, "to", parse_address),
        value=required(wire, "value", parse_amount),
        valid_after=required(wire, "validAfter", parse_uint256),
        valid_before=required(wire, "validBefore", parse_uint256),
        nonce=required(wire, "nonce", parse_bytes32),
    )


def parse_open_permit(value: object) -> OpenPermit:
    """Return a Permit2 transfer that opens, or raise `WireError` naming the field."""
    wire = parse_object(value)
    permitted = required(wire, "permitted", parse_object)
    witness = required(wire, "witness", parse_object)
    return OpenPermit(
        funder=required(wire, "from", parse_address),
        token=required(permitted, "token", parse_address),
        amount=required(permitted, "amount", parse_amount),
        nonce=required(wire, "nonce", parse_uint256),
        deadline=required(wire, "deadline", parse_uint256),
        payee=required(witness, "payee", parse_address),
        salt=required(witness, "salt", parse_bytes32),
        authorized_signer=parse_authorized_signer(witness),
    )


def parse_top_up_permit(value: object) -> TopUpPermit:
    """Return a Permit2 transfer that tops up, or raise `WireError` naming the field."""
    wire = parse_object(value)
    permitted = required(wire, "permitted", parse_object)
    witness = required(wire, "witness", parse_object)
    return TopUpPermit(
        funder=required(wire, "from", parse_address),
        token=required(permitted, "token", parse_address),
        amount=required(permitted, "amount", parse_amount),
        nonce=required(wire, "nonce", parse_uint256),
        deadline=required(wire, "deadline", parse_uint256),
        channel_id=required(witness, "channelId", parse_channel_id),
    )


_READERS: Mapping[tuple[str, str], Callable[[object], Funding]] = {
    ("open", "authorization"): parse_transfer_authorization,
    ("open", "permit2"): parse_open_permit,
    ("topUp", "authorization"): parse_transfer_authorization,
    ("topUp", "permit2"): parse_top_up_permit,
}


def parse_deposit(value: object) -> Deposit:
    """Return the deposit attached to a voucher, or raise `WireError` naming the field."""
    wire = parse_object(value)
    action = required(wire, "action", parse_name)
    kind = required(wire, "type", parse_name)
    read = _READERS.get((action, kind))
    if read is None:
        raise WireError("type: expected authorization or permit2, with action open or topUp")
    opens = action == "open"
    return Deposit(
        action=action,
        type=kind,
        authorization=required(wire, "authorization", read),
        signature=required(wire, "signature", parse_signature),
        salt=required(wire, "salt", parse_bytes32) if opens or kind == "authorization" else None,
        authorized_signer=parse_authorized_signer(wire) if opens else ZERO_ADDRESS,
    )


def format_funding(funding: Funding) -> dict[str, Any]:
    """Return an authorization with its wire names."""
    if isinstance(funding, TransferAuthorization):
        return {
            "from": format_address(funding.funder),
            "to": format_address(funding.to),
            "value": format_amount(funding.value),
            "validAfter": str(funding.valid_after),
            "validBefore": str(funding.valid_before),
            "nonce": format_hex(funding.nonce),
        }
    if isinstance(funding, OpenPermit):
        witness = {
            "payee": format_address(funding.payee),
            "salt": format_hex(funding.salt),
            "authorizedSigner": format_address(funding.authorized_signer),
        }
    else:
        witness = {"channelId": format_hex(funding.channel_id)}
    return {
        "from": format_address(funding.funder),
        "permitted": {
            "token": format_address(funding.token),
            "amount": format_amount(funding.amount),
        },
        "nonce": str(funding.nonce),
        "deadline": str(funding.deadline),
        "witness": witness,
    }
