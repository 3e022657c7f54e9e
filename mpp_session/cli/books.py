"""The ledger that a command works on, and what a command reads from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from channel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from channel.state.channel_state import ChannelState
    from channel.types import Address
    from mpp_session.agent.amounts import TokenUnit

__all__ = ["Books", "name_tokens", "read_channels", "require_there"]

_SQLITE: Final = "sqlite:///"


class Books(NamedTuple):
    """A ledger, and the settings that were given with it."""

    url: str
    values: dict[str, Any]

    @classmethod
    def find(
        cls,
        config: Path | None,
        ledger: str | None,
        devnet: Path | None = None,
        *,
        may_be_new: bool = False,
    ) -> Self:
        """Return the ledger that the flags, the environment or the settings file give.

        Raises:
            ConfigError: No ledger is given, or it does not exist and the command may not create it.
        """
        from mpp_session.settings.config import load_values

        defaults = None
        if devnet is not None:
            from mpp_session.cli.status import devnet_defaults

            defaults = devnet_defaults(devnet)
        flags = {"ledger.url": ledger} if ledger is not None else {}
        values = load_values(config, flags=flags, defaults=defaults)
        url = str(values.get("ledger.url", ""))
        if not url:
            raise ConfigError("missing: `ledger.url` (give --ledger, --config or --devnet)")
        if not may_be_new:
            require_there(url)
        return cls(url, values)


def require_there(url: str) -> None:
    """Check that the file of a SQLite ledger exists, because opening the ledger would create it.

    Raises:
        ConfigError: The file does not exist, or the URL is not one of a ledger.
    """
    from channel.ledger.url import sqlite_path

    if url.startswith(_SQLITE) and not sqlite_path(url).is_file():
        raise ConfigError(f"there is no ledger at {url}")


def read_channels(books: Books, *, open_only: bool) -> "list[ChannelState]":
    """Return the channels of a ledger that another process may be using."""
    import asyncio

    return asyncio.run(_read(books.url, open_only=open_only))


async def _read(url: str, *, open_only: bool) -> "list[ChannelState]":
    from channel.ledger.url import open_ledger

    ledger = await open_ledger(url, exclusive=False, read_only=True)
    try:
        found: list[ChannelState] = []
        while page := await ledger.list_channels(
            after=found[-1].key if found else None, open_only=open_only
        ):
            found += page
        return found
    finally:
        await ledger.close()


def name_tokens(
    books: Books, states: "Sequence[ChannelState]", *others: "Address"
) -> "dict[Address, TokenUnit]":
    """Return the unit of each token in these channels; base units if no node names the unit.

    `others` are tokens of the chain in the settings that no channel may have.
    """
    import asyncio

    from mpp_session.agent.amounts import BASE_UNITS

    units: dict[Address, TokenUnit] = {state.terms.token: BASE_UNITS for state in states}
    units |= dict.fromkeys(others, BASE_UNITS)
    rpc_url, chain_id = books.values.get("chain.rpc_url"), books.values.get("chain.id")
    if rpc_url and str(chain_id).isdecimal():
        from mpp_session.operator.token_units import read_units

        number = int(str(chain_id))
        tokens = {state.terms.token for state in states if state.key.chain_id == number}
        tokens |= {*others}
        units |= asyncio.run(read_units(str(rpc_url), number, tokens))
    return units
