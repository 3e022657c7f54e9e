"""`mpp-session mcp-proxy`: lets any MCP host pay."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.wallet import (
    DEPOSIT_MAX,
    Budget,
    Caps,
    ChainId,
    Contract,
    DepositMax,
    Keystore,
    PasswordFile,
    PayDevnet,
    PriceMax,
    RpcUrl,
    Store,
    Token,
    VoucherKeysFile,
    load_wallet,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mpp_session.agent.pay import Wallet

__all__ = ["NAME", "command"]

NAME: Final = "mcp-proxy"


def command(  # noqa: PLR0913 -- each is a flag
    server: Annotated[
        list[str],
        typer.Argument(help="URL of the paid server; or after --, the command that starts it."),
    ],
    *,
    devnet: PayDevnet = None,
    rpc_url: RpcUrl = None,
    chain_id: ChainId = None,
    token: Token = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    wallet: Contract = None,
    voucher_keys: VoucherKeysFile = None,
    price_max: PriceMax = None,
    deposit_max: DepositMax = DEPOSIT_MAX,
    budget: Budget = None,
    store: Store = None,
    closes: Annotated[
        bool, typer.Option("--close", help="Close the channel when the host disconnects.")
    ] = False,
) -> None:
    """Serve an MCP host on stdio, and pay the server behind it.

    The host needs no support for payments. Keys stay here, nothing a server says can raise the
    limits given here, and a refusal to pay is a tool's error. Without --close the channel stays
    open, and the next start uses it.

    \b
    mpp-session mcp-proxy https://tools.example.com/mcp --devnet devnet.json
    mpp-session mcp-proxy --devnet devnet.json --price-max request=0.01 -- python paid_server.py
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    payer = load_wallet(
        Caps(price_max or [], deposit_max, deposit_max if budget is None else budget),
        devnet=devnet,
        rpc_url=rpc_url,
        chain_id=chain_id,
        token=token,
        keystore=keystore,
        password_file=password_file,
        contract=wallet,
        voucher_keys=voucher_keys,
    )
    asyncio.run(_serve(server, payer, store or payer.store, closes=closes))


async def _serve(words: list[str], payer: "Wallet", store: "Path", *, closes: bool) -> None:
    from mpp_session.agent.pay import make_folder
    from mpp_session.mcp.proxy import run_proxy, server_of

    server = server_of(words)
    await make_folder(store)
    async with payer.open(store) as wallet:
        await run_proxy(server, wallet, closes=closes)
