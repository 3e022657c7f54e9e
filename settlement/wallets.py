"""Contract wallets: whose vouchers are worth something only as long as the wallet says so (F-19).

Whether a voucher is one's needs no node: if its signature recovers to its signer it is a key's, and
the escrow takes that whatever code the account has since got (F-18). Every other one depends on
the wallet, so it is settled often and asked for again while something is unsettled. A delegated
account may sign now this way, now that: the voucher that would be used decides, each time anew.
"""

from collections import OrderedDict
from typing import Final

from channel.errors import InvalidSignatureError
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.types import ChannelKey
from channel.verify.signature import recover
from channel.verify.typed_data import voucher_digest

__all__ = ["WalletSigners"]

_KNOWN_MAX: Final = 65_536


class WalletSigners:
    """Remembers whether a channel's newest vouchers are a wallet's. Bounded."""

    def __init__(self) -> None:
        self._known = OrderedDict[ChannelKey, tuple[bytes, bool]]()

    def is_wallet(self, state: ChannelState) -> bool:
        """Whether what this channel owes is paid only as long as a contract says so."""
        voucher = state.at_or_above_spent or state.highest
        known = self._known.get(state.key)
        if known is None or known[0] != voucher.signature:
            known = self._known[state.key] = (voucher.signature, _is_wallet(state, voucher))
            self._known.move_to_end(state.key)
            if len(self._known) > _KNOWN_MAX:
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
