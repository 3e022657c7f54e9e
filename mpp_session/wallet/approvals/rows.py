"""Rows of the tables and the values that they hold, in both directions."""

import sqlite3
from collections.abc import Mapping
from importlib import resources
from typing import Final

import msgspec

from channel.sql import parse_queries
from channel.types import ChannelId
from mpp_session.wallet.approvals.record import (
    Decider,
    Notice,
    Question,
    Record,
    State,
    Vote,
)
from mpp_session.wallet.approvals.terms import Terms

__all__ = ["SCHEMA", "add", "change", "execute", "pack", "read_records", "vote"]

AMOUNT_BYTES: Final = 16
_SQL: Final = resources.files("mpp_session.wallet.approvals") / "sql"
SCHEMA: Final = (_SQL / "schema.sql").read_text()
"""The tables, as statements that are separated by `;`."""
_QUERIES: Final = parse_queries((_SQL / "queries.sql").read_text())
_read_question: Final = msgspec.json.Decoder(Question).decode


def execute(db: sqlite3.Connection, query: str, values: Mapping[str, object]) -> list[sqlite3.Row]:
    """Run one of the named queries."""
    return db.execute(_QUERIES[query], values).fetchall()


def pack(amount: int) -> bytes:
    """Return an amount as a column holds it."""
    return amount.to_bytes(AMOUNT_BYTES)


def add(db: sqlite3.Connection, question: Question, terms: Terms) -> None:
    """Store a new question."""
    execute(
        db,
        "add",
        {
            "id": question.id,
            "agent": question.agent,
            "created_at": question.created_at,
            "expires_at": question.answer_by,
            "terms_hash": terms.exact,
            "subject_hash": terms.subject,
            "window_hash": terms.window,
            "channel_hash": terms.channel,
            "question": msgspec.json.encode(question),
            "zero": pack(0),
        },
    )


def change(db: sqlite3.Connection, record: Record) -> None:
    """Store everything about a record that may change."""
    execute(
        db,
        "change",
        {
            "id": record.id,
            "state": record.state,
            "expires_at": record.expires_at,
            "again_at": record.again_at,
            "scope": record.scope,
            "approved": pack(record.approved),
            "used": pack(record.used),
            "decided_at": record.decided_at,
            "comment": record.comment,
            "used_at": record.used_at,
            "used_by_channel": record.used_by_channel,
            "used_by_request": record.used_by_request,
        },
    )


def vote(db: sqlite3.Connection, approval_id: str, cast: Vote) -> None:
    """Store one answer."""
    execute(
        db,
        "vote",
        {
            "approval": approval_id,
            "kind": cast.by.kind,
            "voter": cast.by.id,
            "verdict": cast.verdict,
            "amount": pack(cast.amount),
            "scope": cast.scope,
            "comment": cast.comment,
            "at": cast.at,
        },
    )


def read_records(db: sqlite3.Connection, query: str, **values: object) -> list[Record]:
    """Return the records that a query finds."""
    return [_record(db, row) for row in execute(db, query, values)]


def _record(db: sqlite3.Connection, row: sqlite3.Row) -> Record:
    key = {"approval": row["id"]}
    channel = row["used_by_channel"]
    return Record(
        question=_read_question(row["question"]),
        terms=Terms(
            exact=row["terms_hash"],
            subject=row["subject_hash"],
            window=row["window_hash"],
            channel=row["channel_hash"],
        ),
        state=State(row["state"]),
        expires_at=row["expires_at"],
        again_at=row["again_at"],
        scope=row["scope"],
        approved=int.from_bytes(row["approved"]),
        used=int.from_bytes(row["used"]),
        decided_at=row["decided_at"],
        comment=row["comment"],
        used_at=row["used_at"],
        used_by_channel=None if channel is None else ChannelId(channel),
        used_by_request=row["used_by_request"],
        votes=tuple(_vote(each) for each in execute(db, "load_votes", key)),
        notices=tuple(
            Notice(each["channel"], each["at"], each["status"])
            for each in execute(db, "load_notices", key)
        ),
    )


def _vote(row: sqlite3.Row) -> Vote:
    return Vote(
        by=Decider(row["kind"], row["voter"]),
        verdict=row["verdict"],
        amount=int.from_bytes(row["amount"]),
        scope=row["scope"],
        comment=row["comment"],
        at=row["at"],
    )
