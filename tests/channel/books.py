"""Channels, facts and vouchers for tests of the books, with what does not matter left out.

Signatures here are bytes without meaning: `channel.state` and `channel.ledger` are handed
`VerifiedVoucher`s and keep what is in them.
"""

from functools import reduce

from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.commands import AcceptVoucher, Command, OpenChannel, Reserve, StreamPolicy
from channel.state.transitions import transition
from channel.types import (
    ZERO_ADDRESS,
    Address,
    ChannelFact,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    VerifiedVoucher,
)

NOW = 1_800_000_000
LEASE = NOW + 60
DEPOSIT = 1_000
ESCROW = Address(b"\xe5" * 20)
TERMS = ChannelTerms(
    payer=Address(b"\xa1" * 20),
    payee=Address(b"\xb2" * 20),
    token=Address(b"\xc3" * 20),
    authorized_signer=ZERO_ADDRESS,
)


def key_of(number: int) -> ChannelKey:
    return ChannelKey(31337, ESCROW, ChannelId(number.to_bytes(32, "big")))


KEY = key_of(1)


def fact(
    key: ChannelKey = KEY,
    *,
    deposit: int = DEPOSIT,
    settled: int = 0,
    close_requested_at: int = 0,
    is_finalized: bool = False,
    block: int = 100,
) -> ChannelFact:
    return ChannelFact(key, TERMS, deposit, settled, close_requested_at, is_finalized, block)


def signature(amount: int) -> bytes:
    return amount.to_bytes(16, "big") * 4 + b"\x1b"


def voucher(amount: int, key: ChannelKey = KEY, *, is_new: bool = False) -> VerifiedVoucher:
    """A payer's voucher; signed with entropy, so that its signature is another, if `is_new`."""
    made = signature(amount)
    return VerifiedVoucher(key, amount, made[:-1] + b"\x1c" if is_new else made)


def opening(
    amount: int = 0, key: ChannelKey = KEY, *, seen: ChannelFact | None = None
) -> OpenChannel:
    return OpenChannel(seen or fact(key), voucher(amount, key), NOW)


def accepting(amount: int, key: ChannelKey = KEY, *, min_voucher_delta: int = 1) -> AcceptVoucher:
    return AcceptVoucher(voucher(amount, key), min_voucher_delta, NOW)


def reserving(
    name: bytes,
    amount: int,
    *,
    amount_min: int = 1,
    presented: int = DEPOSIT,
    kind: ReservationKind = ReservationKind.REQUEST,
    lease: int = LEASE,
    policy: StreamPolicy = StreamPolicy.REPLACE,
) -> Reserve:
    return Reserve(name, kind, amount_min, amount, presented, 1, lease, policy)


def streaming(name: bytes, amount: int, **more: object) -> Reserve:
    return reserving(name, amount, kind=ReservationKind.STREAM, **more)  # type: ignore[arg-type]


def run(*commands: Command, state: ChannelState | None = None) -> ChannelState:
    """Return the channel after all commands; one that is refused raises."""
    after = reduce(transition, commands, state)
    assert after is not None
    return after
