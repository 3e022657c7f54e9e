"""O-86: a command that only reads changes neither files nor tables of any version."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import typer
from msgspec.structs import replace
from typer.testing import CliRunner

from channel.errors import ConfigError, LedgerUnavailableError
from channel.ledger import postgres_connection, sqlite_connection
from channel.ledger.queries import TablesMissingError
from channel.ledger.url import open_ledger, sqlite_path
from channel.types import Address
from mpp_session.cli.channels import command as channels_command
from mpp_session.cli.export import command as export_command
from mpp_session.cli.ledger import APP
from settlement.sponsor.orders.url import open_orders
from settlement.tx.journal import postgres as postgres_journal
from settlement.tx.journal import sqlite as sqlite_journal
from settlement.tx.journal.url import open_journal
from tests.channel.books import KEY, accepting, opening

ACCOUNT = Address(b"\x05" * 20)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Be the program that knew so many versions of the ledger's tables."""

    def be(known: int) -> None:
        for module in (sqlite_connection, postgres_connection):
            schema = module._SCHEMA  # noqa: SLF001
            kept = {n: script for n, script in schema.migrations.items() if n <= known}
            monkeypatch.setattr(module, "_SCHEMA", replace(schema, migrations=kept))
        monkeypatch.setattr(
            postgres_connection.require_schema,
            "__defaults__",
            (postgres_connection._SCHEMA,),  # noqa: SLF001
        )

    return be


async def tables(url: str) -> dict[str, Any]:
    """Return the version of each set of tables, and all tables."""
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(sqlite_path(url))) as database:
            rows = database.execute("SELECT type, name FROM sqlite_master ORDER BY name").fetchall()
            version = database.execute("SELECT version FROM ledger_schema").fetchone()
        return {"rows": rows, "version": version}
    connection = await asyncpg.connect(url)
    query = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
    rows = sorted(row[0] for row in await connection.fetch(query))
    version = await connection.fetchval("SELECT version FROM ledger_schema")
    await connection.close()
    return {"rows": rows, "version": version}


async def read(url: str) -> int:
    ledger = await open_ledger(url, exclusive=False, read_only=True)
    try:
        assert await ledger.faults() == []
        return sum(state.accepted for state in await ledger.list_channels())
    finally:
        await ledger.close()


@pytest.mark.parametrize("known", [4])
async def test_books_of_a_gateway_of_an_older_version_are_read_as_they_are(
    url: str, older: Callable[[int], None], known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older gateway runs, is read, and opens its books again."""
    with monkeypatch.context():
        older(known)
        gateway = await open_ledger(url, exclusive=True)
        await gateway.apply(KEY, [opening(10)])
    monkeypatch.undo()
    before = await tables(url)
    assert await read(url) == 10
    assert await tables(url) == before
    await gateway.apply(KEY, [accepting(20)])
    assert await read(url) == 20
    await gateway.close()
    older(known)
    await (await open_ledger(url, exclusive=True)).close()
    assert await tables(url) == before


@pytest.mark.parametrize("known", [4, 6])
async def test_charges_of_books_without_them_are_refused_with_a_remedy(
    url: str, older: Callable[[int], None], known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export said `no such table: charge_day`."""
    with monkeypatch.context():
        older(known)
        await (await open_ledger(url, exclusive=False)).close()
    monkeypatch.undo()
    arguments = ["--from", "2026-10", "--ledger", url, "--no-chain"]
    app = typer.Typer()
    app.command()(export_command)
    done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert isinstance(done.exception, ConfigError), done.output
    assert "start the gateway of this version once" in str(done.exception)


@pytest.mark.parametrize("known", [1, 3])
async def test_books_that_are_too_old_to_be_read_are_refused_and_left(
    url: str, older: Callable[[int], None], known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context():
        older(known)
        await (await open_ledger(url, exclusive=False)).close()
    monkeypatch.undo()
    before = await tables(url)
    with pytest.raises(ConfigError, match="migrates nothing when it only reads"):
        await read(url)
    assert await tables(url) == before


async def test_a_newer_schema_is_refused_and_left(url: str) -> None:
    await (await open_ledger(url, exclusive=False)).close()
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(sqlite_path(url))) as database:
            database.execute("UPDATE ledger_schema SET version = 99")
            database.commit()
    else:
        connection = await asyncpg.connect(url)
        await connection.execute("UPDATE ledger_schema SET version = 99")
        await connection.close()
    before = await tables(url)
    with pytest.raises(ConfigError, match="99"):
        await read(url)
    assert await tables(url) == before


def journal(url: str) -> Awaitable[Any]:
    return open_journal(url, chain_id=1, account=ACCOUNT, read_only=True)


def orders(url: str) -> Awaitable[Any]:
    return open_orders(url, chain_id=1, escrow=ACCOUNT, read_only=True)


@pytest.mark.parametrize("open_it", [journal, orders])
async def test_a_journal_and_orders_are_not_made_either(
    url: str, open_it: Callable[[str], Awaitable[Any]]
) -> None:
    await (await open_ledger(url, exclusive=False)).close()
    before = await tables(url)
    with pytest.raises(TablesMissingError):
        await open_it(url)
    assert await tables(url) == before


async def test_a_journal_of_an_older_version_is_refused_and_left(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables lack what is asked for."""
    with monkeypatch.context() as patched:
        for module in (sqlite_journal, postgres_journal):
            schema = module._SCHEMA  # noqa: SLF001
            oldest = {1: schema.migrations[1]}
            patched.setattr(module, "_SCHEMA", replace(schema, migrations=oldest))
        await (await open_journal(url, chain_id=1, account=ACCOUNT)).close()
    await (await open_ledger(url, exclusive=False)).close()
    before = await tables(url)
    with pytest.raises(ConfigError, match="journal has schema version 1"):
        await journal(url)
    assert await tables(url) == before


async def test_nothing_is_written_by_what_only_reads(url: str) -> None:
    await (await open_ledger(url, exclusive=False)).close()
    ledger = await open_ledger(url, exclusive=False, read_only=True)
    with pytest.raises(LedgerUnavailableError, match="read"):
        await ledger.apply(KEY, [opening(10)])
    await ledger.close()


@pytest.mark.parametrize("arguments", [["check"], ["export"]])
async def test_the_commands_that_read_make_no_tables(url: str, arguments: list[str]) -> None:
    await (await open_ledger(url, exclusive=False)).close()
    before = await tables(url)
    done = await asyncio.to_thread(CliRunner().invoke, APP, [*arguments, "--ledger", url])
    assert done.exit_code == 0, done.output
    await asyncio.to_thread(channels_command, ledger=url, as_json=True)
    assert await tables(url) == before
