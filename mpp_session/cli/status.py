"""`mpp-session status`: how a provider stands, for people and for monitors."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mpp_session.cli.books import require_there
from mpp_session.cli.options import ConfigPath, Devnet, LedgerUrl
from mpp_session.cli.output import (
    format_id,
    format_time,
    print_json,
    print_pairs,
    print_table,
    say,
)

__all__ = ["NAME", "command", "devnet_defaults"]

NAME: Final = "status"

_COLOURS: Final = {"fine": "green", "warning": "yellow", "critical": "bold red"}
_SQLITE: Final = "sqlite:///"
_MONEY: Final = ("at_risk", "unsettled", "undelivered", "locked")
_TIMES: Final = ("asked_at", "deadline", "since", "retry_at")

Format = Callable[[int], str]
"""An amount in base units, as people read it."""


def command(
    *,
    config: ConfigPath = None,
    devnet: Devnet = None,
    ledger: LedgerUrl = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: amounts in base units.")
    ] = False,
) -> None:
    """Say what is at risk, under way, and in need of a person.

    The exit code tells a monitor: 0 all is well; 10 a person should look today; 20 money that is
    owed now is lost if no person looks now; 1 it could not be found out; 2 wrong settings. No key
    is needed, and a gateway or settler may be running.

    \b
    mpp-session status --config gateway.toml
    mpp-session status --devnet devnet.json --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.operator.status import to_json
    from mpp_session.operator.status_reading import collect_status
    from mpp_session.prices.table import PriceTable
    from mpp_session.settings import parse_address
    from mpp_session.settings.config import load_price_rows, load_watch_config

    settings, payee, gas_account = load_watch_config(
        config,
        flags={"ledger.url": ledger} if ledger is not None else {},
        defaults=devnet_defaults(devnet) if devnet is not None else None,
    )
    require_there(settings.ledger.url)
    rows = load_price_rows(config)
    status = asyncio.run(
        collect_status(settings, parse_address(payee), gas_account=parse_address(gas_account))
    )
    if as_json:
        print_json(to_json(status))
    else:
        unit = status.unit
        prices = PriceTable(rows, unit).describe() if rows else None
        _print(to_json(status), unit.format, prices)
    raise typer.Exit(int(status.level))


def devnet_defaults(path: Path) -> dict[str, Any]:
    """Return the settings of a gateway that was started with --devnet."""
    from mpp_session.devnet_file import devnet_settings, read_devnet

    return {
        **devnet_settings(read_devnet(path)),
        "ledger.url": f"{_SQLITE}{path.resolve().with_suffix('.ledger.db')}",
    }


def _print(status: dict[str, Any], money: Format, prices: str | None) -> None:
    head, channels = status["head"], status["channels"]
    pairs = [
        ("payee", format_id(status["payee"])),
        ("settler", status["settler"] or "none runs"),
        ("block", "no node answers" if head is None else _block(head)),
        ("last looked", _look(status)),
    ]
    if prices is not None:
        pairs.append(("prices", prices))
    if head is not None:
        wei = (int(status["balance_wei"]), int(status["reserve_wei"]))
        pairs.append(("gas", f"{wei[0] / 1e18:.6f} ether, {wei[1] / 1e18:.6f} kept for closes"))
    if sponsored_wei := int(status["sponsored_wei"]):
        pairs.append(("for payers", f"{sponsored_wei / 1e18:.6f} ether of gas in the last hour"))
    pairs.append(("channels", ", ".join(f"{number:,} {name}" for name, number in channels.items())))
    pairs += [(name.replace("_", " "), money(int(status[name]))) for name in _MONEY]
    print_pairs(pairs)
    for title, rows in (
        ("payers that leave", status["exits"]),
        ("transactions under way", status["pending"]),
        ("refused for now", status["quarantine"]),
    ):
        print_table(
            [
                {name.replace("_", " "): _cell(name, value, money) for name, value in row.items()}
                for row in rows
            ],
            title=title,
        )
    for finding in status["findings"]:
        say(f"{finding['level']}: {finding['text']}", style=_COLOURS[finding["level"]])
    say(status["level"], style=_COLOURS[status["level"]])


def _block(head: dict[str, Any]) -> str:
    return f"{head['number']:,} of {format_time(head['timestamp'])}"


def _look(status: dict[str, Any]) -> str:
    if status["last_seen_block"] is None:
        return "never"
    return f"{format_time(status['last_seen_at'])}, at block {status['last_seen_block']:,}"


def _cell(name: str, value: Any, money: Format) -> str:
    if isinstance(value, bytes):
        return format_id(value)
    if name in _TIMES and value:
        return format_time(value)
    return money(int(value)) if name in _MONEY else str(value)
