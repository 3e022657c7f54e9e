"""`mpp-session withdraw`: take a deposit back without the server's help."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from channel.errors import ConfigError
from mpp_session.cli.account import KeyedAccount, devnet_store, load_account, store_path
from mpp_session.cli.output import format_id, format_time, print_json, report, say
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from channel.client.store.sqlite import PaymentStore
    from channel.types import ChannelId
    from mpp_session.agent.withdrawal import Leaving, Progress
    from settlement.dev.devnet import DevnetValues

__all__ = ["NAME", "command"]

NAME: Final = "withdraw"


def command(  # noqa: PLR0913 -- each is a flag
    channels: Annotated[
        list[str] | None, typer.Argument(help="Ids of channels, 0x...; or give --all.")
    ] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Every channel that is not closed.")] = False,
    devnet: Annotated[
        Path | None, typer.Option(help="Use a running devnet, and the account of its store.")
    ] = None,
    rpc_url: Annotated[str | None, typer.Option(help="Node of the chain.")] = None,
    chain_id: Annotated[int | None, typer.Option(help="That chain.")] = None,
    keystore: Annotated[
        Path | None, typer.Option(help="Encrypted key of the account that deposited.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line decrypts it.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Where channels and signed amounts are kept.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Only ask; run it again once the time is up.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Withdraw what is left of a deposit, without the server.

    For a server that does not answer or does not close. Requests the close from the escrow, waits
    for the grace period to end, and withdraws. The server receives at most what was signed. The
    account sends both transactions itself, so it needs ether even if the server paid to open. The
    command may be stopped at any point; the next run continues from what the chain shows. Exit
    code 3: the grace period of a channel still runs.

    \b
    mpp-session withdraw --all --devnet devnet.json
    mpp-session withdraw 0x5af3... --rpc-url https://node.example.com --chain-id 8453
        --keystore agent.json --password-file agent.password
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    if bool(channels) == all_:
        raise CommandError("give either ids of channels or --all")
    which = None if all_ else [_channel_id(text) for text in channels or ()]
    account: KeyedAccount | DevnetValues
    if devnet is not None:
        from mpp_session.devnet_file import read_devnet

        account, path = read_devnet(devnet), store or devnet_store(devnet)
    else:
        account = load_account(
            rpc_url=rpc_url, chain_id=chain_id, keystore=keystore, password_file=password_file
        )
        path = store or store_path()
    if not path.is_file():
        raise ConfigError(f"there is no store of channels at {path}")
    tell = (lambda _: None) if as_json else _tell
    leaving = asyncio.run(_withdraw(account, path, which, waits=not no_wait, tell=tell))
    if as_json:
        print_json([_row(each) for each in leaving])
    elif not leaving:
        say("no channels")
    if any(each.stage.name == "WAITING" for each in leaving):
        raise typer.Exit(3)


async def _withdraw(
    account: "KeyedAccount | DevnetValues",
    path: Path,
    which: "Sequence[ChannelId] | None",
    *,
    waits: bool,
    tell: "Progress",
) -> "list[Leaving]":
    from channel.client.store.sqlite import PaymentStore
    from mpp_session.agent.withdrawal import withdraw_channels
    from settlement.escrow.payer import PayerAccount
    from settlement.node.rpc import Rpc
    from settlement.tx.manager import TxManager
    from settlement.tx.signer import KeySigner

    store = await PaymentStore.open(path)
    try:
        async with await Rpc.connect(account.rpc_url, chain_id=account.chain_id) as rpc:
            if isinstance(account, KeyedAccount):
                key = KeySigner(account.private_key)
            else:  # ether for the way out costs nothing there
                key = KeySigner(await _devnet_key(account, store))
                await rpc.command("anvil_setBalance", "0x" + key.address.hex(), hex(10**18))
            return await withdraw_channels(
                rpc=rpc,
                account=PayerAccount(TxManager(rpc, key)),
                store=store,
                which=which,
                waits=waits,
                tell=tell,
            )
    finally:
        await store.close()


def _tell(leaving: "Leaving") -> None:
    line, show = f"{format_id(leaving.key.channel_id)}: {leaving.stage.value}", leaving.unit.format
    if leaving.stage.name == "WAITING":
        line += f", {format_time(leaving.ready_at)}"
    elif leaving.stage.name == "LEAVING":
        line += (
            f": {show(leaving.delivered)} delivered, {show(leaving.signed)} signed, and the "
            "provider may take up to that. While it answers, a close pays what it delivered"
        )
    elif leaving.deposit:
        line += f", {show(leaving.refunded)} back, {show(leaving.settled)} paid"
    report(line)


def _row(leaving: "Leaving") -> dict[str, Any]:
    return {
        "channel_id": leaving.key.channel_id,
        "origin": leaving.origin,
        "stage": leaving.stage.name.lower(),
        "deposit": str(leaving.deposit),
        "settled": str(leaving.settled),
        "refunded": str(leaving.refunded),
        "ready_at": leaving.ready_at,
        "tx_hash": leaving.tx_hash,
    }


def _channel_id(text: str) -> "ChannelId":
    from channel.types import channel_id

    try:
        return channel_id(bytes.fromhex(text.removeprefix("0x")))
    except ValueError:
        raise CommandError(f"{text} is no channel id: 0x and 64 hexadecimal digits") from None


async def _devnet_key(values: "DevnetValues", store: "PaymentStore") -> bytes:
    """Return the key of the account whose channels these are: the agent's, as a rule."""
    from settlement.dev.devnet import GASLESS

    payers = {account.terms.payer for account in await store.records()}
    owners = [each for each in values.accounts.values() if each.address in payers]
    return (owners or [values.accounts[GASLESS]])[0].private_key
