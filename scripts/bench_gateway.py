"""The gateway before a model server, beside the same server asked directly and through LiteLLM.

The gateway is a process with its ledger and a chain, and every answer is paid for. LiteLLM's proxy
runs with one worker, without payments, keys or a database. The load's credentials are signed
before the clock starts. CPU is that of a gateway's processes, by the kernel's count.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec

import bench_peers
from bench_load import challenge_of, cpu_ms, wait_for
from bench_model import WORD
from bench_samples import Row, Run
from channel.client.policy.policy import Policy, TokenLimits
from channel.methods.evm.method import EVM
from channel.types import ChannelKey, SignedVoucher
from channel.verify.signature import sign
from channel.wire.challenge import Challenge
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    VoucherPayload,
)
from mpp_session.agent.client import open_client
from settlement.dev.devnet import Devnet, DevnetValues
from tests.e2e.gateways import (
    PRICE,
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
)

__all__ = ["gateway_rows"]

TARGET: Final = "/v1/chat/completions"
LITELLM: Final = bench_peers.Peer("LiteLLM's proxy", ("litellm[proxy]==1.100.0",), "")
CHANNELS: Final = 100
TOKENS: Final = {("fast", 1): 1000, ("fast", 20): 300, ("fast", 100): 100}
"""Of each stream, by model and streams; `paced` sends 100."""
PACED: Final = 100
GOALS: Final = {"fast": 20.0, "paced": 6.0}
ADDED_MS_MAX: Final = 5.0
JUDGED: Final = 20
"""Streams of the goals."""
WHOLE: Final = 20, 15, 16
"""Connections, requests on each, and tokens of an answer in one piece."""
WHOLE_MS_MAX: Final = 3.0
MARGIN_UNITS: Final = 64
_FIRST: Final = WORD.encode()


class Sample(msgspec.Struct):
    """What one run of a load came to."""

    first_ms: list[float] = []
    tokens: int = 0
    requests: int = 0
    cpu_ms: float = 0.0


class Way(msgspec.Struct):
    """One of the ways to the model."""

    name: str
    port: int
    pid: int
    is_paid: bool = False


class Payer(msgspec.Struct):
    """Channels with deposits, and vouchers on them."""

    key: bytes
    channels: list[ChannelKey]
    promised: list[int]
    """On each channel."""
    challenge: Challenge | None = None

    def promise(self, stream: int, units: int) -> None:
        """Raise what the channel of a stream pays for."""
        self.promised[stream % len(self.channels)] += (units + MARGIN_UNITS) * PRICE

    def header(self, stream: int) -> bytes:
        """Return the header that pays with the channel's voucher."""
        number = stream % len(self.channels)
        channel, amount = self.channels[number], self.promised[number]
        voucher = SignedVoucher(
            channel.channel_id,
            amount,
            sign(self.key, EVM.voucher_digest(channel, amount)),
        )
        if self.challenge is None:
            raise SystemExit("no challenge was asked for")
        credential = format_credential(Credential(self.challenge, VoucherPayload(voucher)))
        return f"authorization: {credential}\r\n".encode()


async def gateway_rows(run: Run) -> AsyncIterator[Row]:
    """Measure added time to the first token, and CPU, beside the model server and LiteLLM."""
    async with _ways(run.folder) as (ways, payer):
        for model in GOALS:
            for streams in (1, 20, 100):
                tokens = TOKENS.get((model, streams), PACED)
                rounds = [
                    [await _streams(way, payer, model, streams, tokens) for way in ways]
                    for _ in range(1 if run.is_quick else 3)
                ]
                for row in _stream_rows(ways, rounds, model, streams):
                    yield row
        rounds = [
            [await _whole(way, payer) for way in ways] for _ in range(1 if run.is_quick else 3)
        ]
        yield _whole_row(ways, rounds)


def _stream_rows(
    ways: list[Way], rounds: list[list[Sample]], model: str, streams: int
) -> list[Row]:
    how = "as fast as possible" if model == "fast" else "50 tokens/s each"
    what = f"{streams} stream{'s' if streams > 1 else ''}, {how}"
    firsts = [[statistics.median(one.first_ms) for one in each] for each in rounds]
    costs = [[one.cpu_ms / one.tokens * 1000 for one in each] for each in rounds]
    added = [first[1] - first[0] for first in firsts]
    beside = {way.name: n for n, way in enumerate(ways) if n > 1}
    notes = [f"model server {statistics.median(first[0] for first in firsts):.1f} ms"]
    notes += [
        f"{name} adds {statistics.median(first[n] - first[0] for first in firsts):.0f} ms"
        for name, n in beside.items()
    ]
    dearer = [cost[n] / cost[1] for cost in costs for n in beside.values()]
    found = [
        f"{name} {statistics.median(c[n] for c in costs):.0f} ms" for name, n in beside.items()
    ]
    return [
        Row(
            name=f"gateway, added time to first token p50, {what}",
            unit="ms",
            samples=added,
            ratios=added,
            goal=ADDED_MS_MAX if streams <= JUDGED else None,
            besides="; ".join(notes),
        ),
        Row(
            name=f"gateway, CPU of 1,000 tokens, {what}",
            unit="ms",
            samples=[cost[1] for cost in costs],
            ratios=dearer,
            goal=GOALS[model] if dearer and streams == JUDGED else None,
            is_more_better=True,
            besides="; ".join(["LiteLLM's share", *found]) if found else "",
        ),
    ]


def _whole_row(ways: list[Way], rounds: list[list[Sample]]) -> Row:
    costs = [[one.cpu_ms / one.requests for one in each] for each in rounds]
    found = [
        f"{way.name} {statistics.median(cost[n] for cost in costs):.1f} ms"
        for n, way in enumerate(ways)
        if n > 1
    ]
    return Row(
        name=f"gateway, CPU of a paid answer in one piece, {WHOLE[0]} connections",
        unit="ms",
        samples=[cost[1] for cost in costs],
        ratios=[cost[1] for cost in costs],
        goal=WHOLE_MS_MAX,
        besides="; ".join(found),
    )


def _request(model: str, tokens: int, paid: bytes, *, is_stream: bool) -> bytes:
    asked = {
        "model": model,
        "stream": is_stream,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "Tell me something that is worth its price."}],
    }
    body = json.dumps(asked).encode()
    head = f"POST {TARGET} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return head.encode() + paid + b"content-length: %d\r\n\r\n%s" % (len(body), body)


async def _streams(way: Way, payer: Payer, model: str, streams: int, tokens: int) -> Sample:
    if way.is_paid:
        payer.challenge = await challenge_of(way.port, TARGET, "POST")
    for number in range(streams if way.is_paid else 0):
        payer.promise(number, tokens)
    requests = [
        _request(model, tokens, payer.header(n) if way.is_paid else b"", is_stream=True)
        for n in range(streams)
    ]
    sample = Sample()
    before = cpu_ms(way.pid)

    async def read(request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        began = perf_counter()
        writer.write(request)
        seen, tail, last = 0, b"", b""
        while piece := await reader.read(65536):
            text = tail + piece
            last = (last + piece)[-2000:]
            if not seen and _FIRST in text:
                sample.first_ms.append((perf_counter() - began) * 1e3)
            seen += text.count(_FIRST)
            cut = text.rfind(_FIRST)
            tail = text[max(len(text) - len(_FIRST) + 1, cut + len(_FIRST), 0) :]
            if text.endswith(b"0\r\n\r\n"):
                break
        writer.close()
        if seen < tokens:
            raise SystemExit(f"{way.name}: {seen} of {tokens} tokens came: {last!r}")
        sample.tokens += tokens

    await asyncio.gather(*map(read, requests))
    sample.cpu_ms = cpu_ms(way.pid) - before
    return sample


async def _whole(way: Way, payer: Payer) -> Sample:
    connections, each, tokens = WHOLE
    if way.is_paid:
        payer.challenge = await challenge_of(way.port, TARGET, "POST")
    columns: list[list[bytes]] = []
    for number in range(connections):
        columns.append([])
        for _ in range(each):
            paid = b""
            if way.is_paid:
                payer.promise(number, tokens)
                paid = payer.header(number)
            columns[number].append(_request("fast", tokens, paid, is_stream=False))
    before = cpu_ms(way.pid)

    async def send(column: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        for request in column:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{way.name}: not answered: {head[:300]!r}")
            _, _, rest = head.lower().partition(b"content-length: ")
            await reader.readexactly(int(rest.partition(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*map(send, columns))
    return Sample(requests=connections * each, cpu_ms=cpu_ms(way.pid) - before)


@asynccontextmanager
async def _ways(folder: Path) -> AsyncIterator[tuple[list[Way], Payer]]:
    folder = folder / "gateway"
    folder.mkdir()
    async with AsyncExitStack() as open_:
        chain = await open_.enter_async_context(Devnet.start())
        model = free_port()
        here = Path(__file__).parent
        command = [sys.executable, str(here / "bench_model.py"), str(model)]
        started = _running(command, model, folder / "model.log")
        model_pid = await open_.enter_async_context(started)
        values = chain.values
        variables = gateway_variables(
            values,
            f"http://127.0.0.1:{model}",
            folder / "ledger.db",
            free_port(),
            step_units=32,
            settles=False,
        )
        gateway = GatewayProcess(gateway_command(), variables, folder / "gateway.log")
        await open_.enter_async_context(gateway.running())
        payer = await _open_channels(values, gateway.url, folder)
        port = int(gateway.url.rpartition(":")[2])
        ways = [Way("model", model, model_pid), Way("gateway", port, gateway.pid, is_paid=True)]
        if (litellm := _litellm(folder, model)) is not None:
            command, other = litellm
            pid = await open_.enter_async_context(
                _running(command, other, folder / "litellm.log", is_foreign=True)
            )
            ways.append(Way("LiteLLM", other, pid))
        for way in ways[1:]:  # warm: what is loaded at a first request is no part of the others
            await _streams(way, payer, "fast", 5, 20)
        yield ways, payer


async def _open_channels(values: DevnetValues, url: str, folder: Path) -> Payer:
    key = values.accounts["payer"].private_key
    deposit = 10**6
    limits = TokenLimits(
        chain_id=values.chain_id,
        token=values.token,
        unit_price_max={"llm_chunk": PRICE, "llm_token": PRICE},
        deposit_max=deposit,
        budget=deposit,
    )
    policy = Policy(
        limits=(limits,), voucher_step=64, expected_units=deposit // PRICE, allow_loopback_http=True
    )
    channels = []
    body = {"model": "fast", "stream": True, "max_tokens": 3, "messages": []}
    for number in range(CHANNELS):
        store = folder / f"agent-{number}.db"
        async with open_client(
            rpc_url=values.rpc_url, private_key=key, policy=policy, store=store
        ) as client:
            answer = await client.post(url + TARGET, json=body)
            (record,) = await client.payments.channels()
        if answer.status_code != 200:  # noqa: PLR2004
            raise SystemExit(f"not sold: {answer.status_code} {answer.text[:200]}")
        channels.append(record.key)
    return Payer(key, channels, [1000 * PRICE] * CHANNELS)  # above what was spent by now


def _litellm(folder: Path, model: int) -> tuple[list[str], int] | None:
    try:
        command = bench_peers.install(LITELLM)
    except subprocess.CalledProcessError as error:
        print(f"gateway: LiteLLM: {error.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    named = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{model}/v1",
                "api_key": "none",
            },
        }
        for name in GOALS
    ]
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": named}))
    port = free_port()
    binary = Path(command[0]).parent / "litellm"
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return [str(binary), *options, "--num_workers", "1"], port


@asynccontextmanager
async def _running(
    command: list[str], port: int, log: Path, *, is_foreign: bool = False
) -> AsyncIterator[int]:
    environment = {k: v for k, v in os.environ.items() if not is_foreign or k != "PYTHONPATH"}
    environment |= {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=file, stderr=file, env=environment
        )
    try:
        await wait_for(port, process, within_s=120)
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
