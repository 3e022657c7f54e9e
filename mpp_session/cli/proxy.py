"""`mpp-session proxy`: any program pays by a base URL."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.output import say
from mpp_session.cli.wallet import (
    DEPOSIT_MAX,
    Budget,
    Caps,
    ChainId,
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
    from mpp_session.settings import Secret
    from mpp_session.wallet.proxy.app import Proxy
    from mpp_session.wallet.proxy.clients import OpenClient
    from mpp_session.wallet.proxy.upstreams import Upstreams

__all__ = ["NAME", "command"]

NAME: Final = "proxy"


def command(  # noqa: PLR0913 -- each is a flag
    *,
    upstream: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]URL",
            help="Server to pay: at every path, or with a name at /NAME/. Repeat it for several.",
        ),
    ],
    upstream_key_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE", help="API key that the server itself wants, in a file."
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where programs reach the proxy.")
    ] = "127.0.0.1:8402",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File of the token that programs send as API key; made if missing. Without it "
            "each start makes another token."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name of this proxy beside localhost.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web page that may use it, such as https://a.example."),
    ] = None,
    any_address: Annotated[
        bool, typer.Option("--any-address", help="Let --listen name an address of the network.")
    ] = False,
    wallet: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Wallet process that pays: unix:/path/wallet.sock. Each program then sends the "
            "token of its agent, and the flags of an account are left out.",
        ),
    ] = None,
    devnet: PayDevnet = None,
    rpc_url: RpcUrl = None,
    chain_id: ChainId = None,
    token: Token = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    voucher_keys: VoucherKeysFile = None,
    price_max: PriceMax = None,
    deposit_max: DepositMax = DEPOSIT_MAX,
    budget: Budget = None,
    store: Store = None,
    voucher_step: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Units of a stream to pay ahead; 64 if not given. Give more for a fast stream "
            "from far away: what comes in a second.",
        ),
    ] = None,
) -> None:
    """Pay for programs that only have a base URL. Ends with Ctrl-C.

    A program sends its requests here with the printed token as its API key. The proxy sends them to
    the server by https, pays within the limits given here, and streams the answers back. Channels
    stay open for the next start. With --wallet, a wallet process pays, within its policy.

    \b
    mpp-session proxy --upstream https://llm.example.com --wallet unix:/run/wallet/wallet.sock
    mpp-session proxy --upstream https://llm.example.com --devnet devnet.json
    mpp-session proxy --upstream llm=https://llm.example.com --upstream https://tools.example.com
        --rpc-url https://node.example.com --chain-id 8453 --token 0x8335...
        --keystore agent.json --password-file agent.password
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from msgspec.structs import replace

    from mpp_session.wallet.proxy.app import build_proxy
    from mpp_session.wallet.proxy.serve import (
        make_token,
        only_for,
        parse_listen,
        read_or_make_token,
    )

    host, port = parse_listen(listen, is_any_allowed=any_address)
    upstreams = _upstreams(upstream, upstream_key_file or [])
    account = {
        "devnet": devnet,
        "rpc_url": rpc_url,
        "chain_id": chain_id,
        "token": token,
        "keystore": keystore,
        "password_file": password_file,
        "voucher_keys": voucher_keys,
    }
    secret: Secret | None = None
    if wallet is not None:
        own = {**account, "token_file": token_file, "price_max": price_max, "budget": budget}
        open_client = _through(wallet, {**own, "store": store, "voucher_step": voucher_step})
    else:
        caps = Caps(price_max or [], deposit_max, deposit_max if budget is None else budget)
        payer = load_wallet(caps, contract=None, **account)  # type: ignore[arg-type]
        if voucher_step is not None:
            payer = replace(payer, policy=replace(payer.policy, voucher_step=voucher_step))
        secret = make_token() if token_file is None else read_or_make_token(token_file)
        path = store or payer.store
        path.parent.mkdir(parents=True, exist_ok=True)
        open_client = only_for(
            secret, lambda: payer.open(path, timeout_s=_TIMEOUT_S, answers_refusals=False)
        )
    app = build_proxy(
        open_client,
        upstreams,
        hosts=[*(allow_host or []), *([host] if any_address else [])],
        origins=allow_origin or [],
    )
    asyncio.run(_serve(app, host, port, secret, upstreams.usual_prefix))


_TIMEOUT_S: Final = 600.0
"""As SDKs wait for a model: they give up before the proxy does."""


def _through(wallet: str, own: dict[str, object]) -> "OpenClient":
    """Return what opens the client of a token at a wallet process."""
    from mpp_session.agent.client import open_client
    from mpp_session.agent.wallet_wire import parse_wallet
    from mpp_session.errors import CommandError

    given = [f"--{name.replace('_', '-')}" for name, value in own.items() if value is not None]
    if given:
        raise CommandError(
            f"leave out {', '.join(given)}: the wallet has its own account and limits"
        )
    parse_wallet(wallet)  # before the first request needs it
    return lambda token: open_client(
        wallet=wallet, token=token, timeout_s=_TIMEOUT_S, answers_refusals=False
    )


def _upstreams(texts: list[str], key_files: list[str]) -> "Upstreams":
    from channel.errors import ConfigError
    from mpp_session.wallet.proxy.serve import read_key
    from mpp_session.wallet.proxy.upstreams import Upstreams, parse_upstream

    keys = {}
    for text in key_files:
        name, is_named, path = text.rpartition("=")
        keys[name if is_named else ""] = read_key(Path(path))
    found = [parse_upstream(text) for text in texts]
    unknown = keys.keys() - {one.name for one in found}
    if unknown:
        raise ConfigError(f"--upstream-key-file: no --upstream has the name {min(unknown)!r}")
    return Upstreams(
        [parse_upstream(text, keys.get(one.name)) for text, one in zip(texts, found, strict=True)]
    )


async def _serve(app: "Proxy", host: str, port: int, secret: "Secret | None", prefix: str) -> None:
    import asyncio

    from mpp_session.process.signals import stop_on_signals
    from mpp_session.wallet.proxy.serve import bind, serve_proxy

    with bind(host, port) as listener:
        stopping = asyncio.Event()
        stop_on_signals(stopping)
        bound = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        say(f"export OPENAI_BASE_URL=http://{shown}:{bound}{prefix}/v1")
        key = "mpp_..." if secret is None else secret.reveal()
        say(f"export OPENAI_API_KEY={key}")
        await serve_proxy(listener, app, stopping)
