"""A trail with two payments from one channel, and one that was refused."""

import sqlite3
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from channel.types import TxHash
from mpp_session.wallet.audit.records import decision_fields, describe_change, voucher_fields
from mpp_session.wallet.audit.trail import SCHEMA, Trail
from mpp_session.wallet.types import Ask, Purpose
from tests.mpp_session.wallet.audit.asks import make_ask, make_decision
from tests.mpp_session.wallet.audit.test_records import CHANNEL

CHANNEL_ID = "0x" + "04" * 32
OPEN_TX = "0x" + "0a" * 32
CLOSE_TX = "0x" + "0b" * 32
AT = 1_790_000_000.0


class Writer:
    """Adds records as the wallet's guard does."""

    def __init__(self, path: Path | str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)
        self.trail = Trail()
        self.at = AT

    def add(self, kind: str, agent: str = "a", **fields: Any) -> int:
        self.at += 1
        self.db.execute("BEGIN IMMEDIATE")
        seq = self.trail.append(self.db, kind, at=self.at, agent=agent, **fields)
        self.db.execute("COMMIT")
        return seq

    def decide(self, ask: Ask, action: str = "allow", approval: str | None = None) -> None:
        decision = make_decision(action, rule="search")
        self.add("decision", ask.agent, **decision_fields(ask, decision, approval_id=approval))

    def pay(self, ask: Ask, *amounts: int) -> None:
        """Sign several vouchers of one request; `ask` says what was signed of the channel."""
        total = ask.total
        for number, amount in enumerate(amounts):
            total += amount
            each = replace(ask, amount=amount, total=total, is_first=number == 0)
            if number == 0:
                self.decide(each)
            self.add("voucher", each.agent, **voucher_fields(each))


def write_payments(path: Path | str = ":memory:") -> Writer:
    """Write r1 (20 for task one) and r2 (30 for task two), then a close that settles 45 of 100."""
    writer = Writer(path)
    one = Purpose(task="one", on_behalf_of="ann", reason="=look at the \x1b[31m election polls")
    first = make_ask(request_id="r1", purpose=one, total=0, at=AT)
    second = make_ask(request_id="r2", purpose=Purpose(task="two"), total=20, at=AT)
    opening = replace(first, kind="deposit", amount=100, total=100, is_opening=True)
    writer.decide(opening, "ask")
    writer.add("approval", approval_id="ap1", request_id="r1", state="pending")
    writer.add("approval", approval_id="ap1", request_id="r1", state="approved", by="person ann")
    writer.decide(opening, approval="ap1")
    opened = replace(CHANNEL, state="open", open_tx=TxHash(b"\x0a" * 32))
    used = replace(opened, signed=20, accepted=20, spent=20, receipt="cmVjZWlwdA")
    closed = replace(used, signed=50, state="closed", settled=45, end_tx=TxHash(b"\x0b" * 32))
    for kind, fields in describe_change(CHANNEL, opened):
        writer.add(kind, **fields)
    writer.pay(first, 5, 10, 5)
    for kind, fields in describe_change(opened, used):
        writer.add(kind, **fields)
    writer.pay(second, 30)
    other = {"agent": "b", "origin": "https://b.example:443", "channel_id": None}
    writer.decide(make_ask(request_id="r3", amount=7, **other), "deny")
    for kind, fields in describe_change(used, closed):
        writer.add(kind, **fields)
    return writer
