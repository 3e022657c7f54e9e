"""`mpp-session ledger`: check the books, repair a channel, carry channels from one to another."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, TypeVar

import typer

from channel.errors import ConfigError
from mpp_session.cli.books import Books, name_tokens
from mpp_session.cli.options import AsJson, ConfigPath, Devnet, LedgerUrl
from mpp_session.cli.output import count, format_id, print_json, report, say
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from channel.ledger.interface import Ledger
    from channel.state.channel_state import ChannelState
    from mpp_session.settings import WatchConfig

__all__ = ["APP", "NAME", "adopt", "check", "export", "import_", "repair"]

NAME: Final = "ledger"
APP: Final = typer.Typer(
    help="Check, repair, export and import the books.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

_Answer = TypeVar("_Answer")


@APP.command()
def check(*, config: ConfigPath = None, ledger: LedgerUrl = None, as_json: AsJson = False) -> None:
    """Read every row; say what is wrong, and which channels are stopped.

    A channel is stopped when books and chain disagree: settled above accepted (an old backup),
    or a deposit below accepted (a reorg). Exit code 0: all is well; 1: something is not. The
    gateway may be running.

    \b
    mpp-session ledger check --config gateway.toml
    mpp-session ledger check --ledger postgresql://db/payments --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    faults, stopped = _run(Books.find(config, ledger).url, _check, read_only=True)
    rows = [_stopped_row(state) for state in stopped]
    if as_json:
        print_json({"faults": faults, "stopped": rows})
    else:
        for fault in faults:
            say(fault)
        for row in rows:
            say(f"channel {format_id(row['channel_id'])} is stopped: {row['reason']}")
        if not faults and not rows:
            say("all is well")
    if faults or rows:
        raise typer.Exit(1)


@APP.command()
def repair(
    channel_id: Annotated[str, typer.Argument(help="Id of the channel, 0x and 64 digits.")],
    *,
    accepted: Annotated[
        int | None, typer.Option(help="Raise `accepted` to this; to `settled` if not given.")
    ] = None,
    spent: Annotated[
        int | None, typer.Option(help="Raise `spent` to this; to `settled` if not given.")
    ] = None,
    config: ConfigPath = None,
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let a channel go on whose books are older than the chain.

    Raises what they say is accepted and spent: without amounts to what the chain has settled, the
    least that is surely true. Give more if you know more, from the payer's receipts or a log.
    Nothing is ever lowered, and what cannot be true (spent + reserved <= accepted <= deposit) is
    refused. The amounts of the options are base units.

    \b
    mpp-session ledger repair 0x5f3c... --config gateway.toml
    mpp-session ledger repair 0x5f3c... --accepted 90000 --spent 88000 -c gateway.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from channel.ledger import maintenance

    async def work(opened: "Ledger") -> "ChannelState":
        state = await _find(opened, channel_id)
        return await maintenance.repair(
            opened,
            state.key,
            accepted=state.settled if accepted is None else accepted,
            spent=state.settled if spent is None else spent,
        )

    books = Books.find(config, ledger)
    state = _run(books.url, work)
    amounts = {"accepted": state.accepted, "spent": state.spent, "settled": state.settled}
    if as_json:
        shown = {name: str(amount) for name, amount in amounts.items()}
        print_json({"channel_id": state.key.channel_id, "stopped": state.is_stopped, **shown})
        return
    show = name_tokens(books, [state])[state.terms.token].format
    said = ", ".join(f"{name} {show(amount)}" for name, amount in amounts.items())
    say(f"channel {format_id(state.key.channel_id)}: {said}")
    if state.is_stopped:
        say("it is still stopped")


@APP.command()
def adopt(
    *,
    config: ConfigPath = None,
    devnet: Devnet = None,
    nothing_lost: Annotated[
        bool,
        typer.Option(
            help="Close no channel: nothing was bought, here or by another ledger of the payee, "
            "that these books lack."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make this the payee's ledger after a restore or a move.

    A gateway refuses a ledger that is another than the one its payee had, that lacks what this
    machine knows was acknowledged, or of which this machine knows nothing. If it is right all the
    same, say so here, with no gateway running. Every open channel is then closed by the settler
    at what the books know: what they lack would buy again, and payers open new channels. With
    --nothing-lost the channels go on; that is right after a move of the ledger, or of an export
    with all its channels, and loses money after a restore.

    \b
    mpp-session ledger adopt --config gateway.toml
    mpp-session ledger adopt --config gateway.toml --nothing-lost
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.cli.status import devnet_defaults
    from mpp_session.settings.config import load_watch_config

    settings, payee, _ = load_watch_config(
        config, defaults=devnet_defaults(devnet) if devnet is not None else None
    )
    Books.find(None, settings.ledger.url)
    before, closing = asyncio.run(_adopt(settings, payee, closes=not nothing_lost))
    if as_json:
        print_json({"before": before, "closing": closing})
        return
    say(f"the ledger of {payee} is {settings.ledger.url}")
    if before:
        say(f"it was {before}")
    say(f"{count(closing, 'channel is', 'channels are')} being closed")


async def _adopt(settings: "WatchConfig", payee: str, *, closes: bool) -> tuple[str, int]:
    from channel.ledger.url import open_ledger
    from mpp_session.chain_watch import connect_escrow
    from mpp_session.one_ledger import adopt_ledger
    from mpp_session.settings import parse_address

    books = await open_ledger(settings.ledger.url, exclusive=False)
    try:
        async with connect_escrow(settings.chain) as reader:
            return await adopt_ledger(settings, books, reader, parse_address(payee), closes=closes)
    finally:
        await books.close()


@APP.command()
def export(
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; standard output if none.")
    ] = None,
    config: ConfigPath = None,
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write channels with vouchers and charges, a line of JSON each.

    Anyone who has the file can collect in the payee's name: protect it like a key. The file is
    readable by its owner only. It contains no idempotency keys: for a full backup use the
    database's own tools. `--json` prints the count as JSON if the lines go to a file.

    \b
    mpp-session ledger export --config gateway.toml --output channels.jsonl
    """  # noqa: D301 -- \b keeps the examples' lines apart
    url = Books.find(config, ledger).url
    if output is None:
        _run(url, lambda books: _export(books, sys.stdout.buffer), read_only=True)
        return
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}") from None
    with os.fdopen(fd, "wb") as file:
        exported = _run(url, lambda books: _export(books, file), read_only=True)
        file.flush()
        os.fsync(file.fileno())
    _report(exported, "exported", as_json=as_json)


@APP.command(name="import")
def import_(
    source: Annotated[Path, typer.Argument(help="What `export` wrote; - for standard input.")],
    *,
    config: ConfigPath = None,
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take over the channels of an export that these books do not know.

    One that is known is left as it is: books are newer than any export. Lines before one that
    cannot be read are taken over; correct the line and run it again.

    \b
    mpp-session ledger import channels.jsonl --ledger postgresql://db/payments
    """  # noqa: D301 -- \b keeps the examples' lines apart
    url = Books.find(config, ledger, may_be_new=True).url
    if str(source) == "-":
        taken = _run(url, lambda books: _import(books, sys.stdin.buffer))
    else:
        try:
            file = source.open("rb")
        except OSError as error:
            raise CommandError(f"{source} cannot be read: {error.strerror}") from None
        with file:
            taken = _run(url, lambda books: _import(books, file))
    _report(taken, "read", as_json=as_json)


def _run(
    url: str, work: "Callable[[Ledger], Awaitable[_Answer]]", *, read_only: bool = False
) -> _Answer:
    import asyncio

    from channel.ledger.url import open_ledger

    async def run() -> _Answer:
        books = await open_ledger(url, exclusive=False, read_only=read_only)
        try:
            return await work(books)
        finally:
            await books.close()

    return asyncio.run(run())


async def _check(books: "Ledger") -> "tuple[list[str], list[ChannelState]]":
    from channel.ledger import maintenance

    faults = await maintenance.check(books)
    if faults:
        return faults, []  # a row that cannot be true cannot be read as a channel
    return faults, [state async for state in _channels(books) if state.is_stopped]


async def _channels(books: "Ledger") -> "AsyncIterator[ChannelState]":
    after = None
    while page := await books.list_channels(after=after):
        for state in page:
            yield state
        after = page[-1].key


async def _find(books: "Ledger", channel_id: str) -> "ChannelState":
    try:
        wanted = bytes.fromhex(channel_id.removeprefix("0x"))
    except ValueError:
        raise ConfigError(f"{channel_id} is no channel id: 0x and 64 hexadecimal digits") from None
    found = [state async for state in _channels(books) if state.key.channel_id == wanted]
    if len(found) != 1:  # the id follows from chain and escrow too: it is never there twice
        raise CommandError(f"channel {channel_id} is not in these books")
    return found[0]


async def _export(books: "Ledger", file: BinaryIO) -> int:
    from channel.ledger import maintenance

    lines = 0
    async for line in maintenance.export_channels(books):
        file.write(line)
        lines += not line.startswith(b'{"charge":')
    file.flush()
    return lines


async def _import(books: "Ledger", file: BinaryIO) -> int:
    import asyncio

    from channel.ledger import maintenance

    async def lines() -> AsyncIterator[bytes]:
        while line := await asyncio.to_thread(file.readline):
            yield line

    return await maintenance.import_channels(books, lines())


def _stopped_row(state: "ChannelState") -> dict[str, Any]:
    if state.settled > state.accepted:
        reason = (
            f"settled {state.settled} is above accepted {state.accepted}: these books are older "
            "than the chain; repair it"
        )
    else:
        reason = f"the deposit {state.deposit} is below accepted {state.accepted}: wait, or close"
    return {"channel_id": state.key.channel_id, "reason": reason}


def _report(channels: int, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"channels": channels})
    else:
        report(f"{count(channels, 'channel')} {what}")
