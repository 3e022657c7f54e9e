"""How much may be at risk: bounds on what is promised and unsettled, and on gas to defend it.

On one channel `accepted - settled` is bounded: what the payee could come to be owed, and with it
`accepted - spent`, what the payer could lose if the payee closed for all that was signed. On all
channels together what counts is what was delivered, or is held for what runs, and is not settled:
a promise costs its payer nothing, and a total of promises could be filled by one who buys nothing,
to keep every other payer out.

What one signer promised on all its channels is bounded too, and far lower where only a contract
vouches for it, which may take that back (F-19, O-01): there what counts is each voucher that is
kept and unsettled, by the contract and by the payer who named it.

The bound on a channel is exact. The others are what the last look at all channels added up to, plus
what this process has taken since: of one process they are never passed; each further gateway may
pass them by what it takes within one sweep. Of what contracts vouch for each process takes its
share alone, so that all of a machine keep to it together. Nothing here decides about money that
was accepted: it can only refuse more.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from channel.errors import ChainUnavailableError, ExposureLimitError, OpeningsPausedError
from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelKey, ChannelTerms, VerifiedVoucher

__all__ = [
    "Exposure",
    "ExposureGate",
    "ExposureLimits",
    "Promise",
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
    signer_max: int | None = None
    """Of the same, on all channels of one signer."""
    contract_signed_max: int | None = None
    """Of the same by vouchers that only a contract vouches for: of one signer, and of one payer."""
    total_max: int | None = None
    """Of `spent + reserved - settled`, on all together."""


class Promise(msgspec.Struct, frozen=True, gc=False):
    """What is promised and unsettled on one channel, and whose that is."""

    signer: Address
    payer: Address
    amount: int
    by_contract: int
    """Of the amount, as far as only the signer's contract vouches for it."""


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


def gas_reserve_wei(closes: int, *, gas_per_close: int, base_fee_wei: int) -> int:
    """Return what must be at hand to close so many channels at twice today's price (F-65).

    Never less than what a node wants to see for one of them, used or not.
    """
    gas = max(closes * gas_per_close, _CLOSE_GAS_LIMIT)
    return gas * base_fee_wei * _FEE_HEADROOM


class _Sums:
    """Amounts of channels, added up by whose they are."""

    def __init__(self) -> None:
        self._amounts: dict[ChannelKey, tuple[Address, int]] = {}
        self._totals: dict[Address, int] = {}
        self._noted: dict[ChannelKey, tuple[Address, int]] = {}

    def total(self, owner: Address) -> int:
        """Return what all channels of an owner add up to."""
        return self._totals.get(owner, 0)

    def room(self, owner: Address, key: ChannelKey, bound: int) -> int:
        """Return what may be counted of one channel, beside the owner's others."""
        known = self._amounts.get(key)
        return bound - self._totals.get(owner, 0) + (0 if known is None else known[1])

    def note(self, owner: Address, key: ChannelKey, amount: int) -> None:
        """Count this of a channel from now on."""
        known = self._amounts.get(key)
        before = 0 if known is None else known[1]
        self._amounts[key] = self._noted[key] = (owner, amount)
        self._totals[owner] = self._totals.get(owner, 0) + amount - before

    def begin(self) -> None:
        """A look at all channels begins: what is noted from now on, it may not see."""
        self._noted = {}

    def end(self, seen: Mapping[ChannelKey, tuple[Address, int]]) -> None:
        """Take over what was seen, and keep what was noted meanwhile."""
        self._amounts = dict(seen)
        for key, (owner, amount) in self._noted.items():
            seen_too = self._amounts.get(key, (owner, 0))[1]
            self._amounts[key] = (owner, max(amount, seen_too))
        self._totals = {}
        for owner, amount in self._amounts.values():
            self._totals[owner] = self._totals.get(owner, 0) + amount


class ExposureGate:
    """Refuses what would pass a bound (`channel.engine.admission.Admission`)."""

    def __init__(self, limits: ExposureLimits | None = None) -> None:
        self._limits = limits or ExposureLimits()
        self._by_signer = _Sums()
        self._contract_by_signer = _Sums()
        self._contract_by_payer = _Sums()
        self._has_looked = False
        self.distrusted: frozenset[Address] = frozenset()
        """Contracts that took back what they had vouched for, and who paid by them (O-01)."""
        self._swept = 0
        self._taken = 0
        self._taken_before = 0
        self._blocked: set[ChannelKey] = set()
        self.refused: frozenset[ChannelKey] = frozenset()
        """Channels that the chain does not settle now: set by whoever reads the quarantine."""
        self.is_gas_low = False
        """Too little ether to defend one more channel: set by whoever watches the balance."""
        self.is_unpayable = False
        """The token would refuse to pay us out: set by whoever tries it (O-13)."""
        self.is_key_shared = False
        """Something settles or closes with the payee's key that these books know nothing of."""
        self.is_disputed = False
        """Nodes show different chains, and no majority one: set by whoever compares them."""

    @property
    def total(self) -> int:
        """What is delivered or held, and unsettled, on all channels, as far as known."""
        return self._swept + self._taken

    @property
    def is_crowded(self) -> bool:
        """Whether half of the bound on all channels together is reached: time to settle.

        Also while somebody else uses the payee's key, who could close for what is settled.
        """
        if self.is_key_shared:
            return True
        bound = self._limits.total_max
        return bound is not None and 2 * self.total >= bound

    @property
    def is_full(self) -> bool:
        """Whether the bound on all channels together is reached."""
        bound = self._limits.total_max
        return bound is not None and self.total >= bound

    def is_signer_crowded(self, signer: Address) -> bool:
        """Whether half of what one signer may leave unsettled is reached: time to settle."""
        pairs = (
            (self._by_signer, self._limits.signer_max),
            (self._contract_by_signer, self._limits.contract_signed_max),
        )
        return any(
            bound is not None and sums.total(signer) > 0 and 2 * sums.total(signer) >= bound
            for sums, bound in pairs
        )

    def begin_sweep(self) -> None:
        """Note that a look at all channels begins: what is taken from now on, it may not see."""
        self._taken_before = self._taken
        for sums in (self._by_signer, self._contract_by_signer, self._contract_by_payer):
            sums.begin()

    def end_sweep(self, total: int, promises: Mapping[ChannelKey, Promise] | None = None) -> None:
        """Take over what a look at all channels added up to, and what is promised on each."""
        self._swept = total
        self._taken, self._taken_before = max(0, self._taken - self._taken_before), 0
        seen = promises or {}
        self._by_signer.end({key: (each.signer, each.amount) for key, each in seen.items()})
        by_contract = {key: each for key, each in seen.items() if each.by_contract}
        self._contract_by_signer.end(
            {key: (each.signer, each.by_contract) for key, each in by_contract.items()}
        )
        self._contract_by_payer.end(
            {key: (each.payer, each.by_contract) for key, each in by_contract.items()}
        )

    def trust_contracts(self, distrusted: frozenset[Address]) -> None:
        """Take what contracts vouch for from now on, but of these: every channel was looked at."""
        self.distrusted = distrusted
        self._has_looked = True

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

    def require_promise(self, voucher: VerifiedVoucher, known: ChannelState) -> None:
        """See `channel.engine.admission.Admission.require_promise`."""
        key, terms = voucher.key, known.terms
        if key in self._blocked:
            raise ExposureLimitError("The contract wallet no longer takes what it signed before.")
        if key in self.refused:
            raise ExposureLimitError("The chain does not settle this channel at the moment.")
        if voucher.by_contract:
            self._require_trusted(terms)
        if voucher.cumulative_amount <= known.accepted:
            return
        self._require_payable()
        unsettled, bound = voucher.cumulative_amount - known.settled, self._limits.channel_max
        if bound is not None and unsettled > bound:
            raise _beyond("on a channel", bound, known.settled + bound)
        counted = self._counted(terms, by_contract=voucher.by_contract)
        for sums, owner, bound, where in counted:
            room = sums.room(owner, key, bound)
            if unsettled > room:
                raise _beyond(where, bound, known.settled + max(0, room))
        for sums, owner, _, _ in counted:
            sums.note(owner, key, unsettled)

    def _counted(
        self, terms: ChannelTerms, *, by_contract: bool
    ) -> list[tuple[_Sums, Address, int, str]]:
        """Return what a promise is added to, with whose it is, its bound, and its name."""
        limits, counted = self._limits, []
        if limits.signer_max is not None:
            where = "on all channels of one signer"
            counted.append((self._by_signer, terms.signer, limits.signer_max, where))
        bound = limits.contract_signed_max
        if by_contract and bound is not None:
            where = "of one signer or payer by vouchers that only a contract vouches for"
            counted.append((self._contract_by_signer, terms.signer, bound, where))
            counted.append((self._contract_by_payer, terms.payer, bound, where))
        return counted

    def _require_trusted(self, terms: ChannelTerms) -> None:
        """Refuse what a contract vouches for that broke its word, or may have (O-01)."""
        if not self.distrusted.isdisjoint((terms.signer, terms.payer)):
            raise ExposureLimitError(
                "The chain refused a voucher that this signer's contract had vouched for: open a "
                "channel whose `authorizedSigner` is an ordinary key."
            )
        if self._limits.contract_signed_max is not None and not self._has_looked:
            raise ExposureLimitError("Not every channel was looked at since the start; ask again.")

    def _require_payable(self) -> None:
        if self.is_unpayable:
            raise ExposureLimitError("The token pays nothing out at the moment: nothing is sold.")

    def take_room(self, amount: int) -> None:
        """See `channel.engine.admission.Admission.take_room`."""
        if amount > 0:
            self._require_payable()
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
        if self.is_key_shared or self.is_unpayable or self.is_gas_low:
            raise OpeningsPausedError("New channels cannot be taken at the moment.")
        self.require_deposits()

    def require_deposits(self) -> None:
        """See `channel.engine.admission.Admission.require_deposits`."""
        if self.is_disputed:
            raise ChainUnavailableError("Nodes disagree: no deposit can be checked at the moment.")


def _beyond(where: str, bound: int, taken_now: int) -> ExposureLimitError:
    return ExposureLimitError(
        f"At most {bound} may be unsettled {where}: a voucher for up to {taken_now} is taken now."
    )
