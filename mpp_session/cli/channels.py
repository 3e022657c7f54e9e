"""`mpp-session channels`: what is open, accepted, spent, settled, and at risk."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.state.channel_state import ChannelState
from mpp_session.cli.ledger import find_ledger
from mpp_session.cli.output import OUT, print_json

__all__ = ["NAME", "command"]

NAME: Final = "channels"

_AMOUNTS: Final = ("deposit", "accepted", "spent", "reserved", "settled", "at_risk", "exposure")


def command(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The gateway's settings.")
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="URL of the books, instead.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the channels in a gateway's books, most at risk first.

    At risk is what was delivered and is not yet settled on chain; exposure counts what was promised
    and not delivered, too. Amounts are base units of the token. The gateway may be running.

    \b
    mpp-session channels --config gateway.toml
    mpp-session channels --ledger sqlite:////var/lib/mpp-session/ledger.db --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    url = find_ledger(config, ledger)
    rows = [_row(state) for state in asyncio.run(_read(url, open_only=not all_))]
    rows.sort(key=lambda row: row["at_risk"], reverse=True)
    if as_json:
        print_json([{**row, **{name: str(row[name]) for name in _AMOUNTS}} for row in rows])
    else:
        _print(rows)


async def _read(url: str, *, open_only: bool) -> list[ChannelState]:
    ledger = await open_ledger(url, exclusive=False, read_only=True)
    try:
        return await _read_all(ledger, open_only=open_only)
    finally:
        await ledger.close()


async def _read_all(ledger: Ledger, *, open_only: bool) -> list[ChannelState]:
    found: list[ChannelState] = []
    while True:
        after = found[-1].key if found else None
        page = await ledger.list_channels(after=after, open_only=open_only)
        if not page:
            return found
        found += page


def _row(state: ChannelState) -> dict[str, Any]:
    from settlement.settle.exposure import exposure_of  # noqa: PLC0415 -- slow to import
    from settlement.settle.schedule import value_at_risk  # noqa: PLC0415

    return {
        "channel_id": state.key.channel_id,
        "payer": state.terms.payer,
        "state": _name_state(state),
        "deposit": state.deposit,
        "accepted": state.accepted,
        "spent": state.spent,
        "reserved": state.reserved,
        "settled": state.settled,
        "at_risk": value_at_risk(state),
        "exposure": exposure_of(state).payee,
        "close_requested_at": state.close_requested_at,
        "active_at": state.active_at,
        "chain_id": state.key.chain_id,
        "escrow": state.key.escrow,
    }


def _name_state(state: ChannelState) -> str:
    if state.is_finalized:
        return "ended"
    if state.is_stopped:
        return "stopped"
    if state.is_closing:
        return "closing"
    return "close requested" if state.close_requested_at else "open"


def _print(rows: list[dict[str, Any]]) -> None:
    if not rows:
        OUT.print("no channels")
        return
    table = Table(show_edge=False)
    for name in ("channel", "payer", "state"):
        table.add_column(name)
    for name in _AMOUNTS:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        ids = (f"0x{row[name].hex()[:12]}…" for name in ("channel_id", "payer"))
        table.add_row(*ids, row["state"], *(f"{row[name]:,}" for name in _AMOUNTS))
    total = sum(row["at_risk"] for row in rows)
    OUT.print(table)
    OUT.print(Text(f"{len(rows)} channels, {total:,} base units at risk"))
