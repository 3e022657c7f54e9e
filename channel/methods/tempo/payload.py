"""Openings and top-ups of method `tempo`, and the parser of its payloads (draft-tempo-session-00).

Each carries a transaction that the payer signed and the server sends. Fields that the draft does
not define are ignored, among them a deposit on a voucher.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from channel.errors import MalformedPayloadError, WireError
from channel.limits import AUTHORIZATION_BYTES_MAX
from channel.types import Address
from channel.wire.encoding import (
    format_address,
    format_hex,
    parse_address,
    parse_amount,
    parse_hex_bytes,
)
from channel.wire.fields import optional, parse_channel_id, parse_name, required
from channel.wire.payload import (
    OpenPayload,
    Payload,
    TopUpPayload,
    VoucherPayload,
    parse_close,
    parse_voucher,
)

__all__ = ["TRANSACTION", "OpenTransaction", "TopUpTransaction", "parse_payload"]

TRANSACTION: Final = "transaction"
"""The one type of funding."""


class OpenTransaction(OpenPayload, frozen=True):
    """Asks the server to send the payer's opening."""

    type: ClassVar[str] = TRANSACTION
    needs_source: ClassVar[bool] = True

    transaction: bytes
    """Signed by the payer."""
    authorized_signer: Address | None
    """As the payload states it; the transaction decides."""

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        wire = super().members() | {TRANSACTION: format_hex(self.transaction)}
        if self.authorized_signer is not None:
            wire["authorizedSigner"] = format_address(self.authorized_signer)
        return wire

    def _show(self, name: str) -> str:
        return "<withheld>" if name == TRANSACTION else super()._show(name)


class TopUpTransaction(TopUpPayload, frozen=True):
    """Asks the server to send the payer's top-up."""

    type: ClassVar[str] = TRANSACTION

    transaction: bytes

    def members(self) -> dict[str, Any]:
        """See `Payload`."""
        return super().members() | {TRANSACTION: format_hex(self.transaction)}

    def _show(self, name: str) -> str:
        return "<withheld>" if name == TRANSACTION else super()._show(name)


def parse_payload(wire: Mapping[str, Any]) -> Payload:
    """Return the parsed payload.

    Raises:
        MalformedPayloadError: Unknown action or type, or a field missing or malformed; the
            message names it.
    """
    try:
        return _find_reader(required(wire, "action", parse_name))(wire)
    except WireError as error:
        raise MalformedPayloadError(f"payload.{error}") from error


def _find_reader(action: str) -> Callable[[Mapping[str, Any]], Payload]:
    read = _READERS.get(action)
    if read is None:
        raise WireError("action: not defined for method tempo, intent session")
    return read


def _read_open(wire: Mapping[str, Any]) -> OpenTransaction:
    return OpenTransaction(
        voucher=parse_voucher(wire),
        transaction=_read_transaction(wire),
        authorized_signer=optional(wire, "authorizedSigner", parse_address),
    )


def _read_top_up(wire: Mapping[str, Any]) -> TopUpTransaction:
    return TopUpTransaction(
        channel_id=required(wire, "channelId", parse_channel_id),
        additional_deposit=required(wire, "additionalDeposit", parse_amount),
        transaction=_read_transaction(wire),
    )


def _read_transaction(wire: Mapping[str, Any]) -> bytes:
    if required(wire, "type", parse_name) != TRANSACTION:
        raise WireError("type: not defined for method tempo, intent session")
    return required(wire, TRANSACTION, _parse_transaction)


def _parse_transaction(value: object) -> bytes:
    return parse_hex_bytes(value, size_max=AUTHORIZATION_BYTES_MAX)


def _read_voucher(wire: Mapping[str, Any]) -> VoucherPayload:
    return VoucherPayload(parse_voucher(wire))


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Payload]] = {
    "open": _read_open,
    "topUp": _read_top_up,
    "voucher": _read_voucher,
    "close": parse_close,
}
