"""The frames of a paid websocket: data and payment, each in an envelope of its sender.

Each text frame is one JSON object whose member `mpp` names what it is. The application's text is a
string inside a frame of the kind `message`, so no text can become a frame of another kind. A binary
frame is the application's bytes as they are; payment never travels in one.

The kinds are those of other implementations of the protocol. Members that they do not have, `usage`
and `challenges`, are ignored there.
"""

from typing import Any, Final, TypeAlias

import msgspec

from channel.errors import WireError
from channel.limits import JSON_DEPTH_MAX
from channel.tariff import Usage
from channel.wire.depth import is_shallow
from channel.wire.receipt import Receipt, format_receipt_json
from channel.wire.sse import NeedVoucher, need_voucher_object
from channel.wire.tariff import parse_usage, usage_object

__all__ = [
    "BYTE_IN",
    "BYTE_OUT",
    "COUNTED_KINDS",
    "MESSAGE_IN",
    "MESSAGE_OUT",
    "SECOND",
    "SUBPROTOCOL",
    "AuthorizationFrame",
    "ClientFrame",
    "CloseReadyFrame",
    "CloseRequestFrame",
    "ErrorFrame",
    "MessageFrame",
    "NeedVoucherFrame",
    "ReceiptFrame",
    "ServerFrame",
    "UsageFrame",
    "format_authorization_frame",
    "format_close_ready_frame",
    "format_close_request_frame",
    "format_error_frame",
    "format_message_frame",
    "format_need_voucher_frame",
    "format_receipt_frame",
    "format_usage_frame",
    "parse_client_frame",
    "parse_server_frame",
    "read_frame_usage",
]

SUBPROTOCOL: Final = "mpp"
"""A client that offers this subprotocol authorises in its first frame, as browsers must."""

MESSAGE_IN: Final = "message_in"
MESSAGE_OUT: Final = "message_out"
BYTE_IN: Final = "byte_in"
BYTE_OUT: Final = "byte_out"
SECOND: Final = "connection_second"
COUNTED_KINDS: Final = frozenset((MESSAGE_IN, MESSAGE_OUT, BYTE_IN, BYTE_OUT, SECOND))
"""The kinds that both sides count by themselves: `in` is from the client to the application."""


class AuthorizationFrame(msgspec.Struct, frozen=True, tag_field="mpp", tag="authorization"):
    """From the client: a credential, as in the header field."""

    authorization: str


class MessageFrame(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="mpp", tag="message"):
    """One text of the application, in either direction."""

    data: str
    usage: dict[str, Any] | None = None
    """From the server: what the application counted since the last data frame, unless that is one
    unit of the main kind."""


class CloseRequestFrame(msgspec.Struct, frozen=True, tag_field="mpp", tag="payment-close-request"):
    """From the client: end, and state what was spent."""


class UsageFrame(msgspec.Struct, frozen=True, tag_field="mpp", tag="payment-usage"):
    """From the server: the usage of the binary frame that follows."""

    usage: dict[str, Any]


class NeedVoucherFrame(msgspec.Struct, frozen=True, tag_field="mpp", tag="payment-need-voucher"):
    """From the server: it waits for a voucher."""

    data: msgspec.Raw


class ReceiptFrame(msgspec.Struct, frozen=True, tag_field="mpp", tag="payment-receipt"):
    """From the server: a credential was accepted."""

    data: msgspec.Raw


class CloseReadyFrame(msgspec.Struct, frozen=True, tag_field="mpp", tag="payment-close-ready"):
    """From the server: the last receipt, after the last message."""

    data: msgspec.Raw


class ErrorFrame(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="mpp", tag="payment-error"
):
    """From the server: a credential was refused, or the connection ends unpaid."""

    status: int
    """The status that an HTTP answer would have."""
    message: str
    """One sentence for people."""
    problem: msgspec.Raw = msgspec.Raw(b"{}")
    """The problem body of such an answer."""
    challenges: tuple[str, ...] = ()
    """Its `WWW-Authenticate` fields."""


ClientFrame: TypeAlias = AuthorizationFrame | MessageFrame | CloseRequestFrame
ServerFrame: TypeAlias = (
    MessageFrame | UsageFrame | NeedVoucherFrame | ReceiptFrame | CloseReadyFrame | ErrorFrame
)

_encode = msgspec.json.encode
_decode_client = msgspec.json.Decoder(ClientFrame).decode
_decode_server = msgspec.json.Decoder(ServerFrame).decode


def parse_client_frame(text: str) -> ClientFrame:
    """Return a client's text frame. The caller bounds its length.

    Raises:
        WireError: It is none of a client's frames.
    """
    frame: ClientFrame = _parse(text, _decode_client)
    return frame


def parse_server_frame(text: str) -> ServerFrame:
    """Return a server's text frame. The caller bounds its length.

    Raises:
        WireError: It is none of a server's frames.
    """
    frame: ServerFrame = _parse(text, _decode_server)
    return frame


def _parse(text: str, decode: Any) -> Any:
    raw = text.encode("utf-8", "replace")
    if not is_shallow(raw, JSON_DEPTH_MAX):
        raise WireError("a frame nested too deeply")
    try:
        return decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"expected a JSON object with a known `mpp`, found: {error}") from error


def read_frame_usage(usage: dict[str, Any] | None) -> dict[str, int] | None:
    """Return a frame's usage by kind; None where it states none.

    Raises:
        WireError: It cannot be read.
    """
    return None if usage is None else parse_usage(usage)


def format_authorization_frame(authorization: str) -> str:
    """Return the frame with a credential."""
    return _encode(AuthorizationFrame(authorization)).decode()


def format_message_frame(data: str, usage: Usage | None = None) -> str:
    """Return the frame with a text of the application, and what the text is paid for with."""
    return _encode(MessageFrame(data, None if usage is None else usage_object(usage))).decode()


def format_usage_frame(usage: Usage) -> str:
    """Return the frame that states the usage of the binary frame behind it."""
    return _encode(UsageFrame(usage_object(usage))).decode()


def format_close_request_frame() -> str:
    """Return the frame that asks for the end."""
    return _encode(CloseRequestFrame()).decode()


def format_need_voucher_frame(need: NeedVoucher) -> str:
    """Return the frame that asks for a voucher."""
    return _encode(NeedVoucherFrame(msgspec.Raw(_encode(need_voucher_object(need))))).decode()


def format_receipt_frame(receipt: Receipt) -> str:
    """Return the frame that accepts a credential."""
    return _encode(ReceiptFrame(_raw(receipt))).decode()


def format_close_ready_frame(receipt: Receipt) -> str:
    """Return the frame with the last receipt."""
    return _encode(CloseReadyFrame(_raw(receipt))).decode()


def _raw(receipt: Receipt) -> msgspec.Raw:
    return msgspec.Raw(format_receipt_json(receipt).encode())


def format_error_frame(
    status: int, message: str, problem: bytes, challenges: tuple[str, ...] = ()
) -> str:
    """Return the frame that refuses a credential, or ends an unpaid connection.

    Args:
        status: The status of the HTTP answer that it stands for.
        message: One sentence.
        problem: The problem body of that answer, a JSON object.
        challenges: Its `WWW-Authenticate` fields.
    """
    return _encode(ErrorFrame(status, message, msgspec.Raw(problem), challenges)).decode()
