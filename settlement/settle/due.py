"""What is due, channel by channel: closes that are owed, and since when something is unsettled.

`schedule` decides by values alone; what it needs to know beyond the books is remembered here, from
one sweep to the next. A full sweep is a round: what it did not see again is forgotten.
"""

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelKey
from settlement.escrow.wallets import WalletSigners
from settlement.settle.exposure import Promise, exposure_of
from settlement.settle.schedule import (
    Due,
    Moment,
    SettlePolicy,
    Watched,
    decide,
    owes_close,
    value_at_risk,
)

__all__ = ["DueList", "SweepState", "SweepTotals"]


class SweepTotals(msgspec.Struct):
    """What a sweep counted."""

    at_risk: int = 0
    """Delivered, or held for what runs, and unsettled: of all channels."""
    payable: int = 0
    """Of that, as much as the deposits hold."""
    defended: int = 0
    """Channels on which something delivered is unsettled."""
    wallets: list[ChannelState] = msgspec.field(default_factory=list)
    """Channels on which something delivered is unsettled that only a contract vouches for."""
    promises: dict[ChannelKey, Promise] = msgspec.field(default_factory=dict)
    """What is promised and unsettled, channel by channel."""


class SweepState(msgspec.Struct):
    """What one sweep of every open channel has found so far."""

    totals: SweepTotals = msgspec.field(default_factory=SweepTotals)
    owed: dict[ChannelKey, ChannelState] = msgspec.field(default_factory=dict)
    unsettled: dict[ChannelKey, tuple[int, int]] = msgspec.field(default_factory=dict)
    half_closed: list[ChannelKey] = msgspec.field(default_factory=list)
    behind: list[ChannelState] = msgspec.field(default_factory=list)
    """Of these more is settled than the books know."""


class DueList:
    """What one payee's channels need, as far as it is known."""

    def __init__(
        self,
        policy: SettlePolicy,
        *,
        half_closed_s_max: float,
        is_crowded: Callable[[Address], bool] = lambda _: False,
    ) -> None:
        """Judge by `policy`; `is_crowded` says of a signer that it is time to settle."""
        self._policy = policy
        self._is_crowded = is_crowded
        self._half_closed_s_max = half_closed_s_max
        self._wallets = WalletSigners()
        self._owed: dict[ChannelKey, ChannelState] = {}
        self._half_closed: dict[ChannelKey, float] = {}
        self._unsettled: dict[ChannelKey, tuple[int, int]] = {}

    @property
    def owed(self) -> Mapping[ChannelKey, ChannelState]:
        """The channels that owe a close."""
        return self._owed

    def take(self, state: ChannelState, moment: Moment) -> list[Due]:
        """Take one channel as it is now, and return what is due for it."""
        due = self.decide(state, moment)
        if owes_close(state, self._policy):
            self._owed[state.key] = state
        else:
            self._owed.pop(state.key, None)
        return due

    def take_in_round(self, state: ChannelState, moment: Moment, found: SweepState) -> list[Due]:
        """Take one channel of a sweep, and return what is due for it."""
        due = self.decide(state, moment)
        self._count(state, found.totals)
        if state.settled > state.accepted and not state.is_finalized:
            found.behind.append(state)
        if state.key in self._unsettled:
            found.unsettled[state.key] = self._unsettled[state.key]
        if owes_close(state, self._policy):
            found.owed[state.key] = state
        elif state.is_closing and not state.is_finalized:
            found.half_closed.append(state.key)
        return due

    def end_round(self, found: SweepState) -> list[ChannelKey]:
        """Keep what the sweep found, and return closes begun so long ago that nobody ends them."""
        self._owed, self._unsettled = found.owed, found.unsettled
        now = asyncio.get_running_loop().time()
        self._half_closed = {key: self._half_closed.get(key, now) for key in found.half_closed}
        longest_s = self._half_closed_s_max
        return [key for key, since in self._half_closed.items() if now - since >= longest_s]

    def decide(self, state: ChannelState, moment: Moment) -> list[Due]:
        """Return what is due for one channel. Since when it is unsettled is only known here."""
        if state.is_finalized:
            return []
        since = None
        is_wallet = is_crowded = False
        if state.spent > state.settled:
            settled, before = self._unsettled.get(state.key, (-1, 0))
            since = before if settled == state.settled else min(moment.now, state.active_at)
            self._unsettled[state.key] = (state.settled, since)
            is_wallet = self._wallets.is_wallet(state)
            is_crowded = self._is_crowded(state.terms.signer)
        else:
            self._unsettled.pop(state.key, None)
        watched = Watched(
            state=state, unsettled_since=since, is_wallet=is_wallet, is_crowded=is_crowded
        )
        due = decide(watched, moment, self._policy)
        return [] if due is None else [due]

    def _count(self, state: ChannelState, totals: SweepTotals) -> None:
        if state.is_finalized:
            return
        totals.at_risk += value_at_risk(state)
        totals.payable += min(value_at_risk(state), max(0, state.deposit - state.settled))
        totals.defended += state.spent > state.settled
        unsettled = exposure_of(state).payee
        if unsettled:
            by_contract = self._wallets.amount(state)
            terms = state.terms
            totals.promises[state.key] = Promise(terms.signer, terms.payer, unsettled, by_contract)
            if by_contract and state.spent > state.settled:
                totals.wallets.append(state)
