"""HTTP content codings, undone with a bound on what comes out (O-23).

A kilobyte of gzip can stand for a megabyte, and gzip inside gzip for a terabyte. So one coding is
undone and never two, in pieces of a bounded size, and no further than the reader allows.
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
"""What a request may ask for when `ContentDecoder` reads the answer."""

_DEFLATE_METHOD: Final = 8
_GZIP: Final = 16 + zlib.MAX_WBITS
_MADE: Final[dict[str, Callable[[bytes], Any]]] = {
    "gzip": lambda _: zlib.decompressobj(_GZIP),
    "x-gzip": lambda _: zlib.decompressobj(_GZIP),
    "deflate": lambda head: zlib.decompressobj(_deflate_window(head)),
}


class ContentDecoder:
    """Undoes the content coding of one message, piece by piece.

    It holds one window of 32 KiB and gives at most `DECODED_PIECE_BYTES_MAX` bytes at a time.
    """

    def __init__(self, content_encoding: str | None, *, bytes_max: int | None = None) -> None:
        """Prepare for a message with this `Content-Encoding`; None when it has none.

        Args:
            content_encoding: The header's value; several lines of it joined by commas.
            bytes_max: Most decoded bytes of the whole message. None is for a stream, which may
                be endless: then what comes out may be `DECODED_RATIO_MAX` times what came in.

        Raises:
            WireError: The coding is none of gzip, deflate and identity, or there are several.
        """
        codings = [
            coding
            for coding in (each.strip().lower() for each in (content_encoding or "").split(","))
            if coding not in ("", "identity")
        ]
        if len(codings) > 1 or any(coding not in _MADE for coding in codings):
            found = ", ".join(codings)[:CODINGS_CHARS_MAX]
            raise WireError(
                f"the body is coded as {found}: one of {ACCEPT_ENCODING} can be read, and no two"
            )
        self._make = _MADE[codings[0]] if codings else None
        self._inflater: Any = None
        self._bytes_max = bytes_max
        self._fed = 0
        self._given = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield what this piece decodes to; the iterator must be used up.

        Raises:
            WireError: The bytes are not of this coding, or stand for more than is allowed.
        """
        self._fed += len(piece)
        if self._make is None:
            if piece:
                yield self._count(piece)
            return
        rest, is_full = piece, False
        while rest or is_full:  # a full piece may have left more behind, inside zlib
            if self._inflater is None:
                self._inflater = self._make(rest)
            try:
                decoded = self._inflater.decompress(rest, DECODED_PIECE_BYTES_MAX)
            except zlib.error as error:
                raise WireError(f"the body is not of its content coding: {error}") from error
            if decoded:
                yield self._count(decoded)
            rest, is_full = self._inflater.unconsumed_tail, len(decoded) == DECODED_PIECE_BYTES_MAX
            if self._inflater.eof:  # another member of the same gzip file may follow
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
    """Return zlib's argument for a body coded as deflate: some servers leave zlib's header out."""
    return zlib.MAX_WBITS if head[0] & 0x0F == _DEFLATE_METHOD else -zlib.MAX_WBITS


async def decode_pieces(
    pieces: AsyncIterable[bytes], content_encoding: str | None, *, bytes_max: int | None = None
) -> AsyncIterator[bytes]:
    """Yield a message's body with its content coding undone, such as of `response.aiter_raw()`.

    Arguments and errors as `ContentDecoder`; the first error is raised before anything is read.
    """
    decoder = ContentDecoder(content_encoding, bytes_max=bytes_max)
    async for piece in pieces:
        for decoded in decoder.feed(piece):
            yield decoded
    decoder.finish()
