"""Hostile connections of each kind beside paying customers: latency p99 and gateway memory.

    python bench_strangers.py PORT < task    run the strangers, in a process of their own

The gateway, its ledger, chain and customers are real; the model server answers three tokens
without delay. A row counts only if nothing unpaid was delivered.
"""

import asyncio
import contextlib
import gzip
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Final

import httpx
import msgspec

from bench_samples import Row, Run
from channel.client.store.record import ChannelRecord
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    TopUpHash,
)
from channel.types import Address, SignedVoucher, TxHash
from channel.verify.signature import address_of, sign
from channel.wire.challenge import parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    ClosePayload,
    Payload,
    VoucherPayload,
)
from mpp_session.agent.client import PayingClient, open_client
from settlement.dev.devnet import Devnet, DevnetValues
from tests.e2e.gateways import (
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.mpp_session.model_server import ModelServer, model_server

__all__ = ["MEMORY_MIB_MAX", "stranger_rows"]

MEMORY_MIB_MAX: Final = 300
"""Bound on memory added by strangers: twice the bodies that may be held, and connections."""
STRANGERS: Final = 64
CUSTOMERS: Final = 20
REQUESTS: Final = 15
TOKENS: Final = 3
TARGET: Final = "/v1/chat/completions"
BODY: Final = {"stream": True, "max_tokens": TOKENS, "messages": []}
MIB: Final = 1024 * 1024
PROMISED: Final = 50_000
"""A voucher for five cents, on a channel that buys nothing."""
WRONG_KEY: Final = b"\x77" * 32
MEMORY_LOOK_S: Final = 0.05


class Task(msgspec.Struct):
    """The task of the strangers' process."""

    kind: str
    good: str
    """A credential with an acceptable voucher."""
    forged: list[str]
    replayed: list[str]


async def stranger_rows(run: Run) -> AsyncIterator[Row]:
    """Measure the customers' p99 beside strangers of each kind, as a ratio to a quiet gateway."""
    folder = run.folder / "strangers"
    folder.mkdir()
    peaks: list[float] = []
    async with _world(folder) as world:
        for kind in KINDS:
            samples, refused = [], 0
            for _ in range(1 if run.is_quick else 3):
                quiet = await world.p99_ms()
                async with world.strangers(kind) as counted:
                    busy = await world.p99_ms()
                refused += counted[0]
                samples.append((busy, quiet))
                peaks.append(world.grown_mib)
            await world.require_all_paid()
            yield Row(
                name=f"customers' p99 beside strangers: {kind} / quiet",
                unit="ms",
                samples=[busy for busy, _ in samples],
                ratios=[busy / quiet for busy, quiet in samples],
                goal=5,
                besides=f"{STRANGERS} connections, {refused} times refused or let go; "
                f"{CUSTOMERS} customers; memory +{peaks[-1]:.0f} MiB so far",
            )
    yield Row(
        name="memory that strangers add to the gateway / bound",
        unit="MiB",
        samples=[max(peaks)],
        ratios=[max(peaks) / MEMORY_MIB_MAX],
        goal=1,
        besides=f"all kinds one after the other; bound {MEMORY_MIB_MAX} MiB",
    )


class _World:
    def __init__(
        self, gateway: GatewayProcess, model: ModelServer, clients: list[PayingClient], key: bytes
    ) -> None:
        self._gateway = gateway
        self._model = model
        self._thief, *self._customers = clients
        self._key = key
        self._url = f"{gateway.url}{TARGET}"
        self._memory_before = 0.0
        self.grown_mib = 0.0
        self._bought = 0

    async def open(self) -> None:
        """Let every customer buy once, one after the other: all open channels from one account."""
        for client in (self._thief, *self._customers):
            await self._buy(client)
        self._memory_before = _memory_mib(self._gateway.pid)

    async def _buy(self, client: PayingClient) -> float:
        began = perf_counter()
        answer = await client.post(self._url, json=BODY)
        if answer.status_code != httpx.codes.OK or answer.text.count('"content"') != TOKENS:
            raise SystemExit(f"a customer was not served: {answer.status_code} {answer.text[:200]}")
        self._bought += 1
        return (perf_counter() - began) * 1e3

    async def p99_ms(self) -> float:
        """Let all customers buy concurrently, each one request after the other."""

        async def shop(client: PayingClient) -> list[float]:
            return [await self._buy(client) for _ in range(REQUESTS)]

        taken = await asyncio.gather(*map(shop, self._customers))
        ordered = sorted(ms for one in taken for ms in one)
        return ordered[int(len(ordered) * 0.99)]

    @asynccontextmanager
    async def strangers(self, kind: str) -> AsyncIterator[list[int]]:
        """Run strangers within the context; the yielded list counts their refusals."""
        task = await self._task(kind)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            self._gateway.url.rpartition(":")[2],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        counted = [0]
        looking = asyncio.create_task(self._watch_memory())
        try:
            if process.stdin is None or process.stdout is None:
                raise SystemExit("the strangers have no pipes")
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            await process.stdout.readline()  # printed once all are connected
            yield counted
            process.stdin.close()
            counted[0] = int(await process.stdout.readline())
        finally:
            looking.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def _watch_memory(self) -> None:
        while True:
            grown = _memory_mib(self._gateway.pid) - self._memory_before
            self.grown_mib = max(self.grown_mib, grown)
            await asyncio.sleep(MEMORY_LOOK_S)

    async def _task(self, kind: str) -> Task:
        async with httpx.AsyncClient() as client:
            asked = await client.post(self._url, json=BODY)
        challenge = parse_challenges(asked.headers.get_list("www-authenticate"))[0]
        account = await self._account()
        payer = address_of(self._key)

        def header(payload: Payload) -> str:
            source: tuple[int, Address] = (account.key.chain_id, payer)
            return format_credential(Credential(challenge, payload, source))

        def voucher(amount: int, key: bytes) -> SignedVoucher:
            signature = sign(key, EVM.voucher_digest(account.key, amount))
            return SignedVoucher(account.key.channel_id, amount, signature)

        known = TxHash(bytes.fromhex("11" * 32))
        top_up = TopUpHash(channel_id=account.key.channel_id, additional_deposit=1, tx_hash=known)
        return Task(
            kind=kind,
            good=header(VoucherPayload(voucher(PROMISED, self._key))),
            forged=[header(VoucherPayload(voucher(PROMISED + n, WRONG_KEY))) for n in range(100)],
            replayed=[header(top_up), header(ClosePayload(voucher(PROMISED, WRONG_KEY)))],
        )

    async def _account(self) -> ChannelRecord:
        (account,) = await self._thief.payments.channels()
        return account

    async def require_all_paid(self) -> None:
        """Check that the model server worked only for paying customers."""
        asked = sum(one.path == TARGET for one in self._model.seen)
        if asked != self._bought:
            raise SystemExit(f"the model was asked {asked} times, and {self._bought} were paid for")
        for client in self._customers:
            (account,) = await client.payments.channels()
            if account.spent != account.received:
                raise SystemExit(f"spent {account.spent}, received {account.received}")


@asynccontextmanager
async def _world(folder: Path) -> AsyncIterator[_World]:
    async with AsyncExitStack() as open_:
        chain = await open_.enter_async_context(Devnet.start())
        model = await open_.enter_async_context(model_server())
        values = chain.values
        variables = gateway_variables(
            values, model.url, folder / "ledger.db", free_port(), step_units=32, settles=False
        )
        del variables["MPP_SESSION_PAYMENT_VOUCHERS_PER_SECOND"]  # what an operator gets
        gateway = GatewayProcess(gateway_command(), variables, folder / "gateway.log")
        await open_.enter_async_context(gateway.running())
        clients = [
            await open_.enter_async_context(_client(values, folder / f"agent-{number}.db"))
            for number in range(CUSTOMERS + 1)
        ]
        world = _World(gateway, model, clients, values.accounts["payer"].private_key)
        await world.open()
        yield world


def _client(
    values: DevnetValues, store: Path
) -> contextlib.AbstractAsyncContextManager[PayingClient]:
    return open_client(
        rpc_url=values.rpc_url,
        private_key=values.accounts["payer"].private_key,
        policy=policy_for(values),
        store=store,
    )


def _memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit("how much memory a process has is read from /proc")


# -- the strangers' side


class Stranger:
    """One hostile connection, reopened whenever it is closed."""

    def __init__(self, port: int, task: Task, number: int) -> None:
        self.port = port
        self.task = task
        self.number = number
        self.refused = 0

    async def be(self, attack: "Attack") -> None:
        """Attack until cancelled."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    await attack(self, reader, writer)
                finally:
                    writer.transport.abort()
            self.refused += 1
            await asyncio.sleep(0.01)

    def head(self, method: str, credential: str, *more: str) -> bytes:
        """Return a request's head."""
        lines = [f"{method} {TARGET} HTTP/1.1", "host: x", f"authorization: {credential}", *more]
        return "\r\n".join([*lines, "", ""]).encode()


Attack = Callable[[Stranger, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _send(
    stranger: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    """Send a request repeatedly, each once the last is answered."""
    while True:
        writer.write(request)
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        stranger.refused += 1


def _posting(body: bytes, *more: str) -> Attack:
    async def attack(
        stranger: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        length = f"content-length: {len(body)}"
        head = stranger.head("POST", stranger.task.good, length, "connection: close", *more)
        writer.write(head + body)
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")

    return attack


async def _unfinished(
    stranger: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    key = f"idempotency-key: {stranger.number}"
    more = [key] if stranger.number % 2 else []
    writer.write(stranger.head("POST", stranger.task.good, f"content-length: {4 * MIB}", *more))
    writer.write(b" " * (4 * MIB - 1))
    await reader.read()


async def _half_head(
    stranger: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(stranger.head("POST", stranger.task.good)[:-2])
    while not reader.at_eof():
        writer.write(b"x: y\r\n")
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.5)


async def _forged(
    stranger: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    credential = stranger.task.forged[stranger.number % len(stranger.task.forged)]
    await _send(stranger, reader, writer, stranger.head("HEAD", credential))


async def _replayed(
    stranger: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    credential = stranger.task.replayed[stranger.number % len(stranger.task.replayed)]
    await _send(stranger, reader, writer, stranger.head("HEAD", credential))


async def _idle(_: Stranger, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _slow(_: Stranger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for half a megabyte of challenges, and read none of them."""
    del reader
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    unpaid = f"POST {TARGET} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()
    writer.write(unpaid * 300)
    await asyncio.Event().wait()


NESTED: Final = b'{"messages":[' + (b"[" * 60 + b"]" * 60 + b",") * (4 * MIB // 121) + b"0]}"
BOMB: Final = gzip.compress(gzip.compress(bytes(1024 * MIB // 64)))
KINDS: Final[dict[str, Attack]] = {
    "nested JSON": _posting(NESTED),
    "unfinished bodies": _unfinished,
    "half heads": _half_head,
    "stacked gzip": _posting(BOMB, "content-encoding: gzip, gzip"),
    "forged vouchers": _forged,
    "replayed top-ups, forged closes": _replayed,
    "idle connections": _idle,
    "slow readers": _slow,
}


async def _be_strangers(port: int) -> None:
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    strangers = [Stranger(port, task, number) for number in range(STRANGERS)]
    tasks = [asyncio.create_task(one.be(KINDS[task.kind])) for one in strangers]
    await asyncio.sleep(1)
    os.write(1, b"\n")
    await asyncio.to_thread(sys.stdin.buffer.read)
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    os.write(1, b"%d\n" % sum(one.refused for one in strangers))


if __name__ == "__main__":
    asyncio.run(_be_strangers(int(sys.argv[1])))
