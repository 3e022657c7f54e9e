"""Contract wallets: their vouchers are valid only while the wallet accepts them (F-19).

A voucher whose signature recovers to its signer is a key's. The escrow accepts it even if the
account gets code later (F-18), so no node is needed to check it. Every other voucher depends on the
wallet: it is settled often, and checked again while part of it is unsettled. An account with
delegated code may sign either way, so each voucher that may be used is judged anew.
"""

from collections import OrderedDict

from channel.errors import InvalidSignatureError
from channel.limits import WALLETS_KNOWN_MAX
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.types import ChannelKey
from channel.verify.signature import recover
from channel.verify.typed_data import voucher_digest

__all__ = ["WalletSigners"]


class WalletSigners:
    """Remembers whether a channel's stored vouchers are a wallet's. Bounded."""

    def __init__(self, domain: str) -> None:
        """Judge vouchers under the EIP-712 domain of this name."""
        self._domain = domain
        self._known = OrderedDict[tuple[ChannelKey, int], tuple[bytes, bool]]()

    def is_wallet(self, state: ChannelState) -> bool:
        """Whether payment of what this channel owes depends on a contract's answer."""
        return self._is_wallets(state, state.at_or_above_spent or state.highest)

    def amount(self, state: ChannelState) -> int:
        """Return the unsettled base units that depend on a contract's answer.

        Every voucher that may be used counts: a higher voucher signed by a delegated account's key
        does not secure a lower one that is used instead.
        """
        kept = (state.at_or_below_spent, state.above_spent, state.highest)
        return max(
            (
                voucher.cumulative_amount - state.settled
                for voucher in kept
                if voucher is not None
                and voucher.cumulative_amount > state.settled
                and self._is_wallets(state, voucher)
            ),
            default=0,
        )

    def _is_wallets(self, state: ChannelState, voucher: LadderVoucher) -> bool:
        at = (state.key, voucher.cumulative_amount)
        known = self._known.get(at)
        if known is None or known[0] != voucher.signature:
            known = self._known[at] = (voucher.signature, _is_wallet(state, voucher, self._domain))
            self._known.move_to_end(at)
            if len(self._known) > WALLETS_KNOWN_MAX:
                self._known.popitem(last=False)
        return known[1]


def _is_wallet(state: ChannelState, voucher: LadderVoucher, domain: str) -> bool:
    if not voucher.signature:
        return False  # no voucher is stored
    digest = voucher_digest(state.key, voucher.cumulative_amount, domain)
    try:
        return recover(digest, voucher.signature) != state.terms.signer
    except InvalidSignatureError:
        return True
