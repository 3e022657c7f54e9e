"""`mpp-session keygen`: a new account, as an encrypted key file."""

from pathlib import Path
from typing import Annotated, Final

import typer

from mpp_session.cli.output import format_id, print_json, say
from mpp_session.errors import CommandError

__all__ = ["NAME", "command"]

NAME: Final = "keygen"


def command(
    keystore: Annotated[Path, typer.Argument(help="The file to write. It must not exist.")],
    *,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line encrypts it; asked for if none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a new account: write its encrypted key, print its address.

    The file is a keystore as Ethereum wallets write it, readable by you alone. It holds the only
    copy of the key: back it up, and the password too. `pay`, `withdraw` and the gateway's settings
    take it as it is.

    \b
    mpp-session keygen agent.json
    mpp-session keygen payee.json --password-file payee.password --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from coincurve import PrivateKey

    from channel.files import write_new
    from channel.verify.signature import address_of
    from mpp_session.agent.keystore import encrypt_keystore, read_password

    if keystore.exists() or keystore.is_symlink():
        raise CommandError(f"{keystore} exists: a key file is never written over")
    if password_file is not None:
        password = read_password(password_file)
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    if not password:
        raise CommandError("the password is empty: the first line of the file encrypts the key")
    key = PrivateKey().secret
    content = encrypt_keystore(key, password)
    try:
        write_new(keystore, content)
    except OSError as error:
        raise CommandError(f"{keystore} cannot be written: {error.strerror}") from None
    account = address_of(key)
    if as_json:
        print_json({"address": account, "keystore": str(keystore)})
    else:
        say(format_id(account))
