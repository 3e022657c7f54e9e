"""The way from an offer to a request that may be sent: one table (pure).

`Payer` does what a stage says, and the table says what follows its outcome. The slot's lock is held
from `OBTAIN` to `SEND`, and beyond it while a deposit is attached.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final, Literal

__all__ = ["NEXT", "Outcome", "Stage"]

Outcome = Literal[
    "open",  # the channel is open
    "opening",  # the channel needs its deposit
    "sent",  # its deposit was made by this account's transaction
    "signed",  # its deposit is signed, for the server to make
    "covered",  # the deposit that is made covers the voucher
    "alone",  # the voucher needs a signed deposit, and no other request waits
    "shared",  # the same, and others wait
    "refused",  # the server did not make a deposit without the request
]


class Stage(Enum):
    """What to do next for a request."""

    OBTAIN = "find the slot's channel, or plan one: durable before anything is sent"
    DEPOSIT = "sign or make the deposit of a channel that is opening"
    PRESENT = "present the opening transaction with a first voucher, by HEAD"
    SIGN = "make the voucher's amount durable, then sign it"
    HEAD = "present voucher and deposit by HEAD, so that the others can go on"
    ATTACH = "attach the deposit to the request; others wait until it is answered"
    SEND = "send the request with its credential"


NEXT: Final[Mapping[tuple[Stage, Outcome], Stage]] = {
    (Stage.OBTAIN, "open"): Stage.SIGN,
    (Stage.OBTAIN, "signed"): Stage.SIGN,  # planned just now, with its deposit
    (Stage.OBTAIN, "opening"): Stage.DEPOSIT,
    (Stage.DEPOSIT, "open"): Stage.SIGN,  # by a request that was cancelled
    (Stage.DEPOSIT, "signed"): Stage.SIGN,
    (Stage.DEPOSIT, "sent"): Stage.PRESENT,
    (Stage.PRESENT, "open"): Stage.SIGN,
    (Stage.SIGN, "covered"): Stage.SEND,
    (Stage.SIGN, "alone"): Stage.ATTACH,
    (Stage.SIGN, "shared"): Stage.HEAD,
    (Stage.HEAD, "covered"): Stage.SEND,
    (Stage.HEAD, "refused"): Stage.ATTACH,  # only the request is answered with a reason
    (Stage.ATTACH, "covered"): Stage.SEND,
}
