"""`mpp-session status`: how a provider stands, for people and for monitors."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from channel.errors import ConfigError
from mpp_session.cli.output import OUT, print_json
from mpp_session.devnet_file import devnet_settings, read_devnet
from mpp_session.settings import parse_address
from mpp_session.settings.config import load_watch_config

__all__ = ["NAME", "command", "devnet_defaults"]

NAME: Final = "status"

_COLOURS: Final = {"fine": "green", "warning": "yellow", "critical": "bold red"}
_SQLITE: Final = "sqlite:///"


def command(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The gateway's settings.")
    ] = None,
    devnet: Annotated[
        Path | None, typer.Option(help="Of a gateway that was started with --devnet.")
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="URL of the books, instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is at risk, what is under way, and what needs a person.

    The exit code tells a monitor: 0 all is well; 10 somebody should look today; 20 money is lost
    if nobody looks now; 1 it could not be found out; 2 wrong settings. No key is needed, and a
    gateway or settler may be running. Amounts are base units of the token.

    \b
    mpp-session status --config gateway.toml
    mpp-session status --devnet devnet.json --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.operator.status import to_json  # noqa: PLC0415 -- slow to import
    from mpp_session.operator.status_reading import collect_status  # noqa: PLC0415

    settings, payee, gas_account = load_watch_config(
        config,
        flags={"ledger.url": ledger} if ledger is not None else {},
        defaults=devnet_defaults(devnet) if devnet is not None else None,
    )
    url = settings.ledger.url
    if url.startswith(_SQLITE) and not Path(url.removeprefix(_SQLITE)).is_file():
        raise ConfigError(f"there is no ledger at {url}")  # opening it would make one
    status = asyncio.run(
        collect_status(settings, parse_address(payee), gas_account=parse_address(gas_account))
    )
    if as_json:
        print_json(to_json(status))
    else:
        _print(to_json(status))
    raise typer.Exit(int(status.level))


def devnet_defaults(path: Path) -> dict[str, Any]:
    """Return the settings of a gateway that was started with --devnet."""
    return {
        **devnet_settings(read_devnet(path)),
        "ledger.url": f"{_SQLITE}{path.resolve().with_suffix('.ledger.db')}",
    }


def _print(status: dict[str, Any]) -> None:
    head = status["head"]
    table = Table.grid(padding=(0, 2))
    table.add_row("payee", f"0x{status['payee'].hex()}")
    table.add_row("settler", status["settler"] or "none runs")
    table.add_row("block", "no node answers" if head is None else _block(head))
    table.add_row("last looked", _look(status))
    if head is not None:
        wei = (int(status["balance_wei"]), int(status["reserve_wei"]))
        table.add_row("gas", f"{wei[0] / 1e18:.6f} ether, {wei[1] / 1e18:.6f} kept for closes")
    if sponsored_wei := int(status["sponsored_wei"]):
        table.add_row("for payers", f"{sponsored_wei / 1e18:.6f} ether of gas in the last hour")
    channels = status["channels"]
    table.add_row("channels", ", ".join(f"{count:,} {name}" for name, count in channels.items()))
    for name in ("at_risk", "unsettled", "undelivered", "locked"):
        table.add_row(name.replace("_", " "), f"{int(status[name]):,}")
    OUT.print(table)
    _print_rows("payers that leave", status["exits"])
    _print_rows("transactions under way", status["pending"])
    _print_rows("refused for now", status["quarantine"])
    for finding in status["findings"]:
        line = Text(f"{finding['level']}: ", style=_COLOURS[finding["level"]])
        OUT.print(line.append(finding["text"], style="default"))
    OUT.print(Text(status["level"], style=_COLOURS[status["level"]]))


def _block(head: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(head["timestamp"], UTC)
    return f"{head['number']:,} of {when:%Y-%m-%d %H:%M:%S} UTC"


def _look(status: dict[str, Any]) -> str:
    if status["last_seen_block"] is None:
        return "never"
    when = datetime.fromtimestamp(status["last_seen_at"], UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC, at block {status['last_seen_block']:,}"


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(title=title, show_edge=False, title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*[_cell(value) for value in row.values()])
    OUT.print(table)


def _cell(value: Any) -> str:
    return f"0x{value.hex()[:12]}…" if isinstance(value, bytes) else str(value)
