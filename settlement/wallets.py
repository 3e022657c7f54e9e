"""Contract wallets: whose vouchers are worth something only as long as the wallet says so (F-19).

Whether a signer is one needs no node: a voucher whose signature recovers to its signer is a
key's, and the escrow takes that whatever code the account has since got (F-18). Every other one
depends on the wallet, so it is settled often and asked for again while something is unsettled.
"""

from collections import OrderedDict
from typing import Final

from channel.errors import InvalidSignatureError
from channel.state.channel_state import ChannelState
from channel.types import ChannelKey
from channel.verify.signature import recover
from channel.verify.typed_data import voucher_digest

__all__ = ["WalletSigners"]

_KNOWN_MAX: Final = 65_536


class WalletSigners:
    """Remembers which channels' vouchers are a wallet's. Bounded."""

    def __init__(self) -> None:
        self._known = OrderedDict[ChannelKey, bool]()

    def is_wallet(self, state: ChannelState) -> bool:
        """Whether this channel's vouchers are taken only as long as a contract says so."""
        known = self._known.get(state.key)
        if known is None:
            known = self._known[state.key] = _is_wallet(state)
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        return known


def _is_wallet(state: ChannelState) -> bool:
    voucher = state.highest
    if not voucher.signature:
        return False  # nothing was signed
    digest = voucher_digest(state.key, voucher.cumulative_amount)
    try:
        return recover(digest, voucher.signature) != state.terms.signer
    except InvalidSignatureError:
        return True
