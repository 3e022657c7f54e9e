"""`mpp-session pay`: the agent as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import typer

from mpp_session.cli.account import KeyedAccount, devnet_store, load_account, store_path
from mpp_session.cli.output import (
    count,
    format_id,
    get_console,
    print_json,
    print_pairs,
    report,
    say,
)
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from channel.client.policy.policy import Policy
    from channel.types import Address
    from mpp_session.agent.amounts import TokenUnit
    from mpp_session.agent.pay import PaidOutcome, Wallet

__all__ = ["NAME", "command"]

NAME: Final = "pay"

_CHAT_PATH: Final = "/v1/chat/completions"
_TOKENS: Final = (
    "output_token",
    "reasoning_token",
    "input_token",
    "cached_input_token",
    "cache_write_token",
    "llm_token",
    "llm_chunk",
)
_PRICE_MAX: Final = {**dict.fromkeys(_TOKENS, 100), "request": 10_000}
"""Kinds that this command agrees to, with the greatest price of each unit, in base units."""
_NEVER_SOLD: Final = frozenset({"CONNECT", "HEAD", "TRACE"})
"""HEAD carries the protocol's own messages, the others are for proxies."""


def command(  # noqa: PLR0913 -- each is a flag
    url: Annotated[
        str,
        typer.Argument(help=f"What to pay for; a body sent to no path goes to {_CHAT_PATH}."),
    ],
    *,
    prompt: Annotated[str | None, typer.Option(help="Ask a model this.")] = None,
    json_body: Annotated[str | None, typer.Option(help="Send this JSON, or @FILE.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-X", help="HTTP method; POST with a body and GET without, if not given."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model to ask.")] = "default",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    devnet: Annotated[
        Path | None, typer.Option(help="Pay on a running devnet, as its account `agent`.")
    ] = None,
    rpc_url: Annotated[str | None, typer.Option(help="Node of the chain to pay on.")] = None,
    chain_id: Annotated[int | None, typer.Option(help="That chain.")] = None,
    token: Annotated[str | None, typer.Option(help="Token to pay in, 0x...")] = None,
    keystore: Annotated[
        Path | None, typer.Option(help="Encrypted key of the account that pays.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line decrypts it.")
    ] = None,
    wallet: Annotated[
        str | None,
        typer.Option(help="Contract wallet that pays, 0x...: one that obeys the key (ERC-1271)."),
    ] = None,
    voucher_keys: Annotated[
        Path | None,
        typer.Option(
            help="Sign vouchers with a key for each channel, from the secret in this file; made "
            "if missing, encrypted with the same password."
        ),
    ] = None,
    price_max: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]PRICE",
            help='Greatest price to pay: money ("0.60 / 1M"), or base units of the token for one '
            "unit (100). KIND=PRICE sets one kind (input_token=...). PRICE alone sets every kind "
            "of token, and without a / also requests. Repeat it for several kinds. If not given: "
            "10,000 base units for a request and 100 for a token.",
        ),
    ] = None,
    deposit_max: Annotated[
        str,
        typer.Option(
            metavar="AMOUNT",
            help='Most to deposit in one channel, in base units or in money ("1.00 usdc").',
        ),
    ] = "1000000",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="Most to sign for one server in a day, over all runs with this store; as much as "
            "--deposit-max if not given.",
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Where channels and signed amounts are kept.")
    ] = None,
    keep_open: Annotated[
        bool, typer.Option("--keep-open", help="Do not close the channel: the next call uses it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Ask, pay as the answer arrives, close, and say what it cost.

    Nothing a server says can raise the limits given here. The account must hold the token; ether
    only for servers that do not pay the gas of its deposit.

    \b
    mpp-session pay http://127.0.0.1:8000/joke --devnet devnet.json
    mpp-session pay http://127.0.0.1:8402 --devnet devnet.json --prompt "Who are you?"
        --price-max "0.60 / 1M" --price-max "input_token=0.15 / 1M"
    mpp-session pay https://llm.example.com --prompt "Hello" --rpc-url https://node.example.com
        --chain-id 8453 --token 0x8335... --keystore agent.json --password-file agent.password
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    content = _content(prompt, json_body, model, max_tokens)
    has_body, has_path = content is not None, bool(urlsplit(url).path.strip("/"))
    if not (has_body or has_path or method):
        raise CommandError(f"{url} names no path: add one, or give --prompt or --json-body")
    verb = _method(method, has_body=has_body)
    target = url.rstrip("/") + _CHAT_PATH if has_body and not has_path else url
    caps = _Caps(price_max or [], deposit_max, deposit_max if budget is None else budget)
    if devnet is not None:
        payer = _devnet_wallet(devnet, caps)
    else:
        account = load_account(
            rpc_url=rpc_url,
            chain_id=chain_id,
            token=token,
            keystore=keystore,
            password_file=password_file,
        )
        currency = _address("--token", token)
        payer = _wallet(account, caps, currency, wallet, voucher_keys)
    from mpp_session.agent.pay import describe_left, pay

    path = store or payer.store
    show = (lambda _: None) if as_json else _show
    try:
        outcome = asyncio.run(
            pay(target, content, payer, method=verb, store=path, keep_open=keep_open, show=show)
        )
    except KeyboardInterrupt:
        report(asyncio.run(describe_left(path, target, payer.unit)))
        raise
    if as_json:
        print_json(_row(outcome))
    else:
        if outcome.is_success:
            say()
        _print(outcome, payer.unit)
    if not outcome.is_success:
        left = asyncio.run(describe_left(path, target, payer.unit))
        raise CommandError(f"the server answered {outcome.status}: {outcome.text} {left}")
    if keep_open:
        report(asyncio.run(describe_left(path, target, payer.unit)))


def _content(
    prompt: str | None, json_body: str | None, model: str, max_tokens: int
) -> bytes | None:
    if prompt is not None and json_body is not None:
        raise CommandError("give either --prompt or --json-body")
    if prompt is not None:
        import msgspec

        return msgspec.json.encode(
            {
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "stream": True,
                "max_tokens": max_tokens,
            }
        )
    if json_body is None:
        return None
    if not json_body.startswith("@"):
        return json_body.encode()
    try:
        return Path(json_body[1:]).read_bytes()
    except OSError as error:
        raise CommandError(f"{json_body[1:]} cannot be read: {error.strerror}") from None


def _method(given: str | None, *, has_body: bool) -> str:
    method = (given or ("POST" if has_body else "GET")).upper()
    if not (method.isascii() and method.isalpha()) or method in _NEVER_SOLD:
        raise CommandError(f"--method: {method} is not a method that is sold")
    return method


def _devnet_wallet(path: Path, caps: "_Caps") -> "Wallet":
    from mpp_session.agent.amounts import TokenUnit
    from mpp_session.agent.pay import Wallet
    from mpp_session.devnet_file import read_devnet
    from settlement.dev.devnet import GASLESS

    values = read_devnet(path)
    unit = TokenUnit(values.token_symbol, values.token_decimals)
    return Wallet(
        rpc_url=values.rpc_url,
        private_key=values.accounts[GASLESS].private_key,
        policy=caps.policy(values.chain_id, values.token, unit),
        unit=unit,
        store=devnet_store(path),
    )


def _wallet(
    account: KeyedAccount,
    caps: "_Caps",
    token: "Address",
    contract: str | None,
    voucher_keys: Path | None,
) -> "Wallet":
    import asyncio

    from mpp_session.agent.amounts import BASE_UNITS
    from mpp_session.agent.pay import Wallet
    from mpp_session.agent.voucher_keys import load_channel_keys
    from mpp_session.operator.token_units import read_units

    keys = None
    if voucher_keys is not None:
        keys = asyncio.run(load_channel_keys(voucher_keys, account.password))
    units = asyncio.run(read_units(account.rpc_url, account.chain_id, [token]))
    unit = units.get(token)
    return Wallet(
        rpc_url=account.rpc_url,
        private_key=account.private_key,
        policy=caps.policy(account.chain_id, token, unit),
        unit=unit or BASE_UNITS,
        store=store_path(),
        contract=None if contract is None else _address("--wallet", contract),
        keys=keys,
    )


def _address(flag: str, text: str | None) -> "Address":
    from channel.types import address

    try:
        return address(bytes.fromhex((text or "").removeprefix("0x")))
    except ValueError:
        raise CommandError(f"{flag}: {text} is no address: 0x and 40 hexadecimal digits") from None


class _Caps(NamedTuple):
    """What the flags allow, as they were typed."""

    price_max: list[str]
    deposit_max: str
    budget: str

    def policy(self, chain_id: int, token: "Address", unit: "TokenUnit | None") -> "Policy":
        """Return the policy; `unit` is the token's, None where no node names it.

        Raises:
            CommandError: A flag cannot be read.
        """
        from channel.client.policy.policy import Policy, TokenLimits
        from channel.errors import ConfigError

        try:
            limits = TokenLimits(
                chain_id=chain_id,
                token=token,
                unit_price_max=self._prices(),
                deposit_max=_amount(self.deposit_max, unit),
                budget=_amount(self.budget, unit),
                unit=unit,
            )
        except ConfigError as error:
            raise CommandError(f"--price-max: {error}") from None
        return Policy(limits=(limits,), allow_loopback_http=True)

    def _prices(self) -> dict[str, int | str]:
        """Return the greatest price of each kind. A price for a named kind overrides the others."""
        prices: dict[str, int | str] = dict(_PRICE_MAX)
        named: dict[str, int | str] = {}
        for text in self.price_max:
            kind, is_named, price = text.rpartition("=")
            value = int(price) if price.isascii() and price.isdigit() else price
            if is_named:
                named[kind.strip()] = value
            else:
                prices |= dict.fromkeys(_TOKENS if "/" in price else prices, value)
        return prices | named


def _amount(text: str, unit: "TokenUnit | None") -> int:
    """Return an amount of money, or of base units, in base units."""
    from channel.errors import ConfigError
    from channel.tariff import parse_money

    if text.isascii() and text.isdigit():
        return int(text)
    if unit is None:
        raise CommandError(
            f"--deposit-max, --budget: {text!r} is money, and the node does not name the token: "
            "give base units, a whole number"
        )
    try:
        return parse_money(text, unit)
    except ConfigError as error:
        raise CommandError(f"--deposit-max, --budget: {error}") from None


def _show(piece: str) -> None:
    """Write model output as it comes, never as markup or control sequences."""
    text = "".join(c for c in piece if c.isprintable() or c in "\n\t")
    get_console(stderr=False).out(text, end="", highlight=False)


def _row(outcome: "PaidOutcome") -> dict[str, Any]:
    """Return the outcome for programs, amounts as text."""
    amounts = ("paid", "deposit", "refunded")
    names = [name for name in outcome.__struct_fields__ if name != "prices"]
    fields = {name: getattr(outcome, name) for name in names}
    return {**fields, **{name: str(fields[name]) for name in amounts}}


def _received(outcome: "PaidOutcome") -> str:
    if not outcome.usage:
        return count(outcome.units, "unit")
    return ", ".join(count(units, kind.replace("_", " ")) for kind, units in outcome.usage.items())


def _print(outcome: "PaidOutcome", unit: "TokenUnit") -> None:
    report()
    pairs = [
        ("received", _received(outcome)),
        *(("price", line) for line in outcome.prices),
        ("paid", unit.format(outcome.paid)),
        ("vouchers", f"{outcome.vouchers:,}"),
        ("deposit", unit.format(outcome.deposit)),
    ]
    if outcome.close_tx is not None:
        pairs.append(("refunded", unit.format(outcome.refunded)))
    for name, tx_hash in (("opened", outcome.open_tx), ("closed", outcome.close_tx)):
        if tx_hash is not None:
            pairs.append((name, format_id(tx_hash)))
    print_pairs(pairs, stderr=True)
