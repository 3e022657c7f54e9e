"""Content codings of any bytes are undone within a bound (O-23)."""

import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import WireError
from channel.limits import (
    CODINGS_CHARS_MAX,
    DECODED_AHEAD_BYTES_MAX,
    DECODED_PIECE_BYTES_MAX,
    DECODED_RATIO_MAX,
)
from channel.wire.coding import ContentDecoder, decode_pieces

MIB = 1024 * 1024


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def decode(body: bytes, coding: str | None, *, bytes_max: int | None = None) -> bytes:
    decoder = ContentDecoder(coding, bytes_max=bytes_max)
    decoded = b"".join(decoder.feed(body))
    decoder.finish()
    return decoded


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        (None, bytes),
        ("", bytes),
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("identity, gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
    ],
)
@given(
    data=st.one_of(st.binary(max_size=2000), st.integers(0, 300_000).map(lambda size: b"x" * size)),
    cut=st.integers(1, 100),
)
def test_what_was_coded_comes_out_again(
    coding: str | None, pack: Callable[[bytes], bytes], data: bytes, cut: int
) -> None:
    decoder, body, decoded = ContentDecoder(coding, bytes_max=300_000), pack(data), bytearray()
    cut = max(cut, len(body) // 100)
    for start in range(0, len(body), cut):
        for piece in decoder.feed(body[start : start + cut]):
            assert len(piece) <= max(cut, DECODED_PIECE_BYTES_MAX)
            decoded += piece
    decoder.finish()
    assert decoded == data


@pytest.mark.parametrize(
    "coding", ["gzip, gzip", "gzip,deflate", "deflate, gzip", "br", "zstd", "compress", "gzip, br"]
)
def test_two_codings_or_an_unknown_one_are_refused_before_a_byte_is_read(coding: str) -> None:
    """O-23: 3,400 bytes of gzip in gzip stand for gigabytes."""
    with pytest.raises(WireError, match="coded as"):
        ContentDecoder(coding)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate])
def test_a_bomb_costs_no_more_than_its_bound(pack: Callable[[bytes], bytes]) -> None:
    """O-23: 64 MiB in 64 KiB, in one piece."""
    bomb = pack(bytes(64 * MIB))
    tracemalloc.start()
    try:
        decoder = ContentDecoder("gzip" if pack is gzip.compress else "deflate", bytes_max=MIB)
        with pytest.raises(WireError, match="more than 1048576"):
            for _ in decoder.feed(bomb):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB


@pytest.mark.parametrize(("size", "is_allowed"), [(MIB, True), (MIB + 1, False)])
@pytest.mark.parametrize(("coding", "pack"), [(None, bytes), ("gzip", gzip.compress)])
def test_a_message_has_as_many_bytes_as_its_reader_allows(
    coding: str | None, pack: Callable[[bytes], bytes], *, size: int, is_allowed: bool
) -> None:
    body = pack(bytes(size))
    if is_allowed:
        assert len(decode(body, coding, bytes_max=MIB)) == size
    else:
        with pytest.raises(WireError, match="more than 1048576"):
            decode(body, coding, bytes_max=MIB)


def test_a_stream_may_be_endless_but_not_out_of_proportion() -> None:
    """O-23: events that say nothing, a thousand in each byte that is sent."""
    honest = ContentDecoder("gzip")
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    for number in range(5000):
        event = packer.compress(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number)
        assert b"".join(honest.feed(event + packer.flush(zlib.Z_SYNC_FLUSH)))
    greedy, body = ContentDecoder("gzip"), gzip.compress(b":\n\n" * 10 * MIB, mtime=0)
    allowed = DECODED_AHEAD_BYTES_MAX + DECODED_RATIO_MAX * len(body)
    with pytest.raises(WireError, match=f"decodes to more than {allowed} bytes"):
        sum(map(len, greedy.feed(body)))


def test_an_event_leaves_the_decoder_with_the_packet_that_ends_it() -> None:
    packer, decoder = zlib.compressobj(wbits=16 + zlib.MAX_WBITS), ContentDecoder("gzip")
    for size in (1, DECODED_PIECE_BYTES_MAX, DECODED_PIECE_BYTES_MAX + 1, 200_000):
        packet = packer.compress(b"x" * size) + packer.flush(zlib.Z_SYNC_FLUSH)
        assert sum(map(len, decoder.feed(packet))) == size


def test_a_gzip_file_of_two_members_is_one_body() -> None:
    assert (
        decode(gzip.compress(b"one ", mtime=0) + gzip.compress(b"two", mtime=0), "gzip")
        == b"one two"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no gzip", "does not match its content coding"),
        (gzip.compress(b"answer", mtime=0)[:-1], "in the middle"),
        (gzip.compress(b"answer", mtime=0) + b"more", "does not match its content coding"),
    ],
)
def test_a_broken_body_is_an_error(body: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode(body, "gzip")


async def test_a_body_that_comes_in_packets_is_decoded_as_it_comes() -> None:
    body = gzip.compress(b"answer" * 1000, mtime=0)

    async def packets() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    decoded = [piece async for piece in decode_pieces(packets(), "gzip", bytes_max=MIB)]
    assert b"".join(decoded) == b"answer" * 1000


def test_an_error_shows_only_so_much_of_codings() -> None:
    """What a server calls them comes into a log."""
    for more in (0, 1):
        named = "x" * (CODINGS_CHARS_MAX + more)
        with pytest.raises(WireError, match=f"coded as {named[:CODINGS_CHARS_MAX]};"):
            ContentDecoder(named)
