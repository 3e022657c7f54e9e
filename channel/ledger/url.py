"""Tells which database a URL names: for the ledger, the journal and the deposit orders."""

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from channel.errors import ConfigError
from channel.ledger.accounts import AccountSettings
from channel.ledger.interface import Ledger
from channel.ledger.postgres import PostgresLedger
from channel.ledger.sqlite import SqliteLedger
from channel.limits import CHANNELS_CACHED_MAX

__all__ = ["find_sqlite_path", "open_ledger", "sqlite_path"]


async def open_ledger(
    url: str,
    *,
    exclusive: bool,
    read_only: bool = False,
    channels_cached_max: int = CHANNELS_CACHED_MAX,
    accounts: AccountSettings = AccountSettings(),  # noqa: B008 - frozen
    now: Callable[[], float] = time.time,
) -> Ledger:
    """Open the ledger a URL names.

    `sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql://...`. `exclusive` is
    for the gateway: on SQLite only one gateway may have the file open. On PostgreSQL several
    gateways may. `read_only` is for commands that change nothing: it creates no file and no table,
    and leaves those of an older version as they are. `channels_cached_max` states are kept in
    memory, at 1 kB each. `now` is the time of the accounts, in Unix seconds.

    Raises:
        ConfigError: An unknown kind of ledger; or one in memory, which would lose every debt at
            a restart (F-106); or see the ledger's own `open`.
        LedgerUnavailableError: The database does not answer.
    """
    path = find_sqlite_path(url)
    if path is not None:
        return await SqliteLedger.open(
            path,
            exclusive=exclusive,
            read_only=read_only,
            channels_cached_max=channels_cached_max,
            accounts=accounts,
            now=now,
        )
    return await PostgresLedger.open(
        url,
        exclusive=exclusive,
        read_only=read_only,
        channels_cached_max=channels_cached_max,
        accounts=accounts,
        now=now,
    )


def find_sqlite_path(url: str) -> Path | None:
    """Return the file a `sqlite:` URL names, None for PostgreSQL.

    Raises:
        ConfigError: It names neither, or no file.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        return sqlite_path(url)
    if scheme in {"postgresql", "postgres"}:
        return None
    raise ConfigError(
        f"expected a ledger URL that begins with sqlite:/// or postgresql://, found {scheme}"
    )


def sqlite_path(url: str) -> Path:
    """Return the file that a `sqlite:` URL names.

    Raises:
        ConfigError: It names no file.
    """
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or not path or path.startswith((":", "file:")):
        raise ConfigError(
            "expected sqlite:///relative/path or sqlite:////absolute/path for a SQLite ledger; one "
            "in memory would lose every debt at a restart"
        )
    return Path(path)
