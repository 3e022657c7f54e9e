"""`mpp-session spent`: what an agent has paid, and to which servers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from channel.errors import ConfigError
from mpp_session.cli.account import devnet_store, store_path
from mpp_session.cli.output import count, format_id, print_json, print_table, say

if TYPE_CHECKING:
    from channel.client.store.record import ChannelRecord
    from channel.types import Address, TokenUnit

__all__ = ["NAME", "command"]

NAME: Final = "spent"

_AMOUNTS: Final = ("spent", "signed", "deposited", "refunded", "locked")


def command(
    *,
    store: Annotated[
        Path | None, typer.Option(help="Where channels and signed amounts are kept.")
    ] = None,
    devnet: Annotated[
        Path | None, typer.Option(help="Of a running devnet: its agent's store, and its token.")
    ] = None,
    rpc_url: Annotated[
        str | None, typer.Option(help="Node that names the token, for amounts with decimals.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: amounts in base units.")
    ] = False,
) -> None:
    """Add up what was paid to each server, and what lies in deposits.

    `spent` is what the servers have charged by their last receipts, `signed` the most that they
    can collect, `locked` what lies in channels that are not closed. An agent may be running.

    \b
    mpp-session spent
    mpp-session spent --store agent.db --rpc-url https://node.example.com
    mpp-session spent --devnet devnet.json --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    path = store or (store_path() if devnet is None else devnet_store(devnet))
    if not path.is_file():
        raise ConfigError(f"there is no store of channels at {path}")
    accounts = asyncio.run(_read(path))
    rows = _add_up(accounts)
    if as_json:
        print_json([{**row, **{name: str(row[name]) for name in _AMOUNTS}} for row in rows])
    elif not rows:
        say("no channels")
    else:
        _print(rows, _units(rows, devnet, rpc_url))


async def _read(path: Path) -> "list[ChannelRecord]":
    from channel.client.store.sqlite import PaymentStore

    store = await PaymentStore.open(path)
    try:
        return await store.records()
    finally:
        await store.close()


def _add_up(accounts: "Sequence[ChannelRecord]") -> list[dict[str, Any]]:
    rows: dict[tuple[str, int, Address], dict[str, Any]] = {}
    for each in accounts:
        chain_id, token = each.key.chain_id, each.terms.token
        empty = {
            "origin": each.origin,
            "chain_id": chain_id,
            "token": token,
            "channels": 0,
            "open": 0,
            "units": 0,
            **dict.fromkeys(_AMOUNTS, 0),
        }
        row = rows.setdefault((each.origin, chain_id, token), empty)
        is_closed = each.state == "closed"
        row["channels"] += 1
        row["open"] += not is_closed
        row["units"] += each.units
        row["spent"] += each.spent
        row["signed"] += each.signed
        row["deposited"] += 0 if each.state == "opening" else each.deposit
        row["refunded"] += each.refund if is_closed else 0
        row["locked"] += each.locked
    return list(rows.values())


def _units(
    rows: Sequence[dict[str, Any]], devnet: Path | None, rpc_url: str | None
) -> "dict[Address, TokenUnit]":
    import asyncio

    from mpp_session.agent.amounts import BASE_UNITS, TokenUnit

    units = {row["token"]: BASE_UNITS for row in rows}
    if devnet is not None:
        from mpp_session.devnet_file import read_devnet

        values = read_devnet(devnet)
        units[values.token] = TokenUnit(values.token_symbol, values.token_decimals)
    if rpc_url is not None:
        from mpp_session.operator.token_units import read_units

        for chain_id in {row["chain_id"] for row in rows}:
            units |= asyncio.run(read_units(rpc_url, chain_id, units))
    return units


def _print(rows: Sequence[dict[str, Any]], units: "dict[Address, TokenUnit]") -> None:
    print_table(
        [
            {
                "server": row["origin"],
                "channels": f"{row['channels']:,}, {row['open']:,} open",
                "units": f"{row['units']:,}",
                **{name: units[row["token"]].format(row[name]) for name in _AMOUNTS},
                "token": f"{format_id(row['token'])} on chain {row['chain_id']}",
            }
            for row in rows
        ],
        right=["units", *_AMOUNTS],
    )
    spent: dict[Address, int] = {}
    for row in rows:
        spent[row["token"]] = spent.get(row["token"], 0) + row["spent"]
    sums = ", ".join(units[token].format(amount) for token, amount in spent.items())
    servers = len({row["origin"] for row in rows})
    say(f"{count(servers, 'server')}, {sums} spent")
