"""Reads what the pages show: channels from the ledger, settlements from the journal, health."""

import asyncio
import re
import time
from typing import Final

import msgspec

from channel.errors import ChannelNotFoundError, MppSessionError
from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState
from channel.types import ChannelId, ChannelKey
from mpp_session.operator.status import Status
from mpp_session.operator.status_reading import collect_status
from mpp_session.settings import ProviderConfig, parse_address
from settlement import abi
from settlement.settle.schedule import value_at_risk
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.state import JournalTx, Purpose
from settlement.types import BatchEntry

__all__ = ["CHANNELS_READ_MAX", "Channels", "Reader", "Settlement", "name_state"]

CHANNELS_READ_MAX: Final = 20_000
"""Channels that one page reads: beyond it, the page says that there are more."""
_PAGE: Final = 1000
_CHANNEL_ID: Final = re.compile("[0-9a-fA-F]{64}")
_STATUS_FRESH_S: Final = 5.0
_CHANNELS_FRESH_S: Final = 1.0
_REST: Final = 20
"""For how many times as long as a reading took, its result is shown: paid requests go first."""


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """The payee's channels, most at risk first."""

    states: tuple[ChannelState, ...]
    has_more: bool
    """Whether the ledger holds more than were read."""

    @property
    def at_risk(self) -> int:
        """Sum over the open channels, in base units."""
        return sum(value_at_risk(s) for s in self.states if not s.is_finalized)


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction of the settler."""

    tx: JournalTx
    entries: tuple[BatchEntry, ...]


class Reader:
    """Reads ledger, journal and chain for the pages; briefly remembers what is dear to read."""

    def __init__(self, config: ProviderConfig, ledger: Ledger, journal: SettlerJournal) -> None:
        self._config = config
        self._ledger = ledger
        self._journal = journal
        self._payee = parse_address(config.payee.address)
        self._escrow = parse_address(config.chain.escrow)
        self._status: tuple[float, Status | str] | None = None
        self._channels: dict[bool, tuple[float, Channels]] = {}
        self._asking: asyncio.Task[Status | str] | None = None

    def key(self, channel_id: ChannelId) -> ChannelKey:
        """Return the key of a channel in this gateway's escrow."""
        return ChannelKey(self._config.chain.id, self._escrow, channel_id)

    async def require_channel(self, text: str) -> ChannelState:
        """Return the payee's channel with an id in hexadecimal.

        Raises:
            ChannelNotFoundError: There is none.
            LedgerUnavailableError: The database does not answer.
        """
        digits = text.removeprefix("0x")
        state = None
        if _CHANNEL_ID.fullmatch(digits):
            state = await self._ledger.load(self.key(ChannelId(bytes.fromhex(digits))))
        if state is None or state.terms.payee != self._payee:
            raise ChannelNotFoundError("The ledger holds no channel with this id for this payee.")
        return state

    async def channels(self, *, open_only: bool) -> Channels:
        """Return the payee's channels.

        Raises:
            LedgerUnavailableError: The database does not answer.
        """
        known = self._channels.get(open_only)
        now = time.monotonic()
        if known is not None and now < known[0]:
            return known[1]
        found = await self._read_channels(open_only=open_only)
        self._channels[open_only] = (_fresh_until(now, _CHANNELS_FRESH_S), found)
        return found

    async def status(self) -> Status | str:
        """Return what `mpp-session status` shows, or why it cannot be read."""
        now = time.monotonic()
        if self._status is not None and now < self._status[0]:
            return self._status[1]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def settlements(self) -> list[Settlement]:
        """Return the settler's transactions of the last 90 days, the newest first."""
        sent = await self._journal.sent_since(0)
        return [
            Settlement(tx=tx, entries=tuple(abi.decode_entries(tx.intent.calldata)))
            for tx in sent
            if tx.intent.to == self._escrow and tx.intent.purpose is not Purpose.OTHER
        ]

    async def _ask(self) -> Status | str:
        began = time.monotonic()
        try:
            found: Status | str = await collect_status(
                self._config, self._payee, gas_account=self._config.gas_account
            )
        except MppSessionError as error:
            found = str(error)
        self._status = (_fresh_until(began, _STATUS_FRESH_S), found)
        return found

    async def _read_channels(self, *, open_only: bool) -> Channels:
        mine = (self._config.chain.id, self._escrow, self._payee)
        found: list[ChannelState] = []
        after, read = None, 0
        while page := await self._ledger.list_channels(
            after=after, limit=_PAGE, open_only=open_only
        ):
            after, read = page[-1].key, read + len(page)
            found += [s for s in page if (s.key.chain_id, s.key.escrow, s.terms.payee) == mine]
            if read >= CHANNELS_READ_MAX:
                break
            await asyncio.sleep(0)  # paid requests go first
        found.sort(key=_by_risk)
        return Channels(states=tuple(found), has_more=read >= CHANNELS_READ_MAX)


def name_state(state: ChannelState) -> tuple[str, str]:
    """Return the state's name and how to show it: `good`, `warn`, `bad` or neutral."""
    if state.is_finalized:
        return "ended", ""
    if state.is_stopped:
        return "stopped", "bad"
    if state.is_closing:
        return "closing", "warn"
    if state.close_requested_at:
        return "close requested", "warn"
    return "open", "good"


def _fresh_until(began: float, least_s: float) -> float:
    now = time.monotonic()
    return now + max(least_s, _REST * (now - began))


def _by_risk(state: ChannelState) -> tuple[bool, int, int]:
    return (state.is_finalized, -value_at_risk(state), -state.active_at)
