"""`mpp-session wallet approvals`, `approve` and `deny`: answer what agents want to pay."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

import typer

from mpp_session.cli.options import AsJson
from mpp_session.cli.output import print_json, print_pairs, say
from mpp_session.cli.wallet_process import Home

__all__ = ["COMMANDS", "approvals", "approve", "approver_add", "deny"]

Id = Annotated[str, typer.Argument(help="Of the question: `wallet approvals` lists them.")]
Comment = Annotated[str, typer.Option(help="For the record; the agent reads it.")]


def approvals(
    *,
    home: Home,
    every: Annotated[
        bool, typer.Option("--all", help="Also what was answered, the newest first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the questions that wait for an answer.

    \b
    mpp-session wallet approvals --home wallet
    mpp-session wallet approvals --home wallet --all --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.server.owner_client import ask_owner_door

    found = ask_owner_door(home, "GET", f"/approvals{'?all=1' if every else ''}")
    if as_json:
        print_json(found)
        return
    for index, one in enumerate(found):
        if index:
            say()
        _print(one)
    if not found:
        say("no question waits")


def approve(
    approval_id: Id,
    *,
    home: Home,
    amount: Annotated[
        str | None,
        typer.Option(help='Approve this much, "2.50 usdc"; what was asked if not given.'),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(
            help="once; channel: what the opened channel holds; window: the same terms again. "
            "The last two until the approval expires, up to the amount in all."
        ),
    ] = "once",
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Approve what an agent wants to pay, or less of it.

    \b
    mpp-session wallet approve 3f9a6c01d2e4 --home wallet
    mpp-session wallet approve 3f9a6c01d2e4 --home wallet --amount "2.50 usdc"
    """  # noqa: D301
    body = {"verdict": "approve", "scope": scope, "comment": comment}
    _answer(home, approval_id, body | ({} if amount is None else {"amount": amount}), as_json)


def deny(
    approval_id: Id,
    *,
    home: Home,
    comment: Comment = "",
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take back an approval that is not used up.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Deny what an agent wants to pay.

    The same terms are not asked about again before the timeout of the policy has passed.

    \b
    mpp-session wallet deny 3f9a6c01d2e4 --home wallet --comment "too dear"
    """  # noqa: D301
    verdict: Literal["deny", "withdraw"] = "withdraw" if withdraw else "deny"
    _answer(home, approval_id, {"verdict": verdict, "comment": comment}, as_json)


def approver_add(
    name: Annotated[str, typer.Argument(help="The person's name, in lower-case letters.")],
    *,
    home: Home,
) -> None:
    """Make a log-in token for a person who may answer.

    The person answers on the pages of `wallet run --approvals`, which read the tokens at the
    start. Who can read the wallet's directory can answer as each of these people.

    \b
    mpp-session wallet approver-add mia --home wallet
    """  # noqa: D301
    import re

    from mpp_session.dashboard.token_file import read_or_make_token
    from mpp_session.errors import CommandError
    from mpp_session.wallet.server.additions import APPROVERS

    if not re.fullmatch("[a-z0-9][a-z0-9._-]{0,63}", name) or name == "owner":
        raise CommandError(
            f"expected a name of lower-case letters, digits and . _ -, found {name!r}: choose "
            "another"
        )
    path = home / APPROVERS / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    read_or_make_token(path)
    say(f"the log-in token of {name} is in {path}", whole=True)


def _answer(home: Any, approval_id: str, body: dict[str, str], as_json: bool) -> None:  # noqa: FBT001
    from urllib.parse import quote

    from mpp_session.wallet.server.owner_client import ask_owner_door

    found = ask_owner_door(home, "POST", f"/approvals/{quote(approval_id, safe='')}", body)
    if as_json:
        print_json(found)
    else:
        say(f"{found['question']}: {found['state']}")


def _print(one: dict[str, Any]) -> None:
    say(f"{one['id']}  {one['question']}  ({one['state']})", style="bold")
    print_pairs(
        [
            *((name, text) for name, text in one["facts"]),
            *((f"{name}, says the agent", text) for name, text in one["untrusted"]),
        ]
    )


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "approvals": approvals,
    "approve": approve,
    "deny": deny,
    "approver-add": approver_add,
}
"""What joins the commands of `mpp-session wallet`."""
