"""A voucher, and the signed deposit that must be made before it is worth its amount (VCH-06)."""

import msgspec

from channel.types import SignedVoucher
from channel.wire.funding import Deposit
from channel.wire.payload import OpenAuthorization, OpenPermit2, VoucherPayload, build_open

__all__ = ["Promise"]


class Promise(msgspec.Struct, frozen=True):
    """What a credential will say."""

    voucher: SignedVoucher
    deposit: Deposit | None = None
    """One that opens the channel or tops it up, and is not known to have been made."""
    goal: int = 0
    """What the channel holds once it has been, in base units."""

    @property
    def opens(self) -> bool:
        """Whether the deposit is the channel's first."""
        return self.deposit is not None and self.deposit.action == "open"

    @property
    def payload(self) -> OpenAuthorization | OpenPermit2 | VoucherPayload:
        """The credential's payload, deposit and all."""
        if self.deposit is not None and self.opens:
            return build_open(self.deposit, self.voucher)
        return VoucherPayload(self.voucher, self.deposit)
