"""`mpp-session wallet`: run a wallet for agents, and command the one that runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mpp_session.cli.options import AsJson, Level, LogJson, LogLevel
from mpp_session.cli.output import count, format_time, print_json, print_pairs, print_table, say
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from mpp_session.wallet.server.opening import WalletSettings
    from mpp_session.wallet.server.process import Listening

__all__ = [
    "APP",
    "NAME",
    "agent_add",
    "budgets",
    "close",
    "freeze",
    "reload",
    "revoke",
    "run",
    "status",
    "unfreeze",
]

NAME: Final = "wallet"
APP: Final = typer.Typer(
    help="Run a wallet that pays for agents within a policy; command it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

_TOKEN_BYTES: Final = 32

Home = Annotated[
    Path, typer.Option("--home", help="The wallet's directory: books, sockets, owner's token.")
]
Scope = Annotated[
    list[str],
    typer.Argument(help="all; or agent NAME, envelope NAME, origin ORIGIN."),
]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]


@APP.command()
def run(  # noqa: PLR0913 -- each is a flag
    *,
    home: Home,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="What agents may pay: docs/guide/policy.md. With --devnet, if not given, one is "
            "made in the home, for one agent, whose token is in agent.token there."
        ),
    ] = None,
    rpc_url: Annotated[
        list[str] | None, typer.Option(help="Node of a chain; repeat it for more.")
    ] = None,
    keystore: Annotated[
        Path | None, typer.Option(help="Encrypted key of the account that deposits.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line decrypts it.")
    ] = None,
    devnet: Annotated[
        Path | None, typer.Option(help="Instead: a running devnet, as its account `agent`.")
    ] = None,
    voucher_keys: Annotated[
        Path | None,
        typer.Option(
            help="Sign vouchers with a key for each channel, from the secret in this file; made "
            "if missing, encrypted with the same password."
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Listen on this machine's port too, for agents without Unix sockets.",
        ),
    ] = None,
    approvals: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve the pages on which people answer at this machine's port.",
        ),
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="File for checkpoints of the audit trail; in the home if not given."),
    ] = None,
    until_eof: Annotated[
        bool,
        typer.Option("--until-eof", help="Stop when standard input ends, for a parent program."),
    ] = False,
    log_level: LogLevel = Level.INFO,
    log_json: LogJson = False,
    as_json: AsJson = False,
) -> None:
    """Hold the keys, and pay for agents within a policy.

    Agents send their requests to a socket and get the answers; no key leaves this process. SIGHUP
    reads the policy again.

    \b
    mpp-session wallet run --home wallet --devnet devnet.json
    mpp-session wallet run --policy policy.toml --home /var/lib/wallet \\
        --rpc-url https://node.example --keystore key.json --password-file password
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from mpp_session.process.logs import log_to_stderr
    from mpp_session.wallet.server.process import run_wallet

    settings = _settings(
        policy,
        home,
        devnet=devnet,
        rpc_urls=rpc_url or [],
        files=(keystore, password_file, voucher_keys),
        listen=listen,
        approvals=approvals,
        checkpoints=checkpoints,
    )
    log_to_stderr(log_level.value, as_json=log_json)
    asyncio.run(
        run_wallet(
            settings,
            announce=lambda listening: _announce(listening, as_json=as_json),
            until_eof=until_eof,
        )
    )


@APP.command()
def status(*, home: Home, as_json: AsJson = False) -> None:
    """Show what runs, who the agents are, and what is stopped.

    \b
    mpp-session wallet status --home wallet
    """  # noqa: D301
    found = _ask(home, "GET", "/status")
    agents = _ask(home, "GET", "/agents")
    if as_json:
        print_json({**found, "agents": agents})
        return
    print_pairs(
        [
            ("policy", f"revision {found['revision']}"),
            *((f"account on {chain}", address) for chain, address in found["accounts"].items()),
            ("frozen", ", ".join(found["frozen"]) or "nothing"),
            ("revoked", ", ".join(found["revoked"]) or "nothing"),
        ]
    )
    print_table(
        [
            {
                "agent": one["name"],
                "state": one["state"],
                "requests": str(found["running"].get(one["name"], 0)),
                "channels": str(one["channels"]),
                "expires": format_time(one["expires"]),
            }
            for one in agents
        ],
        right=("requests", "channels"),
    )


@APP.command()
def budgets(*, home: Home, as_json: AsJson = False) -> None:
    """Show what each envelope has left.

    Amounts are decimals of its token; with --json they are base units.

    \b
    mpp-session wallet budgets --home wallet
    """  # noqa: D301
    from channel.types import TokenUnit

    found = _ask(home, "GET", "/budgets")
    if as_json:
        print_json(found)
        return
    amounts = ("amount", "spent", "left", "locked", "locked_max")
    print_table(
        [
            {"scope": one["scope"], "token": one["token"]}
            | {name: TokenUnit("", one["decimals"]).format(one[name]).strip() for name in amounts}
            for one in found
        ],
        right=amounts,
    )


@APP.command()
def freeze(scope: Scope, *, home: Home, reason: Reason = "", as_json: AsJson = False) -> None:
    """Refuse every payment from the next one on.

    A running stream ends at its next voucher.

    \b
    mpp-session wallet freeze all --home wallet
    mpp-session wallet freeze agent scout --home wallet --reason "it loops"
    """  # noqa: D301
    _order(home, "freeze", scope, reason, "frozen", as_json=as_json)


@APP.command()
def unfreeze(scope: Scope, *, home: Home, reason: Reason = "", as_json: AsJson = False) -> None:
    """Allow payments again.

    \b
    mpp-session wallet unfreeze agent scout --home wallet
    """  # noqa: D301
    found = _ask(home, "POST", "/unfreeze", {"scope": " ".join(scope), "reason": reason})
    if as_json:
        print_json(found)
    else:
        done = "no longer frozen" if found["was_frozen"] else "was not frozen"
        say(f"{' '.join(scope)}: {done}")


@APP.command()
def revoke(
    scope: Annotated[list[str], typer.Argument(help="agent NAME, or rule NAME.")],
    *,
    home: Home,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Refuse an agent or a rule for good.

    \b
    mpp-session wallet revoke agent scout --home wallet --reason "its token leaked"
    """  # noqa: D301
    _order(home, "revoke", scope, reason, "revoked", as_json=as_json)


@APP.command()
def reload(*, home: Home, as_json: AsJson = False) -> None:
    """Read the policy again.

    It comes into force if all of it is valid and its revision is later.

    \b
    mpp-session wallet reload --home wallet
    """  # noqa: D301
    found = _ask(home, "POST", "/reload")
    if as_json:
        print_json(found)
    else:
        say(f"policy revision {found['revision']} is in force")


@APP.command()
def close(*, home: Home, as_json: AsJson = False) -> None:
    """Close the channels of agents that may not pay any more.

    Those are frozen, revoked, expired, or gone from the policy.

    \b
    mpp-session wallet close --home wallet
    """  # noqa: D301
    found = _ask(home, "POST", "/close")
    if as_json:
        print_json(found)
    else:
        failed = [one for one in found if one["error"]]
        for one in failed:
            say(f"a channel of {one['agent']} stays open: {one['error']}")
        say(f"{count(len(found) - len(failed), 'channel')} closed")
    if any(one["error"] for one in found):
        raise typer.Exit(1)


@APP.command("agent-add")
def agent_add(
    name: Annotated[str, typer.Argument(help="The agent's name in the policy.")],
    *,
    envelope: Annotated[
        list[str] | None, typer.Option(help="A budget that it pays from; repeat it for more.")
    ] = None,
    uid: Annotated[
        int | None, typer.Option(help="Unix user of its own: its socket is that user's alone.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the token is valid.")] = 90,
    as_json: AsJson = False,
) -> None:
    """Make a token for an agent.

    It is shown once, with the lines of the policy that allow it.

    \b
    mpp-session wallet agent-add scout --envelope research --uid 1003
    """  # noqa: D301
    import re
    import secrets
    from datetime import UTC, datetime, timedelta
    from hashlib import sha256

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise CommandError(
            f"expected a name of letters, digits and . _ -, found {name!r}: choose another"
        )
    token = f"mpp_{secrets.token_urlsafe(_TOKEN_BYTES)}"
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    names = ", ".join(f'"{one}"' for one in envelope or ["NAME OF AN ENVELOPE"])
    lines = [
        f'[agent."{name}"]' if "." in name else f"[agent.{name}]",
        f'token = "sha256:{sha256(token.encode()).hexdigest()}"',
        *([] if uid is None else [f"uid = {uid}"]),
        f"envelopes = [{names}]",
        f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}",
    ]
    if as_json:
        print_json({"name": name, "token": token, "policy": "\n".join(lines)})
        return
    say("The token, for the agent alone; it is not shown again:")
    say(token, whole=True)
    say()
    say("For the policy, with a raised `revision`; then `mpp-session wallet reload`:")
    for line in lines:
        say(line, whole=True)


def _settings(
    policy: Path | None,
    home: Path,
    *,
    devnet: Path | None,
    rpc_urls: list[str],
    files: tuple[Path | None, Path | None, Path | None],
    listen: str | None,
    approvals: str | None,
    checkpoints: Path | None,
) -> "WalletSettings":
    import asyncio

    from mpp_session.agent.client import load_keystore
    from mpp_session.agent.keystore import read_password
    from mpp_session.agent.voucher_keys import load_channel_keys
    from mpp_session.wallet.server.opening import WalletSettings
    from mpp_session.wallet.server.sockets import require_private

    keystore, password_file, voucher_keys = files
    keys = None
    password = ""
    if password_file is not None:
        require_private(password_file, "password file")
        password = read_password(password_file)
    if devnet is not None:
        if keystore is not None:
            raise CommandError("give --devnet or --keystore, and not both")
        policy, key, rpc_urls = _on_devnet(devnet, policy, home, rpc_urls)
    else:
        flags = {
            "policy": policy,
            "rpc-url": rpc_urls,
            "keystore": keystore,
            "password-file": password_file,
        }
        missing = [f"--{name}" for name, value in flags.items() if not value]
        if missing or keystore is None or policy is None:
            raise CommandError(f"give --devnet, or also {', '.join(missing)}")
        require_private(keystore, "keystore")
        key = asyncio.run(load_keystore(keystore, password))
    if voucher_keys is not None:
        if voucher_keys.exists():
            require_private(voucher_keys, "file of voucher keys")
        keys = asyncio.run(load_channel_keys(voucher_keys, password))
    return WalletSettings(
        policy=policy,
        home=home,
        rpc_urls=rpc_urls,
        private_key=key,
        keys=keys,
        listen=None if listen is None else _address("--listen", listen),
        approvals=None if approvals is None else _address("--approvals", approvals),
        checkpoints=checkpoints,
    )


def _on_devnet(
    path: Path, policy: Path | None, home: Path, rpc_urls: list[str]
) -> tuple[Path, bytes, list[str]]:
    """Return policy, key and nodes of a wallet on a local chain."""
    from mpp_session.devnet_file import read_devnet
    from mpp_session.wallet.server.devnet_policy import read_or_make_policy
    from settlement.dev.devnet import GASLESS

    values = read_devnet(path)
    found = policy or read_or_make_policy(home, values)
    return found, values.accounts[GASLESS].private_key, rpc_urls or [values.rpc_url]


def _address(flag: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    is_port = port.isascii() and port.isdigit() and int(port) < 2**16
    if host not in {"127.0.0.1", "::1"} or not is_port:
        raise CommandError(
            f"{flag}: expected 127.0.0.1:PORT or [::1]:PORT, found {text}: agents of other "
            "machines cannot use a wallet"
        )
    return host, int(port)


def _announce(listening: "Listening", *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "agents": dict(listening.agents),
                "port": listening.port,
                "approvals": listening.approvals,
            }
        )
        return
    for name, address in listening.agents.items():
        say(f"{name}: {address}", whole=True)
    if listening.port is not None:
        say(f"listening on {listening.port}")
    if listening.approvals is not None:
        say(f"approvals: {listening.approvals}", whole=True)
    say("ready")


def _order(
    home: Path, path: str, words: list[str], reason: str, done: str, *, as_json: bool
) -> None:
    scope = " ".join(words)
    found = _ask(home, "POST", f"/{path}", {"scope": scope, "reason": reason})
    if as_json:
        print_json(found)
    else:
        say(f"{scope}: {done}")


def _ask(home: Path, method: str, path: str, body: object = None) -> Any:
    from mpp_session.wallet.server.owner_client import ask_owner_door

    return ask_owner_door(home, method, path, body)
