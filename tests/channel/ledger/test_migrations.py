"""This version opens the books of every released version without a loss (F-108).

`released/` holds the books of each version. Each release adds a file, which never changes.
"""

import sqlite3
from pathlib import Path

import asyncpg
import pytest

from channel.errors import VerificationFailedError
from channel.ledger.interface import ClaimRequest, Ledger
from channel.ledger.queries import load_queries, load_schema
from channel.ledger.url import open_ledger
from channel.state.transitions import transition
from tests.channel.books import accepting, key_of, opening
from tests.channel.ledger.test_interface import ANSWER, CLAIM, PROOF
from tests.channel.ledger.test_maintenance import fill

RELEASED = Path(__file__).with_name("released")


def released(kind: str) -> list[str]:
    return sorted(path.name for path in RELEASED.glob(f"{kind}_*.sql"))


def restore_sqlite(name: str, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript((RELEASED / name).read_text())
    connection.close()


def read(name: str) -> str:
    return (RELEASED / name).read_text()


async def require_all_kept(ledger: Ledger, tmp_path: Path) -> None:
    """Compare with the same history written by this version."""
    assert await ledger.faults() == []
    expected = await open_ledger(f"sqlite:///{tmp_path / 'expected.db'}", exclusive=False)
    await fill(expected)
    states = await ledger.list_channels()
    last = next(state for state in states if state.key == key_of(4))
    assert (last.accepted, last.spent, last.reserved) == (20, 10, 0)
    others = [state for state in await expected.list_channels() if state.key != key_of(4)]
    assert [state for state in states if state.key != key_of(4)] == others
    await expected.close()
    again = await ledger.apply(key_of(4), [], request=ClaimRequest(CLAIM))
    assert again.stored == ANSWER
    with pytest.raises(VerificationFailedError):
        await ledger.apply(key_of(9), [opening(1, key_of(9))], proof=PROOF)
    paid = await ledger.apply(key_of(4), [accepting(30, key_of(4))])
    assert paid.state == transition(last, accepting(30, key_of(4)))


@pytest.mark.parametrize("name", released("sqlite"))
async def test_sqlite_books_of_every_release_open_whole(name: str, tmp_path: Path) -> None:
    restore_sqlite(name, tmp_path / "ledger.db")
    ledger = await open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", exclusive=False)
    await require_all_kept(ledger, tmp_path)
    await ledger.close()


@pytest.mark.parametrize("name", released("postgres"))
async def test_postgres_books_of_every_release_open_whole(
    name: str, tmp_path: Path, postgres_url: str
) -> None:
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(read(name))
    await admin.close()
    ledger = await open_ledger(postgres_url, exclusive=False)
    await require_all_kept(ledger, tmp_path)
    await ledger.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_every_version_has_its_migration_and_its_remains(kind: str) -> None:
    versions = list(load_schema("ledger", kind).migrations)
    assert versions == list(range(1, len(versions) + 1))
    assert released(kind) == [f"{kind}_{version:04}.sql" for version in versions]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_every_query_has_a_name_and_is_one_statement(kind: str) -> None:
    queries = load_queries(kind)
    assert len(queries) > 10
    for name, sql in queries.items():
        assert sql.partition(" ")[0] in {"SELECT", "INSERT", "UPDATE", "DELETE"}, name
        assert ";" not in sql, name
