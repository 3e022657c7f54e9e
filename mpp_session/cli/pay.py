"""`mpp-session pay`: the agent as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from mpp_session.cli.output import (
    count,
    format_id,
    get_console,
    print_json,
    print_pairs,
    report,
    say,
)
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
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from mpp_session.agent.amounts import TokenUnit
    from mpp_session.agent.pay import PaidOutcome

__all__ = ["NAME", "command"]

NAME: Final = "pay"

_CHAT_PATH: Final = "/v1/chat/completions"
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
