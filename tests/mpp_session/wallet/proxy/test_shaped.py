"""A stream through the proxy does not wait for vouchers that are under way to a far server."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from mpp_session.settings import Secret
from mpp_session.wallet.proxy.serve import only_for
from tests.mpp_session.wallet.proxy.conftest import TOKEN, Stack, paying, proxying

pytestmark = pytest.mark.asyncio(loop_scope="module")

DELAY_S = 0.2
WORDS = 400
TRIES = 4


@asynccontextmanager
async def delayed(url: str) -> AsyncIterator[str]:
    """Serve what `url` serves, each byte `DELAY_S` later in each direction."""
    where = urlsplit(url)
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            data = b"first"
            while data:
                data = await reader.read(65536)
                queue.put_nowait((time.monotonic() + DELAY_S, data))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    return
                writer.write(data)
        finally:
            reading.cancel()
            writer.close()
            await asyncio.wait([reading])

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(where.hostname, where.port)
        tasks.update(map(asyncio.create_task, (carry(reader, back), carry(there, writer))))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0)  # for the sockets to be closed


async def test_a_stream_does_not_stall_where_vouchers_take_long(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 tokens a second over 200 ms each way: a stall would last a round trip, 400 ms.

    With a voucher step that covers what comes while a voucher is under way.
    """
    monkeypatch.setattr(stack.model, "words", ["x "] * WORDS)
    monkeypatch.setattr(stack.model, "delay_s", 0.005)
    body = {"model": "tiny", "messages": [], "stream": True, "max_tokens": WORDS}
    patient = only_for(
        Secret(TOKEN), lambda: paying(stack.chain, tmp_path / "far.db", voucher_step=256)
    )
    async with (
        delayed(stack.gateway) as far,
        proxying(patient, far) as url,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as client,
    ):
        longest: list[float] = []
        while len(longest) < TRIES and min(longest, default=math.inf) >= 2 * DELAY_S:
            longest.append(await longest_pause(client, url, body))
    assert min(longest) < 2 * DELAY_S, longest  # a busy machine pauses once, a stall comes back


async def longest_pause(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> float:
    """Return the longest time between two tokens of one stream."""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        arrived = [time.monotonic() async for line in answer.aiter_lines() if '"x "' in line]
    assert len(arrived) == WORDS
    return max(after - before for before, after in pairwise(arrived))
