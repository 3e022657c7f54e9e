"""`mpp-session channels`: what is open, accepted, spent, settled, and at risk."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mpp_session.cli.books import Books, name_tokens, read_channels
from mpp_session.cli.options import ConfigPath, Devnet, LedgerUrl
from mpp_session.cli.output import count, format_id, format_time, print_json, print_table, say

if TYPE_CHECKING:
    from channel.state.channel_state import ChannelState
    from channel.types import Address
    from mpp_session.agent.amounts import TokenUnit

__all__ = ["NAME", "command"]

NAME: Final = "channels"

_AMOUNTS: Final = ("deposit", "accepted", "spent", "reserved", "settled", "at_risk", "exposure")


def command(
    *,
    config: ConfigPath = None,
    devnet: Devnet = None,
    ledger: LedgerUrl = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: amounts in base units.")
    ] = False,
) -> None:
    """List the channels in a gateway's books, most at risk first.

    At risk is what was delivered and is not yet settled on chain; exposure counts what was promised
    and not delivered, too. A node of the settings names the token; without one, amounts are base
    units. The gateway may be running.

    \b
    mpp-session channels --config gateway.toml
    mpp-session channels --devnet devnet.json --all
    mpp-session channels --ledger sqlite:////var/lib/mpp-session/ledger.db --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    books = Books.find(config, ledger, devnet)
    states = read_channels(books, open_only=not all_)
    rows = [_row(state) for state in states]
    rows.sort(key=lambda row: row["at_risk"], reverse=True)
    if as_json:
        print_json([{**row, **{name: str(row[name]) for name in _AMOUNTS}} for row in rows])
    elif rows:
        _print(rows, name_tokens(books, states))
    else:
        say("no channels")


def _row(state: "ChannelState") -> dict[str, Any]:
    from settlement.settle.exposure import exposure_of
    from settlement.settle.schedule import value_at_risk

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
        "token": state.terms.token,
    }


def _name_state(state: "ChannelState") -> str:
    if state.is_finalized:
        return "ended"
    if state.is_stopped:
        return "stopped"
    if state.is_closing:
        return "closing"
    return "close requested" if state.close_requested_at else "open"


def _print(rows: Sequence[dict[str, Any]], units: "dict[Address, TokenUnit]") -> None:
    print_table(
        [
            {
                "channel": format_id(row["channel_id"]),
                "payer": format_id(row["payer"]),
                "state": row["state"],
                "last voucher": format_time(row["active_at"]) if row["active_at"] else "none",
                **{
                    name.replace("_", " "): units[row["token"]].format(row[name])
                    for name in _AMOUNTS
                },
            }
            for row in rows
        ],
        right=[name.replace("_", " ") for name in _AMOUNTS],
    )
    at_risk: dict[Address, int] = {}
    for row in rows:
        at_risk[row["token"]] = at_risk.get(row["token"], 0) + row["at_risk"]
    sums = ", ".join(units[token].format(amount) for token, amount in at_risk.items())
    say(f"{count(len(rows), 'channel')}, {sums} at risk")
