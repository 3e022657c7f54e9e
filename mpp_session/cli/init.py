"""`mpp-session init`: a gateway's first settings, from at most five questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.output import format_id, report, say
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from mpp_session.operator.first_settings import Deployment

__all__ = ["NAME", "command"]

NAME: Final = "init"


def command(
    folder: Annotated[Path, typer.Argument(help="Where to write the files.")] = Path(),
    *,
    upstream: Annotated[
        str | None, typer.Option(help="Base URL of the model server, without /v1.")
    ] = None,
    rpc: Annotated[str | None, typer.Option(help="URL of a node of the chain.")] = None,
    escrow: Annotated[str | None, typer.Option(help="Address of the escrow.")] = None,
    price: Annotated[
        str | None,
        typer.Option(help="Money for a million input and output tokens, such as 0.10/0.40."),
    ] = None,
    realm: Annotated[
        str | None, typer.Option(help="Name of the service in challenges: its host name.")
    ] = None,
    devnet: Annotated[
        Path | None, typer.Option(help="Take node, escrow and payee from a running devnet.")
    ] = None,
) -> None:
    """Write a gateway's settings, its payee's key and its secret.

    Each question has a flag that answers it. Model servers on this machine are found at their usual
    ports. The escrow names its token, and the node its chain. The command writes three files that
    only you can read: gateway.toml, payee.json (the encrypted key, its only copy) and
    payee.password. It overwrites no file.

    \b
    mpp-session init
    mpp-session init shop --devnet devnet.json --upstream http://127.0.0.1:8080 --price 0.10/0.40
    mpp-session init --upstream http://127.0.0.1:8000 --rpc https://node.example \\
        --escrow 0x... --price 0.10/0.40 --realm api.example.com
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.operator.first_settings import (
        Answers,
        read_deployment,
        require_new,
        write_key,
        write_settings,
    )
    from mpp_session.settings import parse_address

    key = None
    sponsoring = {}
    if devnet is not None:
        from mpp_session.devnet_file import devnet_settings, read_devnet

        values = read_devnet(devnet)
        rpc, escrow = rpc or values.rpc_url, escrow or format_id(values.escrow)
        realm, key = realm or "localhost", values.accounts["payee"].private_key
        sponsoring = {
            name.removeprefix("sponsoring."): value
            for name, value in devnet_settings(values).items()
            if name.startswith("sponsoring.")
        }
    folder = folder.absolute()
    files = [folder / name for name in ("gateway.toml", "payee.json", "payee.password")]
    for file in files:
        require_new(file)
    settings, keystore, password = files
    upstream = upstream or _ask_upstream()
    rpc = rpc or _ask("--rpc", "URL of a node of the chain")
    address = parse_address(escrow or _ask("--escrow", "Address of the escrow"))
    deployment = asyncio.run(read_deployment(rpc, address))
    token = "tokens" if deployment.unit is None else deployment.unit.symbol
    text = price or _ask("--price", f"{token} per million input/output tokens", "0.10/0.40")
    input_price, output_price = _read_price(text, deployment)
    realm = realm or _ask("--realm", "Name of the service: its host name", "localhost")
    folder.mkdir(parents=True, exist_ok=True)
    payee = write_key(keystore, password, key)
    write_settings(
        settings,
        Answers(
            upstream=upstream,
            rpc_url=rpc,
            deployment=deployment,
            input_price=input_price,
            output_price=output_price,
            realm=realm,
            payee=payee,
            keystore=keystore,
            password=password,
            sponsoring=sponsoring,
        ),
    )
    for file in files:
        report(f"wrote {file}")
    report(f"{format_id(payee)} is paid, and pays the gas of settling: send it some ether")
    say(f"mpp-session doctor --config {settings}", whole=True)


def _ask(flag: str, question: str, default: str | None = None) -> str:
    """Ask the user; a script must give the flag instead.

    Raises:
        CommandError: The command cannot ask, because standard input is not a terminal.
    """
    import sys

    if not sys.stdin.isatty():
        raise CommandError(f"{flag} is missing, and this command cannot ask for it: no terminal")
    return str(typer.prompt(question, default=default, err=True)).strip()


def _ask_upstream() -> str:
    import asyncio

    from mpp_session.operator.model_servers import find_model_servers

    found = asyncio.run(find_model_servers())
    for server in found:
        report(f"found {server.kind} at {server.url}")
    default = found[0].url if found else None
    return _ask("--upstream", "URL of the model server, without /v1", default).rstrip("/")


def _read_price(text: str, deployment: "Deployment") -> tuple[str | None, str]:
    """Return the prices of input and output. A single number is the price of output.

    Raises:
        ConfigError: The command cannot read a number as a price in this token.
    """
    from channel.tariff import Tariff, parse_rate
    from channel.types import TokenUnit

    unit = deployment.unit or TokenUnit("tokens", 0)
    first, slash, second = text.partition("/")
    input_price, output_price = (first.strip(), second.strip()) if slash else (None, first.strip())
    kinds = {"output_token": output_price, "input_token": input_price}
    Tariff(
        tuple(
            parse_rate(kind, f"{price} / 1M", unit)
            for kind, price in kinds.items()
            if price is not None
        )
    )
    return input_price, output_price
