"""Server-sent events: written so that nothing can be forged, cut without being altered."""

import itertools
import json

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import WireError
from channel.limits import AMOUNT_MAX, KIND_CHARS_MAX, RATES_MAX, USAGE_MAX
from channel.types import ChannelId
from channel.wire.encoding import parse_amount, parse_hex
from channel.wire.receipt import parse_receipt, parse_receipt_json
from channel.wire.sse import (
    NEED_VOUCHER_EVENT,
    RECEIPT_EVENT,
    EventSplitter,
    NeedVoucher,
    format_event,
    format_need_voucher,
    format_payment_receipt_event,
    parse_event,
    parse_event_usage,
    parse_need_voucher,
)
from tests.channel.vectors import WIRE, entry_of

AMOUNTS = st.integers(0, AMOUNT_MAX)
NEEDS = st.builds(
    NeedVoucher,
    channel_id=st.binary(min_size=32, max_size=32).map(ChannelId),
    required_cumulative=AMOUNTS,
    accepted=AMOUNTS,
    deposit=AMOUNTS,
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
NASTY = st.text("ab:\r\n\u2028\x0b\x0c\x1c\x85 data event", max_size=30)


def read_with_httpx_sse(stream: bytes) -> list[tuple[str, str]]:
    """Read events as another implementation does."""
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    return [(event.event, event.data) for event in EventSource(response).iter_sse()]


def unified(data: str) -> str:
    """Return data as a reader gets it: the three line ends become one."""
    return data.replace("\r\n", "\n").replace("\r", "\n")


# -- writing


def test_golden_events_are_written_as_mppx_does() -> None:
    """SSE-01, SSE-05: byte for byte."""
    entry = entry_of(WIRE["sse"], "need_voucher")
    need = NeedVoucher(
        channel_id=ChannelId(parse_hex(entry["data"]["channelId"], 32)),
        required_cumulative=parse_amount(entry["data"]["requiredCumulative"]),
        accepted=parse_amount(entry["data"]["acceptedCumulative"]),
        deposit=parse_amount(entry["data"]["deposit"]),
    )
    assert format_need_voucher(need).decode() == entry["wire"]
    event = parse_event(entry["wire"].encode())
    assert event is not None
    assert event[0] == NEED_VOUCHER_EVENT
    assert parse_need_voucher(event[1]) == need
    entry = entry_of(WIRE["sse"], "message_multiline")
    assert format_event(entry["data"], "message").decode() == entry["wire"]
    assert len(WIRE["sse"]) == 2


@given(NASTY | TEXT, st.sampled_from([None, "message", "note"]))
def test_no_text_can_become_another_event_or_field(data: str, name: str | None) -> None:
    """F-55: CR, LF and CRLF end a line and are prefixed; U+2028, VT and their like are text."""
    wire = format_event(data, name)
    splitter = EventSplitter()
    assert splitter.feed(wire) == [wire]
    assert splitter.flush() == b""
    assert parse_event(wire) == (name or "message", unified(data))


@given(st.binary(max_size=30).map(lambda data: data.translate(None, b"\r\n")))
def test_the_usual_form_of_an_event_reads_as_every_other_one(data: bytes) -> None:
    """One line of data that ends in LF has a path of its own, because most tokens come so."""
    plain = parse_event(b"data: " + data + b"\n\n")
    assert plain == parse_event(b"data: " + data + b"\r\n\r\n")
    assert plain == ("message", data.decode("utf-8", "replace"))


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_forged_receipt_stays_text_for_another_reader_too(end: str) -> None:
    """F-55: a model that writes control events writes words."""
    forged = f"hello{end}{end}event: {RECEIPT_EVENT}{end}data: {{}}{end}{end}"
    assert read_with_httpx_sse(format_event(forged)) == [("message", unified(forged))]


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\r\nb"])
def test_an_events_name_is_one_line(name: str) -> None:
    """F-55."""
    with pytest.raises(WireError, match="one line"):
        format_event("x", name)


@given(NEEDS)
def test_requests_for_a_voucher_come_back(need: NeedVoucher) -> None:
    """SSE-01: one line of JSON with string fields, exactly four."""
    wire = format_need_voucher(need)
    ((name, data),) = read_with_httpx_sse(wire)
    assert name == NEED_VOUCHER_EVENT == "payment-need-voucher"
    assert parse_need_voucher(data) == need
    assert wire.count(b"\n") == 3
    assert {type(value) for value in json.loads(data).values()} == {str}


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[]",
        "{}",
        '{"channelId":"0x12","requiredCumulative":"1","acceptedCumulative":"1","deposit":"1"}',
        json.dumps(
            {
                "channelId": "0x" + "ab" * 32,
                "requiredCumulative": 1,
                "acceptedCumulative": "1",
                "deposit": "1",
            }
        ),
    ],
)
def test_a_malformed_request_for_a_voucher_is_refused(data: str) -> None:
    with pytest.raises(WireError):
        parse_need_voucher(data)


def test_the_last_event_is_the_receipt_as_json() -> None:
    """SSE-04: not base64."""
    receipt = parse_receipt(entry_of(WIRE["receipts"], "request")["wire"])
    ((name, data),) = read_with_httpx_sse(format_payment_receipt_event(receipt))
    assert name == RECEIPT_EVENT == "payment-receipt"
    assert parse_receipt_json(data) == receipt


# -- what an event used


USAGES = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True),
    st.integers(0, USAGE_MAX),
    min_size=1,
    max_size=RATES_MAX,
)


@given(NASTY | TEXT, st.sampled_from([None, "message"]), USAGES)
def test_an_events_usage_comes_back_and_its_data_stays(
    data: str, name: str | None, usage: dict[str, int]
) -> None:
    """TARIFF-06."""
    wire = format_event(data, name, usage=usage)
    assert parse_event_usage(wire) == usage
    assert parse_event(wire) == (name or "message", unified(data))
    assert read_with_httpx_sse(wire) == [("message", unified(data))]


def test_a_usage_stands_on_one_line_before_the_data() -> None:
    usage = {"input_token": 57, "output_token": 1}
    wire = format_event("x", usage=usage)
    assert wire == b"payment-usage: input_token=57,output_token=1\ndata: x\n\n"
    assert format_event("x", "e", units=9, usage={"image": 2}) == (
        b"event: e\npayment-usage: image=2\ndata: x\n\n"
    )


def test_a_usage_of_nothing_is_stated_as_no_units() -> None:
    assert format_event("x", usage={}) == format_event("x", units=0)
    assert parse_event_usage(format_event("x", usage={})) == 0


@pytest.mark.parametrize(
    "usage",
    [
        {"Output": 1},
        {"a\ndata": 1},
        {"": 1},
        {"output_token": -1},
        {"output_token": True},
        {"output_token": USAGE_MAX + 1},
        {"k" * (KIND_CHARS_MAX + 1): 1},
        {f"k{n}": 1 for n in range(RATES_MAX + 1)},
    ],
)
def test_a_usage_that_cannot_be_stated_is_refused(usage: dict[str, int]) -> None:
    """F-55: a kind with a line end in it would be another field."""
    with pytest.raises(WireError):
        format_event("x", usage=usage)


LONGEST_USAGE = ",".join(f"{'k' * (KIND_CHARS_MAX - 2)}{n:02}={USAGE_MAX}" for n in range(32))


@pytest.mark.parametrize(
    ("block", "stated"),
    [
        (b"data: x\n\n", None),
        (b"payment-units: 7\ndata: x\n\n", 7),
        (b"data: x\r\npayment-usage:image=2\r\n\r\n", {"image": 2}),
        (b"payment-usage: image=0\ndata: x\n\n", {"image": 0}),
        (b"payment-units: 7\npayment-usage: image=2\ndata: x\n\n", {"image": 2}),
        (b"payment-usage: ?\npayment-units: 7\ndata: x\n\n", 7),
        (b"data: payment-usage: image=2\n\n", None),
        (b"payment-usage: \ndata: x\n\n", None),
        (b"payment-usage: image\ndata: x\n\n", None),
        (b"payment-usage: image=2,\ndata: x\n\n", None),
        (b"payment-usage: image=2, row=1\ndata: x\n\n", None),
        (b"payment-usage: image=-2\ndata: x\n\n", None),
        (b"payment-usage: image=1,image=1\ndata: x\n\n", None),
        (b"payment-usage: Image=2\ndata: x\n\n", None),
        (b"payment-usage: image=9007199254740992\ndata: x\n\n", None),
        (b"payment-usage: image=\xd9\xa3\ndata: x\n\n", None),
        (b"payment-usage: " + b"k" * (KIND_CHARS_MAX + 1) + b"=1\ndata: x\n\n", None),
        (f"payment-usage: {LONGEST_USAGE},extra=1\ndata: x\n\n".encode(), None),
    ],
)
def test_a_stated_usage_is_read_within_its_bounds(
    block: bytes, stated: dict[str, int] | int | None
) -> None:
    """TARIFF-06: a statement that cannot be read counts as none: the payer counts one unit."""
    assert parse_event_usage(block) == stated


def test_the_longest_usage_is_read() -> None:
    stated = parse_event_usage(f"payment-usage: {LONGEST_USAGE}\n\n".encode())
    assert isinstance(stated, dict)
    assert (len(stated), set(stated.values())) == (RATES_MAX, {USAGE_MAX})


# -- reading one event


@pytest.mark.parametrize(
    ("block", "event"),
    [
        (b"data: x\n\n", ("message", "x")),
        (b"data:x\r\n\r\n", ("message", "x")),
        (b"data:  x\r\r", ("message", " x")),
        (b"data\n\n", ("message", "")),
        (b"data: a\ndata: b\n\n", ("message", "a\nb")),
        (b"event: e\nid: 7\nretry: 5\ndata: x\n\n", ("e", "x")),
        (b"event: a\nevent: b\ndata: x\n\n", ("b", "x")),
        (b"event:\ndata: x\n\n", ("message", "x")),
        (b": keep-alive\n\n", None),
        (b"event: e\n\n", None),
        (b"\n\n", None),
        (b"", None),
        (b"data: \xff\n\n", ("message", "\ufffd")),
        (b"datax: y\n\n", None),
    ],
)
def test_an_event_is_read_as_the_standard_says(block: bytes, event: tuple[str, str] | None) -> None:
    assert parse_event(block) == event


# -- cutting a stream


LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Draw a stream, and the same cut anywhere at all, in the middle of line ends too."""
    pieces = draw(
        st.lists(st.binary(max_size=5) | LINE_ENDS | st.just(b"data: x\n\n"), max_size=12)
    )
    stream = b"".join(pieces)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    return stream, [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(streams())
def test_a_cut_stream_loses_and_gains_nothing(cut: tuple[bytes, list[bytes]]) -> None:
    """F-59: what goes through is byte for byte what came."""
    stream, chunks = cut
    splitter = EventSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    assert b"".join(events) + splitter.flush() == stream
    assert splitter.flush() == b""


@given(streams())
def test_however_it_arrives_a_stream_holds_the_same_events(
    cut: tuple[bytes, list[bytes]],
) -> None:
    """F-56: a chunk that is sold is counted once, wherever the network cut it."""
    stream, chunks = cut
    whole, piecewise = EventSplitter(), EventSplitter()
    whole_events = [parse_event(event) for event in [*whole.feed(stream), whole.flush()]]
    bit_by_bit = [
        parse_event(event)
        for event in [*(e for chunk in chunks for e in piecewise.feed(chunk)), piecewise.flush()]
    ]
    assert [e for e in bit_by_bit if e] == [e for e in whole_events if e]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_leaves_with_the_byte_that_ends_it(end: bytes) -> None:
    """F-59: nothing is held back that is whole, also when CR is the last byte so far."""
    splitter = EventSplitter()
    event = b"data: x" + end + end
    fed = [splitter.feed(event[at : at + 1]) for at in range(len(event))]
    cut = [piece for pieces in fed for piece in pieces]
    assert b"".join(cut) + splitter.flush() == event
    assert [parse_event(piece) for piece in cut] == [("message", "x")]
    assert fed[-1] or end == b"\r\n"


def test_an_endless_event_is_refused_and_not_collected() -> None:
    """SEC-10, F-59."""
    splitter = EventSplitter(bytes_max=10)
    assert splitter.feed(b"data: 1234") == []
    with pytest.raises(WireError, match="over 10 bytes"):
        splitter.feed(b"5")


def test_many_events_in_one_chunk_may_be_longer_than_one_event() -> None:
    splitter = EventSplitter(bytes_max=10)
    assert splitter.feed(b"data: 1\n\n" * 5 + b"data") == [b"data: 1\n\n"] * 5
    assert splitter.flush() == b"data"
