"""`mpp-session gateway`: a price in front of a model server."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mpp_session.cli.options import Level, LogJson, LogLevel
from mpp_session.cli.output import print_json, say

if TYPE_CHECKING:
    from mpp_session.settings import Config

__all__ = ["NAME", "command", "devnet_defaults"]

NAME: Final = "gateway"

_DEVNET_PRICE: Final = 25


def command(  # noqa: PLR0913 -- each is a flag
    *,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Settings: docs/reference/configuration.md."),
    ] = None,
    devnet: Annotated[
        Path | None,
        typer.Option(help="Take chain, escrow, token, payee and key from a running devnet."),
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(help="Base URL of the model server, without /v1.")
    ] = None,
    input_price: Annotated[
        str | None, typer.Option(help="Price of a million input tokens, such as 0.10.")
    ] = None,
    output_price: Annotated[
        str | None, typer.Option(help="Price of a million output tokens, such as 0.40.")
    ] = None,
    price: Annotated[
        int | None,
        typer.Option(help="Instead: base units of the token for one output token."),
    ] = None,
    counts: Annotated[
        str | None, typer.Option(help="`chunks`, or `llama.cpp` for its exact token counts.")
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="URL of the books.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that serve; more than one needs PostgreSQL.")
    ] = None,
    until_eof: Annotated[
        bool,
        typer.Option("--until-eof", help="Stop when standard input ends, for a parent program."),
    ] = False,
    log_level: LogLevel = Level.INFO,
    log_json: LogJson = False,
    as_json: Annotated[bool, typer.Option("--json", help="Announce the address as JSON.")] = False,
) -> None:
    """Charge per token in front of an OpenAI-compatible server.

    Clients without payment get 402 and an offer; the model server never sees them. Settings come
    from the file, then from MPP_SESSION_* variables, then from these flags.

    \b
    mpp-session gateway --config gateway.toml
    mpp-session gateway --devnet devnet.json --upstream http://127.0.0.1:8080
    mpp-session gateway -c gateway.toml --input-price 0.10 --output-price 0.40
    MPP_SESSION_PAYMENT_SECRETS=... mpp-session gateway -c gateway.toml --port 9000
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.process.logs import log_to_stderr
    from mpp_session.settings.config import load_config, load_price_rows

    flags = {
        "upstream.url": upstream,
        "upstream.counts": counts,
        "price.input": input_price,
        "price.output": output_price,
        "price.per_unit": price,
        "ledger.url": ledger,
        "listen.host": host,
        "listen.port": port,
        "listen.workers": workers,
    }
    flags = {name: value for name, value in flags.items() if value is not None}
    log_to_stderr(log_level.value, as_json=log_json)

    def defaults() -> dict[str, Any] | None:
        return None if devnet is None else devnet_defaults(devnet, config, flags)

    settings = load_config(config, flags=flags, defaults=defaults())
    from mpp_session.gateway.serve import run_gateway
    from mpp_session.process.event_loop import run_server

    run = asyncio.run if settings.listen.workers > 1 else run_server
    run(
        run_gateway(
            settings,
            announce=lambda url, prices: _announce(url, prices, settings, as_json=as_json),
            until_eof=until_eof,
            read_prices=lambda: load_price_rows(config, flags=flags, defaults=defaults()),
        )
    )


def devnet_defaults(
    path: Path, config: Path | None = None, flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings that `--devnet` gives a gateway; a price unless another source has one.

    Raises:
        ConfigError: A source cannot be read.
    """
    from mpp_session.devnet_file import selling_settings
    from mpp_session.settings.config import load_values

    given = load_values(config, flags=flags)
    has_price = any(name.startswith(("price.", "prices.")) for name in given)
    price = {} if has_price else {"price.per_unit": _DEVNET_PRICE}
    return {**selling_settings(path), **price}


def _announce(url: str, prices: str, config: "Config", *, as_json: bool) -> None:
    if as_json:
        print_json({"url": url, "upstream": config.upstream.url})
        return
    say(f"listening on {url}")
    say(f"prices: {prices}")
