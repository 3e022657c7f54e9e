"""Writes a provider's first settings: one commented TOML file, a keystore and its password.

`mpp-session init` asks the questions. Every file is new and readable by its owner alone; nothing is
written over. The key is made here and never shown.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
from coincurve import PrivateKey

from channel.errors import ConfigError
from channel.files import write_new
from channel.types import Address, TokenUnit
from channel.verify.signature import address_of
from mpp_session.agent.keystore import encrypt_keystore
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from settlement.node.rpc import Rpc

__all__ = [
    "Answers",
    "Deployment",
    "read_deployment",
    "require_new",
    "write_key",
    "write_settings",
]

_SECRET_BYTES: Final = 32


class Deployment(msgspec.Struct, frozen=True):
    """An escrow, as its chain shows it."""

    chain_id: int
    escrow: Address
    token: Address
    unit: TokenUnit | None


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What the questions were answered with."""

    upstream: str
    rpc_url: str
    deployment: Deployment
    input_price: str | None
    """Money per million input tokens; None: input is free."""
    output_price: str
    """Money per million output tokens."""
    realm: str
    payee: Address
    keystore: Path
    password: Path
    sponsoring: Mapping[str, bool | int]
    """Settings of `[sponsoring]`; empty if payers pay the gas of their deposits."""


async def read_deployment(rpc_url: str, escrow: Address) -> Deployment:
    """Read the chain's id and the escrow's token from a node, and check the escrow.

    Raises:
        ConfigError: There is no session escrow at the address.
        ChainUnavailableError: The node does not answer.
    """
    async with await Rpc.connect(rpc_url) as rpc:
        reader = EscrowReader(rpc, escrow)
        await reader.require_deployment()
        token = await reader.read_token()
        return Deployment(rpc.chain_id, escrow, token, await read_token_unit(rpc, token))


def write_key(keystore: Path, password: Path, key: bytes | None = None) -> Address:
    """Write the payee's key encrypted, with a random password beside it; make one if None.

    Raises:
        ConfigError: A file exists, or cannot be written.
    """
    require_new(keystore)
    secret = PrivateKey().secret if key is None else key
    text = secrets.token_urlsafe(_SECRET_BYTES)
    _write_new(password, f"{text}\n".encode())
    _write_new(keystore, encrypt_keystore(secret, text))
    return address_of(secret)


def write_settings(path: Path, answers: Answers) -> None:
    """Write the settings, with a fresh secret for challenges.

    Raises:
        ConfigError: The file exists, or cannot be written.
    """
    _write_new(path, _render(answers, secrets.token_urlsafe(_SECRET_BYTES)).encode())


def _render(answers: Answers, secret: str) -> str:
    deployment = answers.deployment
    books = f"sqlite:///{quote(str(answers.keystore.parent))}/books.db"
    symbol = "tokens" if deployment.unit is None else deployment.unit.symbol
    price = [f"# {symbol} for a million tokens.", f"output = {_quote(answers.output_price)}"]
    if answers.input_price is not None:
        price.insert(1, f"input = {_quote(answers.input_price)}")
    return "\n".join(
        [
            "# Settings of `mpp-session gateway`, written by `mpp-session init`. This file holds a",
            "# secret: keep it readable by the gateway's user alone.",
            "# Every setting is in docs/reference/configuration.md.",
            "",
            "[upstream]",
            "# The model server, without /v1.",
            f"url = {_quote(answers.upstream)}",
            "",
            "[price]",
            *price,
            "",
            "[payment]",
            "# The name of this service in every challenge.",
            f"realm = {_quote(answers.realm)}",
            "# Binds challenges. To rotate it, put a new one in front.",
            f"secrets = [{_quote(secret)}]",
            "",
            "[listen]",
            "# Put the proxy that ends TLS in front, with its buffering off.",
            'host = "127.0.0.1"',
            "port = 8402",
            "",
            "[chain]",
            f"rpc_url = {_quote(answers.rpc_url)}",
            "# Two more nodes of other operators protect from one that lies:",
            "# more_rpc_urls = []",
            f"id = {deployment.chain_id}",
            f'escrow = "0x{deployment.escrow.hex()}"',
            f"# {symbol}",
            f'token = "0x{deployment.token.hex()}"',
            "",
            "[payee]",
            "# The account that is paid, and pays the gas of settling. Back up both files.",
            f'address = "0x{answers.payee.hex()}"',
            f"keystore_file = {_quote(str(answers.keystore))}",
            f"password_file = {_quote(str(answers.password))}",
            "",
            "[ledger]",
            "# The books: one file for one gateway process, postgresql:// for several.",
            f"url = {_quote(books)}",
            "",
            *_render_sponsoring(answers.sponsoring),
        ]
    )


def _render_sponsoring(settings: Mapping[str, bool | int]) -> list[str]:
    if not settings:
        return []
    return [
        "[sponsoring]",
        "# Payers sign their deposits, and the payee pays the gas of them.",
        *[f"{name} = {msgspec.json.encode(value).decode()}" for name, value in settings.items()],
        "",
    ]


def _quote(text: str) -> str:
    """Return a string as TOML writes it, which is as JSON does."""
    return msgspec.json.encode(text).decode()


def require_new(path: Path) -> None:
    """Check that there is nothing at a path yet.

    Raises:
        ConfigError: There is.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists, and nothing is written over: move it, or name a folder")


def _write_new(path: Path, content: bytes) -> None:
    require_new(path)
    try:
        write_new(path, content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
