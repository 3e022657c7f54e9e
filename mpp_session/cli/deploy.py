"""`mpp-session deploy`: the escrow of a token on a chain, quoted, deployed and checked (O-66)."""

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from mpp_session.cli.output import format_id, print_json, print_pairs, report, say
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from channel.types import Address
    from settlement.artifacts import ContractName
    from settlement.dev.deploy import Deployment, DeploymentQuote
    from settlement.node.rpc import Rpc
    from settlement.tx.signer import KeySigner

__all__ = ["NAME", "command"]

NAME: Final = "deploy"

_NOT_THERE: Final = 3
_DEPLOYER: Final = "deployer"


class _Survey(NamedTuple):
    """What a chain has, and what it would cost to deploy the rest."""

    chain_id: int
    token: "Address"
    symbol: str
    missing: "list[ContractName]"
    quote: "DeploymentQuote"
    deployment: "Deployment | None"
    """What was checked; None while something is missing."""


def command(
    *,
    rpc: Annotated[str | None, typer.Option("--rpc", help="Node of the chain.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Address of the ERC-20 token that the escrow holds.")
    ] = None,
    keystore: Annotated[
        Path | None,
        typer.Option(help="Encrypted key of the account that pays the gas; none: send nothing."),
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line decrypts it; asked for if none.")
    ] = None,
    devnet: Annotated[
        Path | None, typer.Option(help="Use a running devnet, its deployer, and its token.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Deploy the escrow of a token, and check it on the chain.

    Reads the chain first: says what is there, what it would deploy and where, and what that costs
    in the chain's own coin. Asks before it sends. The addresses follow from the code, so anyone may
    deploy and the result is the same; it may be repeated. Without a key it sends nothing. Some
    second-layer chains charge for data beside the gas. Prints the settings of a gateway. Exit
    code 3: the escrow is not there yet, and no key was given.

    \b
    mpp-session deploy --rpc https://node.example.com --token 0x8335...
    mpp-session deploy --rpc https://node.example.com --token 0x8335...
        --keystore deployer.json --password-file deployer.password
    mpp-session deploy --devnet devnet.json --yes
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.devnet_file import read_devnet
    from mpp_session.settings import parse_address

    key: bytes | None = None
    if devnet is not None:
        if rpc is not None or keystore is not None:
            raise CommandError("give either --devnet, or --rpc and --keystore")
        values = read_devnet(devnet)
        rpc, key = values.rpc_url, values.accounts[_DEPLOYER].private_key
        token = token or format_id(values.token)
    if rpc is None or token is None:
        missing = [name for name, value in (("--rpc", rpc), ("--token", token)) if value is None]
        raise CommandError(f"give --devnet, or also {', '.join(missing)}")
    survey = asyncio.run(_survey(rpc, parse_address(token)))
    _tell(survey)
    if survey.missing:
        if keystore is not None:
            key = _unlock(keystore, password_file)
        if key is None:
            if as_json:
                print_json(_row(survey))
            report("nothing was sent: give --keystore to deploy it")
            raise typer.Exit(_NOT_THERE)
        deployment = asyncio.run(_deploy(rpc, survey, key, asks=not yes))
        survey = survey._replace(missing=[], deployment=deployment)
    if as_json:
        print_json(_row(survey))
    elif survey.deployment is not None:
        _print_settings(rpc, survey.deployment)


async def _survey(url: str, token: "Address") -> _Survey:
    from settlement.dev.deploy import list_missing, quote_deployment, verify_escrow
    from settlement.escrow.token_name import read_token_unit
    from settlement.node.rpc import Rpc

    async with await Rpc.connect(url) as rpc:
        missing = await list_missing(rpc, token)
        unit = await read_token_unit(rpc, token)
        return _Survey(
            chain_id=rpc.chain_id,
            token=token,
            symbol="without a symbol" if unit is None else unit.symbol,
            missing=missing,
            quote=await quote_deployment(rpc, token, missing),
            deployment=None if missing else await verify_escrow(rpc, token),
        )


async def _deploy(url: str, survey: _Survey, key: bytes, *, asks: bool) -> "Deployment":
    """Send what is missing, at the quoted highest bid at most."""
    import asyncio

    from settlement.dev.deploy import SenderNode, deploy_escrow
    from settlement.node.rpc import Rpc
    from settlement.tx.fees import FeePolicy
    from settlement.tx.manager import TxManager
    from settlement.tx.signer import KeySigner

    async with await Rpc.connect(url, chain_id=survey.chain_id) as rpc:
        signer = KeySigner(key)
        await _require_funds(rpc, signer, survey.quote)
        if asks:
            await asyncio.to_thread(_ask, format_id(signer.address))
        fees = FeePolicy(max_fee_wei=survey.quote.max_fee_wei)
        return await deploy_escrow(SenderNode(TxManager(rpc, signer, fees=fees)), survey.token)


async def _require_funds(rpc: "Rpc", signer: "KeySigner", quote: "DeploymentQuote") -> None:
    balance_wei = await rpc.balance_wei(signer.address)
    if balance_wei < quote.cost_wei_max:
        raise CommandError(
            f"{format_id(signer.address)} has {_coins(balance_wei)} of the chain's own coin and "
            f"may need {_coins(quote.cost_wei_max)}: nothing was sent"
        )


def _ask(account: str) -> None:
    try:
        agreed = typer.confirm(f"Deploy it from {account}?", err=True)
    except typer.Abort:  # no terminal, and no answer
        agreed = False
    if not agreed:
        raise CommandError("nothing was sent: answer y, or give --yes")


def _unlock(keystore: Path, password_file: Path | None) -> bytes:
    from mpp_session.agent.keystore import decrypt_keystore, read_password

    if password_file is not None:
        password = read_password(password_file)
    else:
        password = typer.prompt(f"Password of {keystore}", hide_input=True, err=True)
    return decrypt_keystore(keystore, password)


def _tell(survey: _Survey) -> None:
    quote = survey.quote
    pairs = [
        ("chain", str(survey.chain_id)),
        ("token", f"{format_id(survey.token)} {survey.symbol}"),
        *(
            (what, f"{format_id(place)} {'to deploy' if name in survey.missing else 'is there'}")
            for name, what, place in _places(survey.token)
        ),
    ]
    if survey.missing:
        cost = f"{_coins(quote.cost_wei)} of the chain's own coin, {_coins(quote.cost_wei_max)}"
        gwei = _shift(quote.price_wei, 9)
        pairs += [("gas", f"{quote.gas:,} at {gwei} gwei"), ("cost", f"{cost} at most")]
    print_pairs(pairs, stderr=True)


def _places(token: "Address") -> "list[tuple[ContractName, str, Address]]":
    from settlement.addresses import escrow_address, factory_address

    return [
        ("EscrowFactory", "factory", factory_address()),
        ("SessionEscrow", "escrow", escrow_address(token)),
    ]


def _print_settings(rpc_url: str, deployment: "Deployment") -> None:
    report(
        "checked: code, token, domain separator, "
        f"grace period of {deployment.grace_period_s} s. The gateway's settings:"
    )
    for line in (
        "[chain]",
        f'rpc_url = "{rpc_url}"',
        f"id = {deployment.chain_id}",
        f'escrow = "{format_id(deployment.escrow)}"',
        f'token = "{format_id(deployment.token)}"',
    ):
        say(line, whole=True)


def _row(survey: _Survey) -> dict[str, Any]:
    checked, quote = survey.deployment, survey.quote
    return {
        "chain_id": survey.chain_id,
        "token": survey.token,
        **{what: place for _, what, place in _places(survey.token)},
        "missing": survey.missing,
        "gas": quote.gas,
        "cost_wei": str(quote.cost_wei),
        "cost_wei_max": str(quote.cost_wei_max),
        "code_hash": None if checked is None else checked.code_hash,
        "grace_period_s": None if checked is None else checked.grace_period_s,
    }


def _coins(wei: int) -> str:
    return _shift(wei, 18)


def _shift(wei: int, places: int) -> str:
    """Return an amount with its decimal point moved, to four digits that count."""
    return format(Decimal(f"{Decimal(wei).scaleb(-places):.4g}").normalize(), "f")
