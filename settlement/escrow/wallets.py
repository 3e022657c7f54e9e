"""Contract wallets: whose vouchers are worth something only as long as the wallet says so (F-19).

Whether a voucher is one's needs no node: if its signature recovers to its signer it is a key's, and
the escrow takes that whatever code the account has since got (F-18). Every other one depends on
the wallet, so it is settled often and asked for again while something is unsettled. A delegated
account may sign now this way, now that: the voucher that would be used decides, each time anew.
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
    """Remembers whether the vouchers kept of a channel are a wallet's. Bounded."""

    def __init__(self) -> None:
        self._known = OrderedDict[tuple[ChannelKey, int], tuple[bytes, bool]]()

    def is_wallet(self, state: ChannelState) -> bool:
        """Whether what this channel owes is paid only as long as a contract says so."""
        return self._is_wallets(state, state.at_or_above_spent or state.highest)

    def amount(self, state: ChannelState) -> int:
        """Return how much is unsettled of what only a contract vouches for.

        That is by any voucher that may yet be used: one of a delegated account's key that is
        higher does not make good a lower one that is used instead.
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
            known = self._known[at] = (voucher.signature, _is_wallet(state, voucher))
            self._known.move_to_end(at)
            if len(self._known) > WALLETS_KNOWN_MAX:
                self._known.popitem(last=False)
        return known[1]


def _is_wallet(state: ChannelState, voucher: LadderVoucher) -> bool:
    if not voucher.signature:
        return False  # nothing was signed
    digest = voucher_digest(state.key, voucher.cumulative_amount)
    try:
        return recover(digest, voucher.signature) != state.terms.signer
    except InvalidSignatureError:
        return True
