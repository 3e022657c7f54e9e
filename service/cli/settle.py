"""`mpp-session settle`: the settler, apart from the gateway."""

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from channel.errors import ConfigError, MppSessionError
from service.cli.output import OUT, print_json_line
from service.config import load_settler_config
from service.logs import log_to_stderr
from service.settings import SettlerConfig

__all__ = ["NAME", "command"]

NAME: Final = "settle"


def command(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The gateway's settings.")
    ] = None,
    devnet: Annotated[
        Path | None,
        typer.Option(help="Take chain, escrow, token, payee and key from a running devnet."),
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="URL of the books.")] = None,
    until_eof: Annotated[
        bool,
        typer.Option("--until-eof", help="Stop when standard input ends, for a parent program."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say what it does as JSON.")] = False,
) -> None:
    """Settle and close the channels of one payee, from the books of its gateways.

    A gateway starts one by itself unless `settlement.start` is false. On each database one settler
    works for a payee's key; another one stands by and takes over within ten seconds.

    \b
    mpp-session settle --config gateway.toml
    mpp-session settle --devnet devnet.json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    log_to_stderr()
    if not as_json:
        asyncio.run(_run(_load(config, devnet, ledger), until_eof=until_eof, as_json=False))
        return
    try:
        asyncio.run(_run(_load(config, devnet, ledger), until_eof=until_eof, as_json=True))
    except MppSessionError as error:
        print_json_line({"error": str(error)})
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


def _load(config: Path | None, devnet: Path | None, ledger: str | None) -> SettlerConfig:
    defaults = None
    if devnet is not None:
        from service.devnet_file import devnet_settings, read_devnet  # noqa: PLC0415 -- slow

        defaults = {
            **devnet_settings(read_devnet(devnet)),
            "ledger.url": f"sqlite:///{devnet.resolve().with_suffix('.ledger.db')}",
        }
    flags = {} if ledger is None else {"ledger.url": ledger}
    return load_settler_config(config, flags=flags, defaults=defaults)


async def _run(config: SettlerConfig, *, until_eof: bool, as_json: bool) -> None:
    from service.settle_process import run_settler  # noqa: PLC0415 -- slow to import
    from service.stopping import stop_at_eof, stop_on_signals  # noqa: PLC0415

    def announce(state: str, detail: str) -> None:
        if as_json:
            print_json_line({"state": state, "detail": detail})
        else:
            OUT.print(Text(f"{state} {detail}"))

    stopping = asyncio.Event()
    stop_on_signals(stopping)
    if until_eof:
        stop_at_eof(stopping)
    await run_settler(config, announce=announce, stopping=stopping)
