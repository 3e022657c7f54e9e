"""A node's answer is read within a bound, also when it is coded."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from channel.errors import ChainUnavailableError
from settlement.node.transport import HttpTransport
from tests.waiting import PATIENCE_S

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    ],
)
async def test_a_coded_answer_is_unpacked_within_the_bound(
    coding: str, pack: Callable[[bytes], bytes]
) -> None:
    """O-23: 100 MiB in 100 KiB, from a node."""
    bomb = pack(bytes(100 * MIB))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: {len(bomb)}"
        await reader.readuntil(b"}")
        writer.write(head.encode() + b"\r\n\r\n" + bomb)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = HttpTransport(url, timeout_s=PATIENCE_S, answer_bytes_max=2 * MIB)
        tracemalloc.start()
        try:
            with pytest.raises(ChainUnavailableError):
                await transport.ask("eth_chainId", [])
            assert tracemalloc.get_traced_memory()[1] < 8 * MIB
        finally:
            tracemalloc.stop()
            await transport.disconnect()
