"""What the kernel saw: the ledger is on disk before an acknowledgement, and before paid bytes."""

import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from channel.wire.receipt import parse_receipt
from mpp_session.agent.client import open_client
from mpp_session.testing.chain import TestChain
from tests.e2e.gateways import (
    GatewayProcess,
    free_port,
    gateway_command,
    gateway_variables,
    policy_for,
)
from tests.faults.tracer import Event, read_events, traced
from tests.mpp_session.model_server import model_server
from tests.waiting import until

STEP_UNITS = 8
CHUNKS = 100
BODY: dict[str, Any] = {"model": "tiny", "messages": []}


class Sent(msgspec.Struct):
    """Something that left for the agent."""

    data: bytes
    syncs: int
    """How often the ledger had been synced by then."""
    syncs_since_asked: int
    """How often since the last bytes arrived on the same connection."""

    @property
    def is_acknowledgement(self) -> bool:
        """The answer to a management request: a voucher, an opening or a close was taken."""
        return b"payment-receipt: " in self.data and b"content-length: 0\r\n" in self.data

    @property
    def accepted(self) -> int:
        """The `acceptedCumulative` that its receipt names."""
        found = re.search(rb"payment-receipt: ([^\r]+)\r\n", self.data)
        assert found is not None
        return parse_receipt(found[1].decode()).accepted

    @property
    def chunks(self) -> int:
        """Content chunks in it."""
        return self.data.count(b'"content": "')


def sent_to_agents(events: list[Event], ledger: Path) -> Iterator[Sent]:
    syncs, asked_at = 0, dict[str, int]()
    for event in events:
        if event.is_sync and event.target == f"{ledger}-wal":
            syncs += 1
        elif event.call in {"recvfrom", "read"}:
            asked_at[event.target] = syncs
        elif event.target.startswith("socket:"):
            yield Sent(event.data, syncs, syncs - asked_at.get(event.target, 0))


async def test_the_ledger_is_on_disk_before_anything_it_promises_is_sent(
    devnet: TestChain, tmp_path: Path
) -> None:
    """SEC-01, ACC-03, ACC-04: by the order of system calls of the real process."""
    values, ledger, recorded = devnet.values, tmp_path / "ledger.db", tmp_path / "events"
    async with model_server() as model:
        model.words, model.delay_s = ["word "] * CHUNKS, 0.002
        variables = gateway_variables(values, model.url, ledger, free_port(), step_units=STEP_UNITS)
        command = traced(gateway_command(), recorded)
        gateway = GatewayProcess(command, variables, tmp_path / "gateway.log")
        url = f"{gateway.url}/v1/chat/completions"
        async with (
            gateway.running(),
            open_client(
                rpc_url=values.rpc_url,
                private_key=values.accounts["payer"].private_key,
                policy=policy_for(values, voucher_step=12, voucher_step_max=12),
                store=tmp_path / "agent.db",
            ) as client,
        ):
            streamed = await client.post(url, json={**BODY, "stream": True})
            assert streamed.text.count('"content"') == CHUNKS
            whole = await client.post(url, json={**BODY, "max_tokens": 200})
            assert whole.status_code == 200
            await until(lambda: is_at_rest(ledger))  # what was held for it is given back
            (account,) = await client.payments.close(gateway.url)
            assert await gateway.end(signal.SIGTERM) == 0, (tmp_path / "gateway.log").read_text()
    sent = list(sent_to_agents(read_events(recorded), ledger))
    require_paid_chunks(sent)
    require_acknowledgements(sent, vouchers=account.vouchers)


def is_at_rest(ledger: Path) -> bool:
    """Whether no request holds anything."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        (held,) = connection.execute("SELECT count(lease_expires_at) FROM channel").fetchone()
    return bool(held == 0)


def require_paid_chunks(sent: list[Sent]) -> None:
    """One sync of the ledger covers one reservation step, and never a chunk more."""
    since: dict[int, int] = {}
    for part in sent:
        if part.chunks:
            assert part.syncs > 0
            since[part.syncs] = since.get(part.syncs, 0) + part.chunks
    assert sum(since.values()) >= CHUNKS
    assert max(since.values()) <= STEP_UNITS


def require_acknowledgements(sent: list[Sent], *, vouchers: int) -> None:
    """A new voucher is on disk between its arrival and the first receipt that names it.

    An agent may present one twice; what is on disk already needs no second sync.
    """
    *taken, asked_spent, closed = [part for part in sent if part.is_acknowledgement]
    assert len(taken) >= vouchers - 2 > 5
    accepted = 0
    for part in taken:
        if part.accepted > accepted:
            assert part.syncs_since_asked > 0
        accepted = max(accepted, part.accepted)
    assert asked_spent.syncs_since_asked == 0  # a voucher known before: nothing to store
    assert closed.syncs_since_asked > 0
