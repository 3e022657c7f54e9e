"""`mpp-session audit`: what a wallet's agents asked and paid, and whether the trail is whole."""

import enum
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from channel.errors import ConfigError
from mpp_session.cli.options import AsJson
from mpp_session.cli.output import (
    count,
    format_time,
    print_json,
    print_json_line,
    print_table,
    report,
    say,
)
from mpp_session.cli.wallet_process import Home
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from mpp_session.wallet.audit.notes import PublicKey
    from mpp_session.wallet.audit.story import Step
    from mpp_session.wallet.audit.trail import Entry

__all__ = [
    "APP",
    "NAME",
    "By",
    "Format",
    "export",
    "read_since",
    "report_",
    "search",
    "show",
    "verify",
]

NAME: Final = "audit"
APP: Final = typer.Typer(
    help="Check, search and add up what a wallet's agents paid.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

_COLUMNS: Final = (
    "seq",
    "at",
    "kind",
    "agent",
    "request_id",
    "channel_id",
    "approval_id",
    "tx_hash",
    "origin",
    "method",
    "path",
    "task",
    "on_behalf_of",
    "reason",
    "action",
    "code",
    "rule",
    "asked",
    "amount",
    "total",
    "cumulative",
    "deposit",
    "settled",
    "returned",
    "chain_id",
    "token",
    "policy_revision",
    "hash",
)
_SUMS: Final = ("requests", "asked", "refused", "deposited", "signed", "settled", "returned")

Since = Annotated[
    str | None, typer.Option(help="Only since then: 7d, 12h, 2026-12-01 or 2026-12-01T12:00:00Z.")
]


class By(enum.StrEnum):
    """What amounts are added up by."""

    AGENT = "agent"
    ON_BEHALF_OF = "on_behalf_of"
    TASK = "task"
    ORIGIN = "origin"


class Format(enum.StrEnum):
    """How records are written."""

    JSONL = "jsonl"
    CSV = "csv"


@APP.command()
def verify(
    *,
    home: Home,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="File of checkpoints; trail.checkpoints in the home if not given."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Public key of the checkpoints; that in the home's trail.pub if none."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the records with their hashes and the checkpoints.

    Exit code 1: something was changed, and the first record is named. Give the key that you noted
    when the wallet was set up: a program that changes the trail can replace a key beside it. The
    wallet may be running.

    \b
    mpp-session audit verify --home wallet
    mpp-session audit verify --home wallet --checkpoints /mnt/log/trail.checkpoints \\
        --key mpp-session-trail-5c1d...+0a1b2c3d+AbC...
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.audit.verify import verify_files

    with _trail(home) as db:
        notes = checkpoints or home / "trail.checkpoints"
        found = verify_files(db, notes, _read_key(key, home / "trail.pub"))
    if as_json:
        finding = None if found.finding is None else found.finding
        print_json(
            {
                "good": found.is_good,
                "records": found.records,
                "checkpoints": found.checkpoints,
                "covered": found.covered,
                "finding": finding,
            }
        )
    else:
        say(str(found))
    if not found.is_good:
        raise typer.Exit(1)


@APP.command()
def show(
    identifier: Annotated[
        str,
        typer.Argument(help="Id of a request, channel or approval; transaction's hash; receipt."),
    ],
    *,
    home: Home,
    as_json: AsJson = False,
) -> None:
    """Tell one payment, from the request to the settlement.

    The wallet may be running. What the agent said is marked, for a model or a page that it read may
    have written it.

    \b
    mpp-session audit show 7f0c1d52e1b64b0c --home wallet
    mpp-session audit show 0x5f3c... --home wallet
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.audit.index import Index
    from mpp_session.wallet.audit.story import tell

    with _trail(home) as db, Index.open(db, home / "trail.index") as index:
        steps = tell(index, identifier)
    if not steps:
        raise CommandError(
            f"no record holds {identifier[:100]}: expected the id of a request, channel or "
            "approval, a transaction's hash, or a receipt; try `mpp-session audit search`"
        )
    if as_json:
        print_json(steps)
        return
    for step in steps:
        _say_step(step)


@APP.command()
def search(
    words: Annotated[list[str] | None, typer.Argument(help="All of them; beginnings do.")] = None,
    *,
    home: Home,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only of this kind: decision, voucher, close, ...")
    ] = None,
    since: Since = None,
    most: Annotated[int, typer.Option("--most", min=1, help="The newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Find records by words: of a task, a reason, a server, a refusal. The newest come first.

    An index beside the trail (trail.index) catches up first. The wallet may be running.

    \b
    mpp-session audit search election data --home wallet --since 7d
    mpp-session audit search denied --home wallet --agent research-3 --kind decision
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.audit.index import Index
    from mpp_session.wallet.audit.story import describe

    after = None if since is None else read_since(since)
    with _trail(home) as db, Index.open(db, home / "trail.index") as index:
        found = index.search(" ".join(words or ()), agent=agent, kind=kind, since=after, count=most)
    if as_json:
        for entry in found:
            print_json_line(_whole(entry))
        return
    if not found:
        say("no records")
        return
    print_table(
        [
            {
                "record": str(entry.seq),
                "time": format_time(entry.at),
                "kind": entry.kind,
                "agent": _printable(entry.agent),
                "what": describe(entry),
            }
            for entry in found
        ],
        right=["record"],
    )


@APP.command()
def export(
    *,
    home: Home,
    format_: Annotated[
        Format, typer.Option("--format", help="A line of JSON each, or CSV.")
    ] = Format.JSONL,
    since: Since = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; standard output if none.")
    ] = None,
) -> None:
    """Write the records, as JSON or for a spreadsheet.

    A line of JSON is a record with its hash, so that anyone can compute the chain again. In CSV no
    cell is taken for a formula. The wallet may be running.

    \b
    mpp-session audit export --home wallet --since 2026-12-01 --output trail.jsonl
    mpp-session audit export --home wallet --format csv
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import csv

    import msgspec

    from mpp_session.cli.export import format_cell, open_output
    from mpp_session.wallet.audit.trail import read_entries

    after, lines = None if since is None else read_since(since), 0
    with _trail(home) as db, open_output(output) as file:
        rows = csv.writer(file, lineterminator="\n")
        if format_ is Format.CSV:
            rows.writerow(_COLUMNS)
        for entry in read_entries(db, since=after):
            lines += 1
            if format_ is Format.CSV:
                flat = _flat(entry)
                rows.writerow([format_cell(flat.get(name)) for name in _COLUMNS])
            else:
                file.write(msgspec.json.encode(_whole(entry), order="sorted").decode() + "\n")
    report(f"{count(lines, 'record')} written")


@APP.command("report")
def report_(
    *,
    home: Home,
    by: Annotated[By, typer.Option(help="Whose amounts are added up.")] = By.AGENT,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Add up what was asked, refused, signed, settled and returned.

    `task` and `on_behalf_of` are what the agents say. Amounts are base units of each token. The
    wallet may be running.

    \b
    mpp-session audit report --home wallet --since 30d
    mpp-session audit report --home wallet --by task --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.audit.sums import add_up

    with _trail(home) as db:
        rows = add_up(db, by.value, since=None if since is None else read_since(since))
    if as_json:
        amounts = _SUMS[1:]
        names = ("name", "chain_id", "token", "requests")
        print_json(
            [
                {name: getattr(row, name) for name in names}
                | {name: str(getattr(row, name)) for name in amounts}
                for row in rows
            ]
        )
    elif not rows:
        say("no records")
    else:
        print_table(
            [
                {
                    by.value.replace("_", " "): _printable(row.name) or "(none)",
                    **{name: f"{getattr(row, name):,}" for name in _SUMS},
                    "token": f"{row.token} on chain {row.chain_id}"
                    if row.chain_id
                    else "none: refused before a price was known",
                }
                for row in rows
            ],
            right=_SUMS,
        )


def read_since(text: str) -> float:
    """Return `7d` before now, or a date or moment, as Unix seconds.

    Raises:
        ConfigError: It is neither.
    """
    import time

    from mpp_session.cli.export import read_time
    from mpp_session.wallet.policy.times import parse_duration

    try:
        return time.time() - parse_duration(text)
    except ConfigError:
        try:
            return read_time(text, "--since")
        except ConfigError:
            raise ConfigError(
                f"--since: expected 7d, 12h, 2026-12-01 or 2026-12-01T12:00:00Z, found {text}"
            ) from None


@contextmanager
def _trail(folder: Path) -> "Iterator[sqlite3.Connection]":
    from contextlib import closing

    from mpp_session.wallet.audit.trail import open_trail

    with closing(open_trail(folder / "wallet.db")) as db:
        yield db


def _read_key(text: str | None, path: Path) -> "PublicKey | None":
    from mpp_session.wallet.audit.notes import PublicKey

    if text is not None:
        return PublicKey.parse(text)
    try:
        return PublicKey.parse(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the public key {path} cannot be read: {error}") from None


def _say_step(step: "Step") -> None:
    agent = f" {_printable(step.agent)}" if step.agent else ""
    say(f"{step.seq:>6}  {format_time(step.at)}  {step.kind}{agent}: {step.text}")
    if step.said:
        say(f"        the agent says: {_printable(step.said)}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _whole(entry: "Entry") -> dict[str, Any]:
    return {**entry.fields, "hash": entry.hash.hex()}


def _flat(entry: "Entry") -> dict[str, Any]:
    """Return a record with the members of its parts beside its own, which win."""
    from datetime import UTC, datetime

    fields = dict(entry.fields)
    flat: dict[str, Any] = {}
    ask = fields.get("ask")
    said = ask.get("untrusted") if isinstance(ask, dict) else None
    terms, voucher = fields.get("terms"), fields.get("voucher")
    for part in (said, fields.get("decision"), ask, terms, voucher, fields):
        if isinstance(part, dict):
            flat |= {name: value for name, value in part.items() if name != "reason"}
    flat["reason"] = said.get("reason") if isinstance(said, dict) else fields.get("reason")
    flat["at"] = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="milliseconds")
    flat["kind"], flat["hash"] = entry.kind, entry.hash.hex()
    return flat
