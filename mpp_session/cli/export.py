"""`mpp-session export`: the accounts of a period, for a spreadsheet or a program."""

import contextlib
import enum
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import typer

from channel.errors import ConfigError
from mpp_session.cli.books import Books
from mpp_session.cli.options import ConfigPath, Devnet, LedgerUrl
from mpp_session.cli.output import count, report
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from channel.types import Address, TokenUnit
    from mpp_session.operator.export import Entry, Period

__all__ = ["NAME", "By", "Format", "command", "format_cell", "open_output", "read_time"]

NAME: Final = "export"

_OF_CHAIN: Final = ("chain.id", "chain.rpc_url", "chain.escrow", "payee.address")
"""The settings by which payouts and gas are found."""
_OF_PAYMENTS: Final = ("chain.id", "chain.token", "payee.address")
"""Those by which single payments are found."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet may take a cell that begins so as a formula."""


class By(enum.StrEnum):
    """What entries are added up by."""

    DAY = "day"
    MONTH = "month"


class Format(enum.StrEnum):
    """How the lines are written."""

    CSV = "csv"
    JSONL = "jsonl"


def command(  # noqa: PLR0913 - one parameter an option
    *,
    since: Annotated[
        str,
        typer.Option(
            "--from", help="First moment, in UTC: 2026-10, 2026-10-01 or 2026-10-01T12:00:00Z."
        ),
    ],
    until: Annotated[
        str | None,
        typer.Option("--to", help="First moment after the period; everything since if none."),
    ] = None,
    by: Annotated[
        By | None,
        typer.Option(help="Add up by day or month, kind and model; else one line for each entry."),
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="CSV, or a line of JSON each.")
    ] = Format.CSV,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; standard output if none.")
    ] = None,
    chain: Annotated[
        bool, typer.Option("--chain/--no-chain", help="Read payouts and gas from a node, too.")
    ] = True,
    config: ConfigPath = None,
    devnet: Devnet = None,
    ledger: LedgerUrl = None,
) -> None:
    """Write the charges, payments, payouts and gas of a period.

    A `charge` is one request paid from a channel, with its model and usage; a `payment` is one
    paid by a transfer of its own. `settlement` and `close` are what the escrow paid to you,
    `refund` what a close gave back to the payer, `gas` what your account paid.
    Amounts stand in whole tokens and in base units, times are UTC. No key is needed, and the
    gateway may be running. A new file is readable by its owner only: it names your customers.

    \b
    mpp-session export --from 2026-10 --to 2026-11 --by month --config gateway.toml
    mpp-session export --from 2026-10 --to 2026-11 -c gateway.toml --output october.csv
    mpp-session export --from 2026-10-01 --format jsonl --ledger sqlite:///ledger.db --no-chain
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio
    import time

    from mpp_session.operator.export import Period

    end = int(time.time()) + 1 if until is None else read_time(until, "--to")
    period = Period(read_time(since, "--from"), end)
    if period.since >= period.until:
        raise ConfigError(f"expected --from before --to, found {since} and {until or 'now'}")
    books = Books.find(config, ledger, devnet)
    reads_chain = chain and _names(books, *_OF_CHAIN)
    if chain and not reads_chain:
        report("payouts and gas are left out: the settings name no chain and payee")
    if not _names(books, *_OF_PAYMENTS):
        report("single payments are left out: the settings name no chain, token and payee")
    with open_output(output) as file:
        write = _writer(file, format_)
        lines = asyncio.run(_export(books, period, by, write, reads_chain=reads_chain))
    report(f"{count(lines, 'line')} written")


def read_time(text: str, option: str) -> int:
    """Return a month, a date or a moment as Unix seconds.

    Raises:
        ConfigError: It is none.
    """
    from datetime import UTC, datetime

    whole = f"{text}-01" if len(text) == len("2026-10") else text
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError:
        raise ConfigError(
            f"{option}: expected 2026-10, 2026-10-01 or 2026-10-01T12:00:00Z, found {text}"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def format_cell(value: Any) -> str:
    """Return a value as a CSV cell that no spreadsheet takes as a formula."""
    import msgspec

    if value is None:
        return ""
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _names(books: Books, *names: str) -> bool:
    return all(books.values.get(name) for name in names)


@contextlib.contextmanager
def open_output(output: Path | None) -> "Iterator[TextIO]":
    """Yield the file to write; it is complete on disk when this returns."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}") from None
    with os.fdopen(fd, "w", encoding="utf-8", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _writer(file: TextIO, format_: Format) -> Callable[[Mapping[str, Any]], None]:
    import csv

    import msgspec

    from mpp_session.operator.export import COLUMNS

    if format_ is Format.JSONL:

        def write_json(row: Mapping[str, Any]) -> None:
            known = {name: value for name, value in row.items() if value is not None}
            file.write(msgspec.json.encode(known).decode() + "\n")

        return write_json
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)

    def write_csv(row: Mapping[str, Any]) -> None:
        rows.writerow([format_cell(row[name]) for name in COLUMNS])

    return write_csv


async def _export(
    books: Books,
    period: "Period",
    by: By | None,
    write: Callable[[Mapping[str, Any]], None],
    *,
    reads_chain: bool,
) -> int:
    from mpp_session.operator.export import Sums, describe_entry

    lines = 0
    units: dict[Address, TokenUnit] = {}
    sums = None if by is None else Sums(by.value)

    async def put(entry: "Entry") -> None:
        nonlocal lines
        if entry.token is not None and entry.token not in units:
            await _learn(books, entry.chain_id, entry.token, units)
        write(describe_entry(entry, units))
        lines += 1

    async for entry in _entries(books, period, reads_chain=reads_chain):
        if sums is None:
            await put(entry)
        else:
            sums.add(entry)
    for entry in () if sums is None else sums.entries():
        await put(entry)
    return lines


async def _entries(books: Books, period: "Period", *, reads_chain: bool) -> "AsyncIterator[Entry]":
    from channel.ledger.url import open_ledger
    from mpp_session.operator.export import read_charges
    from mpp_session.settings import parse_address

    payee = books.values.get("payee.address")
    ledger = await open_ledger(books.url, exclusive=False, read_only=True)
    try:
        own = None if payee is None else parse_address(str(payee))
        async for entry in read_charges(ledger, period, own):
            yield entry
    finally:
        await ledger.close()
    if _names(books, *_OF_PAYMENTS):
        async for entry in _payment_entries(books, period):
            yield entry
    if reads_chain:
        async for entry in _chain_entries(books, period):
            yield entry


async def _payment_entries(books: Books, period: "Period") -> "AsyncIterator[Entry]":
    from channel.ledger.queries import TablesMissingError
    from mpp_session.operator.export import read_payments
    from mpp_session.settings import parse_address
    from settlement.charge.orders.url import open_charges

    values = books.values
    chain_id, token = int(str(values["chain.id"])), parse_address(str(values["chain.token"]))
    payee = parse_address(str(values["payee.address"]))
    try:
        orders = await open_charges(books.url, chain_id=chain_id, token=token, read_only=True)
    except TablesMissingError:  # no single payment was ever taken on this ledger
        return
    try:
        async for entry in read_payments(
            orders, period, chain_id=chain_id, token=token, payee=payee
        ):
            yield entry
    finally:
        await orders.close()


async def _chain_entries(books: Books, period: "Period") -> "AsyncIterator[Entry]":
    from contextlib import AsyncExitStack

    from channel.ledger.queries import TablesMissingError
    from mpp_session.operator.export import read_chain
    from mpp_session.settings import parse_address
    from settlement.escrow.reader import EscrowReader
    from settlement.node.rpc import Rpc
    from settlement.tx.journal.url import open_journal

    values = books.values
    chain_id, payee = int(str(values["chain.id"])), parse_address(str(values["payee.address"]))
    sender = parse_address(str(values.get("relayer.address") or values["payee.address"]))
    async with AsyncExitStack() as open_:
        rpc = await open_.enter_async_context(
            await Rpc.connect(str(values["chain.rpc_url"]), chain_id=chain_id)
        )
        reader = EscrowReader(rpc, parse_address(str(values["chain.escrow"])))
        try:
            journal = await open_journal(
                books.url, chain_id=chain_id, account=sender, read_only=True
            )
            open_.push_async_callback(journal.close)
        except TablesMissingError:  # no settler ever ran on this ledger
            journal = None
        async for entry in read_chain(
            reader,
            journal,
            period,
            payee=payee,
            token=await reader.read_token(),
            accounts=frozenset({payee, sender}),
        ):
            yield entry


async def _learn(
    books: Books, chain_id: int, token: "Address", units: "dict[Address, TokenUnit]"
) -> None:
    """Ask a node for a token's unit, once; without an answer amounts are base units."""
    from mpp_session.agent.amounts import BASE_UNITS
    from mpp_session.operator.token_units import read_units

    rpc_url = books.values.get("chain.rpc_url")
    if rpc_url and str(books.values.get("chain.id")) == str(chain_id):
        units |= await read_units(str(rpc_url), chain_id, [token])
    units.setdefault(token, BASE_UNITS)
