"""`mpp-session validate`: checks any server of MPP from outside, and pays one on a test chain."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.checks import conclude, show_checks
from mpp_session.cli.options import AsJson
from mpp_session.cli.output import print_json
from mpp_session.cli.wallet import (
    DEPOSIT_MAX,
    Caps,
    ChainId,
    DepositMax,
    Keystore,
    PasswordFile,
    PayDevnet,
    PriceMax,
    RpcUrl,
    Token,
    load_wallet,
)
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from mpp_session.agent.pay import Wallet
    from mpp_session.operator.validate import Examined, Subject

__all__ = ["NAME", "command"]

NAME: Final = "validate"


def command(  # noqa: PLR0913 -- each is a flag
    url: Annotated[str, typer.Argument(help="What the server sells.")],
    *,
    method: Annotated[
        str | None,
        typer.Option("--method", "-X", help="HTTP method; POST with a body and GET without."),
    ] = None,
    body: Annotated[str | None, typer.Option(help="Send this JSON, or @FILE.")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:VALUE", help="Send this header. Repeat it for several."),
    ] = None,
    pays: Annotated[
        bool, typer.Option("--pay", help="Also pay for one request, and close the channel.")
    ] = False,
    any_chain: Annotated[
        bool, typer.Option("--any-chain", help="Let --pay use a chain that is not a test chain.")
    ] = False,
    devnet: PayDevnet = None,
    rpc_url: RpcUrl = None,
    chain_id: ChainId = None,
    token: Token = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    price_max: PriceMax = None,
    deposit_max: DepositMax = DEPOSIT_MAX,
    as_json: AsJson = False,
) -> None:
    """Check a paid server from outside, and name each remedy.

    Each check is one line, and each fault has a remedy below it. The server may be of any make. It
    is asked without payment and with credentials that it must refuse. With --pay one request is
    paid on a test chain, asked again under its key, and the refund is read from the chain.

    It exits with 0 when it finds no fault, 1 when it finds one.

    \b
    mpp-session validate https://llm.example.com/joke
    mpp-session validate http://127.0.0.1:8402/v1/chat/completions --body @chat.json
        --pay --devnet devnet.json
    mpp-session validate https://llm.example.com/joke --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    subject = _subject(url, method, body, header or [])
    wallet: Wallet | None = None
    if pays:
        wallet = load_wallet(
            Caps(price_max or [], deposit_max, deposit_max),
            devnet=devnet,
            rpc_url=rpc_url,
            chain_id=chain_id,
            token=token,
            keystore=keystore,
            password_file=password_file,
            contract=None,
            voucher_keys=None,
        )
        from mpp_session.operator.validate_paid import require_test_chain

        require_test_chain(wallet.policy.limits[0].chain_id, is_any_allowed=any_chain)
    checks = asyncio.run(_examine(subject, wallet, as_json=as_json))
    is_good = not any(check.verdict == "fault" for check in checks)
    if as_json:
        print_json({"url": url, "checks": checks, "ok": is_good})
    else:
        conclude(checks)
    raise typer.Exit(0 if is_good else 1)


def _subject(url: str, method: str | None, body: str | None, headers: list[str]) -> "Subject":
    from mpp_session.operator.validate import Subject

    content = None if body is None else body.encode()
    if body is not None and body.startswith("@"):
        try:
            content = Path(body[1:]).read_bytes()
        except OSError as error:
            raise CommandError(f"{body[1:]} cannot be read: {error.strerror}") from None
    named = {}
    for text in headers:
        name, is_whole, value = text.partition(":")
        if not is_whole or not name.strip():
            raise CommandError(f"--header: expected NAME:VALUE, found {text}")
        named[name.strip().lower()] = value.strip()
    verb = (method or ("POST" if content is not None else "GET")).upper()
    return Subject(url=url, method=verb, content=content, headers=named)


async def _examine(
    subject: "Subject", wallet: "Wallet | None", *, as_json: bool
) -> "list[Examined]":
    from mpp_session.operator.validate import examine_server

    checks = []
    async for check in examine_server(subject):
        checks.append(check)
        show_checks([check], as_json=as_json)
    if wallet is None or not _has_challenge(checks):
        return checks
    from mpp_session.agent.pay import make_folder
    from mpp_session.operator.validate_paid import examine_paid

    store = wallet.store.with_name(f"validate-{wallet.store.name}")
    await make_folder(store)
    async with wallet.open(store, answers_refusals=False) as client:
        async for check in examine_paid(subject, client, rpc_url=wallet.rpc_url):
            checks.append(check)
            show_checks([check], as_json=as_json)
    return checks


def _has_challenge(checks: "list[Examined]") -> bool:
    """Return whether the server asks for a payment that can be read."""
    return any(check.name == "challenge" and check.verdict == "ok" for check in checks)
