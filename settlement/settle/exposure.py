"""Bounds on accepted, unsettled amounts, and on the gas reserve to close their channels.

One channel: `accepted - settled` is bounded, the most the payee could lose. That also bounds
`accepted - spent`, the most the payer could lose if the payee closed with its highest voucher. All
channels together: what was delivered or reserved and is not settled is bounded. Mere promises do
not count there, because a promise costs its payer nothing: one client that buys nothing could fill
the bound and lock every other payer out.

The sum over all channels of one signer is bounded too. It is bounded far lower for vouchers that
depend on a contract wallet, which may revoke them (F-19, O-01). There every stored, unsettled
voucher counts, for the contract and for the payer that named it.

The bound of one channel is exact. The other sums are those of the last sweep plus what this process
has accepted since. One process never exceeds them; each further gateway may exceed them by what it
accepts within one sweep. For contract wallets each process uses only its share, so that all
processes together keep the bound. Nothing here affects amounts already accepted: these checks only
refuse more.
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
"""Of a lone close: the escrow requires room for a refund, most of which is returned."""


class ExposureLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds in base units of the token. None: no bound."""

    channel_max: int | None = None
    """Bound on `accepted - settled` of one channel."""
    signer_max: int | None = None
    """Bound on the sum of it over all channels of one signer."""
    contract_signed_max: int | None = None
    """The same for vouchers that depend on a contract: of one signer, and of one payer."""
    total_max: int | None = None
    """Bound on the sum of `spent + reserved - settled` over all channels."""


class Promise(msgspec.Struct, frozen=True, gc=False):
    """The accepted, unsettled amount of one channel, and its signer and payer."""

    signer: Address
    payer: Address
    amount: int
    by_contract: int
    """The part of the amount that depends on the signer's contract."""


class Exposure(msgspec.Struct, frozen=True):
    """The amounts at risk on both sides, in base units."""

    payee: int = 0
    """Accepted and unsettled: `accepted - settled`."""
    payer: int = 0
    """Accepted and not delivered: `accepted - spent`."""


def exposure_of(state: ChannelState) -> Exposure:
    """Return the amounts at risk on one channel; zero once it is closed."""
    if state.is_finalized:
        return Exposure()
    return Exposure(
        payee=max(0, state.accepted - state.settled), payer=max(0, state.accepted - state.spent)
    )


def gas_reserve_wei(closes: int, *, gas_per_close: int, base_fee_wei: int) -> int:
    """Return the wei needed to close so many channels at twice the current base fee (F-65).

    Never less than what a node requires for one close, used or not.
    """
    gas = max(closes * gas_per_close, _CLOSE_GAS_LIMIT)
    return gas * base_fee_wei * _FEE_HEADROOM


class _Sums:
    """Sums of channels' amounts by owner."""

    def __init__(self) -> None:
        self._amounts: dict[ChannelKey, tuple[Address, int]] = {}
        self._totals: dict[Address, int] = {}
        self._noted: dict[ChannelKey, tuple[Address, int]] = {}

    def total(self, owner: Address) -> int:
        """Return the sum over all channels of an owner."""
        return self._totals.get(owner, 0)

    def room(self, owner: Address, key: ChannelKey, bound: int) -> int:
        """Return how much one channel may have beside the owner's other channels."""
        known = self._amounts.get(key)
        return bound - self._totals.get(owner, 0) + (0 if known is None else known[1])

    def note(self, owner: Address, key: ChannelKey, amount: int) -> None:
        """Set the amount of one channel."""
        known = self._amounts.get(key)
        before = 0 if known is None else known[1]
        self._amounts[key] = self._noted[key] = (owner, amount)
        self._totals[owner] = self._totals.get(owner, 0) + amount - before

    def begin(self) -> None:
        """Start a sweep: it may miss amounts noted from now on."""
        self._noted = {}

    def end(self, seen: Mapping[ChannelKey, tuple[Address, int]]) -> None:
        """Replace the sums with the sweep's, and keep amounts noted meanwhile."""
        self._amounts = dict(seen)
        for key, (owner, amount) in self._noted.items():
            seen_too = self._amounts.get(key, (owner, 0))[1]
            self._amounts[key] = (owner, max(amount, seen_too))
        self._totals = {}
        for owner, amount in self._amounts.values():
            self._totals[owner] = self._totals.get(owner, 0) + amount


class ExposureGate:
    """Refuses what would exceed a bound (`channel.engine.admission.Admission`)."""

    def __init__(self, limits: ExposureLimits | None = None) -> None:
        self._limits = limits or ExposureLimits()
        self._by_signer = _Sums()
        self._contract_by_signer = _Sums()
        self._contract_by_payer = _Sums()
        self._has_looked = False
        self.distrusted: frozenset[Address] = frozenset()
        """Contracts that revoked a voucher, and the payers that used them (O-01)."""
        self._swept = 0
        self._taken = 0
        self._taken_before = 0
        self._blocked: set[ChannelKey] = set()
        self.refused: frozenset[ChannelKey] = frozenset()
        """Channels that the chain refuses to settle now, as read from the quarantine."""
        self.is_gas_low = False
        """Set while the account has too little ether to close one more channel."""
        self.is_unpayable = False
        """Set while the token would refuse to pay the payee (O-13)."""
        self.is_key_shared = False
        """Set while another process settles or closes with the payee's key outside this ledger."""
        self.is_disputed = False
        """Set while nodes show different chains and no majority agrees on one."""

    @property
    def total(self) -> int:
        """The known sum of `spent + reserved - settled` over all channels."""
        return self._swept + self._taken

    @property
    def is_crowded(self) -> bool:
        """Whether half of the bound on all channels together is reached, so that settling is due.

        Also while another process uses the payee's key: it could close channels for what is
        settled.
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
        """Whether a signer has reached half of its bound, so that settling is due."""
        pairs = (
            (self._by_signer, self._limits.signer_max),
            (self._contract_by_signer, self._limits.contract_signed_max),
        )
        return any(
            bound is not None and sums.total(signer) > 0 and 2 * sums.total(signer) >= bound
            for sums, bound in pairs
        )

    def begin_sweep(self) -> None:
        """Mark the start of a sweep: it may miss amounts accepted from now on."""
        self._taken_before = self._taken
        for sums in (self._by_signer, self._contract_by_signer, self._contract_by_payer):
            sums.begin()

    def end_sweep(self, total: int, promises: Mapping[ChannelKey, Promise] | None = None) -> None:
        """Take over the sweep's total, and its accepted amounts by channel."""
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
        """Accept contract wallets from now on, except these: every channel has been read."""
        self.distrusted = distrusted
        self._has_looked = True

    @property
    def blocked(self) -> frozenset[ChannelKey]:
        """Channels that are not served because of their wallets."""
        return frozenset(self._blocked)

    def block(self, key: ChannelKey) -> None:
        """Stop serving a channel: its payer's signatures may be worthless (F-19)."""
        self._blocked.add(key)

    def unblock(self, key: ChannelKey) -> None:
        """Serve the channel again."""
        self._blocked.discard(key)

    def require_promise(self, voucher: VerifiedVoucher, known: ChannelState) -> None:
        """See `channel.engine.admission.Admission.require_promise`."""
        key, terms = voucher.key, known.terms
        if key in self._blocked:
            raise ExposureLimitError("The contract wallet no longer accepts its earlier voucher.")
        if key in self.refused:
            raise ExposureLimitError("The chain refuses to settle this channel now: retry later.")
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
        """Return the sums a voucher counts in, each with owner, bound and name."""
        limits, counted = self._limits, []
        if limits.signer_max is not None:
            where = "on all channels of one signer"
            counted.append((self._by_signer, terms.signer, limits.signer_max, where))
        bound = limits.contract_signed_max
        if by_contract and bound is not None:
            where = "by contract-signed vouchers of one signer or payer"
            counted.append((self._contract_by_signer, terms.signer, bound, where))
            counted.append((self._contract_by_payer, terms.payer, bound, where))
        return counted

    def _require_trusted(self, terms: ChannelTerms) -> None:
        """Refuse vouchers of a contract that revoked one, or whose record is unread (O-01)."""
        if not self.distrusted.isdisjoint((terms.signer, terms.payer)):
            raise ExposureLimitError(
                "The chain refused an earlier voucher of this signer's contract: open a channel "
                "whose `authorizedSigner` is an ordinary key."
            )
        if self._limits.contract_signed_max is not None and not self._has_looked:
            raise ExposureLimitError("The server has just started: retry in a few seconds.")

    def _require_payable(self) -> None:
        if self.is_unpayable:
            raise ExposureLimitError("The token pays nothing out now: the server sells nothing.")

    def take_room(self, amount: int) -> None:
        """See `channel.engine.admission.Admission.take_room`."""
        if amount > 0:
            self._require_payable()
        bound = self._limits.total_max
        if bound is not None and amount > 0 and self.total + amount > bound:
            raise ExposureLimitError("The server's limit of unsettled amounts is reached: retry.")
        self._taken += amount

    def give_back(self, amount: int) -> None:
        """See `channel.engine.admission.Admission.give_back`. A sweep may have run in between.

        During a sweep the amount counts as taken before the sweep; otherwise the sweep could also
        forget room taken meanwhile. The next sweep corrects the excess.
        """
        self._taken = max(0, self._taken - amount)
        self._taken_before = max(0, self._taken_before - amount)

    def require_openings(self) -> None:
        """See `channel.engine.admission.Admission.require_openings`."""
        if self.is_key_shared or self.is_unpayable or self.is_gas_low:
            raise OpeningsPausedError("The server accepts no new channels now: retry later.")
        self.require_deposits()

    def require_deposits(self) -> None:
        """See `channel.engine.admission.Admission.require_deposits`."""
        if self.is_disputed:
            raise ChainUnavailableError("Nodes disagree: deposits cannot be checked now.")


def _beyond(where: str, bound: int, taken_now: int) -> ExposureLimitError:
    return ExposureLimitError(
        f"At most {bound} may be unsettled {where}: send a voucher for up to {taken_now} now."
    )
