"""The frames of a paid websocket: what one side formats the other reads, and nothing else."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.errors import WireError
from channel.types import ChannelId
from channel.wire.receipt import Receipt, parse_receipt_json
from channel.wire.sse import NeedVoucher, parse_need_voucher
from channel.wire.websocket import (
    AuthorizationFrame,
    CloseReadyFrame,
    CloseRequestFrame,
    ErrorFrame,
    MessageFrame,
    NeedVoucherFrame,
    ReceiptFrame,
    UsageFrame,
    format_authorization_frame,
    format_close_ready_frame,
    format_close_request_frame,
    format_error_frame,
    format_message_frame,
    format_need_voucher_frame,
    format_receipt_frame,
    format_usage_frame,
    parse_client_frame,
    parse_server_frame,
    read_frame_usage,
)

CHANNEL = ChannelId(b"\x01" * 32)
RECEIPT = Receipt(
    method="evm",
    challenge_id="c",
    channel_id=CHANNEL,
    chain_id=1,
    accepted=5,
    spent=3,
    timestamp=0.0,
    units=3,
)


@settings(max_examples=25)
@given(text=st.text())
def test_no_text_of_the_application_is_another_frame(text: str) -> None:
    """Framing: a text in an envelope is that text, for both readers."""
    frame = format_message_frame(text)
    expected = MessageFrame(text.encode("utf-8", "replace").decode())
    assert parse_client_frame(frame) == parse_server_frame(frame) == expected


def test_each_frame_is_read_as_it_was_meant() -> None:
    assert parse_client_frame(format_authorization_frame("Payment x")) == AuthorizationFrame(
        "Payment x"
    )
    assert parse_client_frame(format_close_request_frame()) == CloseRequestFrame()
    need = NeedVoucher(channel_id=CHANNEL, required_cumulative=9, accepted=5, deposit=7)
    asked = parse_server_frame(format_need_voucher_frame(need))
    assert isinstance(asked, NeedVoucherFrame)
    assert parse_need_voucher(bytes(asked.data).decode()) == need
    for format_frame, kind in (
        (format_receipt_frame, ReceiptFrame),
        (format_close_ready_frame, CloseReadyFrame),
    ):
        found = parse_server_frame(format_frame(RECEIPT))
        assert isinstance(found, kind)
        assert parse_receipt_json(bytes(found.data).decode()) == RECEIPT
    error = parse_server_frame(format_error_frame(402, "pay", b'{"status":402}', ("Payment a",)))
    assert isinstance(error, ErrorFrame)
    assert (error.status, error.message, error.challenges) == (402, "pay", ("Payment a",))


def test_a_message_states_what_it_used() -> None:
    frame = parse_server_frame(format_message_frame("x", {"output_token": 2}))
    assert isinstance(frame, MessageFrame)
    assert read_frame_usage(frame.usage) == {"output_token": 2}
    assert read_frame_usage(MessageFrame("x").usage) is None
    ahead = parse_server_frame(format_usage_frame({}))
    assert isinstance(ahead, UsageFrame)
    assert read_frame_usage(ahead.usage) == {}
    with pytest.raises(WireError):
        read_frame_usage({"output_token": -1})


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", '"x"', "{}", '{"mpp":"x"}', '{"mpp":"message"}', '{"mpp":"message","data":1}'],
)
def test_what_is_no_frame_is_refused(text: str) -> None:
    for parse in (parse_client_frame, parse_server_frame):
        with pytest.raises(WireError):
            parse(text)


def test_each_side_takes_the_frames_of_the_other_alone() -> None:
    with pytest.raises(WireError):
        parse_client_frame(format_receipt_frame(RECEIPT))
    with pytest.raises(WireError):
        parse_server_frame(format_close_request_frame())


def test_the_frames_are_those_of_other_implementations() -> None:
    """As mppx and mpp-rs write them."""
    frames: list[dict[str, Any]] = [
        msgspec.json.decode(format_authorization_frame("Payment x")),
        msgspec.json.decode(format_message_frame("x")),
        msgspec.json.decode(format_close_request_frame()),
    ]
    assert frames == [
        {"mpp": "authorization", "authorization": "Payment x"},
        {"mpp": "message", "data": "x"},
        {"mpp": "payment-close-request"},
    ]
