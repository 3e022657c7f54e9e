"""`mpp-session recover`: rebuild the books from an export and the chain."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from channel.errors import ConfigError
from mpp_session.cli.options import AsJson, ConfigPath, Devnet
from mpp_session.cli.output import count, format_id, print_json, print_table, report, say
from mpp_session.cli.status import devnet_defaults
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from mpp_session.agent.amounts import TokenUnit
    from mpp_session.operator.recovery import Recovered
    from mpp_session.settings import WatchConfig

__all__ = ["NAME", "command"]

NAME: Final = "recover"

_AMOUNTS: Final = ("deposit", "settled", "spent", "claim")
_UNCOLLECTABLE: Final = frozenset({"STOPPED", "MISSING", "GONE"})


def command(
    export: Annotated[
        Path, typer.Argument(help="What `mpp-session ledger export` wrote; the newest there is.")
    ],
    *,
    config: ConfigPath = None,
    devnet: Devnet = None,
    ledger: Annotated[str | None, typer.Option(help="URL of the new books, instead.")] = None,
    from_block: Annotated[
        int, typer.Option(help="Where to begin to look for channels in no export.")
    ] = 0,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Take for delivered what the chain shows as settled beyond the export."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild lost books from exported vouchers and the chain.

    Run it with the gateway and the settler stopped; then start both: the settler collects what the
    vouchers cover. It may be run again, with an older export too: channels that the books know are
    left as they are. Exit code 3 says that something cannot be collected, and which.

    \b
    mpp-session recover channels.jsonl --config gateway.toml
    mpp-session recover channels.jsonl --config gateway.toml --from-block 18000000 --repair
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.settings.config import load_watch_config

    if not export.is_file():
        raise CommandError(f"{export} is not there")
    settings, payee, _ = load_watch_config(
        config,
        flags={"ledger.url": ledger} if ledger is not None else {},
        defaults=devnet_defaults(devnet) if devnet is not None else None,
    )
    if from_block < 0:
        raise ConfigError("--from-block is below 0")
    found, unit = asyncio.run(
        _recover(settings, payee, export, repairs=repair, from_block=from_block)
    )
    if as_json:
        print_json([_row(each) for each in found])
    else:
        _print(found, unit)
    if any(each.verdict.name in _UNCOLLECTABLE for each in found):
        raise typer.Exit(3)


async def _recover(
    settings: "WatchConfig", payee: str, export: Path, *, repairs: bool, from_block: int
) -> "tuple[list[Recovered], TokenUnit]":
    """Return the channels, and how people write amounts of the token."""
    from channel.ledger.url import open_ledger
    from mpp_session.agent.amounts import BASE_UNITS
    from mpp_session.chain_watch import connect_escrow
    from mpp_session.operator.recovery import recover_channels
    from mpp_session.settings import parse_address
    from settlement.escrow.token_name import read_token_unit

    ledger = await open_ledger(settings.ledger.url, exclusive=True)
    try:
        async with connect_escrow(settings.chain) as reader:
            await reader.require_deployment()
            found = await recover_channels(
                ledger,
                reader,
                parse_address(payee),
                _lines(export),
                repairs=repairs,
                from_block=from_block,
            )
            unit = await read_token_unit(reader.rpc, parse_address(settings.chain.token))
            return found, unit or BASE_UNITS
    finally:
        await ledger.close()


async def _lines(path: Path) -> AsyncIterator[bytes]:
    """Yield the lines of an export; one that was cut off, by a full disk say, costs no other."""
    import asyncio

    content = await asyncio.to_thread(path.read_bytes)
    whole, _, rest = content.rpartition(b"\n")
    for line in whole.splitlines():
        if line.strip():
            yield line
    if rest.strip() and _is_json(rest):
        yield rest
    elif rest.strip():
        report("the export ends within a line: its last channel is left out")


def _is_json(line: bytes) -> bool:
    import msgspec

    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True


def _row(each: "Recovered") -> dict[str, Any]:
    return {
        "channel_id": each.key.channel_id,
        "payer": each.payer,
        "verdict": each.verdict.name.lower(),
        "deposit": str(each.deposit),
        "settled": str(each.settled),
        "spent": str(each.spent),
        "claim": str(each.claim),
        "close_requested_at": each.close_requested_at,
    }


def _print(found: "list[Recovered]", unit: "TokenUnit") -> None:
    if not found:
        say("no channels")
        return
    print_table(
        [
            {
                "channel": format_id(each.key.channel_id),
                "payer": format_id(each.payer),
                "verdict": each.verdict.value,
                **{name: unit.format(getattr(each, name)) for name in _AMOUNTS},
            }
            for each in found
        ],
        right=_AMOUNTS,
    )
    claim = sum(each.claim for each in found)
    say(f"{count(len(found), 'channel')}, {unit.format(claim)} to collect")
