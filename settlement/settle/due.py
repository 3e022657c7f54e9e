"""Tracks per channel which closes are due, and since when an amount is unsettled.

`schedule` decides from values alone. This module keeps, from one sweep to the next, what the ledger
does not store. A full sweep replaces that memory: channels it did not see are forgotten.
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
    """Totals of one sweep."""

    at_risk: int = 0
    """Base units delivered or reserved, and unsettled, over all channels."""
    payable: int = 0
    """The part of it that the deposits cover."""
    defended: int = 0
    """Number of channels with a delivered, unsettled amount."""
    wallets: list[ChannelState] = msgspec.field(default_factory=list)
    """Channels with a delivered, unsettled amount that depends on a contract wallet."""
    promises: dict[ChannelKey, Promise] = msgspec.field(default_factory=dict)
    """Accepted and unsettled amounts, by channel."""


class SweepState(msgspec.Struct):
    """State of one sweep over every open channel."""

    totals: SweepTotals = msgspec.field(default_factory=SweepTotals)
    owed: dict[ChannelKey, ChannelState] = msgspec.field(default_factory=dict)
    unsettled: dict[ChannelKey, tuple[int, int]] = msgspec.field(default_factory=dict)
    half_closed: list[ChannelKey] = msgspec.field(default_factory=list)
    behind: list[ChannelState] = msgspec.field(default_factory=list)
    """Channels of which the chain shows more settled than the ledger knows."""


class DueList:
    """The known needs of one payee's channels."""

    def __init__(
        self,
        policy: SettlePolicy,
        *,
        half_closed_s_max: float,
        domain: str,
        is_crowded: Callable[[Address], bool] = lambda _: False,
    ) -> None:
        """Judge by `policy`.

        `domain` is the name of the escrow's EIP-712 domain. `is_crowded` says whether a signer is
        near its bound.
        """
        self._policy = policy
        self._is_crowded = is_crowded
        self._half_closed_s_max = half_closed_s_max
        self._wallets = WalletSigners(domain)
        self._owed: dict[ChannelKey, ChannelState] = {}
        self._half_closed: dict[ChannelKey, float] = {}
        self._unsettled: dict[ChannelKey, tuple[int, int]] = {}

    @property
    def owed(self) -> Mapping[ChannelKey, ChannelState]:
        """The channels whose close is due."""
        return self._owed

    def take(self, state: ChannelState, moment: Moment) -> list[Due]:
        """Record one channel's current state, and return what is due for it."""
        due = self.decide(state, moment)
        if owes_close(state, self._policy):
            self._owed[state.key] = state
        else:
            self._owed.pop(state.key, None)
        return due

    def take_in_round(self, state: ChannelState, moment: Moment, found: SweepState) -> list[Due]:
        """Record one channel during a sweep, and return what is due for it."""
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
        """Keep the sweep's findings; return closes begun too long ago by a dead process."""
        self._owed, self._unsettled = found.owed, found.unsettled
        now = asyncio.get_running_loop().time()
        self._half_closed = {key: self._half_closed.get(key, now) for key in found.half_closed}
        longest_s = self._half_closed_s_max
        return [key for key, since in self._half_closed.items() if now - since >= longest_s]

    def decide(self, state: ChannelState, moment: Moment) -> list[Due]:
        """Return what is due for one channel, given since when it is unsettled."""
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
