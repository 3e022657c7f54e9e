"""Server-sent events: what a metered stream sends between its chunks (SSE-01 to SSE-05)."""

import re
from collections.abc import Iterator

import msgspec

from channel.errors import WireError
from channel.limits import EVENT_BYTES_MAX, KIND_CHARS_MAX, RATES_MAX
from channel.tariff import Usage
from channel.types import ChannelId
from channel.wire.encoding import (
    format_amount,
    format_hex,
    parse_amount,
    parse_json_object,
)
from channel.wire.fields import parse_channel_id, required
from channel.wire.receipt import Receipt, format_receipt_json
from channel.wire.tariff import parse_usage, usage_object

__all__ = [
    "CONTENT_TYPE",
    "DONE",
    "NEED_VOUCHER_EVENT",
    "RECEIPT_EVENT",
    "EventSplitter",
    "NeedVoucher",
    "format_event",
    "format_event_usage",
    "format_need_voucher",
    "format_payment_receipt_event",
    "need_voucher_object",
    "parse_event",
    "parse_event_usage",
    "parse_need_voucher",
]

CONTENT_TYPE = "text/event-stream"
DONE = "[DONE]"
"""The last event of a model's answer; readers count nothing for it unless it states its units."""
NEED_VOUCHER_EVENT = "payment-need-voucher"
RECEIPT_EVENT = "payment-receipt"
UNITS_FIELD = "payment-units"
"""A line of an event that states its units when they are not 1. The format requires readers to
ignore fields that they do not know."""
USAGE_FIELD = "payment-usage"
"""The line of an event that has units of other kinds than the main one:
`input_token=57,output_token=1`."""

# The three line ends of the format, and no others: U+2028, U+0085 or \x0b inside a line are text.
_LINE_END = re.compile("\r\n|\r|\n")
_EVENT_END = re.compile(rb"(?:\r\n?+|\n)(?:\r\n?+|\n)")
_UNITS = re.compile(rb"(?:\A|[\r\n])payment-units: ?(\d{1,18})(?=[\r\n])")
_USED = f"[a-z][a-z0-9_]{{0,{KIND_CHARS_MAX - 1}}}=[0-9]{{1,16}}"
_USAGE = re.compile(
    rf"(?:\A|[\r\n])payment-usage: ?({_USED}(?:,{_USED}){{0,{RATES_MAX - 1}}})(?=[\r\n])".encode()
)
_BYTES_LINE_END = re.compile(rb"\r\n|\r|\n")
_PLAIN = re.compile(rb"data: ([^\r\n]*)\n\n")
"""An event of one line of data, as most servers write it."""


class NeedVoucher(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The server waits for a voucher; amounts in base units (SSE-02)."""

    channel_id: ChannelId
    required_cumulative: int
    accepted: int
    deposit: int


def format_event(
    data: str, event: str | None = None, *, units: int = 1, usage: Usage | None = None
) -> bytes:
    """Return one event; no line of `data` can become another field or event (F-55).

    An event of other than one unit states its number (`payment-units`), or, in place of `units`,
    its usage by kind (`payment-usage`), so that clients can count.

    Raises:
        WireError: `event` holds a line end, or `usage` cannot be stated.
    """
    if event is None:
        if (
            units == 1 and usage is None and "\n" not in data and "\r" not in data
        ):  # nearly every token
            return f"data: {data}\n\n".encode()
        head = ""
    elif _LINE_END.search(event) is None:
        head = f"event: {event}\n"
    else:
        raise WireError("expected an event name of one line, found a line end in it")
    head += format_event_usage(units if usage is None else usage)
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(data))
    return f"{head}{lines}\n".encode()


def format_event_usage(usage: Usage | int) -> str:
    """Return the line of an event that states its usage; a number is of the main kind.

    Empty for one unit of the main kind, which needs no line.

    Raises:
        WireError: The usage cannot be stated.
    """
    if isinstance(usage, int) or not usage:
        return "" if usage == 1 else f"{UNITS_FIELD}: {usage or 0}\n"
    stated = ",".join(f"{kind}={units}" for kind, units in usage_object(usage).items())
    return f"{USAGE_FIELD}: {stated}\n"


def need_voucher_object(need: NeedVoucher) -> dict[str, str]:
    """Return the members that ask for a voucher (SSE-02)."""
    return {
        "channelId": format_hex(need.channel_id),
        "requiredCumulative": format_amount(need.required_cumulative),
        "acceptedCumulative": format_amount(need.accepted),
        "deposit": format_amount(need.deposit),
    }


def format_need_voucher(need: NeedVoucher) -> bytes:
    """Return the event that asks for a voucher, its JSON on one line (SSE-01)."""
    body = msgspec.json.encode(need_voucher_object(need))
    return format_event(body.decode("ascii"), NEED_VOUCHER_EVENT)


def format_payment_receipt_event(receipt: Receipt) -> bytes:
    """Return the last event of a stream (SSE-04)."""
    return format_event(format_receipt_json(receipt), RECEIPT_EVENT)


def parse_need_voucher(data: str) -> NeedVoucher:
    """Return the data of a `payment-need-voucher` event.

    Raises:
        WireError: Malformed; the message names the field.
    """
    wire = parse_json_object(data, bytes_max=EVENT_BYTES_MAX)
    return NeedVoucher(
        channel_id=required(wire, "channelId", parse_channel_id),
        required_cumulative=required(wire, "requiredCumulative", parse_amount),
        accepted=required(wire, "acceptedCumulative", parse_amount),
        deposit=required(wire, "deposit", parse_amount),
    )


def parse_event(block: bytes) -> tuple[str, str] | None:
    """Return name and data of one whole event, or None when it has no data, like a comment.

    The rules are the HTML standard's: `data` lines are joined by newlines, one space after the
    colon is dropped, the name is `message` unless given. Bytes that are not UTF-8 are replaced.
    """
    if (plain := _PLAIN.fullmatch(block)) is not None:  # nearly every token
        return "message", plain[1].decode("utf-8", "replace")
    name, lines = "", []
    for raw in _BYTES_LINE_END.split(block):
        field, _, value = raw.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            lines.append(value)
        elif field == "event":
            name = value
    return (name or "message", "\n".join(lines)) if lines else None


def parse_event_usage(block: bytes) -> dict[str, int] | int | None:
    """Return what an event states: its usage by kind, or its units of the main kind.

    None when it states nothing, or nothing that can be read: then it counts as one unit.
    """
    if b"payment-u" not in block:  # nearly every token
        return None
    if (usage := _USAGE.search(block)) is not None:
        return _read_usage(usage[1].decode("ascii"))
    units = _UNITS.search(block)
    return None if units is None else int(units[1])


def _read_usage(text: str) -> dict[str, int] | None:
    parts = [part.partition("=") for part in text.split(",")]
    try:
        usage = parse_usage({kind: int(units) for kind, _, units in parts})
    except WireError:
        return None
    return usage if len(usage) == len(parts) else None  # a kind that is stated twice is not read


class EventSplitter:
    """Cuts an upstream's byte stream into whole events without changing a byte.

    Every fed byte comes out again, in order: complete events with their blank line, and the rest
    from `flush`. The splitter holds back at most `bytes_max` bytes.
    """

    def __init__(self, *, bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that end in `chunk`.

        Raises:
            WireError: An event is longer than the bound; the splitter cannot be used any more.
        """
        self._held += chunk
        events = list(self._cut())
        if len(self._held) > self._bytes_max:
            raise WireError(f"an event over {self._bytes_max} bytes")
        return events

    def _cut(self) -> Iterator[bytes]:
        start = 0
        position = self._searched
        while (match := _EVENT_END.search(self._held, position)) is not None:
            yield bytes(self._held[start : match.end()])
            start = position = match.end()
        del self._held[:start]
        self._searched = max(0, len(self._held) - 3)  # the last 3 may start a blank line

    def flush(self) -> bytes:
        """Return the bytes after the last blank line, and clear the splitter."""
        rest = bytes(self._held)
        self._held.clear()
        self._searched = 0
        return rest
