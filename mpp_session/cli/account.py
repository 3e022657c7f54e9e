"""The account and the store that `pay` and `withdraw` use."""

from pathlib import Path
from typing import NamedTuple

import typer

from mpp_session.errors import CommandError

__all__ = ["KeyedAccount", "devnet_store", "load_account", "store_path"]


class KeyedAccount(NamedTuple):
    """An account on a chain, with its key."""

    rpc_url: str
    chain_id: int
    private_key: bytes
    password: str
    """The keystore's password, which also encrypts other secrets of the account."""

    def __repr__(self) -> str:
        return f"KeyedAccount(rpc_url={self.rpc_url!r}, private_key=...)"


def load_account(
    *,
    rpc_url: str | None,
    chain_id: int | None,
    keystore: Path | None,
    password_file: Path | None,
    **more: object,
) -> KeyedAccount:
    """Return the account that the flags name. The flags in `more` are required, too.

    Raises:
        CommandError: Flags are missing; the message names all of them.
        ConfigError: A file cannot be read, or the password does not decrypt the keystore.
    """
    node = {"rpc-url": rpc_url, "chain-id": chain_id}
    files = {"keystore": keystore, "password-file": password_file}
    missing = [f"--{name}" for name, value in {**node, **more, **files}.items() if value is None]
    if missing or not rpc_url or chain_id is None or keystore is None or password_file is None:
        raise CommandError(f"give --devnet, or also {', '.join(missing)}")
    import asyncio

    from mpp_session.agent.client import load_keystore
    from mpp_session.agent.keystore import read_password

    password = read_password(password_file)
    key = asyncio.run(load_keystore(keystore, password))
    return KeyedAccount(rpc_url, chain_id, key, password)


def store_path() -> Path:
    """Return the default store of this user's agent."""
    return Path(typer.get_app_dir("mpp-session")) / "agent.db"


def devnet_store(devnet: Path) -> Path:
    """Return the store of a devnet's agent, beside the devnet's own file."""
    return devnet.resolve().with_suffix(".agent.db")
