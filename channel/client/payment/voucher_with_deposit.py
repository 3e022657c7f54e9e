"""A voucher, with the signed deposit that must be made before it can be paid (VCH-06)."""

import msgspec

from channel.types import SignedVoucher
from channel.wire.funding import Deposit
from channel.wire.payload import OpenAuthorization, OpenPermit2, VoucherPayload, build_open

__all__ = ["VoucherWithDeposit"]


class VoucherWithDeposit(msgspec.Struct, frozen=True):
    """The content of a credential that is about to be sent."""

    voucher: SignedVoucher
    deposit: Deposit | None = None
    """An opening or a top-up that is not known to have been made."""
    goal: int = 0
    """The channel's deposit once that is made, in base units."""

    @property
    def opens(self) -> bool:
        """Whether the deposit opens the channel."""
        return self.deposit is not None and self.deposit.action == "open"

    @property
    def payload(self) -> OpenAuthorization | OpenPermit2 | VoucherPayload:
        """The credential's payload, including the deposit."""
        if self.deposit is not None and self.opens:
            return build_open(self.deposit, self.voucher)
        return VoucherPayload(self.voucher, self.deposit)
