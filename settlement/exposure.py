"""How much may be at risk: bounds on what is promised and unsettled, and on gas to defend it.

On one channel `accepted - settled` is bounded: what the payee could come to be owed, and with it
`accepted - spent`, what the payer could lose if the payee closed for all that was signed. On all
channels together what counts is what was delivered, or is held for what runs, and is not settled:
a promise costs its payer nothing, and a total of promises could be filled by one who buys nothing,
to keep every other payer out.

The bound on a channel is exact. The total is what the last look at all channels added up to, plus
what this process has held since: of one process it is never passed; each further gateway may pass
it by what it takes within one sweep. Nothing here decides about money that was accepted: it can
only refuse more.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from channel.errors import ChainUnavailableError, ExposureLimitError, OpeningsPausedError
from channel.state.channel_state import ChannelState
from channel.types import ChannelKey

__all__ = [
    "Exposure",
    "ExposureGate",
    "ExposureLimits",
    "add_up",
    "exposure_of",
    "gas_reserve_wei",
]

_FEE_HEADROOM: Final = 2
_CLOSE_GAS_LIMIT: Final = 510_000
"""Of a lone close: the escrow wants room for a refund, most of which comes back."""


class ExposureLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be at risk, in base units of the token. None: no bound."""

    channel_max: int | None = None
    """Of `accepted - settled`, on one channel."""
    total_max: int | None = None
    """Of `spent + reserved - settled`, on all together."""


class Exposure(msgspec.Struct, frozen=True):
    """What is at risk on both sides."""

    payee: int = 0
    """Promised and unsettled: `accepted - settled`."""
    payer: int = 0
    """Promised and not delivered: `accepted - spent`."""


def exposure_of(state: ChannelState) -> Exposure:
    """Return what is at risk on one channel; nothing is once it has ended."""
    if state.is_finalized:
        return Exposure()
    return Exposure(
        payee=max(0, state.accepted - state.settled), payer=max(0, state.accepted - state.spent)
    )


def add_up(states: Iterable[ChannelState]) -> Exposure:
    """Return what is at risk on all of them together."""
    each = [exposure_of(state) for state in states]
    return Exposure(payee=sum(one.payee for one in each), payer=sum(one.payer for one in each))


def gas_reserve_wei(closes: int, *, gas_per_close: int, base_fee_wei: int) -> int:
    """Return what must be at hand to close so many channels at twice today's price (F-65).

    Never less than what a node wants to see for one of them, used or not.
    """
    gas = max(closes * gas_per_close, _CLOSE_GAS_LIMIT)
    return gas * base_fee_wei * _FEE_HEADROOM


class ExposureGate:
    """Refuses what would pass a bound (`channel.engine.admission.Admission`)."""

    def __init__(self, limits: ExposureLimits | None = None) -> None:
        self._limits = limits or ExposureLimits()
        self._swept = 0
        self._taken = 0
        self._taken_before = 0
        self._blocked: set[ChannelKey] = set()
        self.refused: frozenset[ChannelKey] = frozenset()
        """Channels that the chain does not settle now: set by whoever reads the quarantine."""
        self.is_gas_low = False
        """Too little ether to defend one more channel: set by whoever watches the balance."""
        self.is_disputed = False
        """Nodes show different chains, and no majority one: set by whoever compares them."""

    @property
    def total(self) -> int:
        """What is delivered or held, and unsettled, on all channels, as far as known."""
        return self._swept + self._taken

    @property
    def is_crowded(self) -> bool:
        """Whether half of the bound on all channels together is reached: time to settle."""
        bound = self._limits.total_max
        return bound is not None and 2 * self.total >= bound

    @property
    def is_full(self) -> bool:
        """Whether the bound on all channels together is reached."""
        bound = self._limits.total_max
        return bound is not None and self.total >= bound

    def begin_sweep(self) -> None:
        """Note that a look at all channels begins: what is taken from now on, it may not see."""
        self._taken_before = self._taken

    def end_sweep(self, total: int) -> None:
        """Take over what a look at all channels added up to."""
        self._swept = total
        self._taken, self._taken_before = max(0, self._taken - self._taken_before), 0

    @property
    def blocked(self) -> frozenset[ChannelKey]:
        """Channels that are served nothing because of their wallets."""
        return frozenset(self._blocked)

    def block(self, key: ChannelKey) -> None:
        """Serve nothing more on a channel: what its payer signs may be worth nothing (F-19)."""
        self._blocked.add(key)

    def unblock(self, key: ChannelKey) -> None:
        """Serve it again."""
        self._blocked.discard(key)

    def require_promise(
        self, key: ChannelKey, cumulative_amount: int, *, accepted: int, settled: int
    ) -> None:
        """See `channel.engine.admission.Admission.require_promise`."""
        if key in self._blocked:
            raise ExposureLimitError("The contract wallet no longer takes what it signed before.")
        if key in self.refused:
            raise ExposureLimitError("The chain does not settle this channel at the moment.")
        bound = self._limits.channel_max
        if bound is None or cumulative_amount <= accepted:
            return
        if cumulative_amount - settled > bound:
            raise ExposureLimitError(
                f"At most {bound} may be unsettled on a channel: a voucher for up to "
                f"{settled + bound} is taken now."
            )

    def take_room(self, amount: int) -> None:
        """See `channel.engine.admission.Admission.take_room`."""
        bound = self._limits.total_max
        if bound is not None and amount > 0 and self.total + amount > bound:
            raise ExposureLimitError("As much is unsettled as may be; a settle is on its way.")
        self._taken += amount

    def give_back(self, amount: int) -> None:
        """See `channel.engine.admission.Admission.give_back`. A sweep may have been between.

        While a sweep looks, it counts as taken before that, whatever it was: else room that was
        taken meanwhile could be forgotten with it. The next sweep puts right what is too much.
        """
        self._taken = max(0, self._taken - amount)
        self._taken_before = max(0, self._taken_before - amount)

    def require_openings(self) -> None:
        """See `channel.engine.admission.Admission.require_openings`."""
        if self.is_gas_low:
            raise OpeningsPausedError("New channels cannot be taken at the moment.")
        self.require_deposits()

    def require_deposits(self) -> None:
        """See `channel.engine.admission.Admission.require_deposits`."""
        if self.is_disputed:
            raise ChainUnavailableError("Nodes disagree: no deposit can be checked at the moment.")
