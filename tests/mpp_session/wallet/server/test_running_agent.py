"""What runs for one agent is bounded, and ends in order."""

import asyncio
import gc
import json
import re
import tracemalloc
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from channel.client.funding.keys import ChannelKeys
from channel.client.policy.policy import Policy
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelBusyError, StoppingError, StoreError, WireError
from channel.limits import (
    WALLET_BODIES_BYTES_MAX,
    WALLET_FAILURES_MAX,
    WALLET_REQUESTS_MAX,
    WALLET_WAIT_S_MAX,
)
from mpp_session.agent.client import PayingClient, build_client
from mpp_session.agent.wallet_wire import ApprovalState, BudgetLeft
from mpp_session.wallet.server.answers import problem_of
from mpp_session.wallet.server.doors import BREAK_OFF
from mpp_session.wallet.server.forwarding import Ended, Forwarder
from mpp_session.wallet.server.questions import Questions
from mpp_session.wallet.server.running_agent import RunningAgent


def make(_: str, store: PaymentStore) -> PayingClient:
    return build_client(
        policy=Policy(limits=()), keys=ChannelKeys(bytes(range(32))), store=store, chains=()
    )


async def test_an_agent_is_bounded_in_what_runs_and_what_it_remembers(tmp_path: Path) -> None:
    store = await PaymentStore.open(tmp_path / "w.db")
    agent = RunningAgent("scout", store.for_agent("scout"), make)
    gate = asyncio.Event()
    clients: list[PayingClient] = []

    async def wait(client: PayingClient) -> str:
        clients.append(client)
        await gate.wait()
        return "done"

    tasks = [asyncio.create_task(agent.run(wait)) for _ in range(WALLET_REQUESTS_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(ChannelBusyError, match=str(WALLET_REQUESTS_MAX)):
        await agent.run(wait)
    agent.renew()  # not while something runs
    tasks.pop().cancel()
    await asyncio.sleep(0.01)
    more = asyncio.create_task(agent.run(wait))
    await asyncio.sleep(0)
    assert len(set(map(id, clients))) == 1
    gate.set()
    assert await asyncio.gather(*tasks, more) == ["done"] * WALLET_REQUESTS_MAX
    await agent.run(wait)
    assert len(set(map(id, clients))) == 2

    for number in range(WALLET_FAILURES_MAX + 1):
        agent.remember(str(number), problem_of(StoreError(str(number))))
    assert agent.failure("0") is None
    last_kept = agent.failure("1")
    assert last_kept is not None
    assert last_kept.detail == "1"

    gate.clear()
    last = asyncio.create_task(agent.run(wait))
    await asyncio.sleep(0)
    await agent.end()
    with pytest.raises(StoppingError):
        await last
    with pytest.raises(StoppingError):
        await agent.run(wait)
    await store.close()


def forwarder_of() -> Forwarder:
    async def no_end(_: Ended) -> None: ...

    async def any_request(_: str, __: httpx.Request) -> None: ...

    async def no_refusal(*_: object) -> None: ...

    return Forwarder(
        allows_loopback=lambda: True,
        own_ports=(),
        admit=any_request,
        note_end=no_end,
        note_refusal=no_refusal,
    )


async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a request, begin its answer, and end the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head, re.IGNORECASE)
    await reader.readexactly(int(length[1]) if length else 0)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
    await writer.drain()
    writer.close()


async def test_no_body_is_kept_of_an_answer_that_broke_off(tmp_path: Path) -> None:
    """The error was kept, its traceback held the frames, and they held the body: 8 GiB in all."""
    store = await PaymentStore.open(tmp_path / "w.db")
    agent = RunningAgent("scout", store.for_agent("scout"), make)
    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    body = bytes(512 * 1024)
    tracemalloc.start()
    for _ in range(8):
        left, messages = asyncio.Event(), [body]

        async def receive(left: asyncio.Event = left, messages: list[bytes] = messages) -> Message:
            if messages:
                piece = bytes(bytearray(messages.pop()))  # as a socket gives it: a copy
                return {"type": "http.request", "body": piece, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_: Message) -> None: ...

        scope = {
            "type": "http",
            "method": "POST",
            "headers": [(b"wallet-target", url.encode())],
            BREAK_OFF: left.set,
        }
        await forwarder_of().forward(agent, scope, receive, send)
        assert left.is_set()
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 * len(body)
    server.close()
    await agent.end()
    await store.close()


async def test_the_bodies_of_an_agents_requests_share_one_bound(tmp_path: Path) -> None:
    """Each connection could hold a longest body before the number of requests was looked at."""
    store = await PaymentStore.open(tmp_path / "w.db")
    agent = RunningAgent("scout", store.for_agent("scout"), make)
    with agent.holding() as hold, agent.holding() as other:
        hold(WALLET_BODIES_BYTES_MAX - 1)
        other(1)
        with pytest.raises(ChannelBusyError, match=str(WALLET_BODIES_BYTES_MAX)):
            other(1)
    answers: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(message: Message) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"wallet-target", b"https://a.b/")]}
    with agent.holding() as hold:
        hold(WALLET_BODIES_BYTES_MAX)
        await forwarder_of().forward(agent, scope, receive, send)
    assert answers[0]["status"] == 503
    with agent.holding() as hold:  # what ended holds nothing
        hold(WALLET_BODIES_BYTES_MAX)
    await agent.end()
    await store.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("close", {"url": "https://[::"}),
        ("close", {"url": "https://xn--\u2603"}),
        ("quote", {"method": "GET", "url": "https://xn--zzzzzz99999/"}),
        ("quote", {"method": "GET", "url": "https://a.b/", "headers": [["x", "\u2603"]]}),
    ],
)
async def test_a_question_that_cannot_be_read_is_answered_as_one(
    path: str, body: dict[str, object], tmp_path: Path
) -> None:
    """It was an error that the door did not know, with a traceback in the log for each."""

    async def no_budgets(_: str) -> list[BudgetLeft]:
        return []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    store = await PaymentStore.open(tmp_path / "w.db")
    agent = RunningAgent("scout", store.for_agent("scout"), make)
    questions = Questions(forwarder_of(), no_budgets, _Asked())  # type: ignore[arg-type]
    scope = {"type": "http", "method": "POST", "path": f"/payments/{path}", "headers": []}
    with pytest.raises(WireError):
        await questions.answer(agent, Request(scope, receive))
    await agent.end()
    await store.close()


class _Asked:
    """Answers without a wait, and keeps how long it might have waited."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def state(self, agent: str, approval_id: str, *, wait_s: float) -> ApprovalState:
        self.waits.append(wait_s)
        return ApprovalState(id=f"{agent} {approval_id}", state="pending")


async def test_a_wait_for_an_approval_is_bounded(tmp_path: Path) -> None:
    async def no_budgets(_: str) -> list[object]:
        return []

    store = await PaymentStore.open(tmp_path / "w.db")
    agent = RunningAgent("scout", store.for_agent("scout"), make)
    asked = _Asked()
    questions = Questions(forwarder_of(), no_budgets, asked)  # type: ignore[arg-type]
    for wait in (str(WALLET_WAIT_S_MAX), str(WALLET_WAIT_S_MAX + 1), "-1", "many", "9" * 99, ""):
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/approvals/a1",
            "headers": [],
            "query_string": f"wait={wait}".encode(),
            "server": ("wallet", 80),
        }
        answer = await questions.answer(agent, Request(scope))
        assert answer is not None
        assert b"scout a1" in answer.body
    assert asked.waits == [WALLET_WAIT_S_MAX, WALLET_WAIT_S_MAX, 0, 0, 0, 0]
    await agent.end()
    await store.close()
