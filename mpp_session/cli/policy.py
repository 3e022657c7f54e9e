"""`mpp-session policy`: check, explain and compare the policy of a wallet, and print its schema."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.options import AsJson
from mpp_session.cli.output import count, print_json, print_table, say
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from channel.tariff import Tariff
    from mpp_session.wallet.policy import WalletPolicy
    from mpp_session.wallet.policy.compiled import Token
    from mpp_session.wallet.types import Ask, Decision

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

    The books are empty: nothing is spent, and nobody was ever paid. It lists the rules that match,
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
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Directory of the wallet; this user's if not given."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only since then: 7d, 12h or 2026-12-01.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decide again what agents asked, by another policy.

    It reads the wallet's audit trail and lists what would be decided otherwise, with the sums as
    the new policy counts them. What was approved then is approved again. Deposits that were open,
    breakers and what was unusual are left out.

    \b
    mpp-session policy replay policy.new.toml --since 7d
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from contextlib import closing

    from mpp_session.cli.audit import find_home, read_since
    from mpp_session.cli.output import format_time
    from mpp_session.wallet.audit.trail import open_trail
    from mpp_session.wallet.policy.matching import shown
    from mpp_session.wallet.policy.replaying import replay as decide_again

    policy = _load(file)
    start = None if since is None else read_since(since)
    with closing(open_trail(find_home(home) / "wallet.db")) as db:
        asks = list(_recorded(db, start))
    approved = {id(ask) for ask, _, has_approval in asks if has_approval}
    changed = [
        one
        for one in decide_again(policy, ((ask, None, decision) for ask, decision, _ in asks))
        if not (one.after.action == "ask" and id(one.ask) in approved)
    ]
    rows = [
        {
            "at": format_time(one.ask.at),
            "agent": shown(one.ask.agent),
            "asked": f"{one.ask.kind} {one.ask.method} {one.ask.origin}{shown(one.ask.path)}",
            "was": f"{one.before.action} ({one.before.code})",
            "would be": f"{one.after.action} ({one.after.code})",
            "because": one.after.reason,
        }
        for one in changed
    ]
    if as_json:
        print_json(rows)
        return
    print_table(rows)
    looser = sum(one.is_looser for one in changed)
    say(f"{count(len(asks), 'ask')}: {len(changed)} decided otherwise, {looser} of them looser")


def _recorded(
    db: "sqlite3.Connection", since: float | None
) -> "Iterator[tuple[Ask, Decision, bool]]":
    """Yield the asks of an audit trail, later vouchers of a request too.

    With each what was decided, and whether an approval was used for it.
    """
    from msgspec.structs import replace as changed

    from mpp_session.wallet.audit.records import decode_ask, decode_decision
    from mpp_session.wallet.audit.trail import read_entries

    running: dict[str, tuple[Ask, Decision, bool]] = {}
    for entry in read_entries(db, since=since):
        if entry.kind == "decision":
            ask = decode_ask(entry.fields["ask"])
            found = ask, decode_decision(entry.fields["decision"]), "approval_id" in entry.fields
            if ask.kind == "sign":
                running[ask.request_id] = found
            yield found
        elif entry.kind == "voucher" and entry.fields["request_id"] in running:
            last, decision, has_approval = running[entry.fields["request_id"]]
            voucher = entry.fields["voucher"]
            if decision.action != "allow" or int(voucher["cumulative"]) <= last.total:
                continue  # the amount of the decision itself
            later = changed(
                last,
                amount=int(voucher["delta"]),
                total=int(voucher["cumulative"]),
                request_total=int(voucher["request_total"]),
                is_first=False,
                at=entry.at,
            )
            running[last.request_id] = later, decision, has_approval
            yield running[last.request_id]


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
