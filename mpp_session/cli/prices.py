"""`mpp-session prices`: check, show, reload and import the prices of a gateway."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from channel.errors import ConfigError
from mpp_session.cli.options import AsJson, ConfigPath, Devnet
from mpp_session.cli.output import count, print_json, print_table, report, say
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from mpp_session.prices.table import PriceTable

__all__ = ["APP", "NAME", "check", "import_", "reload", "show"]

NAME: Final = "prices"
APP: Final = typer.Typer(
    help="Check, show, reload and import the prices of a gateway.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@APP.command()
def check(*, config: ConfigPath = None, devnet: Devnet = None, as_json: AsJson = False) -> None:
    """Read all prices as a reload would, and say what is wrong. Nothing changes.

    Exit code 2: a row is not valid, and it is named.

    \b
    mpp-session prices check --config gateway.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    table = _read_table(config, devnet)
    if as_json:
        print_json({"rows": len(table.listings)})
    else:
        say(f"{count(len(table.listings), 'price')}, all valid")


@APP.command()
def show(*, config: ConfigPath = None, devnet: Devnet = None, as_json: AsJson = False) -> None:
    """Show the prices in the settings, in the order in which they count.

    \b
    mpp-session prices show --config gateway.toml
    mpp-session prices show --config gateway.toml --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from channel.wire.tariff import tariff_object
    from mpp_session.settings import describe_tariff

    table = _read_table(config, devnet)
    rows = [
        {
            "model": "" if one.row.path is not None else one.row.model,
            "endpoint": one.row.sold_path or one.row.endpoint,
            "valid_from": "" if one.row.valid_from is None else one.row.valid_from.isoformat(),
            "price": describe_tariff(one.tariff, table.unit),
        }
        for one in table.listings
    ]
    if as_json:
        print_json(
            [
                {**row, "tariff": tariff_object(one.tariff)}
                for row, one in zip(rows, table.listings, strict=True)
            ]
        )
        return
    if not any(row["valid_from"] for row in rows):
        for row in rows:
            del row["valid_from"]
    print_table(rows)


@APP.command()
def reload(*, config: ConfigPath = None, devnet: Devnet = None) -> None:
    """Make the running gateway sell at the prices of its settings.

    The gateway reads them where it read them at its start, all of them or none: a row that is not
    valid is named, and the prices stay as they are. Running streams keep theirs. It must run on
    this machine, as this user; SIGHUP to its process does the same.

    \b
    mpp-session prices reload --config gateway.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.process.control_file import reload_running
    from mpp_session.settings.config import default_state_dir, load_values

    values = load_values(config, defaults=_defaults(config, devnet))
    url = str(values.get("ledger.url", ""))
    state_dir = values.get("ledger.state_dir")
    folder = Path(str(state_dir)) if state_dir else default_state_dir()
    problems = []
    for gateway in reload_running(folder, url):
        if gateway.problem is None:
            say(gateway.prices)
        else:
            problems.append(gateway.problem)
    if problems:
        raise ConfigError(f"the prices are not changed: {problems[0]}")


def _defaults(config: Path | None, devnet: Path | None) -> dict[str, Any] | None:
    from mpp_session.cli.gateway import devnet_defaults

    return None if devnet is None else devnet_defaults(devnet, config)


def _read_table(config: Path | None, devnet: Path | None) -> "PriceTable":
    import asyncio

    from mpp_session.operator.token_units import read_units
    from mpp_session.prices.table import PriceTable
    from mpp_session.settings import parse_address
    from mpp_session.settings.config import load_price_rows, load_values

    defaults = _defaults(config, devnet)
    rows = load_price_rows(config, defaults=defaults)
    values = load_values(config, defaults=defaults)
    token, chain_id = values.get("chain.token"), str(values.get("chain.id", ""))
    unit = None
    if token is not None and chain_id.isdecimal():
        found = asyncio.run(
            read_units(
                str(values.get("chain.rpc_url", "")),
                int(chain_id),
                [parse_address(str(token))],
            )
        )
        unit = next(iter(found.values()), None)
    if unit is None and any(row.is_in_money for row in rows):
        raise CommandError(
            "the token's decimals are not known, because no node answers: check `chain.rpc_url` "
            "and `chain.token`"
        )
    return PriceTable(rows, unit)


@APP.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="LiteLLM's map, or OpenRouter's list of models.")],
    *,
    multiplier: Annotated[str, typer.Option(help="Factor from its prices to yours.")] = "1",
    only: Annotated[str, typer.Option(help="Models to read: a name, or a pattern with *.")] = "*",
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="A price that you do not sell by, such as web_search. Repeat it."),
    ] = None,
) -> None:
    """Write rows of prices, read from a public list.

    They are for a file of `[[prices]]`. The list states dollars for one token, the rows state them
    for a million, exactly. A model is skipped, with a line that says why, if a price is missing
    or 0, or if it has prices that a row cannot state. Exit code 1: no row was written.

    \b
    mpp-session prices import model_prices_and_context_window.json --only 'gpt-4o*' > prices.toml
    mpp-session prices import openrouter.json --multiplier 1.2 > prices.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from decimal import Decimal, InvalidOperation

    from mpp_session.prices.importing import format_rows, import_prices

    try:
        factor = Decimal(multiplier)
    except InvalidOperation:
        raise ConfigError(f"expected --multiplier as a number, found {multiplier!r:.40}") from None
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    found = import_prices(text, multiplier=factor, only=only, ignored=ignore or ())
    for name, reason in found.skipped:
        report(f"skipped {name}: {reason}")
    report(f"{count(len(found.rows), 'row')}, {len(found.skipped):,} skipped")
    if not found.rows:
        raise typer.Exit(1)
    sys.stdout.write(format_rows(found.rows))
