"""Reads the prices again while the gateway serves: all of them, or none."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

from channel.errors import ConfigError
from mpp_session.errors import CommandError
from mpp_session.process.control_file import ControlFile
from mpp_session.settings import Config, PriceRow
from mpp_session.settings.config import default_state_dir

__all__ = ["PriceReloads", "ReadPrices"]

_log: Final = logging.getLogger(__name__)

ReadPrices: TypeAlias = Callable[[], tuple[PriceRow, ...]]
"""Reads the rows from where the gateway's settings came from."""


class PriceReloads:
    """The reloads of one gateway, one after the other."""

    def __init__(self, config: Config, read: ReadPrices) -> None:
        self._config = config
        self._read = read
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """Reload soon. Requests that come together are one reload."""
        self._wanted.set()

    async def run(self, change: Callable[[Config], Awaitable[str]]) -> None:
        """Reload whenever it is requested.

        `change` sells by other settings from then on, and returns the prices for people. It raises
        a `ConfigError` if nothing has changed.
        """
        ledger = self._config.ledger
        folder = Path(ledger.state_dir) if ledger.state_dir else default_state_dir()
        control = await asyncio.to_thread(ControlFile, folder, ledger.url)
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                await self._change(change, control)
        finally:
            control.close()

    async def _change(
        self, change: Callable[[Config], Awaitable[str]], control: ControlFile
    ) -> None:
        try:
            rows = await asyncio.to_thread(self._read)
            config = self._config.with_prices(rows)
            prices = await change(config)
        except (ConfigError, CommandError) as error:
            _log.error("prices are not changed: %s", error)
            await asyncio.to_thread(control.note, str(error), "")
            return
        self._config = config
        _log.info("prices are changed: %s", prices)
        await asyncio.to_thread(control.note, None, prices)
