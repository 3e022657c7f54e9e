"""`mpp-session wallet stats`: what is normal for an agent, as its wallet has learned it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.options import AsJson
from mpp_session.cli.output import print_json, print_pairs, say
from mpp_session.cli.wallet_process import Home
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from channel.types import TokenUnit
    from mpp_session.wallet.policy.compiled import WalletPolicy
    from mpp_session.wallet.watch.store import Known

__all__ = ["COMMANDS", "stats"]


def stats(
    agent: Annotated[
        str | None, typer.Argument(help="Name of an agent, to see its origins, too.")
    ] = None,
    *,
    home: Home,
    policy: Annotated[
        Path | None, typer.Option(help="The wallet's, for amounts with decimals.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is usual for an agent, as its wallet learned it.

    Reads the wallet's books and changes nothing; the wallet may run.

    \b
    mpp-session wallet stats --home wallet
    mpp-session wallet stats research-3 --home wallet --policy policy.toml
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.wallet.policy import load_policy
    from mpp_session.wallet.watch.describe import describe
    from mpp_session.wallet.watch.words import money_in

    rules = None if policy is None else load_policy(policy)
    warm_up = WARM_UP if rules is None else rules.anomaly.warm_up
    found = _read(home, agent)
    shown = [
        (each, list(describe(each.profile, money_in(_unit(each, rules)), warm_up)))
        for each in found
    ]
    if as_json:
        print_json(
            [
                {"agent": one.agent, "origin": one.origin, "token": one.token, "usual": dict(lines)}
                for one, lines in shown
            ]
        )
        return
    for index, (one, lines) in enumerate(shown):
        if index:
            say()
        say(f"{one.agent}, {one.origin or 'all origins'}", style="bold")
        print_pairs([*lines, ("token", one.token)])
    if not shown:
        say(
            "nothing is known: no agent has paid"
            if agent is None
            else f"nothing is known of the agent {agent}: it has paid nothing"
        )


WARM_UP: Final = 30
"""What a policy says if it says nothing."""


def _read(home: Path, agent: str | None) -> "list[Known]":
    import sqlite3

    from mpp_session.wallet.server.opening import BOOKS
    from mpp_session.wallet.watch.store import read_known

    path = home / BOOKS
    if not path.is_file():
        raise CommandError(f"there are no books of a wallet at {path}; give the wallet's --home")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return read_known(db, agent)
        finally:
            db.close()
    except sqlite3.Error as error:
        raise CommandError(f"{path} cannot be read as the books of a wallet: {error}") from None


def _unit(known: "Known", policy: "WalletPolicy | None") -> "TokenUnit":
    from channel.types import TokenUnit, address

    if policy is not None:
        chain, _, token = known.token.partition(":")
        found = policy.token_of(int(chain), address(bytes.fromhex(token.removeprefix("0x"))))
        if found is not None:
            return found.unit
    return TokenUnit("base units", 0)


COMMANDS: Final = {"stats": stats}
"""What joins the commands of `mpp-session wallet`."""
