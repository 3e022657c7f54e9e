"""Load over real sockets: each connection sends its next request when the last is answered.

Requests are built before the clock starts, so that the client takes little of the time.
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from bench_world import PRICE, header_of, key_of
from channel.methods.evm.method import EVM
from channel.types import ChannelKey
from channel.wire.challenge import Challenge, parse_challenges
from channel.wire.credential import format_credential
from channel.wire.payload import (
    VoucherPayload,
)

HERE: Final = Path(__file__).resolve().parent
START_S_MAX: Final = 30.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_CHALLENGE: Final = re.compile(rb"\r\nwww-authenticate: ([^\r]+)\r\n", re.IGNORECASE)
_TOKEN: Final = b'data: {"choices"'
UNITS_A_VOUCHER: Final = 512
FLOODING: Final = 64
"""Connections of a flood: each sends its next forgery once the last is answered."""


@asynccontextmanager
async def bench_server(
    server: str, ledger_url: str, channels: int
) -> AsyncIterator[tuple[int, int]]:
    """Run the benchmarks' application in a process of its own; yield its port and its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, str(HERE / "bench_server.py")]
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, server, str(port), ledger_url, str(channels), stdout=log, stderr=log
        )
        try:
            await wait_for(port, process)
            yield port, process.pid
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def cpu_ms(pid: int) -> float:
    """Return the processor time of a process and its children, by the kernel's count."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e3
    return own + sum(cpu_ms(int(child)) for child in children)


async def wait_for(
    port: int, process: asyncio.subprocess.Process, *, within_s: float = START_S_MAX
) -> None:
    """Wait until a process listens on a port."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return
    raise subprocess.SubprocessError("the benchmarks' server does not start")


def request_of(target: str, authorization: str = "", method: str = "GET") -> bytes:
    """Return a request's bytes."""
    paid = f"Authorization: {authorization}\r\n" if authorization else ""
    return f"{method} {target} HTTP/1.1\r\nHost: bench\r\n{paid}\r\n".encode()


async def challenge_of(port: int, target: str, method: str = "GET") -> Challenge:
    """Send an unpaid request, and return the challenge of the 402."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_of(target, method=method))
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    found = _CHALLENGE.search(head)
    if found is None:
        raise SystemExit(f"no challenge for {target}: {head[:200]!r}")
    return parse_challenges([found[1].decode("latin-1")])[0]


async def requests_per_second(port: int, columns: Sequence[Sequence[bytes]]) -> float:
    """Send each column over a connection of its own, all together."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in columns]

    async def run(
        column: Sequence[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for request in column:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                raise SystemExit(f"not answered: {head[:300]!r}")
            await reader.readexactly(int(length[1]))

    began = time.perf_counter()
    await asyncio.gather(
        *(run(column, *pair) for column, pair in zip(columns, connections, strict=True))
    )
    elapsed = time.perf_counter() - began
    for _, writer in connections:
        writer.close()
    return sum(map(len, columns)) / elapsed


class PaidStream:
    """One client of a metered stream: a reader, and a second connection for vouchers."""

    def __init__(
        self,
        port: int,
        number: int,
        *,
        start: int,
        tokens: int,
        challenge: Challenge,
        how: str = "",
    ) -> None:
        key = key_of(number)
        amounts = range(
            start + UNITS_A_VOUCHER, start + tokens + 2 * UNITS_A_VOUCHER, UNITS_A_VOUCHER
        )
        headers = [header_of(challenge, key, PRICE * amount) for amount in amounts]
        self._port = port
        self._first = request_of(f"/stream?tokens={tokens}{how}", headers[0])
        self._vouchers = [request_of("/stream", header, "HEAD") for header in headers[1:]]
        self._tokens = tokens

    async def run(self) -> None:
        """Read all tokens; each voucher is sent half a voucher before it is needed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        side_reader, side_writer = await asyncio.open_connection("127.0.0.1", self._port)
        sent = seen = 0
        writer.write(self._first)
        async for arrived in _tokens(reader):
            seen += arrived
            due = (seen + UNITS_A_VOUCHER // 2) // UNITS_A_VOUCHER
            while sent < min(due, len(self._vouchers)):
                side_writer.write(self._vouchers[sent])
                sent += 1
                head = await side_reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(f"voucher not taken: {head[:300]!r}")
        if seen != self._tokens:
            raise SystemExit(f"{seen} of {self._tokens} tokens came")
        writer.close()
        side_writer.close()


async def _tokens(reader: asyncio.StreamReader) -> AsyncIterator[int]:
    """Count the tokens of a chunked stream as they arrive; one may be cut between two reads."""
    tail = b""
    while piece := await reader.read(65536):
        text = tail + piece
        yield text.count(_TOKEN)
        cut = text.rfind(_TOKEN)
        tail = text[max(len(text) - len(_TOKEN) + 1, cut + len(_TOKEN), 0) :]
        if text.endswith(b"0\r\n\r\n"):
            return


async def read_free_stream(port: int, tokens: int, how: str = "") -> None:
    """Read an unpaid stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_of(f"/free-stream?tokens={tokens}{how}"))
    seen = 0
    async for arrived in _tokens(reader):
        seen += arrived
    writer.close()
    if seen != tokens:
        raise SystemExit(f"{seen} of {tokens} tokens came")


async def latencies_ms(port: int, requests: Sequence[bytes]) -> list[float]:
    """Send requests one after the other; return how long each took, sorted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken = []
    for request in requests:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise SystemExit(f"not answered: {head[:300]!r}")
        await reader.readexactly(int(length[1]))
        taken.append((time.perf_counter() - began) * 1e3)
    writer.close()
    return sorted(taken)


@asynccontextmanager
async def flood(port: int, challenge: Challenge, key: ChannelKey) -> AsyncIterator[list[int]]:
    """Send bad vouchers on one channel over many connections, for as long as the context lasts.

    Yields a list with one number: the refusals so far.
    """
    good = EVM.parse_credential(header_of(challenge, key, PRICE))
    if not isinstance(good.payload, VoucherPayload):
        raise TypeError(good)
    voucher = good.payload.voucher
    forged = replace(voucher, cumulative_amount=voucher.cumulative_amount + 1)
    bad = request_of("/paid", format_credential(replace(good, payload=VoucherPayload(forged))))

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while True:
                writer.write(bad)
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                if length is not None:
                    await reader.readexactly(int(length[1]))
                if not head.startswith((b"HTTP/1.1 402", b"HTTP/1.1 429")):
                    raise SystemExit(f"not refused: {head[:300]!r}")
                refused[0] += 1
        finally:
            writer.close()

    refused = [0]
    senders = [asyncio.create_task(send()) for _ in range(FLOODING)]
    try:
        yield refused
    finally:
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
