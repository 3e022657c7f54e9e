"""`mpp-session settle`: the settler, apart from the gateway."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NamedTuple, TypeVar

import typer

from channel.errors import ConfigError, MppSessionError
from mpp_session.cli.options import ConfigPath, Level, LogJson, LogLevel
from mpp_session.cli.output import count, print_json_line, say
from mpp_session.errors import CommandError

__all__ = ["NAME", "command"]

NAME: Final = "settle"

_Config = TypeVar("_Config")


def command(  # noqa: PLR0913 -- each is a flag
    *,
    config: ConfigPath = None,
    devnet: Annotated[
        Path | None,
        typer.Option(help="Take chain, escrow, token, payee and key from a running devnet."),
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="URL of the books.")] = None,
    watchtower: Annotated[
        Path | None,
        typer.Option(
            help="Be a watchtower: settle from this file, which another machine's settler writes."
        ),
    ] = None,
    until_eof: Annotated[
        bool,
        typer.Option("--until-eof", help="Stop when standard input ends, for a parent program."),
    ] = False,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="Settle all that is unsettled, wait until it is mined, and end."
        ),
    ] = False,
    log_level: LogLevel = Level.INFO,
    log_json: LogJson = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say what it does as JSON.")] = False,
) -> None:
    """Settle and close the channels in the books of one payee.

    A gateway starts one by itself unless `settlement.start` is false. On each database one settler
    works for a payee's key; another one stands by and takes over within ten seconds.

    With --now it settles what is unsettled on every channel, however little, waits until that is
    mined, says how much it was, and ends. No other settler may run for the payee: a gateway that
    started one must be stopped first.

    With --watchtower it has no key and no books of the payee's: it watches the chain, and settles
    with what was signed ahead when a payer leaves and the payee's own settler is absent.

    \b
    mpp-session settle --config gateway.toml
    mpp-session settle --devnet devnet.json
    mpp-session settle --now --config gateway.toml
    mpp-session settle --watchtower settles.jsonl --config tower.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.process.logs import log_to_stderr

    log_to_stderr(log_level.value, as_json=log_json)
    given = _Given(config, devnet, ledger)
    if now and (watchtower is not None or until_eof):
        raise CommandError("--now ends by itself, and settles from the books alone")
    work = _settle_now if now else partial(_run, watchtower=watchtower, until_eof=until_eof)
    if not as_json:
        asyncio.run(work(given, as_json=False))
        return
    try:
        asyncio.run(work(given, as_json=True))
    except MppSessionError as error:
        print_json_line({"error": str(error)})
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


class _Given(NamedTuple):
    """Where the settings come from."""

    config: Path | None
    devnet: Path | None
    ledger: str | None

    def load(self, load: Callable[..., _Config]) -> _Config:
        """Read them; in a devnet the books are beside its file."""
        defaults = None
        if self.devnet is not None:
            from mpp_session.devnet_file import devnet_settings, read_devnet

            defaults = {
                **devnet_settings(read_devnet(self.devnet)),
                "ledger.url": f"sqlite:///{self.devnet.resolve().with_suffix('.ledger.db')}",
            }
        flags = {} if self.ledger is None else {"ledger.url": self.ledger}
        return load(self.config, flags=flags, defaults=defaults)


async def _settle_now(given: _Given, *, as_json: bool) -> None:
    from mpp_session.process.settler import settle_now
    from mpp_session.settings.config import load_settler_config

    done = await settle_now(given.load(load_settler_config))
    if as_json:
        counts = {"settled": done.channels, "closed": done.closed, "waiting": done.waiting}
        print_json_line({**counts, "amount": str(done.amount)})
    else:
        closed = f", closed {count(done.closed, 'channel')}" if done.closed else ""
        say(f"settled {count(done.channels, 'channel')}{closed}: {done.unit.format(done.amount)}")
    if done.waiting:
        raise CommandError(
            f"{count(done.waiting, 'channel')} could not be settled yet: see the log"
        )


async def _run(given: _Given, *, watchtower: Path | None, until_eof: bool, as_json: bool) -> None:
    import asyncio

    from mpp_session.process.signals import stop_at_eof, stop_on_signals

    def announce(state: str, detail: str) -> None:
        if as_json:
            print_json_line({"state": state, "detail": detail})
        else:
            say(f"{state} {detail}")

    stopping = asyncio.Event()
    stop_on_signals(stopping)
    if until_eof:
        stop_at_eof(stopping)
    if watchtower is not None:
        from mpp_session.process.tower import run_tower
        from mpp_session.settings.config import load_tower_config

        tower = given.load(load_tower_config)
        await run_tower(tower, watchtower, announce=announce, stopping=stopping)
        return
    from mpp_session.process.settler import run_settler
    from mpp_session.settings.config import load_settler_config

    settler = given.load(load_settler_config)
    await run_settler(settler, announce=announce, stopping=stopping)
