"""`mpp-session policy`: check, explain, compare and replay a wallet's policy; print its schema."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.audit import Since, read_since
from mpp_session.cli.options import AsJson
from mpp_session.cli.output import count, format_time, print_json, say
from mpp_session.cli.wallet_process import Home
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from channel.tariff import Tariff
    from mpp_session.wallet.audit.replaying import Replayed
    from mpp_session.wallet.policy import WalletPolicy
    from mpp_session.wallet.policy.compiled import Token
    from mpp_session.wallet.types import Ask

__all__ = ["APP", "NAME", "check", "diff", "explain", "replay", "schema"]

NAME: Final = "policy"
APP: Final = typer.Typer(
    help="Check, explain and compare the policy of a wallet.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

PolicyPath = Annotated[Path, typer.Argument(metavar="FILE", help="The policy, a TOML file.")]
_NOBODY: Final = "0x0000000000000000000000000000000000000001"


@APP.command()
def check(file: PolicyPath, *, as_json: AsJson = False) -> None:
    """Read a policy as the wallet would, and say what is wrong. Nothing changes.

    Exit code 1: it is not valid, and the line names the path of what is wrong.

    \b
    mpp-session policy check policy.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    policy = _load(file)
    if as_json:
        print_json({"revision": policy.revision, "hash": policy.hash})
        return
    parts = [
        count(len(policy.agents), "agent"),
        count(len(policy.envelopes), "envelope"),
        count(len(policy.rules), "rule"),
    ]
    say(f"revision {policy.revision}: {', '.join(parts)}, all valid; hash {policy.hash}")


@APP.command()
def explain(  # noqa: PLR0913 -- each is a flag
    file: PolicyPath,
    method: Annotated[str, typer.Argument(help="Method of the request, such as POST.")],
    url: Annotated[str, typer.Argument(help="URL of the request.")],
    *,
    agent: Annotated[str, typer.Option(help="The agent that asks.")],
    kind: Annotated[str, typer.Option(help="What is asked: deposit, sign or charge.")] = "charge",
    amount: Annotated[
        str | None,
        typer.Option(metavar="AMOUNT", help='How much, such as "0.05 usdc"; 0 if not given.'),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Alias of the token; the amount's, or the first.")
    ] = None,
    recipient: Annotated[str, typer.Option(help="Who is paid, 0x...")] = _NOBODY,
    escrow: Annotated[
        str | None, typer.Option(help="Who holds the deposit, 0x...; the token's first if any.")
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=PRICE",
            help='Prices of a session, such as "output_token=0.60 usdc / 1M". Repeat it.',
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="The task that the agent names.")] = "",
    tool: Annotated[str, typer.Option(help="The MCP tool that is called.")] = "",
) -> None:
    """Say what the policy decides about a payment, and why.

    The books are empty: nothing is spent, and no payee was ever paid. It lists rules that match,
    each cap with what is left of it, and the decision.

    \b
    mpp-session policy explain policy.toml POST https://api.example/search --agent research-1 \\
      --amount "0.05 usdc"
    mpp-session policy explain policy.toml POST https://llm.example/v1/chat/completions \\
      --agent writer --kind deposit --amount "5.00 usdc" --price "output_token=0.60 usdc / 1M"
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import time

    from channel.errors import ConfigError
    from mpp_session.wallet.policy.explaining import explain as explain_ask
    from mpp_session.wallet.types import Snapshot

    policy = _load(file)
    if kind not in ("deposit", "sign", "charge"):
        raise CommandError(f"--kind: expected deposit, sign or charge, found {kind!r:.40}")
    try:
        ask = _ask(
            policy,
            kind=kind,
            agent=agent,
            request=(method, url),
            payment=(amount, token, recipient, escrow, tuple(price or ())),
            purpose=(task, tool),
            now=time.time(),
        )
    except ConfigError as error:
        raise CommandError(str(error)) from None
    books = Snapshot(never_paid=frozenset({"origin", "recipient", "chain"}))
    for line in explain_ask(policy, ask, books).splitlines():
        say(line)


@APP.command()
def diff(
    old: Annotated[Path, typer.Argument(help="The policy that is in force.")],
    new: Annotated[Path, typer.Argument(help="The policy that shall follow.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Say what a new policy makes looser and what tighter.

    The looser changes come first. A change that cannot be ordered, such as another recipient,
    counts as looser.

    \b
    mpp-session policy diff policy.toml policy.new.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.policy.diffing import diff as find_changes

    before, after = _load(old), _load(new)
    changes = find_changes(before, after)
    if as_json:
        print_json([{"way": one.way, "field": one.field, "text": one.text} for one in changes])
        return
    for change in changes:
        say(str(change), style="bold" if change.way == "looser" else "")
    if not changes:
        say("nothing changes")
    if changes and after.revision <= before.revision:
        say(f"revision {after.revision} must grow above {before.revision} to be loaded")


@APP.command()
def replay(
    file: PolicyPath,
    *,
    home: Home,
    since: Since = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Show at most so many lines.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Decide again what agents asked, by another policy.

    It reads the wallet's audit trail, and reckons the books as the other policy counts them.
    What a freeze, a breaker, an anomaly or a person refused is left out. The wallet may be running.

    \b
    mpp-session policy replay policy.new.toml --home wallet --since 7d
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from contextlib import closing

    from mpp_session.wallet.audit.replaying import replay_trail
    from mpp_session.wallet.audit.trail import open_trail

    policy, after = _load(file), None if since is None else read_since(since)
    with closing(open_trail(home / "wallet.db")) as db:
        asked, changes = replay_trail(db, policy, since=after)
    if as_json:
        print_json(
            {
                "asked": asked,
                "changed": [
                    {
                        "at": one.first.ask.at,
                        "agent": one.first.ask.agent,
                        "request_id": one.first.ask.request_id,
                        "kind": one.first.ask.kind,
                        "amount": str(one.amount),
                        "asks": one.asks,
                        "before": one.first.before.action,
                        "after": one.first.after.action,
                        "code": one.first.after.code,
                        "reason": one.first.after.reason,
                    }
                    for one in changes
                ],
            }
        )
        return
    for one in changes[:most]:
        say(_change_line(one))
    if len(changes) > most:
        say(f"and {count(len(changes) - most, 'more line')}: --most shows them")
    decided = sum(one.asks for one in changes)
    looser = sum(one.asks for one in changes if one.first.is_looser)
    say(f"{count(asked, 'ask')}: {decided:,} decided otherwise, {looser:,} of them looser")


def _change_line(one: "Replayed") -> str:
    ask, after = one.first.ask, one.first.after
    times = "" if one.asks == 1 else f" in {one.asks:,} asks"
    line = (
        f"{format_time(ask.at)}  {ask.agent}: {one.first.before.action} becomes {after.action}, "
        f"{ask.kind} of {one.amount:,}{times} to {ask.method} {ask.origin}{ask.path}: "
        f"{after.code}: {after.reason}"
    )
    return "".join(c if c.isprintable() else " " for c in line)


@APP.command()
def schema() -> None:
    """Print the JSON schema of the policy file, for editors.

    \b
    mpp-session policy schema > policy.schema.json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.policy.schema import schema as build_schema

    print_json(build_schema())


def _load(file: Path) -> "WalletPolicy":
    """Return the policy of a file.

    Raises:
        CommandError: It is no policy; the line names the path of what is wrong.
    """
    from channel.errors import ConfigError
    from mpp_session.wallet.policy import load_policy

    try:
        return load_policy(file)
    except ConfigError as error:
        raise CommandError(str(error)) from None


def _ask(
    policy: "WalletPolicy",
    *,
    kind: str,
    agent: str,
    request: tuple[str, str],
    payment: tuple[str | None, str | None, str, str | None, tuple[str, ...]],
    purpose: tuple[str, str],
    now: float,
) -> "Ask":
    from typing import Any, cast
    from urllib.parse import urlsplit

    from channel.tariff import parse_money
    from mpp_session.settings.values import parse_address
    from mpp_session.wallet.types import Ask, Purpose

    amount_text, alias, recipient, escrow, prices = payment
    token = _token(policy, alias, amount_text)
    amount = 0 if amount_text is None else parse_money(amount_text, token.unit)
    parts = urlsplit(request[1])
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CommandError(
            "expected the request's URL, such as https://api.example/search, found "
            f"{request[1]!r:.80}"
        )
    holder = None
    if kind != "charge":
        holder = token.escrows[0].address if token.escrows else parse_address(_NOBODY)
        holder = holder if escrow is None else parse_address(escrow)
    return Ask(
        kind=cast("Any", kind),
        agent=agent,
        request_id="",
        origin=f"{parts.scheme}://{parts.netloc}",
        method=request[0],
        path=parts.path or "/",
        purpose=Purpose(task=purpose[0], tool=purpose[1]),
        chain_id=token.chain,
        token=token.address,
        recipient=parse_address(recipient),
        escrow=holder,
        tariff=None if kind == "charge" else _tariff(prices, token),
        request_max=0 if kind == "deposit" else amount,
        amount=amount,
        total=amount,
        request_total=0 if kind == "deposit" else amount,
        is_opening=kind == "deposit",
        at=now,
    )


def _token(policy: "WalletPolicy", alias: str | None, amount: str | None) -> "Token":
    named = alias or (amount or "").rpartition(" ")[2]
    if not named or named[0].isdigit():
        return next(iter(policy.tokens.values()))
    found = policy.tokens.get(named.lower())
    if found is None:
        known = ", ".join(policy.tokens)
        raise CommandError(f"the policy has no token {named!r:.40}; it has {known}")
    return found


def _tariff(prices: tuple[str, ...], token: "Token") -> "Tariff":
    from channel.tariff import Rate, Tariff, parse_rate

    rates = []
    for text in prices:
        kind, _, price = text.partition("=")
        rates.append(parse_rate(kind.strip(), price, token.unit))
    return Tariff(tuple(rates) or (Rate("request", 1),))
