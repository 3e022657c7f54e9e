"""Which ledger, by URL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from channel.errors import ConfigError
from channel.ledger.interface import Ledger
from channel.ledger.postgres import PostgresLedger
from channel.ledger.sqlite import SqliteLedger
from channel.limits import CHANNELS_CACHED_MAX

__all__ = ["open_ledger", "sqlite_path"]


async def open_ledger(
    url: str,
    *,
    exclusive: bool,
    read_only: bool = False,
    channels_cached_max: int = CHANNELS_CACHED_MAX,
) -> Ledger:
    """Open the ledger a URL names.

    `sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql://...`. `exclusive` is
    for the gateway: on SQLite it takes the file for itself among gateways. On PostgreSQL any
    number of gateways may open it. `read_only` is for what asks and changes nothing: it makes no
    file and no table, and leaves those of an older version as they are.
    `channels_cached_max` states are kept in memory: 1 kB each.

    Raises:
        ConfigError: No such kind of ledger; or one in memory, which a restart would empty of
            what is owed (F-106); or see the ledger's own `open`.
        LedgerUnavailableError: The database does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return await SqliteLedger.open(
            sqlite_path(url),
            exclusive=exclusive,
            read_only=read_only,
            channels_cached_max=channels_cached_max,
        )
    if parts.scheme in {"postgresql", "postgres"}:
        return await PostgresLedger.open(
            url,
            exclusive=exclusive,
            read_only=read_only,
            channels_cached_max=channels_cached_max,
        )
    raise ConfigError(f"a ledger's URL begins with sqlite:/// or postgresql://, not {parts.scheme}")


def sqlite_path(url: str) -> Path:
    """Return the file a `sqlite:` URL names.

    Raises:
        ConfigError: It names none.
    """
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or not path or path.startswith((":", "file:")):
        raise ConfigError(
            "a SQLite ledger is sqlite:///relative/path or sqlite:////absolute/path; one in "
            "memory would forget at a restart what is owed"
        )
    return Path(path)
