"""Decodes HTTP content codings, with a bound on the output (O-23).

A kilobyte of gzip can expand to a megabyte, and gzip inside gzip to a terabyte. So this module
decodes one coding and never two, in pieces of bounded size, and stops at the caller's bound.
"""

import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any, Final

from channel.errors import WireError
from channel.limits import (
    CODINGS_CHARS_MAX,
    DECODED_AHEAD_BYTES_MAX,
    DECODED_PIECE_BYTES_MAX,
    DECODED_RATIO_MAX,
)

__all__ = ["ACCEPT_ENCODING", "ContentDecoder", "decode_pieces"]

ACCEPT_ENCODING: Final = "gzip, deflate"
"""The `Accept-Encoding` of a request whose answer `ContentDecoder` reads."""

_DEFLATE_METHOD: Final = 8
_GZIP: Final = 16 + zlib.MAX_WBITS
_MADE: Final[dict[str, Callable[[bytes], Any]]] = {
    "gzip": lambda _: zlib.decompressobj(_GZIP),
    "x-gzip": lambda _: zlib.decompressobj(_GZIP),
    "deflate": lambda head: zlib.decompressobj(_deflate_window(head)),
}


class ContentDecoder:
    """Decodes the content coding of one message, piece by piece.

    It holds one window of 32 KiB and yields at most `DECODED_PIECE_BYTES_MAX` bytes at a time.
    """

    def __init__(self, content_encoding: str | None, *, bytes_max: int | None = None) -> None:
        """Prepare for a message with this `Content-Encoding`; None when it has none.

        Args:
            content_encoding: The header's value; several lines of it joined by commas.
            bytes_max: The most decoded bytes of the whole message. None is for a stream, which
                may be endless: its output is bounded by `DECODED_RATIO_MAX` times its input.

        Raises:
            WireError: The coding is not gzip, deflate or identity, or there are several.
        """
        codings = [
            coding
            for coding in (each.strip().lower() for each in (content_encoding or "").split(","))
            if coding not in ("", "identity")
        ]
        if len(codings) > 1 or any(coding not in _MADE for coding in codings):
            found = ", ".join(codings)[:CODINGS_CHARS_MAX]
            raise WireError(
                f"the body is coded as {found}; expected a single coding of {ACCEPT_ENCODING}"
            )
        self._make = _MADE[codings[0]] if codings else None
        self._inflater: Any = None
        self._bytes_max = bytes_max
        self._fed = 0
        self._given = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the decoded piece. The caller must exhaust the iterator.

        Raises:
            WireError: The bytes are not of this coding, or decode to more than is allowed.
        """
        self._fed += len(piece)
        if self._make is None:
            if piece:
                yield self._count(piece)
            return
        rest, is_full = piece, False
        while rest or is_full:  # zlib may hold more output behind a full piece
            if self._inflater is None:
                self._inflater = self._make(rest)
            try:
                decoded = self._inflater.decompress(rest, DECODED_PIECE_BYTES_MAX)
            except zlib.error as error:
                raise WireError(f"the body does not match its content coding: {error}") from error
            if decoded:
                yield self._count(decoded)
            rest, is_full = self._inflater.unconsumed_tail, len(decoded) == DECODED_PIECE_BYTES_MAX
            if self._inflater.eof:  # a gzip file may have another member
                rest, is_full = self._inflater.unused_data, False
                self._inflater = None

    def finish(self) -> None:
        """Note that the message has ended.

        Raises:
            WireError: It ended in the middle of its coding.
        """
        if self._inflater is not None:
            raise WireError("the body ended in the middle of its content coding")

    def _count(self, decoded: bytes) -> bytes:
        self._given += len(decoded)
        if self._bytes_max is None:
            allowed = DECODED_AHEAD_BYTES_MAX + DECODED_RATIO_MAX * self._fed
        else:
            allowed = self._bytes_max
        if self._given > allowed:
            raise WireError(f"the body decodes to more than {allowed} bytes")
        return decoded


def _deflate_window(head: bytes) -> int:
    """Return zlib's window argument for deflate: some servers leave zlib's header out."""
    return zlib.MAX_WBITS if head[0] & 0x0F == _DEFLATE_METHOD else -zlib.MAX_WBITS


async def decode_pieces(
    pieces: AsyncIterable[bytes], content_encoding: str | None, *, bytes_max: int | None = None
) -> AsyncIterator[bytes]:
    """Yield the decoded body of a message, for example of `response.aiter_raw()`.

    Arguments and errors are those of `ContentDecoder`. An unsupported coding raises before the
    first read.
    """
    decoder = ContentDecoder(content_encoding, bytes_max=bytes_max)
    async for piece in pieces:
        for decoded in decoder.feed(piece):
            yield decoded
    decoder.finish()
