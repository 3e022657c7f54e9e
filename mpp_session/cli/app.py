"""The program's commands, and how it ends.

Exit codes: 0 done; 1 failed; 2 wrong usage or settings; 130 interrupted. An `MppSessionError`
prints one line on standard error. Any other exception is a bug, and prints a traceback.
"""

import sys
from typing import Annotated, Final

import typer

from channel.errors import ConfigError, MppSessionError
from mpp_session.cli import (
    audit,
    channels,
    demo,
    deploy,
    devnet,
    discovery,
    doctor,
    earnings,
    export,
    gateway,
    init,
    keygen,
    ledger,
    mcp_proxy,
    pay,
    policy,
    prices,
    proxy,
    recover,
    settle,
    spent,
    status,
    validate,
    wallet_approvals,
    wallet_process,
    wallet_stats,
    withdraw,
)
from mpp_session.cli.output import print_error, report
from mpp_session.process.os_limits import forbid_core_files
from mpp_session.process.relay import drain

__all__ = ["APP", "main"]

INTERRUPTED: Final = 130

APP: Final = typer.Typer(
    name="mpp-session",
    help="Payment channels for AI agents and inference providers.",
    epilog="Try it: mpp-session demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _group in (
    demo,
    devnet,
    doctor,
    validate,
    keygen,
    deploy,
    gateway,
    init,
    settle,
    pay,
    mcp_proxy,
    proxy,
    spent,
    discovery,
    channels,
    earnings,
    export,
    status,
    withdraw,
    recover,
):
    APP.command(_group.NAME)(_group.command)
APP.add_typer(audit.APP, name=audit.NAME)
APP.add_typer(ledger.APP, name=ledger.NAME)
APP.add_typer(policy.APP, name=policy.NAME)
APP.add_typer(prices.APP, name=prices.NAME)
for _name, _command in (*wallet_approvals.COMMANDS.items(), *wallet_stats.COMMANDS.items()):
    wallet_process.APP.command(_name)(_command)
APP.add_typer(wallet_process.APP, name=wallet_process.NAME)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 -- typer calls it so
    if wanted:
        from mpp_session import __version__

        typer.echo(f"mpp-session {__version__}")
        raise typer.Exit


@APP.callback()
def _program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Payment channels for AI agents and inference providers."""


def main() -> None:
    """Run the program and end it with its exit code."""
    forbid_core_files()  # nearly every command holds some key
    try:
        APP(prog_name="mpp-session")
    except ConfigError as error:
        print_error(error)
        sys.exit(2)
    except MppSessionError as error:
        print_error(error)
        sys.exit(1)
    except SystemExit as end:  # typer makes one of everything else, an interruption included
        if end.code == INTERRUPTED:
            report("interrupted")
        raise
    finally:
        drain()
