"""The gate over real sockets, under uvicorn and granian, beside the same endpoints unpaid."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Coroutine
from itertools import product
from typing import Any, Final

from bench_load import (
    FLOODING,
    PaidStream,
    bench_server,
    challenge_of,
    cpu_ms,
    flood,
    latencies_ms,
    read_free_stream,
    request_of,
    requests_per_second,
)
from bench_samples import Row, Run, raw_us
from bench_world import headers_of, key_of

__all__ = ["flood_rows", "gate_rows", "stream_rows"]

REQUESTS: Final = {1: 300, 64: 60}
"""Connections: requests a connection and sample."""
STREAMS: Final = {1: 4_000, 50: 1_000}
"""Clients: tokens a client and sample."""
HOWS: Final = {"metered events": "", "metered events one by one": "&apart=1"}
"""Produced as fast as they are read, or each after a turn of the event loop, as by a model."""


async def gate_rows(run: Run) -> AsyncIterator[Row]:
    """Measure paid requests a second, as a share of unpaid ones."""
    for server in ("uvicorn", "granian"):
        url = f"sqlite:///{run.folder}/{server}.db"
        async with bench_server(server, url, max(REQUESTS)) as (port, pid):
            challenge = await challenge_of(port, "/paid")
            done = 0
            for connections, requests in REQUESTS.items():
                keys = [key_of(number) for number in range(connections)]
                free = [[request_of("/free")] * requests for _ in keys]
                samples, costs = [], []
                for _ in range(run.repeats):
                    columns = headers_of(challenge, keys, requests, start=done)
                    done += requests
                    paid = [[request_of("/paid", h) for h in column] for column in columns]
                    before = await requests_per_second(port, free)
                    spent_ms = cpu_ms(pid)
                    rate = await requests_per_second(port, paid)
                    spent_ms = cpu_ms(pid) - spent_ms
                    costs.append((spent_ms * 1e3 / (connections * requests), raw_us()))
                    after = await requests_per_second(port, free)
                    samples.append((rate, 2 * rate / (before + after)))
                yield Row(
                    name=f"paid requests, {server}, {connections} connections",
                    unit="1/s",
                    samples=[rate for rate, _ in samples],
                    ratios=[share for _, share in samples],
                    goal=0.5 if (server, connections) == ("uvicorn", 64) else None,
                    is_more_better=True,
                    besides="share of the same endpoint unpaid",
                )
                yield Row.paired(
                    f"CPU of a paid request, {server}, {connections} connections",
                    costs,
                    goal=5.0 if (server, connections) == ("uvicorn", 64) else None,
                )


async def flood_rows(run: Run) -> AsyncIterator[Row]:
    """Measure one channel's p99 while another is flooded with bad vouchers."""
    url = f"sqlite:///{run.folder}/flood.db"
    async with bench_server("uvicorn", url, 2) as (port, _):
        challenge = await challenge_of(port, "/paid")
        samples: list[tuple[float, float]] = []
        rates: list[float] = []
        for sample in range(run.repeats):
            start = sample * 400
            (column,) = headers_of(challenge, [key_of(0)], 400, start=start)
            requests = [request_of("/paid", header) for header in column]
            quiet = await latencies_ms(port, requests[:200])
            async with flood(port, challenge, key_of(1)) as refused:
                began = time.perf_counter()
                busy = await latencies_ms(port, requests[200:])
                rates.append(refused[0] / (time.perf_counter() - began))
            samples.append((busy[int(len(busy) * 0.99)], quiet[int(len(quiet) * 0.99)]))
    yield Row(
        name="p99 beside a flood of bad vouchers / quiet",
        unit="ms",
        samples=[busy for busy, _ in samples],
        ratios=[busy / quiet for busy, quiet in samples],
        goal=5,
        besides=f"{FLOODING} connections, {statistics.median(rates):,.0f} forgeries/s refused",
    )


async def stream_rows(run: Run) -> AsyncIterator[Row]:
    """Measure metered events a second with live vouchers, as a share of unmetered ones."""
    url = f"sqlite:///{run.folder}/stream.db"
    async with bench_server("uvicorn", url, max(STREAMS)) as (port, _):
        challenge = await challenge_of(port, "/stream")
        paid_before = 0
        for (what, how), (clients, tokens) in product(HOWS.items(), STREAMS.items()):
            samples = []
            for _ in range(run.repeats):
                streams = [
                    PaidStream(
                        port,
                        number,
                        start=paid_before,
                        tokens=tokens,
                        challenge=challenge,
                        how=how,
                    )
                    for number in range(clients)
                ]
                paid_before += tokens + 2 * 512
                free = [(port, tokens, how)] * clients
                before = await _rate(tokens, [read_free_stream(*one) for one in free])
                paid = await _rate(tokens, [stream.run() for stream in streams])
                after = await _rate(tokens, [read_free_stream(*one) for one in free])
                samples.append((paid, 2 * paid / (before + after)))
            yield Row(
                name=f"{what}, {clients} clients",
                unit="1/s",
                samples=[paid for paid, _ in samples],
                ratios=[share for _, share in samples],
                goal=0.85 if clients == max(STREAMS) else None,
                is_more_better=True,
                besides="share of the same stream unmetered",
            )


async def _rate(tokens: int, clients: list[Coroutine[Any, Any, None]]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*clients)
    return tokens * len(clients) / (time.perf_counter() - began)
